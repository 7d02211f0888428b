"""One run of the engine: the host's loop that keeps a grid full.

    requests ──▶ groups, by media ──▶ slots ───▶ rows ──▶ results
                 media read ahead     encode,    begin,
                 by threads           prefill    decode

A step of the loop takes requests in, gives free slots to groups, free rows to questions, and lets the device decode
until enough rows have ended. A slot whose questions are all answered is given to the next groups; its prefix stays
until then, and is found again by requests about the same media. All of it is decided by the requests alone, so several
processes that are given the same requests do the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import jax
import numpy as np
import numpy.typing as npt

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.board import Board, Row, Slot, sampling_of, unwritten_answers
from videollava_jax.engine.grid import Grid
from videollava_jax.engine.groups import Group, Pending
from videollava_jax.engine.media import encode_prefixes
from videollava_jax.engine.options import EngineOptions
from videollava_jax.engine.preparation import Preparer, Question, in_the_names_of
from videollava_jax.engine.request import Request, Result
from videollava_jax.engine.sizes import PREFIX_BUCKET, TEXT_BUCKET, Demand, choose_shape, described
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Vocabulary, bucket
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.text import answer_text, ended
from videollava_jax.processing.processor import VideoLlavaProcessor

STOP_STRING_STEPS = 8
"""Steps between two looks at the answers, where stop strings may end them."""
STEPS = 64


class Run:
    """See the head of this file."""

    def __init__(
        self,
        model: LoadedModel,
        processor: VideoLlavaProcessor,
        options: EngineOptions,
        max_rows: int,
        memory: int,
    ):
        self._model, self._processor, self._options = model, processor, options
        self._max_rows, self._memory = max_rows, memory
        self._text = model.config.text_config
        self._shards = 1 if model.placement is None else model.placement.data
        self._preparer = Preparer(
            processor,
            model.config,
            model.generation_config,
            options.longest_question,
            options.reader,
            eos_token_id=options.eos_token_id,
            pad_token_id=options.pad_token_id,
            suppress_tokens=options.suppress_tokens,
        )
        self._pending = Pending(self._preparer.read, options.readers, ahead=2 * max_rows)
        self._board: Board | None = None
        self._ids: set[str] = set()
        self._finished: deque[Result] = deque()
        self._vocabulary = self._decided_vocabulary()

    def results(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Every request's result, as they finish."""
        incoming = iter(requests)
        exhausted = False
        try:
            while True:
                exhausted = exhausted or self._take_in(incoming)
                self._give_slots()
                self._begin_questions()
                if self._board is not None and self._board.live:
                    self._decode()
                while self._finished:
                    yield self._finished.popleft()
                if exhausted and not len(self._pending) and not self._busy():
                    return
        except jax.errors.JaxRuntimeError as error:
            yield from self._finished
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(
                f"the device has less memory than was reckoned with: lower memory= (now {self._memory / 2**20:.0f} MiB "
                f"for keys and values) or max_rows= (now {self._max_rows}). {str(error).splitlines()[0][:300]}"
            ) from error
        finally:
            self._pending.close()

    # ── requests in ──

    def _take_in(self, incoming: Iterator[Request]) -> bool:
        """Makes requests ready until the window is full. True when there are no more."""
        while self._pending.questions + self._waiting_in_slots() < self._options.window:
            request = next(incoming, None)
            if request is None:
                return True
            if request.id in self._ids:
                raise ValueError(f"request {request.id!r} was there before: expected an id of its own for each")
            self._ids.add(request.id)
            try:
                question = self._preparer.question(request)
            except (ValueError, TypeError, OSError) as error:
                self._fail(request.id, str(error), getattr(error, "cause", None))
                continue
            slot = self._slot_of(question)
            if slot is None or slot.group is None:
                self._pending.add(question)
            elif why := self._too_long(slot.length, question):
                self._fail(request.id, why)
            else:
                slot.group.waiting.append(question)
        return False

    def _waiting_in_slots(self) -> int:
        slots = [] if self._board is None else self._board.slots
        return sum(len(slot.group.waiting) for slot in slots if slot.group is not None)

    def _slot_of(self, question: Question) -> Slot | None:
        """The slot whose group asks about the same prefix, if there is one and its rows take the question."""
        if self._board is None or not self._board.takes(question):
            return None
        for slot in self._board.slots:
            if slot.group is not None and slot.group.prefix.key == question.prefix.key:
                return slot
        return None

    def _too_long(self, prefix: int, question: Question) -> str | None:
        positions, new = self._text.max_position_embeddings, question.options.max_new_tokens
        tokens = prefix + len(question.ids)
        if tokens + new <= positions:
            return None
        return (
            f"a prompt of {tokens} tokens and an answer of up to {new} do not fit the model's {positions} positions: "
            "shorten the prompt, take fewer frames or pool them (video_pooling), or lower max_new_tokens"
        )

    def _fail(self, request_id: str, error: str, cause: str | None = None) -> None:
        line = " ".join(error.split())
        self._finished.append(Result(id=request_id, finish_reason="error", error=line, cause=cause))

    # ── slots ──

    def _busy(self) -> bool:
        return self._board is not None and any(slot.group is not None for slot in self._board.slots)

    def _give_slots(self) -> None:
        """Gives the slots that are free to the oldest groups that fit."""
        while len(self._pending):
            needed = self._board is None or not (self._busy() or self._fitting(self._board))
            if needed and not self._new_board():
                continue  # the groups that were looked at have failed, and others may follow
            assert self._board is not None
            index = next((c for c in range(self._board.shape.slots) if self._is_free(self._board, c)), None)
            groups = [] if index is None else self._fitting(self._board)
            if index is None or not groups:
                return
            self._fill(self._board, self._best_slot(self._board, groups, index), groups)

    def _is_free(self, board: Board, index: int) -> bool:
        return all(board.slots[slot].group is None for slot in board.shard_slots(index))

    def _best_slot(self, board: Board, groups: list[Group], otherwise: int) -> int:
        """A free slot index that holds these prefixes already, if there is one."""
        keys = [group.prefix.key for group in groups]
        for index in range(board.shape.slots):
            if self._is_free(board, index) and [board.slots[p].holds for p in board.shard_slots(index)] == keys:
                return index
        return otherwise

    def _fitting(self, board: Board) -> list[Group]:
        """The oldest groups that fit the board, with media that can be encoded together: at most one for each shard."""
        chosen: list[Group] = []
        for group in self._readable():
            read = group.read
            slots = bucket(max(1, len(read.ids)), PREFIX_BUCKET)
            fits = board.shape.prefix // 2 < slots <= board.shape.prefix or slots == board.shape.prefix
            if not fits or not all(board.takes(question) for question in group.waiting):
                continue
            if chosen and read.signature != chosen[0].read.signature:
                continue
            chosen.append(group)
            if len(chosen) == self._shards:
                break
        return chosen

    def _readable(self) -> Iterator[Group]:
        """Groups whose media were read and whose questions fit the model; the questions of the others fail.

        They are looked at in order, and waited for: which are ready first is chance.
        """
        for group in self._pending.first():
            try:
                read = group.read
            except (ValueError, OSError) as error:
                for question in self._pending.take(group).waiting:
                    text = in_the_names_of(question.prefix, str(error), group.prefix)
                    self._fail(question.request.id, text, getattr(error, "cause", None))
                continue
            for question in list(group.waiting):
                if why := self._too_long(len(read.ids), question):
                    self._pending.drop(group, question)
                    self._fail(question.request.id, why)
            if group.waiting:
                yield group

    def _new_board(self) -> bool:
        """A grid for the oldest group and those that may be like it; False where all that were read have failed."""
        first = next(self._readable(), None)
        if first is None:
            return False
        groups = self._pending.groups()
        questions = [question for group in groups for question in group.waiting]
        demand = Demand(
            prefix=len(first.read.ids),
            questions=[len(group.waiting) for group in groups],
            question=max(len(question.ids) for question in questions),
            answer=max(question.options.max_new_tokens for question in questions),
        )
        model, int8 = self._model, self._options.int8_cache
        dtype = model.dtype
        shape = choose_shape(
            demand,
            self._text,
            dtype,
            shards=self._shards,
            max_rows=max(self._max_rows, self._shards),
            memory=self._memory,
            int8=int8,
        )
        if self._options.on_sizes:
            self._options.on_sizes(described(shape, self._text, dtype, int8=int8))
        draw = any(question.options.do_sample for question in questions)
        penalise = any(question.options.repetition_penalty != 1.0 for question in questions)
        self._board = None  # its buffers go before others come
        self._board = Board(
            shape,
            draw,
            penalise,
            on_device.new_grid(
                self._text, shape, dtype, model.placement, int8=int8, sampling=sampling_of([], draw, penalise)
            ),
            [Slot() for _ in range(shape.prefixes)],
            [Row() for _ in range(shape.batch)],
        )
        return True

    def _fill(self, board: Board, index: int, groups: list[Group]) -> None:
        """Puts the prefixes of groups into the slots of one index, where they are not there already."""
        for group in groups:
            self._pending.take(group)
        padded = [*groups, *[groups[-1]] * (self._shards - len(groups))]  # slots without a group hold a neighbour's
        slots = [board.slots[slot] for slot in board.shard_slots(index)]
        if [slot.holds for slot in slots] != [group.prefix.key for group in padded]:
            reads = [group.read for group in padded]
            ids = np.zeros((len(reads), board.shape.prefix), np.int32)
            for row, read in enumerate(reads):
                ids[row, board.shape.prefix - len(read.ids) :] = read.ids
            mask = np.arange(board.shape.prefix) >= board.shape.prefix - np.array([[len(r.ids)] for r in reads])
            model = self._model
            prefix = on_device.prefill_slots(
                model.graph,
                model.state,
                model.on_devices(ids),
                model.on_devices(mask),
                encode_prefixes(model, self._processor, reads, padded[0].prefix.pooling),
                board.device.prefix,
                np.int32(index),
            )
            board.device = Grid(prefix, board.device.tail, board.device.answers)
            for slot, group in zip(slots, padded, strict=True):
                slot.holds, slot.length = group.prefix.key, len(group.read.ids)
        for slot, group in zip(slots, groups, strict=False):
            slot.group = group

    # ── rows ──

    def _begin_questions(self) -> None:
        """Puts waiting questions into free rows, in the slots where that is worth a call."""
        board = self._board
        if board is None:
            return
        for index in range(board.shape.slots):
            chosen: dict[int, Question] = {}
            live = 0
            for slot in board.shard_slots(index):
                group = board.slots[slot].group
                rows = board.rows_of(slot)
                live += sum(board.rows[row].question is not None for row in rows)
                free = [row for row in rows if board.rows[row].question is None]
                if group is not None:
                    chosen |= dict(zip(free, group.waiting, strict=False))
            if chosen and (not live or 2 * len(chosen) >= board.shape.rows * board.shape.shards):
                for slot in board.shard_slots(index):
                    group = board.slots[slot].group
                    if group is not None:
                        for _ in range(sum(row in chosen for row in board.rows_of(slot))):
                            group.waiting.popleft()
                self._begin(board, index, chosen)

    def _begin(self, board: Board, index: int, chosen: dict[int, Question]) -> None:
        rows = [row for slot in board.shard_slots(index) for row in board.rows_of(slot)]
        T = bucket(max(len(question.ids) for question in chosen.values()), TEXT_BUCKET)
        ids = np.zeros((len(rows), T), np.int32)
        mask = np.zeros((len(rows), T), bool)
        for i, row in enumerate(rows):
            if row in chosen:
                length = len(chosen[row].ids)
                ids[i, T - length :], mask[i, T - length :] = chosen[row].ids, True
        questions = [chosen.get(row) for row in rows]
        model, device = self._model, board.device
        fresh = model.on_devices(unwritten_answers(board, questions, rows, self._text.vocab_size))
        tail, answers = on_device.begin(
            model.graph,
            model.state,
            model.on_devices(ids),
            model.on_devices(mask),
            fresh,
            device.prefix,
            device.tail,
            device.answers,
            self._vocabulary,
            np.int32(index),
        )
        board.device = Grid(device.prefix, tail, answers)
        for row, question in chosen.items():
            board.rows[row] = Row(question)

    # ── decoding ──

    def _decode(self) -> None:
        """Lets the device decode until enough rows have ended, and takes their answers."""
        board = self._board
        assert board is not None
        stops = any(row.question is not None and row.question.options.stop_strings for row in board.rows)
        steps = STOP_STRING_STEPS if stops else STEPS
        enough = max(1, board.shape.batch // 8)
        device = board.device
        tail, answers = compiled.decode(
            self._model.graph,
            self._model.state,
            device.prefix,
            device.tail,
            device.answers,
            self._vocabulary,
            np.int32(steps),
            np.int32(enough),
        )
        board.device = Grid(device.prefix, tail, answers)
        tokens, count, done, finite = (np.asarray(x) for x in on_device.report(answers))
        stopped = []
        for i, row in enumerate(board.rows):
            if row.question is None:
                continue
            options = row.question.options
            answer = tokens[i, : count[i]]
            end = ended(answer, row.looked_at, options, self._processor.tokenizer) if options.stop_strings else None
            row.looked_at = int(count[i])
            if not (done[i] or end is not None):
                continue
            if end is not None and not done[i]:
                stopped.append(i)
            self._finish(board, i, answer[:end], bool(finite[i]))
        if stopped:
            keep = np.ones(board.shape.batch, bool)
            keep[stopped] = False
            answers = on_device.end_rows(answers, self._model.on_devices(~keep))
            board.device = Grid(device.prefix, tail, answers)

    def _finish(self, board: Board, index: int, answer: npt.NDArray[np.int32], finite: bool) -> None:
        """One row's answer becomes a result, and the row is free; so is its slot, if it was the last."""
        slot = board.slots[index // board.shape.rows]
        question = board.rows[index].question
        assert question is not None
        assert slot.group is not None
        board.rows[index] = Row()
        options = question.options
        if finite:
            token_ids = tuple(answer.tolist())
            stopped = token_ids and token_ids[-1] in options.eos_token_id
            at_string = bool(options.stop_strings) and ended(answer, 0, options, self._processor.tokenizer) is not None
            self._finished.append(
                Result(
                    id=question.request.id,
                    text=answer_text(self._processor.tokenizer, token_ids),
                    token_ids=token_ids,
                    finish_reason="stop" if stopped or at_string else "length",
                    prompt_tokens=slot.length + len(question.ids),
                    shared_tokens=slot.length,
                )
            )
        else:
            self._fail(
                question.request.id,
                "logits are not finite: the weights or pixels hold NaN or infinity, or overflow in this dtype",
                "not_finite",
            )
        rows = board.rows_of(index // board.shape.rows)
        if not slot.group.waiting and all(board.rows[row].question is None for row in rows):
            slot.group = None

    def _decided_vocabulary(self) -> Vocabulary:
        options = self._preparer.decoding
        suppressed = np.zeros(self._text.vocab_size, bool)
        suppressed[list(options.suppress_tokens)] = True
        return Vocabulary(
            eos_E=np.array(options.eos_token_id, np.int32),  # type: ignore[arg-type]
            suppressed_V=suppressed,  # type: ignore[arg-type]
            pad=np.int32(options.pad_token_id),  # type: ignore[arg-type]
        )
