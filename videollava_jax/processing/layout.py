"""Expands prompts to token ids: counts the tokens of each part, checks that they fit the model, truncates and pads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from videollava_jax.processing.room import room_for_prompt
from videollava_jax.processing.segments import Expanded, MediaKind, Segments

Padding = bool | Literal["longest", "max_length", "do_not_pad"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The tokens that media take, and how many a prompt may have.

    Attributes:
        tokens_per_image, tokens_per_frame: decoder tokens of an image, and of one frame of a video.
        max_positions: positions of the decoder; None for no check.
        max_new_tokens: positions to leave free for generated tokens.
        truncate_to: tokens to which prompts are truncated; None for no truncation.
        truncate_left: whether to cut at the start instead of at the end.
        affixes: how many special tokens every prompt starts and ends with; truncation keeps them.
        pooled: each stronger `video_pooling` and the tokens of a frame with it, the weakest first; for messages.
        frame_window: a video's number of frames must be a multiple of this.
    """

    tokens_per_image: int
    tokens_per_frame: int
    max_positions: int | None
    max_new_tokens: int = 0
    truncate_to: int | None = None
    truncate_left: bool = False
    affixes: tuple[int, int] = (1, 0)
    pooled: tuple[tuple[int, int], ...] = ()
    frame_window: int = 1

    def medium(self, kind: MediaKind, frames: int) -> int:
        """Returns the decoder tokens of an image, or of a video of `frames` frames."""
        return self.tokens_per_image if kind == "image" else frames * self.tokens_per_frame


def lay_out(
    rows: Sequence[Segments], frames: Sequence[int], media_ids: Mapping[MediaKind, int], budget: Budget
) -> list[Expanded]:
    """Expands each row to token ids, truncated if the budget says so.

    Args:
        rows: the prompts.
        frames: frames of each medium of all rows in order, 1 for an image.
        media_ids: token ids of "image" and "video".
        budget: tokens of media, and limits.

    Raises:
        ValueError: a row has more tokens than the model has positions, or truncation would cut a medium. The message
            lists the tokens of each part and says how many frames fit.
    """
    remaining = list(frames)
    laid_out = []
    for i, row in enumerate(rows):
        own = [remaining.pop(0) for _ in row.media]
        lengths = [budget.medium(m.kind, n) for m, n in zip(row.media, own, strict=True)]
        expanded = row.expand(lengths, media_ids, budget.tokens_per_frame)
        if budget.truncate_to is not None and len(expanded.input_ids) > budget.truncate_to:
            expanded = _truncate(expanded, i, row, own, budget, budget.truncate_to)
        if budget.max_positions is not None:
            room = room_for_prompt(budget.max_positions, budget.max_new_tokens)
            if len(expanded.input_ids) > room:
                raise ValueError(_too_long(i, row, own, budget, room))
        laid_out.append(expanded)
    return laid_out


def _too_long(i: int, row: Segments, frames: Sequence[int], budget: Budget, room: int) -> str:
    limit = f"the model has {budget.max_positions} positions"
    if budget.max_new_tokens:
        limit += f" and {budget.max_new_tokens} of them are for new tokens: expected at most {room}"
    return f"row {i} is too long: {_account(row, frames, budget)}; {limit}. {_remedy(row, frames, budget, room)}"


def _account(row: Segments, frames: Sequence[int], budget: Budget) -> str:
    """Lists the tokens of each part of a row: "2100 tokens (text 44, video 0 2056 = 8 frames of 257)"."""
    parts = [f"text {row.text_length}"]
    total = row.text_length
    seen = {"image": 0, "video": 0}
    for medium, count in zip(row.media, frames, strict=True):
        tokens = budget.medium(medium.kind, count) + medium.text_tokens(count)
        note = f" = {count} frames of {budget.tokens_per_frame}" if medium.kind == "video" else ""
        parts.append(f"{medium.kind} {seen[medium.kind]} {tokens}{note}")
        seen[medium.kind] += 1
        total += tokens
    return f"{total} tokens ({', '.join(parts)})"


