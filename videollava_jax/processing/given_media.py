"""Takes images and videos in every form that users pass, assigns them to rows of the text, and reads their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.media import (
    Cause,
    FrameFiles,
    Frames,
    Indices,
    MediaError,
    MediaLimits,
    MediumPixels,
    Preprocessor,
    Video,
    read_image,
    read_video,
)
from videollava_jax.media.image import check_pixels, rgb_pixels
from videollava_jax.processing.segments import MEDIA_TOKENS, Media, MediaKind, Segments

UInt8 = npt.NDArray[np.uint8]
Pixels = npt.NDArray[Any]
"""uint8 or float32 on the scale 0-255, as the preprocessor gives them."""

MEDIA_FORMS: dict[MediaKind, str] = {
    "image": "a path, a PIL image or a uint8 array [H, W, 3]",
    "video": "a path, FrameFiles, a uint8 array [F, H, W, 3] or a list of frames (PIL images, arrays [H, W, 3])",
}


def share_out(given: Any, kind: MediaKind, placeholders: Sequence[int] | None) -> list[list[Any]]:
    """Splits the `images=` or `videos=` argument into the media of each row, in the placeholders' order.

    Args:
        given: None, one medium, a flat list of media, or a list with a list (or None) for each row. An array with one
            axis more than a medium is a flat list.
        kind: "image" or "video".
        placeholders: the number of placeholders in each row of the text; None if there is no text, in which case all
            media are one row.

    Raises:
        ValueError: an item is not a medium, or the numbers of media and placeholders differ.
    """
    if given is None:
        media: list[Any] = []
    elif is_medium(given, kind):
        media = [given]
    elif (isinstance(given, np.ndarray) and given.ndim == _ndim(kind) + 1) or isinstance(given, (list, tuple)):
        media = list(given)
    else:
        raise ValueError(f"{kind}s: expected {MEDIA_FORMS[kind]}, or a list of them; got {describe(given)}")
    if any(not is_medium(item, kind) for item in media):
        return _nested_rows(media, kind, placeholders)
    if placeholders is None:
        return [media]
    if sum(placeholders) != len(media):
        raise ValueError(_mismatch(kind, placeholders, len(media)))
    ends = np.cumsum(placeholders)
    return [media[end - count : end] for end, count in zip(ends, placeholders, strict=True)]


def is_medium(value: Any, kind: MediaKind) -> bool:
    """Returns whether a value has the form of one image, or of one video. Pixels are checked when they are read."""
    if isinstance(value, (str, os.PathLike)):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == _ndim(kind)
    if kind == "image":
        return _is_pil(value)
    if isinstance(value, (list, tuple)):
        return bool(value) and all(is_frame(frame) for frame in value)
    return isinstance(value, FrameFiles) or hasattr(value, "frames")  # the latter is what media.read_video returns


def is_frame(value: Any) -> bool:
    """Returns whether a value has the form of one frame: a PIL image, or an array with three axes."""
    return _is_pil(value) or (isinstance(value, np.ndarray) and value.ndim == 3)


def _is_pil(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _ndim(kind: MediaKind) -> int:
    return 3 if kind == "image" else 4


def _nested_rows(rows: list[Any], kind: MediaKind, placeholders: Sequence[int] | None) -> list[list[Any]]:
    split: list[list[Any]] = []
    for i, row in enumerate(rows):
        media = [] if row is None else list(row) if isinstance(row, (list, tuple)) else None
        if media is None or not all(is_medium(item, kind) for item in media):
            culprit = row if media is None else next(item for item in media if not is_medium(item, kind))
            raise ValueError(
                f"{kind}s[{i}]: expected {MEDIA_FORMS[kind]}, or for every row a list of them; got {describe(culprit)}"
            )
        split.append(media)
    if placeholders is None:
        return [[item for media in split for item in media]]
    if len(split) != len(placeholders):
        raise ValueError(
            f"{kind}s: expected a list for each of the {len(placeholders)} rows of the text, got {len(split)}"
        )
    for i, (expected, media) in enumerate(zip(placeholders, split, strict=True)):
        if expected != len(media):
            raise ValueError(
                f"row {i} of the text has {expected} {MEDIA_TOKENS[kind]}, and {kind}s[{i}] holds "
                f"{len(media)}; expected as many{_hint(kind, media)}"
            )
    return split


def _mismatch(kind: MediaKind, placeholders: Sequence[int], got: int) -> str:
    rows = ", ".join(f"row {i}: {count}" for i, count in enumerate(placeholders) if count) or "none in any row"
    return (
        f"the text has {sum(placeholders)} {MEDIA_TOKENS[kind]} ({rows}), and {got} {kind}s were given; "
        f"expected as many {kind}s as placeholders"
    )


def _hint(kind: MediaKind, media: Sequence[Any]) -> str:
    paths = len(media) > 1 and all(isinstance(item, (str, os.PathLike)) for item in media)
    hint = "; files that are the frames of one video are given as FrameFiles(paths)"
    return hint if kind == "video" and paths else ""


def describe(value: Any) -> str:
    """Describes a value for an error message: an array by shape and dtype, anything else by its type."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def media_of(images: Any, videos: Any) -> tuple[Media, ...]:
    """Collects the media of a call without text.

    Raises:
        ValueError: there are none.
    """
    given: tuple[tuple[MediaKind, Any], ...] = (("image", images), ("video", videos))
    media = tuple(Media(kind, source) for kind, value in given for source in share_out(value, kind, None)[0])
    if not media:
        raise ValueError("expected text, images or videos; got none of them")
    return media


