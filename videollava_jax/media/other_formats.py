"""Names files that are neither read as an image nor as a video, so that an error can say what came and what to do.

FFmpeg finds videos in what is none: a JPEG within an archive or a document is enough for its probe. So these files are
refused by their first bytes before it sees them.
"""

from __future__ import annotations

from dataclasses import dataclass

from videollava_jax.extras import installs
from videollava_jax.media.source import OpenSource

_CONVERT = "convert it to PNG or JPEG"
_UNPACK = "unpack it first"
_EXPORT = "export its pages as images"


@dataclass(frozen=True)
class OtherFormat:
    """A format that is not read.

    Attributes:
      name: with its article.
      advice: what to do.
      is_image: whether it is a picture.
    """

    name: str
    advice: str
    is_image: bool = False


_ARCHIVE = {
    b"PK\3\4": "a ZIP archive (office documents are such)",
    b"PK\5\6": "an empty ZIP archive",
    b"PK\7\x08": "a part of a ZIP archive",
    b"Rar!\x1a\7": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"!<arch>\n": "an ar archive",
}
_DOCUMENT = {
    b"%PDF-": "a PDF document",
    b"%!PS": "a PostScript document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document of the old kind (OLE)",
    b"{\\rtf": "an RTF document",
}
_PICTURE = {
    b"icns": "an ICNS icon",
    b"8BPS": "a Photoshop image",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL image",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance HDR image",
    b"DDS ": "a DDS texture",
    b"qoif": "a QOI image",
    b"gimp xcf": "a GIMP image",
    b"SIMPLE  =": "a FITS image",
    b"<svg": "an SVG drawing",
    b"II\xbc": "a JPEG XR image",
    b"BPG\xfb": "a BPG image",
}
_PROGRAM = {
    b"\x7fELF": "a program (ELF)",
    b"MZ": "a program (PE)",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "a Parquet file",
}
_TABLES = (
    (_ARCHIVE, _UNPACK, False),
    (_DOCUMENT, _EXPORT, False),
    (_PICTURE, _CONVERT, True),
    (_PROGRAM, "give an image or a video", False),
)
_TAR = (257, b"ustar")
_TGA = (-18, b"TRUEVISION-XFILE.\0")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1")
HEIC = OtherFormat("a HEIC image", f"{installs('heic')}, or convert it to JPEG", is_image=True)
AVIF = OtherFormat("an AVIF image", "this build of Pillow cannot read it: convert it", is_image=True)
TIFF = OtherFormat("a TIFF of a kind that Pillow does not read", "convert it to PNG, 8 bits a channel", is_image=True)


def is_heic(head: bytes) -> bool:
    """Returns whether a file that begins so is a HEIC image; `mif1` may be AVIF too."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC and b"avif" not in head[:64]


def other_format(source: OpenSource) -> OtherFormat | None:
    """Returns what a file is that cannot be media, or an image that is not read here; None if it may be media."""
    head = source.read(0, 512)
    for table, advice, is_image in _TABLES:
        for magic, name in table.items():
            if head.startswith(magic):
                return OtherFormat(name, advice, is_image)
    if head[_TAR[0] :].startswith(_TAR[1]):
        return OtherFormat("a tar archive", _UNPACK)
    if source.size > 44 and source.read(source.size + _TGA[0], 18) == _TGA[1]:
        return OtherFormat("a TGA image", _CONVERT, is_image=True)
    return None
