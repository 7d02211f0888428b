"""Resizes frames in floating point without antialiasing, as the authors' transforms do on torch's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from videollava_jax.media.preprocess import CLIP_MEAN, CLIP_STD, PIL_FILTERS, background, preprocessor_json

Float32 = npt.NDArray[np.float32]
Interpolation = Literal["bicubic", "bilinear"]
_CUBIC = -0.75
"""The parameter of torch's cubic kernel; PIL's is -0.5."""


@dataclass(frozen=True, kw_only=True)
class FloatPreprocessor:
    """Resizes the short edge to `size` without antialiasing, then crops the centre to `crop_size`, all in float32.

    `bicubic` is the authors' way with images (`LanguageBindImageProcessor`: torchvision's `Resize` of tensors, which
    did not antialias before 0.17), `bilinear` their way with videos (pytorchvideo's `ShortSideScale`). Pixels are those
    of `torch.nn.functional.interpolate` up to float32 rounding; cubic ones may lie a little below 0 or above 255, as
    there. An offset of the crop that is not whole is rounded half to even. Only the crop is computed, so that no shape
    of image takes more memory than its own pixels.

    Attributes:
      size: the short edge after resizing, pixels.
      crop_size: the side of the square, pixels; at most `size`.
      interpolation: "bicubic" or "bilinear".
      pad_to_square: whether a frame is padded to a square of its long edge first, with the mean colour.
      mean, std: of each channel, on the scale 0-1.
    """

    size: int = 224
    crop_size: int = 224
    interpolation: Interpolation = "bicubic"
    pad_to_square: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.crop_size > self.size:
            raise ValueError(
                f"preprocessor: crop_size {self.crop_size} is not supported by torch's resizing: expected at most the "
                f"short edge, {self.size}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the pixels: float32."""
        return np.dtype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The nearest `preprocessor_config.json`: transformers resizes with antialiasing and does not pad."""
        return preprocessor_json(self.size, PIL_FILTERS[self.interpolation], self.crop_size, self.mean, self.std)

    def __call__(self, frames: npt.NDArray[np.uint8]) -> Float32:
        """Resizes and crops frames, uint8 [F, H, W, 3], RGB, 0-255, to float32 [F, crop, crop, 3] on the same scale."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"expected frames uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        height, width = frames.shape[1:3]
        if self.pad_to_square:
            rows, columns = (self._taps(max(height, width), self.size, edge) for edge in (height, width))
        else:
            new = self._scaled(height, width)
            rows, columns = self._taps(height, new[0], height), self._taps(width, new[1], width)
        colour = np.array(background(self.mean), np.float32)
        made = np.empty((len(frames), self.crop_size, self.crop_size, 3), np.float32)
        for i, frame in enumerate(frames):  # the long edge first, which leaves the least
            if height <= width:
                made[i] = rows.along(columns.along(frame.swapaxes(0, 1), colour).swapaxes(0, 1), colour)
            else:
                made[i] = columns.along(rows.along(frame, colour).swapaxes(0, 1), colour).swapaxes(0, 1)
        return made

    def normalize(self, pixels: Float32) -> Float32:
        """Scales pixels [..., 3] to 0-1, subtracts the mean and divides by the standard deviation: float32 [..., 3]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normalised: Float32 = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return normalised

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        short, long = sorted((height, width))
        # torchvision's and pytorchvideo's formulas, which differ by a pixel where float64 rounds.
        other = self.size * long / short if self.interpolation == "bicubic" else long / short * self.size
        return (self.size, int(other)) if height <= width else (int(other), self.size)

    def _taps(self, old: int, new: int, real: int) -> _Taps:
        """Returns the taps of the crop's pixels along an edge.

        Args:
          old: length of the edge, padding included.
          new: to which it is resized.
          real: length of the edge without padding.
        """
        first = round((new - self.crop_size) / 2)
        at = (np.arange(first, first + self.crop_size) + 0.5) * (old / new) - 0.5
        if self.interpolation == "bilinear":
            at = np.maximum(at, 0.0)
        low = np.floor(at)
        t = at - low
        offsets, weights = [0, 1], [1 - t, t]
        if self.interpolation == "bicubic":
            offsets, weights = [-1, 0, 1, 2], [_cubic(distance) for distance in (t + 1, t, 1 - t, 2 - t)]
        places = np.clip(low.astype(np.int64)[:, None] + np.array(offsets), 0, old - 1) - (old - real) // 2
        return _Taps(places, np.stack(weights, axis=1).astype(np.float32), real)


@dataclass(frozen=True, eq=False)
class _Taps:
    """The pixels along an edge that make each pixel of the crop.

    Attributes:
      places: int64 [crop, taps], in the edge; those outside of 0..length-1 are padding.
      weights: float32 [crop, taps].
      length: of the edge.
    """

    places: npt.NDArray[np.int64]
    weights: Float32
    length: int

    def along(self, pixels: npt.NDArray[Any], colour: Float32) -> Float32:
        """Interpolates pixels [length, N, 3] along their first axis: float32 [crop, N, 3]; `colour` is the padding."""
        made = np.zeros((len(self.places), *pixels.shape[1:]), np.float32)
        for places, weights in zip(self.places.T, self.weights.T, strict=True):
            taken = pixels[np.clip(places, 0, self.length - 1)].astype(np.float32)
            taken[(places < 0) | (places >= self.length)] = colour
            made += weights[:, None, None] * taken
        return made


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel at distances 0..2 (torch's `cubic_convolution1` and `2`)."""
    x, a = distance, _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