def _remedy(row: Segments, frames: Sequence[int], budget: Budget, room: int) -> str:
    videos = [count for medium, count in zip(row.media, frames, strict=True) if medium.kind == "video"]
    images = len(row.media) - len(videos)
    left = room - row.text_length - images * budget.tokens_per_image
    ways = []
    if videos:
        fit = left // (len(videos) * budget.tokens_per_frame) // budget.frame_window * budget.frame_window
        if fit > 0:
            ways.append(f"take fewer frames: {fit} fit{' in each video' if len(videos) > 1 else ''}")
        for pooling, tokens in budget.pooled:
            if sum(videos) * tokens <= left:
                ways.append(f"pool each frame to {tokens} tokens (video_pooling={pooling}, untrained)")
                break
    if ways:
        said = ", or ".join(ways)
        return said[0].upper() + said[1:]
    if row.media:
        return "Not one frame fits with the rest: " * bool(videos) + "shorten the text, or give fewer media"
    return "Shorten the text"


def _truncate(expanded: Expanded, i: int, row: Segments, frames: Sequence[int], budget: Budget, limit: int) -> Expanded:
    """Removes text at one end, but keeps the special tokens at both ends, like a fast tokenizer."""
    length = len(expanded.input_ids)
    head, tail = budget.affixes
    if limit < head + tail:
        raise ValueError(f"max_length: expected at least the {head + tail} special tokens, got {limit}")
    excess = length - limit
    # The tokens [cut, cut + excess) are removed.
    cut = head if budget.truncate_left else length - tail - excess
    if any(start < cut + excess and stop > cut for start, stop in expanded.media_spans):
        raise ValueError(
            f"row {i}: truncation to max_length={limit} would cut a medium: {_account(row, frames, budget)}. "
            f"{_remedy(row, frames, budget, limit)}, or truncate less"
        )
    keep = np.r_[0:cut, cut + excess : length]
    spans = tuple(
        (start - excess, stop - excess) if start >= cut else (start, stop) for start, stop in expanded.media_spans
    )
    return Expanded(expanded.input_ids[keep], expanded.answer[keep], spans)


def pad(
    rows: Sequence[Expanded],
    pad_token_id: int,
    *,
    padding: Padding,
    max_length: int | None,
    left: bool,
    with_answers: bool,
    as_arrays: bool,
) -> dict[str, Any]:
    """Pads rows: returns `input_ids`, `attention_mask` and, if asked for, `assistant_masks`, int64 [B, T] or lists.

    Args:
        rows: of any lengths.
        pad_token_id: the padding.
        padding: True or "longest" pads to the longest row, "max_length" to `max_length`; otherwise rows stay.
        max_length: tokens, for padding="max_length". Longer rows stay as long as they are.
        left: whether padding goes before the tokens.
        with_answers: whether to return `assistant_masks`.
        as_arrays: False for lists.

    Raises:
        ValueError: arrays of rows of different lengths are asked for without padding, or `padding` is unknown.
    """
    lengths = [len(row.input_ids) for row in rows]
    if padding in (True, "longest"):
        target = max(lengths, default=0)
    elif padding == "max_length":
        if max_length is None:
            raise ValueError("padding='max_length': expected max_length too, got None")
        target = max_length  # longer rows stay longer, as in transformers
    elif padding in (False, None, "do_not_pad"):
        target = 0
    else:
        raise ValueError(f"padding: expected True, False, 'longest' or 'max_length', got {padding!r}")
    if as_arrays and len({max(n, target) for n in lengths}) > 1:
        raise ValueError(
            f"expected rows of one length for arrays, got rows of {', '.join(map(str, lengths))} tokens: "
            "pass padding=True, or return_tensors=None for lists"
        )
    columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": []}
    if with_answers:
        columns["assistant_masks"] = []
    for row, length in zip(rows, lengths, strict=True):
        fill = max(target - length, 0)
        width = (fill, 0) if left else (0, fill)
        columns["input_ids"].append(np.pad(row.input_ids, width, constant_values=pad_token_id))
        columns["attention_mask"].append(np.pad(np.ones(length, np.int64), width))
        if with_answers:
            columns["assistant_masks"].append(np.pad(row.answer.astype(np.int64), width))
    if as_arrays:
        return {name: np.stack(column) for name, column in columns.items()}
    return {name: [array.tolist() for array in column] for name, column in columns.items()}
