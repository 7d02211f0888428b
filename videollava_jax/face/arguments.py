"""The arguments of a call of the processor: known by name, and sorted by what they ask."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs, VideosKwargs

TEXT = frozenset(TextKwargs.__annotations__)
IMAGES = frozenset(ImagesKwargs.__annotations__) | {"return_legacy_image_output"}
VIDEOS = frozenset(VideosKwargs.__annotations__)
OF_PARTS = {"text_kwargs": TEXT, "images_kwargs": IMAGES, "videos_kwargs": VIDEOS}
_FLAT = frozenset(ProcessingKwargs.__annotations__) - {*OF_PARTS, "audio_kwargs"}
_SAMPLING = ("do_sample_frames", "num_frames", "fps", "video_metadata", "return_metadata")
_RENAMED = {"video_fps": "fps"}
_OF_TORCH = frozenset({"device", "disable_grouping"})  # where and how torchvision works: nothing of it is used here
ACCEPTED = frozenset({"video_load_backend", "load_audio_from_video", "audio_kwargs", "verbose"})
"""Arguments that ask for nothing: videos are decoded with PyAV whatever is named."""
FURTHER_TEXTS = frozenset({"text_pair", "text_target", "text_pair_target"})
_WITHOUT_EFFECT = frozenset({"image_seq_length", "do_pad", "pad_size"})
"""Settings of pixels without effect in transformers' processors of this model too: pictures are cropped, not padded."""

REFUSED: Mapping[str, str] = {
    "is_split_into_words": "join the words into one string",
    "audio": "Video-LLaVA takes no sound",
    "audios": "Video-LLaVA takes no sound",
    "sampling_rate": "Video-LLaVA takes no sound",
}
"""Arguments of transformers that ask for what Video-LLaVA does not do there either, with what to do instead."""


@dataclass(frozen=True)
class Arguments:
    """What a call asks for.

    Attributes:
        padding, truncation, max_length: of the text; what the core does too.
        text: further arguments of the tokenizer that ask for something.
        images, videos: settings of pixels that differ from those of the sub-processors.
        sampling: `do_sample_frames`, `num_frames`, `fps`, `video_metadata` and `return_metadata`, those that are given.
        input_data_format: of the arrays of images and of videos.
        flags: `return_mm_token_type_ids` and the like.
        return_tensors: the library of the results.
    """

    padding: Any = False
    truncation: Any = False
    max_length: int | None = None
    text: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    videos: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    input_data_format: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    return_tensors: Any = "np"


