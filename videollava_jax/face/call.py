"""One call of the processor: its arguments, and its media opened and sampled as they say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from videollava_jax.face.arguments import Arguments
from videollava_jax.face.features import tensor_kind
from videollava_jax.face.opening import Opening
from videollava_jax.face.sampling import EveryFrame, sampling
from videollava_jax.face.video_processor import sampled
from videollava_jax.media import FrameFiles, Video
from videollava_jax.processing.given_media import share_out
from videollava_jax.processing.media_processor import DEFAULT_LIMITS
from videollava_jax.processing.segments import MEDIA_TOKENS, MediaKind

OWN = ("frame_sampling", "limits", "reader", "video_pooling", "max_new_tokens", "allow_remote_media")
"""The arguments of a call that transformers does not have."""


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        asked: transformers' arguments.
        own: this package's arguments, see `OWN`.
        video_processor: its attributes say what sampling does where the call does not.
        frames: the processor's way from what was asked for, perhaps nothing, to a rule.
    """

    asked: Arguments
    own: Mapping[str, Any]
    video_processor: Any
    frames: Callable[[Any], Any]

    @property
    def kind(self) -> str | None:
        """The library of the results: "np", "jax", "pt", or None for lists."""
        return tensor_kind(self.asked.return_tensors)

    @property
    def asks_for_more(self) -> bool:
        """Whether an argument asks for what the core's processor does not do."""
        asked = self.asked
        return bool(asked.text or asked.images or asked.videos or asked.flags)

    @property
    def described(self) -> str:
        """The names of the arguments that the core's processor does not have."""
        asked = self.asked
        return ", ".join({**asked.text, **asked.images, **asked.videos, **asked.flags})

    @cached_property
    def rule(self) -> Any:
        """The frames that transformers' arguments ask for; None where they ask for none.

        Raises:
            ValueError: `frame_sampling` as well.
        """
        asked, usual = self.asked.sampling, self.video_processor
        sample = asked.get("do_sample_frames")
        number, rate = asked.get("num_frames"), asked.get("fps")
        if sample or (sample is None and usual.do_sample_frames):
            if number is None and rate is None:
                number, rate = getattr(usual, "num_frames", None), getattr(usual, "fps", None)
            sample = True
        rule = sampling(sample, number, rate)
        if rule is not None and "frame_sampling" in self.own:
            raise ValueError(
                "frame_sampling says which frames are taken: leave out num_frames, fps and do_sample_frames"
            )
        return rule

    @property
    def frame_sampling(self) -> Any:
        """The rule for videos in files."""
        return self.frames(self.own.get("frame_sampling", self.rule))

    @property
    def limits(self) -> Any:
        """Of media files."""
        return self.own.get("limits", DEFAULT_LIMITS)

    @property
    def reader(self) -> Any:
        """What reads media files instead of this process; None for this process."""
        return self.own.get("reader")

    @property
    def of_core(self) -> dict[str, Any]:
        """The arguments of the core's processor."""
        asked = self.asked
        return {
            "padding": asked.padding,
            "truncation": asked.truncation,
            "max_length": asked.max_length,
            "max_new_tokens": self.own.get("max_new_tokens", 0),
            "frame_sampling": self.frame_sampling,
            "limits": self.limits,
            "reader": self.reader,
            "video_pooling": self.own.get("video_pooling"),
            "return_tensors": "np" if self.kind else None,
        }

    # ── media ──

    def opening(self, kind: str) -> Opening:
        """How media of a kind, "images" or "videos", are opened."""
        remote = bool(self.own.get("allow_remote_media", False))
        return Opening(self.limits, remote, self.frame_sampling, self.asked.input_data_format[kind], self.reader)

    def opened(self, images: Any, videos: Any) -> tuple[Any, Any, list[Any]]:
        """Opens the media of a call; also returns the metadata of videos, where they are asked for."""
        images = None if images is None else self.opening("images").image(images)
        videos = None if videos is None else self.opening("videos").video(videos)
        asked = self.asked.sampling
        wanted = asked.get("return_metadata") or (self.rule is not None and asked.get("do_sample_frames"))
        if videos is None or not wanted:
            return images, videos, []
        clips, metadata = self._sampled(share_out(videos, "video", None)[0])
        return images, clips, metadata

    def opened_conversation(self, conversation: Any) -> Any:
        """Opens the media of a conversation, or of a list of them; arrays are sampled if that is asked for."""
        if conversation and isinstance(conversation, (list, tuple)) and isinstance(conversation[0], (list, tuple)):
            return [self.opened_conversation(one) for one in conversation]
        openings = {"image": self.opening("images").image, "video": self._opened_video}
        return opened_messages(conversation, openings)

    def _opened_video(self, given: Any) -> Any:
        video = self.opening("videos").video(given)
        if self.rule is None or isinstance(video, (str, os.PathLike, FrameFiles, Video)):
            return video
        return self._sampled([video])[0][0] if "video_metadata" not in self.asked.sampling else video

    def _sampled(self, videos: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        in_memory = self.rule or EveryFrame()
        read = self.opening("videos").read_video
        return sampled(videos, in_memory, self.asked.sampling.get("video_metadata"), read)

    def read_images(self, images: Sequence[Any]) -> list[Any]:
        """Reads those of images that are files."""
        read = self.opening("images").read_image
        return [read(i) if isinstance(i, (str, os.PathLike)) else i for i in images]

    def read_videos(self, videos: Sequence[Any]) -> list[Any]:
        """Reads those of videos that are files; each becomes an array or a list of frames."""
        read_file = self.opening("videos").read_video
        read: list[Any] = [read_file(v) if isinstance(v, (str, os.PathLike, FrameFiles)) else v for v in videos]
        return [list(video.frames if isinstance(video, Video) else video) for video in read]

    def is_plain(self, conversation: Any) -> bool:
        """Whether the core takes all media of a conversation, or of a list of them."""
        messages = conversation if isinstance(conversation, (list, tuple)) else []
        parts = [
            part
            for message in messages
            for part in ((message.get("content") or []) if isinstance(message, Mapping) else message)
        ]
        if messages and not isinstance(messages[0], Mapping):
            return all(map(self.is_plain, messages))
        return "return_metadata" not in self.asked.sampling and all(
            is_plain(part.get(part.get("type"))) for part in parts if isinstance(part, Mapping)
        )

    def opened_kwargs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call whose media `opened_conversation` has opened and sampled."""
        done = (
            () if "video_metadata" in given or "return_metadata" in given else ("do_sample_frames", "num_frames", "fps")
        )
        kept = {name: value for name, value in given.items() if name not in (*done, "input_data_format")}
        return {**kept, "frame_sampling": self.frame_sampling} if done else kept


def opened_messages(messages: Any, openings: Mapping[str, Any]) -> Any:
    """Returns the messages of a conversation with their media opened, each under the name of its kind."""

    def part_of(part: Any) -> Any:
        kind: Any = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image_url", "video_url"):
            url = part.get(kind)
            kind, part = kind.removesuffix("_url"), {"url": url.get("url") if isinstance(url, Mapping) else url}
        if kind not in openings:
            return part
        given = [part[key] for key in (kind, "path", "url", "base64") if part.get(key) is not None]
        if len(given) != 1:
            return part  # none, or several: the core says what is wrong with it
        return {"type": kind, kind: openings[kind](given[0])}

    opened = []
    for message in messages if isinstance(messages, (list, tuple)) else [messages]:
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = [part_of(part) for part in content] if isinstance(content, (list, tuple)) else None
        opened.append(message if parts is None else {**message, "content": parts})
    return opened


def rows(given: Any, kind: MediaKind, texts: Sequence[str] | None, asked: Arguments) -> list[Any]:
    """Returns the media of all rows in the order of their placeholders; their numbers are checked row by row."""
    if given is None:
        return []
    marked = asked.text.get("sanitize_control_tokens")  # whose placeholders only transformers can count
    counts = None if texts is None or marked else [text.count(MEDIA_TOKENS[kind]) for text in texts]
    return [medium for row in share_out(given, kind, counts) for medium in row]


def media(images: Any, videos: Any) -> Iterator[Any]:
    """Yields every image and every video, or frame of one, of nested lists."""
    for given in (images, videos):
        if isinstance(given, (list, tuple)):
            for item in given:
                yield from media(item, None)
        elif given is not None:
            yield given


def is_plain(medium: Any) -> bool:
    """Whether the core takes a medium: not an array, or one of uint8 with three channels at the end."""
    if isinstance(medium, (list, tuple)):
        return all(map(is_plain, medium))
    return not isinstance(medium, np.ndarray) or (medium.dtype == np.uint8 and medium.shape[-1:] == (3,))
