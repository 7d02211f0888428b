"""Resizes, crops and normalises frames to the square that the towers take, like transformers' image processor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Of frames more than this many times as long as they are short only the part that the crop keeps is resized: the whole
# of 1 by 10,000 pixels would take 1.5 GB.
_LONG = 100
PIL_FILTERS = {"bilinear": 2, "bicubic": 3}
"""The numbers of PIL's filters, which `preprocessor_config.json` has."""
LONGEST_SIDE = 4096
"""The largest square that a configuration may ask for, pixels: far beyond any tower's."""
_STRIP = 2**22
"""Pixels that are padded at a time, about."""


class Preprocessor(Protocol):
    """Turns decoded frames into the squares that the towers take: `FramePreprocessor` or `FloatPreprocessor`.

    Attributes:
      crop_size: the side of the square, pixels.
      mean, std: of each channel, on the scale 0-1.
      dtype: of the pixels, which are on the scale 0-255 either way.
    """

    @property
    def crop_size(self) -> int: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def __call__(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Resizes and crops frames, uint8 [F, H, W, 3], RGB, 0-255, to [F, crop, crop, 3] of `dtype`."""

    def normalize(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scales to 0-1, subtracts the mean and divides by the standard deviation: float32 [..., 3]."""

    def to_json(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers reads."""


def background(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Returns the mean colour on the scale 0-255, rounded down, with which the authors pad images to a square."""
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def preprocessor_json(
    size: int, resample: int, crop_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """Returns the `preprocessor_config.json` that transformers reads."""
    return {
        "image_processor_type": "VideoLlavaImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": crop_size, "width": crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }


def _unsupported(key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"preprocessor: {key}={value!r:.100} is not supported: expected {expected}")


def _side(key: str, value: Any, what: str) -> int:
    if type(value) not in (int, float) or not 1 <= value <= LONGEST_SIDE or value != int(value):
        raise _unsupported(key, value, f"{what} of 1 to {LONGEST_SIDE} pixels")
    return int(value)


def _filter(value: Any) -> int:
    if type(value) is not int or value not in list(Image.Resampling):
        raise _unsupported("resample", value, "the number of one of PIL's filters, 0 to 5")
    return value


def _channels(key: str, value: Any, above: float = -math.inf) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or any(type(n) not in (int, float) or not above < n < math.inf for n in numbers):
        raise _unsupported(key, value, "three numbers" + (" above 0" if above == 0 else ""))
    red, green, blue = map(float, numbers)
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class FramePreprocessor:
    """Resizes the short edge to `size` with PIL's antialiased filter on uint8, then crops the centre to `crop_size`.

    The result equals that of transformers' `VideoLlavaImageProcessor` bit for bit, for images and video frames; those
    more than 100 times as long as they are short are cropped first, which may round a few pixels otherwise.
    Frames smaller than the crop are padded with black, as in transformers.

    Attributes:
      size: the short edge after resizing, pixels.
      crop_size: the side of the square, pixels.
      resample: a PIL filter; 3 is bicubic.
      pad_to_square: whether a frame is padded to a square of its long edge first, with the mean colour.
      mean, std: of each channel, on the scale 0-1.
    """

    size: int = 224
    crop_size: int = 224
    resample: int = 3
    pad_to_square: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the pixels: uint8."""
        return np.dtype(np.uint8)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FramePreprocessor:
        """Reads transformers' `preprocessor_config.json`; missing settings take transformers' defaults.

        Raises:
          ValueError: a setting that this preprocessor does not support.
        """
        for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if raw.get(key, True) is not True:
                raise _unsupported(key, raw[key], "True")
        factor = raw.get("rescale_factor", 1 / 255)
        if type(factor) not in (int, float) or not abs(factor - 1 / 255) < 1e-9:
            raise _unsupported("rescale_factor", factor, "1/255")
        size, crop = raw.get("size", 224), raw.get("crop_size", 224)
        short = size.get("shortest_edge") if isinstance(size, Mapping) else size
        if isinstance(crop, Mapping):
            if crop.get("height") != crop.get("width"):
                raise _unsupported("crop_size", dict(crop), "a square")
            crop = crop.get("height")
        return cls(
            size=_side("size", short, "a shortest_edge"),
            crop_size=_side("crop_size", crop, "a square"),
            resample=_filter(raw.get("resample", 3)),
            mean=_channels("image_mean", raw.get("image_mean", CLIP_MEAN)),
            std=_channels("image_std", raw.get("image_std", CLIP_STD), above=0),
        )

    def to_json(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers reads; `from_json` reads it back equal."""
        return preprocessor_json(self.size, self.resample, self.crop_size, self.mean, self.std)

    def __call__(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resizes and crops frames, uint8 [F, H, W, 3], RGB, 0-255, to uint8 [F, crop, crop, 3]."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"expected frames uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        return np.stack([self._padded(frame) if self.pad_to_square else self._square(frame) for frame in frames])

    def _padded(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Crops a frame that is padded to a square of its long edge. A strip of the square is held at a time.

        PIL resizes rows and then columns, with uint8 between: both in two calls is both in one.
        """
        height, width = frame.shape[:2]
        side = max(height, width)
        colour = np.array(background(self.mean), np.uint8)
        strips = []
        for first in range(0, height, max(1, _STRIP // side)):
            rows = frame[first : first + max(1, _STRIP // side)]
            wide = np.tile(colour, (len(rows), side, 1))
            wide[:, (side - width) // 2 :][:, :width] = rows
            strips.append(np.asarray(Image.fromarray(wide).resize((self.size, len(rows)), self.resample)))
        tall = np.tile(colour, (side, self.size, 1))
        tall[(side - height) // 2 :][:height] = np.concatenate(strips)
        return self._square(np.asarray(Image.fromarray(tall).resize((self.size, self.size), self.resample)))

    def _square(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width = frame.shape[:2]
        short, long = sorted((height, width))
        scaled = int(self.size * long / short)
        new = (self.size, scaled) if height <= width else (scaled, self.size)
        image, box = Image.fromarray(frame), None
        if long > _LONG * short and scaled > self.crop_size:
            start = (scaled - self.crop_size) // 2
            first, last = (at * long / scaled for at in (start, start + self.crop_size))
            box = (first, 0, last, height) if height <= width else (0, first, width, last)
            new = (self.size, self.crop_size) if height <= width else (self.crop_size, self.size)
        resized = np.asarray(image.resize((new[1], new[0]), self.resample, box=box))
        top, left = (new[0] - self.crop_size) // 2, (new[1] - self.crop_size) // 2
        if top >= 0 and left >= 0:
            return resized[top : top + self.crop_size, left : left + self.crop_size]
        # transformers' center_crop rounds the padding before the frame up, and crops from the padded frame.
        padded_height, padded_width = max(self.crop_size, new[0]), max(self.crop_size, new[1])
        padded = np.zeros((padded_height, padded_width, 3), np.uint8)
        above, before = -(-(padded_height - new[0]) // 2), -(-(padded_width - new[1]) // 2)
        padded[above : above + new[0], before : before + new[1]] = resized
        top, left = max(0, top + above), max(0, left + before)
        return padded[top : top + self.crop_size, left : left + self.crop_size]

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scales uint8 [..., 3] to 0-1, subtracts the mean and divides by the standard deviation: float32 [..., 3]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (pixels * np.float64(1 / 255)).astype(np.float32)
        normalised: npt.NDArray[np.float32] = (scaled - mean) / std
        return normalised
