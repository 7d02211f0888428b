"""The schedule: what the engine does next. A state machine without JAX, threads, waiting or a clock.

    requests ──▶ groups, by prefix ──▶ slots ──▶ rows ──▶ answers
                 identify, read        prefill   begin,
                 media                           decode

`take` records an event (something that happened), `next` returns an action (something to do); `events.py` lists both.
The schedule repeats four phases: it takes requests until the window is full, gives free slots to the oldest groups,
puts waiting questions into free rows, and lets the device decode until enough rows have ended. A slot whose questions
are all answered is given to another group. Until then it keeps its prefix, which later questions about it use again.

Decisions depend on the requests and the content of media, never on the time at which an event comes: groups are
considered in the order of their first questions, and the action is `Wait` until the media of the next group are read.
So several processes that are given the same requests take the same decisions.

A live schedule answers requests that come while others are answered. It differs in four decisions: its grid is fixed;
no group waits for the media of another; a waiting question takes a free row at once; and the device decodes a few steps
at a time. A prefix that a slot still holds is used without reading its media again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import cast

from videollava_jax.engine import filling, rows
from videollava_jax.engine.arrivals import Arrivals
from videollava_jax.engine.events import (
    Action,
    Arrived,
    Cancelled,
    Decode,
    EndRows,
    Event,
    Exhausted,
    Fail,
    Finish,
    Identified,
    Identify,
    MakeGrid,
    MediaRead,
    PrefixMedia,
    Question,
    ReaderFailed,
    ReadMedia,
    Refused,
    Released,
    RowsEnded,
    StopReading,
    TakeRequest,
    Wait,
)
from videollava_jax.engine.groups import Group, Groups, Slots, usage_of
from videollava_jax.engine.sizes import Branches, Demand, GridShape
from videollava_jax.engine.usage import Usage
from videollava_jax.processing.room import require_room

WATCHED_STEPS = 8
"""Steps of decoding at a time where the host looks at the answers: for stop strings and log-probabilities."""
STEPS = 64
ENDED_SHARE = 16
"""The device stops when one row in sixteen has ended: a slot whose last answer has ended is filled again soon, and the
host is not waited for in every step."""
LIVE_STEPS = 8
"""Steps of decoding at a time in a live schedule: the most that a request waits for a free row."""
LIVE_SHARE = 4
"""In a live schedule the device stops earlier once one live row in four has ended. To begin one question costs as much
as to begin several, so rows are filled together; where few rows are live, the first to end stops it."""
_LIVE_EVENTS = (Arrived, Refused, Exhausted, Cancelled, Released)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the schedule decides within.

    Attributes:
      shards: that a batch is split into, W.
      window: requests that wait for a row at any time; those about the same media are grouped among them.
      ahead: groups whose media are read ahead.
      positions: of the model, for a prompt and its answer.
      grid: of a live schedule, which somebody has made; None for a schedule that makes grids for its requests.
    """

    shards: int
    window: int
    ahead: int
    positions: int
    grid: GridShape | None = None


