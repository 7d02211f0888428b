"""Images of every mode, from a file and as a program's own object; formats that are not read."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.media.refusal import check_error, refused
from videollava_jax.engine.digests import content_digest
from videollava_jax.media import Cause, FramePreprocessor, MediaError, MediaLimits, media_kind, read_image, read_video
from videollava_jax.media import image as image_module
from videollava_jax.media.image import rgb_pixels
from videollava_jax.processing.given_media import image_pixels, video_pixels

READERS = (read_image, read_video, media_kind)
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), np.uint8))
AS_READ = FramePreprocessor(size=48, crop_size=48)


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def with_orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return {"exif": exif}


FILES = {
    **{f"{mode}.png": (NOISE.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"{mode}.tif": (NOISE.convert(mode), "TIFF", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")},
    "YCbCr.tif": (NOISE.convert("YCbCr"), "TIFF", {}),
    "LAB.tif": (Image.new("LAB", (64, 48), (120, 30, 200)), "TIFF", {}),
    "I;16.png": (Image.fromarray(RNG.integers(0, 65536, (48, 64), np.uint16)), "PNG", {}),
    "I;16.tif": (Image.fromarray(RNG.integers(0, 65536, (48, 64), np.uint16)), "TIFF", {}),
    "I;16B.tif": (Image.fromarray(RNG.integers(0, 65536, (48, 64), np.uint16).astype(">u2")), "TIFF", {}),
    "I.tif": (Image.fromarray(RNG.integers(0, 65536, (48, 64), np.int32)), "TIFF", {}),
    "F.tif": (Image.fromarray(RNG.random((48, 64), np.float32)), "TIFF", {}),
    "CMYK.jpg": (NOISE.convert("CMYK"), "JPEG", {}),
    **{f"turned{i}.jpg": (NOISE, "JPEG", with_orientation(i)) for i in range(1, 9)},
    "turned6_grey16.png": (Image.fromarray(RNG.integers(0, 65536, (48, 64), np.uint16)), "PNG", with_orientation(6)),
    "clear.png": (NOISE.quantize(16), "PNG", {"transparency": bytes(range(16))}),
    "key.png": (NOISE, "PNG", {"transparency": (1, 2, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_an_object_goes_the_way_of_its_file(name, tmp_path):
    image, format, options = FILES[name]
    path = tmp_path / name
    path.write_bytes(saved(image, format, **options))
    expected = read_image(path)
    assert expected.shape in ((48, 64, 3), (64, 48, 3))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(rgb_pixels(opened), expected)
        size = opened.size
        from_file = image_pixels(path, AS_READ, MediaLimits())
        np.testing.assert_array_equal(image_pixels(opened, AS_READ, MediaLimits()), from_file)
        np.testing.assert_array_equal(video_pixels([opened], AS_READ, None, MediaLimits())[0], from_file)
        assert opened.size == size  # the caller's object is as before


@pytest.mark.parametrize("mode", ["HSV", "RGBX", "RGBa", "La", "PA", "I;16L", "I;16B", "I;16N"])
def test_modes_that_no_file_has(mode):
    if mode.startswith("I;16"):
        image = Image.new(mode, (8, 6), 0x8040)
        np.testing.assert_array_equal(rgb_pixels(image), np.full((6, 8, 3), 0x80, np.uint8))
        return
    through = {"RGBa": "RGBA", "La": "LA"}.get(mode)
    image = NOISE.convert({"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode, "RGB")).convert(mode)
    expected = (image.convert(through) if through else image).convert("RGB")
    np.testing.assert_array_equal(rgb_pixels(image), np.asarray(expected))


def test_floats_are_scaled_from_one_and_refused_beyond():
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    for image in (Image.fromarray(values), io.BytesIO(saved(Image.fromarray(values), "TIFF"))):
        pixels = read_image(image) if isinstance(image, io.BytesIO) else rgb_pixels(image)
        np.testing.assert_array_equal(pixels[0, :, 0], [0, 64, 128, 255])
    for wrong in (-0.1, 1.5, 255, np.nan, np.inf):
        values[0, 0] = wrong
        error = refused(read_image, saved(Image.fromarray(values), "TIFF"), Cause.DECODE_FAILED)
        assert "mode F" in str(error)
        with pytest.raises(MediaError, match="expected 0 to 1, scale them"):
            rgb_pixels(Image.fromarray(values))
    with pytest.raises(MediaError, match="expected 0 to 65535"):
        rgb_pixels(Image.fromarray(np.full((2, 2), 70_000, np.int32)))


def test_images_of_equal_numbers_and_other_colours_are_not_the_same():
    """The engine encodes media of equal digests once."""
    palette = NOISE.quantize(16)
    other = palette.copy()
    other.putpalette(bytes(reversed(palette.getpalette()[:48])))
    turned = Image.open(io.BytesIO(saved(NOISE, "PNG", **with_orientation(3))))
    digests = {content_digest(image) for image in (palette, other, NOISE, turned)}
    assert len(digests) == 4


def test_a_broken_object_is_one_line():
    content = saved(NOISE, "PNG")
    opened = Image.open(io.BytesIO(content[: len(content) // 2]))
    for read in (rgb_pixels, lambda image: image_pixels(image, AS_READ, MediaLimits())):
        with pytest.raises(MediaError) as caught:
            read(opened)
        check_error(caught.value)
    with pytest.raises(MediaError, match="over the limit"):
        image_pixels(NOISE, AS_READ, MediaLimits(max_pixels=48 * 64 - 1))


@pytest.mark.parametrize("shape", [(10_000, 1), (1, 10_000), (30_000, 2), (2, 30_000)])
def test_tall_images_are_cropped_before_they_are_resized(shape):
    pixels = np.broadcast_to(np.linspace(0, 250, max(shape)).astype(np.uint8), (min(shape), max(shape)))
    pixels = pixels.T if shape[0] > shape[1] else pixels
    frame = np.stack([pixels] * 3, -1)
    square = FramePreprocessor()(frame[None])[0]
    assert square.shape == (224, 224, 3)
    assert np.abs(square.astype(int) - frame[shape[0] // 2, shape[1] // 2].astype(int)).max() <= 1


@pytest.mark.parametrize("shape", [(40, 3000), (3, 700)])
def test_cropped_before_or_after(monkeypatch, shape):
    frames = RNG.integers(0, 256, (1, *shape, 3), np.uint8)
    whole = FramePreprocessor()(frames)
    monkeypatch.setattr("videollava_jax.media.preprocess._LONG", 32)
    np.testing.assert_array_equal(FramePreprocessor()(frames), whole)


def test_too_little_memory_is_one_line(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", full)
    for read in (
        lambda: image_pixels(NOISE, AS_READ, MediaLimits()),
        lambda: video_pixels(np.zeros((2, 48, 64, 3), np.uint8), AS_READ, None, MediaLimits()),
        lambda: video_pixels([NOISE], AS_READ, None, MediaLimits()),
    ):
        with pytest.raises(MediaError, match="too little memory to resize") as caught:
            read()
        assert caught.value.cause == Cause.TOO_LARGE
        check_error(caught.value)


# ── what is not read ──


def zipped(name="word/media/image1.jpeg"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, saved(NOISE, "JPEG"))
    return file.getvalue()


JPEG = saved(NOISE, "JPEG")
NOT_MEDIA = {
    "a ZIP archive": zipped(),
    "a PDF document": b"%PDF-1.7\n1 0 obj\n<< /Filter /DCTDecode >>\nstream\n" + JPEG + b"\nendstream\n%%EOF\n",
    "(OLE)": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + JPEG,
    "an RTF document": b"{\\rtf1 " + JPEG,
    "a tar archive": b"a.jpg".ljust(257, b"\0") + b"ustar\0" + bytes(249) + JPEG,
    "a gzip file": b"\x1f\x8b\x08\0" + bytes(8) + JPEG,
    "a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(30) + JPEG,
    "a program": b"\x7fELF" + bytes(60) + JPEG,
    "of no format that is known": b"any bytes at all, " + JPEG,
}


@pytest.mark.parametrize("name", NOT_MEDIA)
def test_a_jpeg_within_another_file_is_no_video(name):
    """FFmpeg's probe for streams of JPEGs takes whatever contains one."""
    for read in READERS:
        assert name in str(refused(read, NOT_MEDIA[name], Cause.NOT_MEDIA))


