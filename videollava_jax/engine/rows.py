"""Which waiting questions take which rows of a grid, and what follows when rows end. No JAX."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence

from videollava_jax.engine.events import Action, Answer, Begin, EndedRow, EndRows, Fail, KeepPrefix, Question, Score
from videollava_jax.engine.groups import Slots
from videollava_jax.engine.packing import COMPUTED_FROM, packed_length

NOT_FINITE = "logits are not finite: the weights or pixels hold NaN or infinity, or overflow in this dtype"


def begin(slots: Slots, index: int, *, at_once: bool) -> Action | None:
    """Puts waiting questions into free rows of the slots of one index; returns what the device does for it.

    Args:
      at_once: fill every free row. Otherwise those of idle slots, and of others when half of them can be filled, when
        their questions are as many tokens as a call is worth, or when none waits any more then.
    """
    shards = slots.shape.shards
    rows = [slots.rows_of(index, shard) for shard in range(shards)]
    live = any(slots.rows[row] is not None for each in rows for row in each)
    chosen: dict[int, Question] = {}
    tokens, waiting = 0, 0
    for slot, each in zip(slots.of_index(index), rows, strict=True):
        if slot.group is not None:
            answers = [question for question in slot.group.waiting if question.task == "answer"]
            free = [row for row in each if slots.rows[row] is None]
            own = dict(zip(free, answers if at_once else without_padding(answers, len(free)), strict=False))
            chosen |= own
            tokens, waiting = max(tokens, sum(question.tokens for question in own.values())), waiting + len(answers)
    enough = not live or 2 * len(chosen) >= slots.shape.rows * shards or tokens >= COMPUTED_FROM
    if not chosen or not (at_once or enough or len(chosen) == waiting):
        return None
    for row, question in chosen.items():
        slots.take_row(row, question)
    return Begin(index, tuple(chosen.get(row) for each in rows for row in each))


def without_padding(questions: Sequence[Question], most: int) -> list[Question]:
    """Returns as many questions as there are rows: where more wait, those that fill a packed sequence best.

    The first ones are exchanged for longer ones, as long as their sequence is padded to the same length.
    """
    chosen, others = list(questions[:most]), list(questions[most:])
    if not chosen:
        return []
    total = sum(question.tokens for question in chosen)
    free = packed_length(total) - total
    # Of hundreds that wait few differ in length, and among equal ones the first is taken.
    places: dict[int, list[int]] = {}
    for j, question in enumerate(others):
        places.setdefault(question.tokens, []).append(j)
    lengths = sorted(places)
    while free:
        best, gain = -1, 0
        for i, old in enumerate(chosen):
            at = bisect_right(lengths, old.tokens + free) - 1
            if at >= 0 and lengths[at] - old.tokens > gain:
                best, gain = i, lengths[at] - old.tokens
        if best < 0:
            break
        old, length = chosen[best], chosen[best].tokens + gain
        j = places[length].pop(0)
        if not places[length]:
            del places[length]
            lengths.remove(length)
        if old.tokens not in places:
            insort(lengths, old.tokens)
        insort(places.setdefault(old.tokens, []), j)
        chosen[best], others[j] = others[j], old
        free -= gain
    return chosen


def begin_without_rows(slots: Slots, index: int, *, scores: bool) -> list[Action]:
    """Returns what is done for questions that need the prefixes in the slots of one index and no row.

    Args:
      scores: score the choices of one question in each slot; the others wait until the rows have decoded again.
    """
    actions: list[Action] = []
    for shard, slot in enumerate(slots.of_index(index)):
        waiting = [] if slot.group is None else list(slot.group.waiting)
        pins = [question for question in waiting if question.task == "pin"]
        scored = [question for question in waiting if question.task == "score" and scores][:1]
        for question in (*pins, *scored):
            held = slots.take_prefix(slot, question)
            if question.task == "pin":
                slot.pins.append(question)
                actions.append(KeepPrefix(question, held))
            else:
                actions.append(Score(index, shard, question, held))
        if pins or scored:
            slots.release(slot)
    return actions


def end(slots: Slots, ended: Iterable[EndedRow]) -> list[Action]:
    """Frees rows, and returns their answers."""
    ended = list(ended)
    by_host = tuple(each.row for each in ended if each.by_host)
    actions: list[Action] = [EndRows(by_host)] if by_host else []
    for each in ended:
        question, held = slots.free_row(each.row)
        actions.append(
            Answer(question, each.tokens, held)
            if each.finite
            else Fail(question.id, NOT_FINITE, "not_finite", question)
        )
    return actions
