"""`VideoLlavaImageProcessor`: transformers' own, which runs on NumPy and PIL; media are read by this package."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.models.video_llava.image_processing_video_llava import (
    VideoLlavaImageProcessor as TransformersImageProcessor,
)

from videollava_jax.face.faults import named_faults
from videollava_jax.face.features import Features, features
from videollava_jax.face.opening import Opening


class VideoLlavaImageProcessor(TransformersImageProcessor):  # type: ignore[misc]
    """transformers' `VideoLlavaImageProcessor`: resizes, crops, scales and normalises as its attributes say.

    It takes images in every form that the processor takes, and `videos=` as transformers 4.x did.
    """

    def preprocess(
        self, images: Any = None, videos: Any = None, *, return_tensors: Any = None, **kwargs: Any
    ) -> Features:
        """Turns images, or the frames of videos, into pixels.

        Args:
            images: one, or a list; see `opening.Opening`.
            videos: arrays [F, H, W, 3] or lists of frames: one, or a list.
            return_tensors: "np", "pt", "jax", or None for a list of arrays.
            kwargs: attributes of this class, for this call.

        Returns:
            `pixel_values_images` float32 [N, 3, S, S]; `pixel_values_videos` float32 [V, F, 3, S, S].

        Raises:
            ValueError: neither images nor videos, or an image that cannot be used.
        """
        if images is None and videos is None:
            raise ValueError("expected images or videos, got neither")
        legacy, kwargs["return_legacy_image_output"] = kwargs.pop("return_legacy_image_output", True), False
        data: dict[str, Any] = {}
        if images is not None:
            name = "pixel_values_images" if legacy in (True, None) else "pixel_values"
            data[name] = self._pixels(Opening().image(images), kwargs)
        if videos is not None:
            from transformers.video_utils import make_batched_videos

            data["pixel_values_videos"] = [
                np.stack(self._pixels(list(video), kwargs)) for video in make_batched_videos(Opening().video(videos))
            ]
        return features(data, return_tensors)

    def _pixels(self, images: Any, kwargs: dict[str, Any]) -> list[Any]:
        with named_faults("images"):
            pixels: list[Any] = super().preprocess(images, **kwargs)["pixel_values"]
        return pixels

    def fetch_images(self, given: Any) -> Any:
        """Returns images read from their files (see `opening.Opening`); hosts are not asked."""
        return Opening().image(given, read=True)