class Schedule:
    """Decides what one run over requests does next: `take` events, then ask `next` for an action.

    Attributes:
      slots: of the present grid; None before the first.
    """

    def __init__(self, limits: Limits, choose_shape: Callable[[Demand], GridShape] | None = None):
        """Begins with no request, and with no grid unless `limits` has one.

        Args:
          choose_shape: returns the grid for a demand, or raises ValueError where the memory is too small for one row.
            A live schedule needs none.
        """
        self._limits, self._choose_shape = limits, choose_shape
        self.slots = None if limits.grid is None else Slots(limits.grid, Branches(), fixed=True)
        self._queries = self._hits = self._prefills = 0
        self._prefilled = False  # since rows were decoded
        self._arrivals = Arrivals()
        self._groups = Groups()
        self._exhausted = False
        self._phase: Callable[[], Action | None] = self._take_requests
        self._decided: deque[Action] = deque()
        self._owed: tuple[type[Event], ...] = ()

    # ── events in, actions out ──

    def take(self, event: Event) -> None:
        """Takes an event into account; what follows from it is decided by `next`."""
        match event:
            case Identified(question, key):
                self._arrivals.identify(question, key)
                self._group_arrivals()
                return
            case MediaRead(key, media):
                if (group := self._groups.get(key)) is not None:
                    group.media = media
                return
        if not (self.live and isinstance(event, _LIVE_EVENTS)):
            assert isinstance(event, self._owed), f"{event} does not answer the last action"
            self._owed = ()
        match event:
            case Arrived(question):
                self._arrivals.add(question)
                self._decided.append(Identify(question))
            case Refused(id, error):
                self._decided.append(_failure(id, error))
            case Exhausted():
                self._exhausted = True
            case RowsEnded(ended):
                self._decided += rows.end(cast(Slots, self.slots), ended)
            case Cancelled():
                self._cancel(event)
            case Released(question):
                if not cast(Slots, self.slots).unpin(question):
                    self._cancel(Cancelled(question, "the pin was released", "cancelled"))

    @property
    def live(self) -> bool:
        """Whether requests come while others are answered."""
        return self._limits.grid is not None

    def next(self) -> Action:
        """Decides what to do next: one action, which is then carried out.

        Raises:
          ValueError: the memory is too small for one row.
          Exception: what reading media raised, where that is neither a ValueError nor an OSError.
        """
        while True:
            if (action := self._ready()) is not None:
                return action
            if self._owed:
                return Wait()
            action = self._phase()
            if isinstance(action, Wait):
                return self._ready() or action  # what was decided on the way comes before waiting
            if isinstance(action, TakeRequest):
                self._owed = (Arrived, Refused, Exhausted)
            elif isinstance(action, Decode):
                self._owed = (RowsEnded,)
            if action is not None:
                return action

    def _ready(self) -> Action | None:
        """Returns what can be done whatever the phase."""
        if self._decided:
            return self._decided.popleft()
        group = self._groups.next_to_read(self._limits.ahead)
        return None if group is None else ReadMedia(group.key, group.first)

    # ── first phase: requests ──

    def _take_requests(self) -> Action | None:
        """Takes requests until the window is full; goes on when all of them are in groups.

        To a live schedule they come by themselves.
        """
        if self.live:
            self._phase = self._give_slots
            return None
        waiting = len(self._arrivals) + self._groups.questions + (0 if self.slots is None else self.slots.waiting)
        if not self._exhausted and waiting < self._limits.window:
            return TakeRequest()
        if self._arrivals:
            return Wait()
        self._phase = self._give_slots
        return None

    def _group_arrivals(self) -> None:
        """Puts questions into groups in the order in which they came, up to the first that is not identified.

        In a live schedule no question waits for another one to be identified.
        """
        for question, key in self._arrivals.identified(in_order=not self.live):
            if isinstance(key, Exception):
                self._decided.append(_failure(question.id, key, question))
            else:
                self._group(key, question)

    def _group(self, key: Hashable, question: Question) -> None:
        """Puts a question into the group of its prefix: one that has a slot, or one that waits for a slot."""
        slots = self.slots
        if slots is not None and slots.fixed and not slots.takes(question):
            self._decided.append(_failure(question.id, slots.too_long(question), question))
            return
        if question.task == "pin" and not self._may_pin(key):
            most = cast(Slots, slots).shape.slots - 1
            error = f"expected at most {most} pinned prefixes, one less than the session has slots: release one first"
            self._decided.append(Fail(question.id, error, "too_many_pins", question))
            return
        self._queries += 1
        slot = None if slots is None else slots.holding(key) if slots.fixed else slots.slot_of(key, question)
        if slot is None:
            self._hits += self._groups.get(key) is not None
            self._groups.add(key, question)
        elif not self._too_long(slot.length, question):
            self._hits += 1
            group = slot.group or Group(key, question)
            group.waiting.append(question)
            cast(Slots, slots).cached.add(question)
            cast(Slots, slots).give(slot, group)

    def _may_pin(self, key: Hashable) -> bool:
        """Returns whether a slot stays for other prefixes, if that of a key is pinned too."""
        slots = cast(Slots, self.slots)
        groups = [*self._groups, *(slot.group for slot in slots.slots if slot.group is not None)]
        to_come = {group.key for group in groups if any(question.task == "pin" for question in group.waiting)}
        return len({key} | to_come | slots.pinned) < slots.shape.slots

    def _too_long(self, prefix: int, question: Question) -> bool:
        """Returns whether prompt and answer do not fit the model; the question has failed then."""
        try:
            require_room(prefix + question.tokens, question.required_tokens, self._limits.positions)
            if self.slots is not None and self.slots.fixed:
                self.slots.require_room(prefix)
        except ValueError as error:
            self._decided.append(_failure(question.id, error, question))
            return True
        return False

    # ── second phase: slots ──

    def _give_slots(self) -> Action | None:
        """Gives the slots of a free index to the oldest groups that fit, until none is free or no group fits."""
        slots = self.slots
        if slots is None or not (slots.busy or slots.fixed):
            found = [] if slots is None else filling.fitting(slots, self._readable())
            if found is None:
                return Wait()
            if not found and len(self._groups):
                return self._new_grid()
        if slots is None or not len(self._groups) or slots.free_index([]) is None:
            self._phase = self._begin_questions
            return None
        found = filling.fitting(slots, self._readable())
        if found is None:
            return Wait()
        if not found or (self._prefilled and self._few_wait(slots)):
            self._phase = self._begin_questions
            return None
        return self._fill(slots, found)

    def _few_wait(self, slots: Slots) -> bool:
        """Returns whether rows of a live schedule are answered before another prefix is computed.

        They wait for one, and for more while more questions wait for a slot than rows are being answered: a step costs
        nearly the same with few rows, so that the fewer wait for the more.
        """
        waiting = sum(len(group.waiting) for group in self._groups if not isinstance(group.media, Exception | None))
        return self.live and 0 < len(slots.live) >= waiting

    def _readable(self) -> Iterator[tuple[Group, PrefixMedia] | None]:
        """Yields the oldest groups whose media were read and whose questions fit the model; the others fail.

        Yields None last if the media of the next group are not read yet: the caller waits, and begins again. A live
        schedule passes over that group.
        """
        seen = 0
        for group in self._groups:
            media = group.media
            if media is None and self.live:
                continue
            if media is None:
                yield None
                return
            if isinstance(media, Exception):
                if not isinstance(media, ValueError | OSError):
                    if not self.live:
                        raise media
                    media = ReaderFailed(media)
                self._groups.remove(group)
                self._decided += [_failure(q.id, media, q, group.first) for q in group.waiting]
                continue
            for question in list(group.waiting):
                if self._too_long(media.tokens, question):
                    self._groups.drop(group, question)
            if group.waiting:
                yield group, media
                seen += 1
                if seen == self._limits.ahead:
                    return

    def _new_grid(self) -> Action | None:
        """Chooses a grid for the oldest group and those like it; returns None where all groups have failed."""
        first = next(self._readable(), ())
        if first is None:
            return Wait()
        if not first:
            return None
        assert self._choose_shape is not None
        sizes, branches = filling.demand(self._groups, first[1].tokens)
        shape = self._choose_shape(sizes)
        self.slots = Slots(shape, branches)
        return MakeGrid(shape, branches)

    def _fill(self, slots: Slots, groups: list[Group]) -> Action | None:
        """Gives the slots of one index to groups; their prefixes are computed unless the slots hold them already."""
        for group in groups:
            self._groups.remove(group)
        prefill = filling.fill(slots, groups)
        if prefill is not None:
            self._prefills += len(groups)
            self._prefilled = True
        return prefill

    # ── third phase: rows ──

    def _begin_questions(self, scores: bool = True) -> Action | None:
        """Puts waiting questions into free rows: of idle slots, and of others when half of their rows can be filled.

        A live schedule fills every free row at once, and does what questions want that need no row.
        """
        self._phase = self._decode
        if self.slots is not None:
            for index in range(self.slots.shape.slots):
                if self.live:
                    self._decided += rows.begin_without_rows(self.slots, index, scores=scores)
                if (action := rows.begin(self.slots, index, at_once=self.live)) is not None:
                    self._decided.append(action)
        return None

    # ── fourth phase: decoding ──

    def _decode(self) -> Action | None:
        """Lets the device decode, if any row is taken."""
        if self.live:
            self._begin_questions(scores=False)  # that have come, or whose row was freed, since the third phase
            if self._decided:
                return None
        self._phase, self._prefilled = self._finish, False
        live = {} if self.slots is None else self.slots.live
        if self.slots is None or not live:
            return None
        if self.live:
            return Decode(LIVE_STEPS, max(1, len(live) // LIVE_SHARE), live)
        steps = WATCHED_STEPS if any(each.stops or each.wants_logprobs for each in live.values()) else STEPS
        return Decode(steps, max(1, self.slots.shape.batch // ENDED_SHARE), live)

    def _finish(self) -> Action | None:
        """Ends the run when every request has its result; otherwise the phases begin again."""
        busy = self.slots is not None and self.slots.busy
        if self._exhausted and not len(self._groups) and not busy and not self._arrivals:
            return Finish()
        self._phase = self._take_requests
        idle = not busy and all(group.media is None for group in self._groups)
        return Wait() if self.live and idle else None

    # ── at any time: nobody wants an answer any more ──

    def _cancel(self, event: Cancelled) -> None:
        """Frees what a question holds, wherever it is, and gives its error; does nothing if it has its result."""
        question, slots = event.question, cast(Slots, self.slots)
        group = next((group for group in self._groups if question in group.waiting), None)
        row = next((row for row, live in slots.live.items() if live is question), None)
        if group is not None:
            if self._groups.drop(group, question):
                self._decided.append(StopReading(group.key))
        elif row is not None:
            self._decided.append(EndRows((row,)))
            slots.free_row(row)
        elif not self._arrivals.remove(question) and not slots.withdraw(question):
            return
        self._decided.append(Fail(question.id, event.error, event.cause, question))

    # ── for metrics ──

    @property
    def usage(self) -> Usage:
        """What a live schedule has decided so far, and what it has at hand."""
        now = usage_of(self._groups, cast(Slots, self.slots))
        return replace(now, prefix_queries=self._queries, prefix_hits=self._hits, prefills=self._prefills)


def _failure(id: str, error: Exception, question: Question | None = None, read_for: Question | None = None) -> Fail:
    return Fail(id, str(error), getattr(error, "cause", None), question, read_for)
