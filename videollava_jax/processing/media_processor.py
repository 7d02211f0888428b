"""`MediaProcessor`: turns images and videos into pixels and counts their tokens; text is `processor.py`'s."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from videollava_jax.config import SelectStrategy, checked_pooling, require_whole_windows
from videollava_jax.media import FramePreprocessor, MediaLimits, MediumPixels, Preprocessor, Within
from videollava_jax.processing.given_media import image_pixels, read_frames_of
from videollava_jax.processing.preset import Preset, get_preset
from videollava_jax.processing.segments import Media, MediaKind

DEFAULT_LIMITS = MediaLimits()
Reader = Callable[[Media, Any], MediumPixels]
"""Reads a medium, with the rule that chooses frames of a video."""
FRAMES = 8
"""Frames of a video where a call names no rule and no number."""


class MediaProcessor:
    """Reads images and videos as the model takes them, and counts the tokens that they become.

    Args:
        image_processor: how an image becomes pixels; by default the preset's way with CLIP's settings at 224.
        video_processor: the same for the frames of a video; `image_processor` when None.
        preset: how media become pixels where nothing else says it.
        patch_size: patch size of the vision towers.
        vision_feature_select_strategy: "default" drops the class token of an image, "full" keeps it. The frames of a
            video keep theirs either way.
        num_additional_image_tokens: tokens of a tower that are not patches: the class token.
        video_pooling: side of the windows of patches whose features are averaged in each frame of a video; 1 for none.
        frame_window: a video's number of frames must be a multiple of this.

    Raises:
        ValueError: an unknown `vision_feature_select_strategy`, or a pooling that does not divide the patches.
    """

    def __init__(
        self,
        image_processor: Preprocessor | None,
        video_processor: Preprocessor | None,
        *,
        preset: str | Preset = "hf",
        patch_size: int,
        vision_feature_select_strategy: SelectStrategy,
        num_additional_image_tokens: int,
        video_pooling: SupportsIndex,
        frame_window: int,
    ):
        if vision_feature_select_strategy not in ("default", "full"):
            raise ValueError(
                f"vision_feature_select_strategy: expected 'default' or 'full', got {vision_feature_select_strategy!r}"
            )
        self._preset = get_preset(preset)
        usual = FramePreprocessor()
        image = self._preset.preprocessor("image", usual) if image_processor is None else image_processor
        if video_processor is None:
            video_processor = self._preset.preprocessor("video", usual) if image_processor is None else image
        self._preprocessors: dict[MediaKind, Preprocessor] = {"image": image, "video": video_processor}
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.video_pooling = checked_pooling(video_pooling, self._patches_per_side("video"))
        self.frame_window = frame_window

    @property
    def preprocessors(self) -> Mapping[MediaKind, Preprocessor]:
        """How media of each kind become pixels, "image" and "video"."""
        return self._preprocessors

    # ── tokens ──

    @property
    def tokens_per_image(self) -> int:
        """Decoder tokens of an image: 256 at 224 pixels in patches of 14. Counted as transformers counts."""
        dropped = self.vision_feature_select_strategy == "default"
        return self._patches_per_side("image") ** 2 + self.num_additional_image_tokens - dropped

    @property
    def tokens_per_frame(self) -> int:
        """Decoder tokens of a frame of a video, with this processor's pooling: 257 at 224 pixels in patches of 14."""
        return self.pooled_tokens_per_frame(self.video_pooling)

    def pooled_tokens_per_frame(self, video_pooling: SupportsIndex) -> int:
        """Returns the decoder tokens of a frame with another pooling: 65 with 2, 17 with 4, 5 with 8, 2 with 16."""
        side = self._patches_per_side("video")
        return (side // checked_pooling(video_pooling, side)) ** 2 + self.num_additional_image_tokens

    def medium_tokens(
        self, media: Sequence[Media], pixels: Sequence[npt.NDArray[Any]], video_pooling: int
    ) -> list[int]:
        """Returns the decoder tokens of each medium.

        Args:
            media: images and videos.
            pixels: of each medium, as `read_medium` returns them.
            video_pooling: of the frames of videos.
        """
        frame = self.pooled_tokens_per_frame(video_pooling)
        return [
            self.tokens_per_image if medium.kind == "image" else len(array) * frame
            for medium, array in zip(media, pixels, strict=True)
        ]

    def _patches_per_side(self, kind: MediaKind) -> int:
        return self.preprocessors[kind].crop_size // self.patch_size

    def _pooling_or_default(self, video_pooling: SupportsIndex | None) -> int:
        if video_pooling is None:
            return self.video_pooling
        return checked_pooling(video_pooling, self._patches_per_side("video"))

    # ── pixels ──

    def frames(self, asked: Any = None) -> Any:
        """Returns the rule that chooses frames of a video: the one asked for, or the preset's for a number of frames.

        Args:
            asked: a rule, a number of frames, or None for 8; or a part of the video (`Within`) with one of these.
        """
        if isinstance(asked, Within):
            return replace(asked, rule=self.frames(asked.rule))
        if asked is not None and not isinstance(asked, int):
            return asked
        return self._preset.frames(FRAMES if asked is None else asked)

    def read_medium(
        self, medium: Media, frame_sampling: Any = None, limits: MediaLimits = DEFAULT_LIMITS
    ) -> npt.NDArray[Any]:
        """Reads one medium, resized and cropped for the towers but not normalised; frames as in `frames`.

        Returns:
            [F, S, S, 3], uint8 or the float32 of a `FloatPreprocessor`, RGB, 0-255; F is 1 for an image.

        Raises:
            ValueError: the file cannot be read, or the video tower does not take this number of frames.
        """
        return self.read(medium, frame_sampling, limits).pixels

    def read(self, medium: Media, frame_sampling: Any = None, limits: MediaLimits = DEFAULT_LIMITS) -> MediumPixels:
        """Reads one medium as `read_medium` does, and says which frames of a video file were taken."""
        if medium.kind == "image":
            return MediumPixels(image_pixels(medium.source, self.preprocessors["image"], limits)[None])
        read = read_frames_of(medium.source, self.preprocessors["video"], self.frames(frame_sampling), limits)
        self._require_whole_windows([medium], [len(read.pixels)])
        return read

    def _require_whole_windows(self, media: Sequence[Media], frames: Sequence[int | None]) -> None:
        """Raises a ValueError for a video whose number of frames the video tower does not take; None is unknown."""
        videos = [count for medium, count in zip(media, frames, strict=True) if medium.kind == "video"]
        for i, count in enumerate(videos):
            if count is not None:
                require_whole_windows(f"video {i}", count, self.frame_window)

    def _pixels(
        self, media: Sequence[Media], frame_sampling: Any, limits: MediaLimits, reader: Reader | None = None
    ) -> list[npt.NDArray[Any]]:
        """Reads all media (see `read_medium`), each source once even if it is given twice."""
        read: dict[tuple[str, str], npt.NDArray[Any]] = {}
        pixels = []
        for medium in media:
            is_file = isinstance(medium.source, (str, os.PathLike))
            key = (medium.kind, os.fspath(medium.source) if is_file else str(id(medium.source)))
            if key not in read:
                if reader is None:
                    read[key] = self.read_medium(medium, frame_sampling, limits)
                else:
                    read[key] = reader(medium, frame_sampling).pixels
            pixels.append(read[key])
        return pixels

    def _normalized(self, kind: MediaKind, pixels: Sequence[npt.NDArray[Any]], *, as_arrays: bool) -> Any:
        """Normalises media of one kind, channels first: float32 [N, 3, S, S] of images, [V, F, 3, S, S] of videos.

        Args:
            kind: "image" or "video".
            pixels: of each medium, as `read_medium` returns them.
            as_arrays: False for a list of arrays.

        Raises:
            ValueError: videos with different numbers of frames cannot become one array.
        """
        preprocess = self.preprocessors[kind]
        arrays = [np.ascontiguousarray(preprocess.normalize(p).transpose(0, 3, 1, 2)) for p in pixels]
        if kind == "image":
            arrays = [array[0] for array in arrays]
        if not as_arrays:
            return arrays
        if len({array.shape for array in arrays}) > 1:
            counts = ", ".join(str(len(array)) for array in arrays)
            raise ValueError(
                "videos: expected the same number of frames in all videos of a call, for they become one "
                f"array; got {counts}. Sample them alike, call once for each length, or take lists with "
                "return_tensors=None"
            )
        return np.stack(arrays)
