"""Writes field pictures of H.264 (PAFF) and MPEG-2, which no encoder at hand writes: every frame is two packets.

In H.264 all macroblocks are stored as they are (I_PCM), so nothing has to be compressed (ITU-T H.264, sections 7.3 and
7.4); in MPEG-2 every block has one level of grey (ISO/IEC 13818-2, sections 6.2 and 7.2).
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from tests.media.clips import BITEXACT

WIDTH, HEIGHT = 64, 64
_REFERENCE, _SLICE, _IDR, _MESSAGE, _SEQUENCE, _PICTURE, _DELIMITER = 2, 1, 5, 6, 7, 8, 9


class _Writer:
    """Writes bits."""

    def __init__(self):
        self.bits = []

    def fixed(self, count, value):
        self.bits += [value >> count - 1 - i & 1 for i in range(count)]
        return self

    def golomb(self, *values):
        for value in values:
            self.fixed(2 * (value + 1).bit_length() - 1, value + 1)
        return self

    def aligned(self, bit=0):
        self.bits += [bit] * (-len(self.bits) % 8)
        return self

    def content(self):
        """The bytes with the stop bit."""
        self.fixed(1, 1).aligned()
        return np.packbits(np.array(self.bits, np.uint8)).tobytes()


def _unit(kind, content, reference=0):
    escaped, zeros = bytearray(), 0
    for byte in content:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([reference << 5 | kind]) + bytes(escaped)


def _parameter_sets(rate):
    sequence = _Writer().fixed(8, 77).fixed(8, 0).fixed(8, 30)  # main profile, level 3
    sequence.golomb(0, 4, 0, 4, 1).fixed(1, 0)  # ids, 8 bits of frame numbers and of order, one reference frame
    sequence.golomb(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    sequence.fixed(1, 0).fixed(1, 0).fixed(1, 1).fixed(1, 0)  # fields, by picture; direct inference; no cropping
    sequence.fixed(1, 1).fixed(4, 0).fixed(1, 1).fixed(32, 1).fixed(32, 2 * rate).fixed(1, 1)  # the clock
    sequence.fixed(3, 0b001).fixed(1, 0)  # no buffering, pic_struct present, no restrictions
    picture = _Writer().golomb(0, 0).fixed(2, 0).golomb(0, 0, 0).fixed(3, 0).golomb(0, 0, 0).fixed(3, 0b100)
    return _unit(_SEQUENCE, sequence.content(), 3) + _unit(_PICTURE, picture.content(), 3)


def _field(level, number, bottom, idr):
    """Returns a field of one grey level."""
    header = _Writer().golomb(0, 7, 0).fixed(8, number).fixed(1, 1).fixed(1, bottom)
    if idr:
        header.golomb(0)
    header.fixed(8, 2 * number + bottom).fixed(2 if idr else 1, 0).golomb(0, 1)  # marking, quantiser, no deblocking
    pixels = np.unpackbits(np.array([level] * 256 + [128] * 128, np.uint8)).tolist()
    for _ in range(WIDTH // 16 * (HEIGHT // 32)):
        header.golomb(25).aligned()
        header.bits += pixels
    return _unit(_IDR if idr else _SLICE, header.content(), _REFERENCE)


def level(number):
    """The grey of frame `number`, in both fields."""
    return 20 + 4 * number


def field_pictures(frames=48, rate=25, group=12):
    """Returns a raw stream; frame i has the grey `level(i)`."""
    written = b""
    for i in range(frames):
        number = i % group
        for bottom in (0, 1):
            idr = number == 0 and not bottom
            written += _unit(_DELIMITER, b"\x10") + (_parameter_sets(rate) if idr else b"")
            timing = _Writer().fixed(4, 1 + bottom).fixed(1, 0).aligned()  # top or bottom field
            message = np.packbits(np.array(timing.bits, np.uint8)).tobytes()
            written += _unit(_MESSAGE, bytes([1, len(message)]) + message + b"\x80")
            written += _field(level(i), number, bottom, idr)
    return written


# Codes of the length of a luminance difference (table B-12), by that length.
_LENGTHS = ("100", "00", "01", "101", "110", "1110", "11110", "111110", "1111110")


def _code(kind, *fields):
    """Returns a start code with its fields, pairs of a number of bits and a value."""
    writer = _Writer()
    for count, value in fields:
        writer.fixed(count, value)
    return b"\0\0\1" + bytes([kind]) + np.packbits(np.array(writer.aligned().bits, np.uint8)).tobytes()


def _mpeg2_row(row, grey):
    """Returns a slice: a row of macroblocks of one grey."""
    difference = grey - 128
    size = abs(difference).bit_length()
    coded = f"{difference if difference >= 0 else difference + (1 << size) - 1:0{size}b}" if size else ""
    first, same, chroma = _LENGTHS[size] + coded + "10", _LENGTHS[0] + "10", "0010"
    blocks = first + same * 3 + chroma * 2
    bits = "00001" + "0" + "11" + blocks + ("11" + same * 4 + chroma * 2) * (WIDTH // 16 - 1)
    bits += "0" * (-len(bits) % 8)
    return b"\0\0\1" + bytes([row + 1]) + int(bits, 2).to_bytes(len(bits) // 8, "big")


def mpeg2_field_pictures(frames=24, group=12):
    """Returns a raw stream at 25 frames a second; frame i has the grey `level(i)`."""
    written = b""
    for i in range(frames):
        if i % group == 0:
            written += _code(0xB3, (12, WIDTH), (12, HEIGHT), (4, 1), (4, 3), (18, 5000), (1, 1), (10, 100), (3, 0))
            written += _code(0xB5, (4, 1), (8, 0x48), (1, 0), (2, 1), (4, 0), (12, 0), (1, 1), (8, 0), (1, 0), (7, 0))
            written += _code(0xB8, (12, 0), (1, 1), (6, i // 25), (6, i % 25), (1, 1), (1, 0))
        for bottom in (0, 1):
            written += _code(0x00, (10, i % group), (3, 1), (16, 0xFFFF), (1, 0))
            written += _code(0xB5, (4, 8), (16, 0xFFFF), (2, 0), (2, 1 + bottom), (10, 0))
            written += b"".join(_mpeg2_row(row, level(i)) for row in range(HEIGHT // 32))
    return written


def remux(source, target, halves=None):
    """Copies the packets of a file's video into another container.

    Packets without a time get one half a frame on. With `halves`, a function that divides a packet's bytes into two,
    each becomes two packets of half a frame.
    """
    with av.open(str(source)) as read, av.open(str(target), "w", options=BITEXACT) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for i, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            if packet.dts is None:
                packet.pts = packet.dts = round(i / (50 * packet.time_base))
            for half, part in enumerate(halves(bytes(packet)) if halves else ()):
                copy = av.Packet(part)
                copy.pts = copy.dts = 2 * i + half
                copy.time_base, copy.stream, copy.is_keyframe = Fraction(1, 50), stream, packet.is_keyframe and not half
                written.mux(copy)
            if not halves:
                packet.stream = stream
                written.mux(packet)
    return target
