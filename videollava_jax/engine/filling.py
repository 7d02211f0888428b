"""Which groups take the slots of a grid, and which grid a schedule makes for its groups. No JAX."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import cast

from videollava_jax.engine.events import Prefill, PrefixMedia
from videollava_jax.engine.groups import Group, Groups, Slots
from videollava_jax.engine.sizes import Branches, Demand

CHOICE = 4
"""Groups for each shard among which those that share an index are chosen. Shards work in step: their questions begin
together, padded to the longest of their sequences, and the index is free when the last of all answers has ended."""


def fitting(slots: Slots, readable: Iterable[tuple[Group, PrefixMedia] | None]) -> list[Group] | None:
    """Returns groups that fit a grid and can be encoded together, one a shard; None to wait.

    They are the oldest that fits, and with several shards those of the next few that have about as many tokens.

    Args:
      readable: groups with their media, oldest first; None for one whose media are not read yet.
    """
    shards = slots.shape.shards
    most = shards if slots.fixed or shards == 1 else CHOICE * shards
    found: list[Group] = []
    signature: Hashable = None
    for each in readable:
        if each is None:
            return None
        group, media = each
        if slots.fits(group, media.tokens) and (not found or media.signature == signature):
            found.append(group)
            signature = media.signature
            if len(found) == most:
                break
    if len(found) <= shards:
        return found
    oldest, *others = found
    near = sorted(others, key=lambda group: abs(_tokens(group) - _tokens(oldest)))
    return [oldest, *near[: shards - 1]]


def _tokens(group: Group) -> int:
    return sum(question.tokens for question in group.waiting)


def fill(slots: Slots, groups: list[Group]) -> Prefill | None:
    """Gives the slots of a free index to groups, at most one a shard; returns None if they hold the prefixes already.

    A slot without a group gets the last prefix too.
    """
    padded = [*groups, *[groups[-1]] * (slots.shape.shards - len(groups))]
    keys = [group.key for group in padded]
    index = slots.free_index(keys)
    assert index is not None
    chosen = slots.of_index(index)
    there = [slot.holds for slot in chosen] == keys
    media = tuple(cast(PrefixMedia, group.media) for group in padded)
    for slot, group, read in zip(chosen, padded, media, strict=True):
        slot.holds, slot.length, slot.frames = group.key, read.tokens, read.frames
    for slot, group in zip(chosen, groups, strict=False):
        slots.give(slot, group)
        group.media = None
    if there:
        slots.cached.update(question for group in groups for question in group.waiting)
        return None
    return Prefill(index, media)


def demand(groups: Groups, prefix: int) -> tuple[Demand, Branches]:
    """Returns what a grid has to hold for groups, and what its programs have to do.

    Args:
      prefix: tokens of the oldest group's prefix.
    """
    questions = [question for group in groups for question in group.waiting]
    sizes = Demand(
        prefix=prefix,
        questions=[len(group.waiting) for group in groups],
        question=max(question.tokens for question in questions),
        answer=max(question.answer_tokens for question in questions),
    )
    branches = Branches(
        draw=any(question.draws for question in questions),
        penalise=any(question.penalises for question in questions),
        logprobs=any(question.wants_logprobs for question in questions),
    )
    return sizes, branches