PICTURES = {
    "an ICNS icon": b"icns" + struct.pack(">I", 200) + bytes(192),
    "a TGA image": bytes([0, 0, 2, *bytes(9), 8, 0, 8, 0, 24, 0]) + bytes(192) + bytes(8) + b"TRUEVISION-XFILE.\0",
    "a JPEG 2000 image": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "a JPEG XL image": b"\xff\x0a" + bytes(100),
    "a Photoshop image": b"8BPS\0\1" + bytes(100),
    "an SVG drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", PICTURES)
def test_images_that_are_not_read_are_named_by_every_reader(name):
    for read in READERS:
        error = str(refused(read, PICTURES[name], Cause.FORBIDDEN_FORMAT))
        assert f"got {name}; convert it" in error
        assert "read_" not in error


def test_a_tiff_of_another_kind_is_named():
    content = bytearray(saved(NOISE, "TIFF"))
    tag = content.index(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation
    content[tag + 8 : tag + 10] = struct.pack("<H", 999)
    for read in (read_image, media_kind):
        assert "a TIFF of a kind" in str(refused(read, bytes(content), Cause.FORBIDDEN_FORMAT))


HEIC = struct.pack(">I", 28) + b"ftypheic" + bytes(4) + b"mif1heicmiaf" + bytes(400)


def test_heic_without_its_reader_is_named_by_every_reader(monkeypatch):
    for module in (image_module, __import__("videollava_jax.media.container", fromlist=["container"])):
        monkeypatch.setattr(module, "reads_heic", lambda: False)
    for read in READERS:
        error = str(refused(read, HEIC, Cause.FORBIDDEN_FORMAT))
        assert "HEIC" in error
        assert "pip install -e '.[heic]'" in error
        assert "read_" not in error


def test_heic_is_read_with_its_reader():
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 60, 20))).save(file, quality=95)
    content = file.getvalue()
    assert media_kind(content) == "image"
    pixels = read_image(content)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - (200, 60, 20)).max() < 8
    assert "read_image" in str(refused(read_video, content, Cause.NOT_MEDIA))
    for cut in (40, len(content) // 2, len(content) - 20):
        refused(read_image, content[:cut])
