"""Images: every mode becomes RGB, upright; every kind of source reads the same."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from videollava_jax.media import read_image

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), np.uint8))


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_mode_becomes_rgb(mode):
    content = saved(NOISE.convert(mode))
    np.testing.assert_array_equal(read_image(content), np.array(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format_is_read(format):
    content = saved(NOISE, format)
    np.testing.assert_array_equal(read_image(content), np.array(Image.open(io.BytesIO(content)).convert("RGB")))


def test_cmyk_becomes_rgb():
    content = saved(NOISE.convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(read_image(content), np.array(Image.open(io.BytesIO(content)).convert("RGB")))


def test_16_bit_grey_keeps_its_upper_8_bits():
    values = RNG.integers(0, 65536, (4, 5), np.uint16)
    for format in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(
            read_image(saved(Image.fromarray(values), format)), np.stack([values >> 8] * 3, axis=-1)
        )


def test_transparency_is_dropped():
    clear = NOISE.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(read_image(saved(clear)), np.array(NOISE))
    palette = NOISE.quantize(16)
    content = saved(palette, transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(content), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_come_upright(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(NOISE, format, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert expected.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    np.testing.assert_array_equal(read_image(content), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_unreadable_exif_spoils_no_pixel():
    content = saved(NOISE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(content), np.array(Image.open(io.BytesIO(content))))


def test_of_an_animation_the_first_frame(tmp_path):
    content = saved(NOISE.quantize(), "GIF", save_all=True, append_images=[Image.new("P", NOISE.size)])
    np.testing.assert_array_equal(read_image(content), np.array(Image.open(io.BytesIO(content)).convert("RGB")))


def test_bytes_and_files_read_as_paths(tmp_path):
    path = tmp_path / "noise.png"
    content = saved(NOISE)
    path.write_bytes(content)
    for source in (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(read_image(source), np.array(NOISE))
    with open(path, "rb") as file:
        np.testing.assert_array_equal(read_image(file), np.array(NOISE))
        assert not file.closed
