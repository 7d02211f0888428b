"""Makes small files that announce huge images, videos and indexes."""

import io
import re
import struct
import zlib
from fractions import Fraction

import av
from PIL import Image

from tests.media.clips import box, write, x264

MEGABYTE = 2**20


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def png_bomb(width=9000, height=9000):
    """Returns 243 MB of black pixels as a PNG of some 10 kB; PIL warns only of larger ones."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    pixels = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def image_bomb(format, width=9000, height=9000, **options):
    """Returns a small image whose header announces a large one."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 9, 9)).save(file, format=format, **options)
    content = bytearray(file.getvalue())
    if format == "JPEG":
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    elif format == "GIF":
        struct.pack_into("<HH", content, 6, width, height)
    elif format == "BMP":
        struct.pack_into("<ii", content, 18, width, height)
    elif format == "WEBP":  # an animation: VP8X
        content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif format == "AVIF":
        struct.pack_into(">II", content, content.index(b"ispe") + 8, width, height)
    return bytes(content)


def sequence_parameters(width, height):
    """Returns an H.264 sequence parameter set (ITU-T H.264, 7.3.2.1), baseline profile."""
    bits = ""

    def fixed(count, value):
        nonlocal bits
        bits += f"{value:0{count}b}"

    def golomb(value):
        nonlocal bits
        binary = f"{value + 1:b}"
        bits += "0" * (len(binary) - 1) + binary

    fixed(8, 66), fixed(8, 0xC0), fixed(8, 62)
    for value in (0, 0, 2, 1):  # id, bits of frame numbers, order by decoding, reference frames
        golomb(value)
    fixed(1, 0), golomb(width // 16 - 1), golomb(height // 16 - 1)
    fixed(5, 0b10001)  # frames only, no direct inference, no cropping, no VUI, the stop bit
    bits += "0" * (-len(bits) % 8)
    content = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\x67" + re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", content)


def h264_bomb(folder, name, width=8192, height=8192):
    """Writes a small video whose sequence parameters announce a large one, though its container does not."""
    small = write(
        folder / "small.h264", "libx264", frames=10, options=x264(bframes=0, cabac=0) | {"profile": "baseline"}
    )
    huge = sequence_parameters(width, height)

    def swapped(content):
        units = [unit for unit in re.split(b"\0\0\0?\1", content) if unit]
        return b"".join(b"\0\0\0\1" + (huge if unit[0] & 31 == 7 else unit) for unit in units)

    path = folder / name
    if path.suffix == ".h264":
        path.write_bytes(swapped(small.read_bytes()))
        return path
    parameters = [unit for unit in re.split(b"\0\0\0?\1", small.read_bytes()) if unit and unit[0] & 31 == 8]
    with av.open(str(small)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        stream.codec_context.extradata = b"\0\0\0\1" + huge + b"\0\0\0\1" + parameters[0]
        for i, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            copy = av.Packet(swapped(bytes(packet)))
            copy.pts = copy.dts = 100 * i
            copy.time_base, copy.stream, copy.is_keyframe = Fraction(1, 1000), stream, packet.is_keyframe
            written.mux(copy)
    return path


def announced(content, samples, *, values=False):
    """Returns an MP4 whose index announces `samples` samples of one byte, without making the file longer."""
    content = bytearray(content)
    struct.pack_into(">II", content, box(content, b"stsz") + 4, 1, samples)
    struct.pack_into(">I", content, box(content, b"stsc") + 8 + 4, samples)
    struct.pack_into(">II", content, box(content, b"stts") + 8, samples, 1 if values else 512)
    if values:  # of sound
        handler = box(content, b"hdlr") + 8
        content[handler : handler + 4] = b"soun"
    return bytes(content)


def boxed(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def compressed_index(size):
    """Returns a QuickTime file whose compressed header unpacks to `size` bytes."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE)) + packer.flush()
    index = boxed(b"cmov", boxed(b"dcom", b"zlib") + boxed(b"cmvd", struct.pack(">I", size) + packed))
    return boxed(b"ftyp", b"qt  \0\0\0\0qt  ") + boxed(b"moov", index) + boxed(b"mdat", bytes(100))