def joined(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call with those of `processor_kwargs` among them.

    Raises:
        ValueError: one is given twice.
    """
    named = {_RENAMED.get(name, name): value for name, value in kwargs.items()}
    inner = named.pop("processor_kwargs", None) or {}
    if twice := sorted(named.keys() & inner.keys()):
        raise ValueError(f"{twice[0]} was given twice: in processor_kwargs and as an argument")
    return {**named, **{_RENAMED.get(name, name): value for name, value in inner.items()}}


def require_known(kwargs: Mapping[str, Any], own: Sequence[str] = ()) -> None:
    """Refuses arguments that neither transformers nor this package has, and those that ask for what is not done.

    Raises:
        TypeError: an unknown argument; the message names the nearest known one.
        ValueError: a known one that asks for what Video-LLaVA does not do.
    """
    known = {*TEXT, *IMAGES, *VIDEOS, *_FLAT, *OF_PARTS, *ACCEPTED, *REFUSED, "common_kwargs", *own}
    of_parts = [(name, key) for name in OF_PARTS for key in (kwargs.get(name) or {})]
    for part, name in [("", name) for name in kwargs] + of_parts:
        if name not in (OF_PARTS[part] if part else known):
            near = difflib.get_close_matches(name, known, 1)
            where = f" in {part}" if part else ""
            raise TypeError(f"unknown argument {name!r}{where}" + (f": did you mean {near[0]!r}?" if near else ""))
    for name, value in [*kwargs.items(), *((key, kwargs[part][key]) for part, key in of_parts)]:
        if name in REFUSED and value is not None and value is not False:
            raise ValueError(f"{name}: {REFUSED[name]}")
    if any((kwargs.get("audio_kwargs") or {}).values()):
        raise ValueError(f"audio_kwargs: {REFUSED['audio']}")


def sort(merged: Mapping[str, Any], processor: Any) -> Arguments:
    """Sorts merged arguments; what asks for nothing, or for what the processor does anyway, is left out.

    Args:
        merged: of transformers' `ProcessorMixin._merge_kwargs`.
        processor: whose tokenizer and sub-processors say what is usual.
    """
    text, images, videos = ({**merged[part]} for part in OF_PARTS)
    kinds = {part.pop("return_tensors", "np") for part in (images, videos)}
    return_tensors = text.pop("return_tensors", "np")
    if len(kinds - {return_tensors, "np", None}) > 0:
        raise ValueError(
            f"return_tensors: expected one kind for text, images and videos, got {kinds | {return_tensors}}"
        )
    usual = {
        "add_special_tokens": True,
        "return_attention_mask": True,
        "padding_side": processor.tokenizer.padding_side,
    }
    sampling = {name: videos.pop(name, None) for name in _SAMPLING}
    layouts = {"images": images.pop("input_data_format", None), "videos": videos.pop("input_data_format", None)}
    return Arguments(
        padding=getattr(text.get("padding"), "value", text.pop("padding", False)),
        truncation=getattr(text.get("truncation"), "value", text.pop("truncation", False)),
        max_length=text.pop("max_length", None),
        text={
            name: value
            for name, value in text.items()
            if value is not None and value != usual.get(name, False) and name not in ACCEPTED
        },
        images=_unusual(images, processor.image_processor),
        videos=_unusual(videos, processor.video_processor),
        sampling={name: value for name, value in sampling.items() if value is not None},
        input_data_format=layouts,
        flags={name: merged[name] for name in _FLAT if merged.get(name)},
        return_tensors=return_tensors,
    )


def _unusual(settings: Mapping[str, Any], sub_processor: Any) -> dict[str, Any]:
    usual = {"data_format": "channels_first", "return_legacy_image_output": True, "default_to_square": False}
    kept = {}
    for name, value in settings.items():
        known = usual.get(name, getattr(sub_processor, name, None))
        plain = getattr(value, "value", value)
        if value is None or name in _OF_TORCH | _WITHOUT_EFFECT or plain == known or plain == _json(known):
            continue
        kept[name] = value
    return kept


def _json(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if hasattr(value, "items") else value


def in_order(given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `images`, `text` and `videos` of a call, by name or by position in either of transformers' orders.

    transformers 5 takes (images, text, videos), 4.4x took (text, images, videos). Text is known by its type; of two
    strings, by the placeholder in one of them.

    Raises:
        TypeError: one is given twice, or more than there are.
    """
    if len(given) > 4:
        raise TypeError(f"expected images, text and videos, got {len(given)} arguments by position")
    text_first = (
        bool(given)
        and _is_text(given[0])
        and not (
            len(given) > 1 and _is_text(given[1]) and not _has_placeholder(given[0]) and _has_placeholder(given[1])
        )
    )
    text_first |= len(given) > 1 and given[0] is None and given[1] is not None and not _is_text(given[1])
    names = ("text", "images") if text_first else ("images", "text")
    found = dict(named)
    for name, value in zip((*names, "videos", "audio"), given, strict=False):
        if found.get(name) is not None:
            raise TypeError(f"{name} was given twice, by position and by name")
        found[name] = value
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, str) for item in value)
    )


def _has_placeholder(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return any(token in text for text in texts for token in ("<image>", "<video>"))


def template_variables(jinja: str, given: Mapping[str, Any]) -> list[str]:
    """Returns which of the given arguments a chat template reads as its variables."""
    from transformers.utils.chat_template_utils import _get_template_variables

    return sorted(given.keys() & _get_template_variables(jinja))
