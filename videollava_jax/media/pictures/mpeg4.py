"""Counts pictures in packets of MPEG-4 part 2 (ISO/IEC 14496-2, section 6.2), DivX and Xvid among them."""

from __future__ import annotations

import re

from videollava_jax.media.pictures.count import Bits, Broken, Count

_CODE = re.compile(b"\0\0\1(.)", re.DOTALL)
_PICTURE, _LAYERS, _B = 0xB6, range(0x20, 0x30), 2
_RECTANGULAR, _GREY, _EXTENDED_RATIO = 0, 3, 15
# What encoders write in place of a frame that they drop.
_PLACEHOLDER = b"\x7f"


class Mpeg4Counter:
    """See `Counter`.

    A "packed" packet holds a P and a B picture; the packet after it holds a picture that is marked as not coded. Such
    a picture repeats the one before it: decoders show none for it.
    """

    def __init__(self, extradata: bytes):
        self._time_bits: int | None = None
        self._learn(extradata)

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        self._learn(packet)
        if packet == _PLACEHOLDER:
            return Count(shown=0)
        starts = [code.start() for code in _CODE.finditer(packet)]
        if not starts or packet[: starts[0]].strip(b"\0"):
            raise Broken("it does not begin with a start code")
        shown, pictures, only_b = 0, 0, True
        for start, end in zip(starts, [*starts[1:], len(packet)], strict=True):
            if packet[start + 3] != _PICTURE:
                continue
            pictures += 1
            kind, coded = self._picture(packet[start + 4 : end])
            shown += coded
            only_b &= kind == _B
        if not pictures:
            raise Broken("it holds no picture")
        return Count(shown, only_b=only_b)

    def _picture(self, header: bytes) -> tuple[int, bool]:
        """Returns the type of a picture, and whether it is coded."""
        bits = Bits(header[:32])
        kind = bits.take(2)
        if self._time_bits is None:
            return kind, True
        while bits.take(1):  # a second each
            pass
        bits.take(1 + self._time_bits + 1)
        if bits.take(1):
            return kind, True
        # Then only stuffing may follow: a 0 and ones up to the next byte.
        stuffing = bits.take(bits.left % 8)
        if stuffing & (stuffing + 1) or header[len(header[:32]) - bits.left // 8 :].strip(b"\0\x7f\xff"):
            raise Broken("a picture that is marked as not coded, and coded")
        return kind, False

    def _learn(self, data: bytes) -> None:
        for code in _CODE.finditer(data[:4096]):
            if code[1][0] in _LAYERS:
                try:
                    self._time_bits = _time_bits(Bits(data[code.end() : code.end() + 40]))
                except Broken:
                    return
                return


def _time_bits(bits: Bits) -> int:
    """Reads a video object layer up to its clock: returns the bits of a picture's time within a second."""
    bits.take(1 + 8)
    version = 1
    if bits.take(1):
        version = bits.take(4)
        bits.take(3)
    if bits.take(4) == _EXTENDED_RATIO:
        bits.take(16)
    if bits.take(1):
        bits.take(2 + 1)
        if bits.take(1):
            bits.take(79)
    shape = bits.take(2)
    if shape == _GREY and version != 1:
        bits.take(4)
    bits.take(1)
    ticks = bits.take(16)
    return max(1, (ticks - 1).bit_length())