def with_media(rows: Sequence[Segments], images: Any, videos: Any) -> list[Segments]:
    """Assigns media to the placeholders of the rows, and checks that their numbers agree (see `share_out`)."""
    shared: dict[MediaKind, list[list[Any]]] = {}
    given: tuple[tuple[MediaKind, Any], ...] = (("image", images), ("video", videos))
    for kind, value in given:
        shared[kind] = share_out(value, kind, [sum(m.kind == kind for m in row.media) for row in rows])
    filled = []
    for i, row in enumerate(rows):
        queues = {kind: iter(sources[i]) for kind, sources in shared.items()}
        filled.append(row.with_sources(next(queues[medium.kind]) for medium in row.media))
    return filled


def require_sources(rows: Sequence[Segments]) -> None:
    """Raises a ValueError if a medium of a conversation has no source, or one of the wrong form."""
    for i, row in enumerate(rows):
        for medium in row.media:
            if medium.source is None:
                raise ValueError(
                    f"conversation {i}: a part of type {medium.kind!r} has no source; expected one under "
                    f"{medium.kind!r}, 'path' or 'url'"
                )
            if not is_medium(medium.source, medium.kind) and not _is_paths(medium):
                raise ValueError(
                    f"conversation {i}: expected {MEDIA_FORMS[medium.kind]} as {medium.kind}, got "
                    f"{describe(medium.source)}"
                )


def _is_paths(medium: Media) -> bool:
    """Whether this is a video as a list of paths, its frames: in a conversation a list cannot mean several videos."""
    paths = medium.source
    listed = medium.kind == "video" and isinstance(paths, (list, tuple)) and bool(paths)
    return listed and all(isinstance(path, (str, os.PathLike)) for path in paths)


# ── pixels ──


def image_pixels(source: Any, preprocess: Preprocessor, limits: MediaLimits) -> Pixels:
    """Reads an image, resized and cropped: [S, S, 3] of the preprocessor's dtype, RGB, 0-255."""
    if isinstance(source, (str, os.PathLike)):
        source = read_image(source, limits=limits)
    pixels: Pixels = _resized(_frame(source, "image", limits)[None], preprocess, "image")[0]
    return pixels


def _resized(frames: UInt8, preprocess: Preprocessor, name: str) -> Pixels:
    try:
        return preprocess(frames)
    except MemoryError:
        _, height, width, _ = frames.shape
        message = f"too little memory to resize {len(frames)} frames of {width} by {height} pixels"
        raise MediaError(name, Cause.TOO_LARGE, message) from None


def video_pixels(source: Any, preprocess: Preprocessor, frame_sampling: Any, limits: MediaLimits) -> Pixels:
    """Reads a video, resized and cropped: [F, S, S, 3] of the preprocessor's dtype, RGB, 0-255.

    Frames are sampled if it is a file.
    """
    return read_frames_of(source, preprocess, frame_sampling, limits).pixels


def read_frames_of(source: Any, preprocess: Preprocessor, frame_sampling: Any, limits: MediaLimits) -> MediumPixels:
    """Reads a video as `video_pixels` does, and says which of its frames these are, where they come from a file."""
    if is_read_from_files(source):
        source = read_video(source, frame_sampling=frame_sampling, limits=limits)
    frames = Frames.of(source) if isinstance(source, Video) else None
    return MediumPixels(_squares(getattr(source, "frames", source), preprocess, limits), frames)


def _squares(source: Any, preprocess: Preprocessor, limits: MediaLimits) -> Pixels:
    if isinstance(source, np.ndarray):
        if not len(source):
            raise ValueError("video: expected at least one frame, got an array of none")
        _check_pixels(source, "video", "[F, H, W, 3]")
        return _resized(source, preprocess, "video")
    names = [f"video, frame {i}" for i in range(len(source))]
    frames = [_frame(frame, name, limits) for frame, name in zip(source, names, strict=True)]
    return np.concatenate([_resized(frame[None], preprocess, name) for frame, name in zip(frames, names, strict=True)])


def is_read_from_files(source: Any) -> bool:
    """Returns whether a video is a file, or `FrameFiles`, or a list of paths, whose frames are sampled."""
    if isinstance(source, (list, tuple)):
        return bool(source) and all(isinstance(item, (str, os.PathLike)) for item in source)
    return isinstance(source, (str, os.PathLike, FrameFiles))


def known_frames(source: Any, frame_sampling: Any) -> int | None:
    """Returns how many frames a video will have; None if only opening the file would tell."""
    if is_read_from_files(source):
        count = (
            len(frame_sampling.frames)
            if isinstance(frame_sampling, Indices)
            else getattr(frame_sampling, "num_frames", None)
        )
        return count if isinstance(count, int) else None
    return len(getattr(source, "frames", source))


def _frame(source: Any, name: str, limits: MediaLimits) -> UInt8:
    if _is_pil(source):  # it goes the way of the same image in a file
        check_pixels(name, "an image", source.width, source.height, limits)
        return rgb_pixels(source, name)
    if not isinstance(source, np.ndarray):
        raise ValueError(f"{name}: expected a PIL image or a uint8 array [H, W, 3], got {describe(source)}")
    _check_pixels(source, name, "[H, W, 3]")
    return source


def _check_pixels(array: npt.NDArray[Any], name: str, shape: str) -> None:
    if array.dtype == np.uint8 and array.shape[-1] == 3:
        return
    hint = ""
    if array.dtype != np.uint8:
        hint = ": pass decoded pixels, 0 to 255; the processor scales them"
    elif array.shape[-3] == 3:
        hint = ": channels come last, so move that axis to the end"
    raise ValueError(f"{name}: expected uint8 {shape}, got {describe(array)}{hint}")
