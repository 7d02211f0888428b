"""`VideoLlavaVideoProcessor`: transformers' settings and arguments, on NumPy; transformers' own runs on torch only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.image_transforms import to_channel_dimension_format
from transformers.image_utils import ChannelDimension
from transformers.models.video_llava.video_processing_video_llava import (
    VideoLlavaVideoProcessor as TransformersVideoProcessor,
)
from transformers.video_utils import VideoMetadata, convert_to_rgb, make_batched_videos

from videollava_jax.face.faults import named_faults
from videollava_jax.face.features import Features, features
from videollava_jax.face.image_processor import VideoLlavaImageProcessor
from videollava_jax.face.opening import Opening
from videollava_jax.face.sampling import EveryFrame, sampling
from videollava_jax.media import FrameFiles, Video, read_video

PIXELS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
"""The settings that say how a frame becomes pixels, the same for images and videos."""


class VideoLlavaVideoProcessor(TransformersVideoProcessor):  # type: ignore[misc]
    """transformers' `VideoLlavaVideoProcessor`, whose frames are processed as images: PIL's filter, not torchvision's.

    Settings, `from_pretrained`, `save_pretrained` and `to_dict` are transformers' own.
    """

    def preprocess(
        self,
        videos: Any,
        *,
        return_tensors: Any = None,
        do_sample_frames: bool | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        video_metadata: Any = None,
        return_metadata: bool | None = None,
        **kwargs: Any,
    ) -> Features:
        """Turns videos into pixels.

        Args:
            videos: one, or a list; see `opening.Opening.video`. All frames are taken unless sampling is asked for.
            return_tensors: "np", "pt", "jax", or None for a list of arrays.
            do_sample_frames: whether `num_frames` or `fps` choose frames; None for this class's attribute.
            num_frames, fps: how many frames, or how many a second.
            video_metadata: of videos that are given as arrays, which `fps` needs: a dict or `VideoMetadata` of each.
            return_metadata: whether to add `video_metadata`.
            kwargs: `do_resize`, `size` and the other settings of pixels, for this call.

        Returns:
            `pixel_values_videos` float32 [V, F, 3, S, S].

        Raises:
            ValueError: a video that cannot be used, or frames that are not there.
        """
        rule = EveryFrame()
        if self.do_sample_frames if do_sample_frames is None else do_sample_frames:
            either = num_frames is not None or fps is not None
            rule = sampling(True, num_frames, fps) if either else sampling(True, self.num_frames, self.fps) or rule
        layout = kwargs.pop("input_data_format", None)
        opened = Opening(frame_sampling=rule, input_data_format=layout).video(videos)
        if self.do_convert_rgb if kwargs.get("do_convert_rgb") is None else kwargs["do_convert_rgb"]:
            opened = _in_colour(opened)
        clips, metadata = sampled(as_list(opened), rule, video_metadata, lambda file: read_video(file, rule))
        settings = {name: getattr(self, name, None) for name in PIXELS}
        with named_faults("videos"):
            frames = VideoLlavaImageProcessor(**_plain(settings))
            chosen = {name: value for name, value in kwargs.items() if value is not None}
            pixels = [
                np.stack(frames.preprocess(list(clip), return_legacy_image_output=False, **chosen)["pixel_values"])
                for clip in clips
            ]
        data: dict[str, Any] = {"pixel_values_videos": pixels}
        if self.return_metadata if return_metadata is None else return_metadata:
            data["video_metadata"] = metadata
        return features(data, return_tensors, keep=("video_metadata",))


def as_list(videos: Any) -> list[Any]:
    """Returns a list of videos of one video or of nested lists of them."""
    if isinstance(videos, Video) or _is_file(videos):
        return [videos]
    if isinstance(videos, (list, tuple)) and any(isinstance(item, Video) or _is_file(item) for item in videos):
        return list(videos)
    with named_faults("videos"):
        return list(make_batched_videos(videos))


def _in_colour(videos: Any) -> Any:
    """Videos, or frames, of nested lists with three channels, as transformers does: grey repeated, alpha on white."""
    if isinstance(videos, (list, tuple)):
        return [_in_colour(item) for item in videos]
    if hasattr(videos, "convert"):
        return videos.convert("RGB")
    if not isinstance(videos, np.ndarray) or videos.ndim < 3:
        return videos
    first = videos.shape[-3] in (1, 4) and videos.shape[-1] not in (1, 3, 4)
    if not first and videos.shape[-1] not in (1, 4):
        return videos
    layout = ChannelDimension.FIRST if first else ChannelDimension.LAST
    colours = to_channel_dimension_format(convert_to_rgb(videos, layout), layout, ChannelDimension.FIRST)
    return np.rint(colours).astype(videos.dtype) if np.issubdtype(videos.dtype, np.integer) else colours


def _is_file(video: Any) -> bool:
    return isinstance(video, (str, os.PathLike, FrameFiles))


def sampled(
    videos: Sequence[Any], in_memory: Any, given: Any, read: Callable[[Any], Video]
) -> tuple[list[npt.NDArray[Any] | list[Any]], list[Any]]:
    """Takes the frames of videos that rules choose.

    Args:
        videos: paths, what `media.read_video` returned (their frames were chosen then), arrays or lists of frames.
        in_memory: the rule, `media.FrameSampling`, for arrays and lists.
        given: `video_metadata` of the caller; None for what is known.
        read: reads the frames of a file by its own rule.

    Returns:
        The frames of each, and transformers' `VideoMetadata` of each.
    """
    stated = _stated(given, len(videos))
    clips, metadata = [], []
    for video, said in zip(videos, stated, strict=True):
        if _is_file(video):
            video = read(video)
        if isinstance(video, Video):
            frames: Any = video.frames
            known: dict[str, Any] = {
                "total_num_frames": video.total_frames,
                "fps": video.fps,
                "frames_indices": video.indices,
            }
            known["duration"] = video.total_frames / video.fps if video.fps else None
            known["video_backend"] = "pyav"
        else:
            indices = in_memory.indices(len(video), said.get("fps"))
            frames = video[indices] if isinstance(video, np.ndarray) else [video[i] for i in indices]
            known = {"total_num_frames": len(video), "frames_indices": indices}
        height, width = np.asarray(frames[0]).shape[:2]
        with named_faults("video_metadata"):
            metadata.append(VideoMetadata(**{**known, "height": height, "width": width, **said}))
        clips.append(frames)
    return clips, metadata


def _stated(given: Any, videos: int) -> list[dict[str, Any]]:
    if given is None:
        return [{}] * videos
    entries = [given] if isinstance(given, Mapping) else [entry for item in given for entry in as_entries(item)]
    if len(entries) != videos:
        raise ValueError(f"video_metadata: expected an entry for each of the {videos} videos, got {len(entries)}")
    return [{name: entry[name] for name in entry if entry[name] is not None} for entry in entries]


def as_entries(item: Any) -> list[Any]:
    """Returns the entries of one item of `video_metadata`, which may be a list for each row of the text."""
    return list(item) if isinstance(item, (list, tuple)) else [item]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without transformers' `SizeDict`, in which absent sizes are None."""
    sizes = {name: dict(settings[name]) for name in ("size", "crop_size") if settings[name] is not None}
    return {name: value for name, value in {**settings, **sizes}.items() if value is not None}
