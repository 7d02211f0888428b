"""Sessions: requests from any thread, answered as they come; streamed, cancelled, refused, and ended."""

import re
import threading
import time

import jax
import numpy as np
import pytest

from tests.engine.jobs import clip, generated, mixed_job, question
from videollava_jax.engine import Engine
from videollava_jax.engine.compilations import compilations
from videollava_jax.engine.device import Report
from videollava_jax.engine.preparation import Preparer
from videollava_jax.engine.row_arrays import _some_keys
from videollava_jax.engine.session import Session
from videollava_jax.engine.sizes import Branches, GridShape
from videollava_jax.engine.tickets import QueueFull, SessionClosed

SECONDS = 120


@pytest.fixture(scope="module")
def session(tiny_model, tiny_processor):
    """A session of the tiny model, warm: it compiles whatever another session of the process has left behind."""
    for rows in (1, 2, 4):
        _some_keys(rows)
    jax.clear_caches()
    engine = Engine(tiny_model, tiny_processor, max_rows=8)
    with engine.session(rows=4, longest_answer=32) as made:
        assert made.warm_up() > 0
        yield made


def test_answers_are_those_of_generate_and_the_pieces_of_text_join_to_them(session, tiny_model, tiny_processor):
    """Clips, an image, both, and text alone, submitted by three threads; nothing is compiled for any of them."""
    job = mixed_job()
    job.append(question("short", "what?", videos=[clip(5, frames=3)], max_new_tokens=4))
    job.append(
        question("stop", "what colour is it?", videos=[clip(0)], max_new_tokens=8, options={"stop_strings": ["e"]})
    )
    sampled = {"do_sample": True, "temperature": 1.5, "top_k": 7, "repetition_penalty": 1.2}
    job.append(question("drawn", "what?", videos=[clip(0)], max_new_tokens=9, seed=3, options=sampled))
    pieces = {request.id: [] for request in job}
    tickets, before = {}, compilations()

    def submit(part):
        for request in part:
            tickets[request.id] = session.submit(request, on_text=pieces[request.id].append)

    threads = [threading.Thread(target=submit, args=[job[i::3]]) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = {name: ticket.result(SECONDS) for name, ticket in tickets.items()}
    assert compilations() == before
    for request in job:
        result = results[request.id]
        assert result.id == request.id
        assert result.error is None
        assert "".join(pieces[request.id]) == result.text
        assert result.token_ids == generated(tiny_model, tiny_processor, request)
    assert session.unanswered == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": ["nothing.mp4"]}, "No such file"),
        ({"videos": [clip(0)], "max_new_tokens": 33}, "an answer of up to 33: expected at most 128 and 32"),
        ({"videos": [clip(0)], "options": {"temperature": -1}}, "temperature"),
        ({"videos": [clip(0)], "options": {"colour": "red"}}, "colour"),
    ],
    ids=["missing", "long", "range", "unknown"],
)
def test_a_request_that_cannot_be_carried_out_has_its_error_as_result(session, changes, message):
    result = session.submit(question("bad", "what?", **changes)).result(SECONDS)
    assert (result.id, result.finish_reason) == ("bad", "error")
    assert message in result.error


def test_a_ticket_knows_when_its_request_was_begun_and_answered(session):
    first = session.submit(question("a", "what?", videos=[clip(7)], max_new_tokens=9))
    assert first.moments.begun is None
    first.result(SECONDS)
    second = session.submit(question("b", "which?", videos=[clip(7)], max_new_tokens=9))
    second.result(SECONDS)
    for ticket in (first, second):
        now = ticket.moments
        assert now.submitted <= now.begun < now.first_token <= now.ended <= time.monotonic()
    assert second.moments.submitted > first.moments.ended


def test_warm_up_comes_first(session):
    session.submit(question("text", "say something", max_new_tokens=2)).result(SECONDS)
    with pytest.raises(RuntimeError, match="warm_up comes before the first request"):
        session.warm_up()


# ── what does not depend on the model ──


class SlowDevice:
    """Writes one token a call to each row; each call waits until it may go on. Answers end where they are cut."""

    def __init__(self, shape):
        self.shape, self.go_on, self.ended = shape, threading.Semaphore(0), []
        self.counts, self.limits = np.zeros(shape.batch, np.int32), np.zeros(shape.batch, np.int32)
        self.broken = None

    def make_grid(self, shape, branches):
        assert (shape, branches) == (self.shape, Branches())

    def prefill(self, slot, prefixes):
        pass

    def begin(self, slot, questions):
        first = slot * self.shape.rows
        for row, asked in enumerate(questions, first):
            if asked is not None:
                self.counts[row], self.limits[row] = 1, asked.answer_tokens

    def decode(self, steps, enough, rows):
        assert self.go_on.acquire(timeout=SECONDS)
        if self.broken is not None:
            raise self.broken
        self.counts = np.minimum(self.counts + 1, self.limits)
        B, N = self.shape.batch, self.shape.answer
        return Report(np.full((B, N), 300, np.int32), self.counts, self.counts >= self.limits, np.ones(B, bool))

    def end_rows(self, rows):
        self.ended += rows
        self.limits[list(rows)] = self.counts[list(rows)]


@pytest.fixture
def slow(tiny_model, tiny_processor):
    """Makes a session on a slow device: (session, device). Readers block while `hold` is not set."""
    made = []

    def make(*, max_requests=None, reader=None):
        shape = GridShape(shards=1, slots=2, rows=2, prefix=256, question=64, answer=64)
        device = SlowDevice(shape)
        preparer = Preparer(tiny_processor, tiny_model.model_config, {}, 64, reader)
        sizes = {"ahead": 8, "positions": 512, "readers": 2, "max_requests": max_requests}
        session = Session(preparer, device, tiny_processor.light_tokenizer, shape, **sizes)
        made.append((session, device))
        return session, device

    yield make
    for session, device in made:
        device.go_on.release(1000)
        session.close(drain_seconds=0)
        for thread in (session._thread, session._deadlines._thread):
            if thread is not None:
                thread.join(SECONDS)
                assert not thread.is_alive()


def ask(name, tokens=64, **changes):
    return question(name, "what?", videos=[clip(0)], max_new_tokens=tokens, **changes)


def wait_until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_is_prefilled_for_a_request_is_time_that_the_device_gave_it(slow):
    """The device takes a tenth of a second for a prefill, which the first question pays and a later one does not."""
    session, device = slow()
    prefill, prefilled = device.prefill, []

    def prefill_slowly(*arguments):
        prefilled.append(time.monotonic())
        time.sleep(0.1)
        return prefill(*arguments)

    device.prefill = prefill_slowly
    device.go_on.release(100)
    first = session.submit(ask("a", 3))
    first.result(SECONDS)
    second = session.submit(ask("b", 3))
    second.result(SECONDS)
    (began,) = prefilled
    assert first.moments.begun <= began <= first.moments.first_token - 0.1
    assert second.moments.begun > first.moments.ended


def test_the_session_says_once_for_all_requests_that_their_callbacks_were_called(slow):
    """Before the device is called again, so that nobody hears later of what it has given."""
    session, device = slow()
    called, decode = [], device.decode

    def decode_after(*arguments):
        called.append("device")
        return decode(*arguments)

    device.decode = decode_after
    session.after_callbacks = lambda: called.append("after")
    tickets = [session.submit(ask(str(i), 4), on_text=lambda piece: called.append("text")) for i in range(2)]
    for ticket in tickets:
        ticket.add_done_callback(lambda ticket: called.append("result"))
    device.go_on.release(100)
    for ticket in tickets:
        ticket.result(SECONDS)
    wait_until(lambda: called[-1] == "after")
    said = "".join({"device": "d", "after": ".", "text": "t", "result": "r"}[each] for each in called)
    assert said.count("r") == 2
    assert not re.search("[tr]+d", said), said
    assert re.search("t", said), said


def test_a_request_is_cancelled_while_it_is_decoded_and_its_row_is_free(slow):
    session, device = slow()
    tickets = [session.submit(ask(str(i))) for i in range(3)]  # two rows a prefix: the third waits
    wait_until(lambda: any(ticket.moments.begun is not None for ticket in tickets))  # in the order of their hashing
    first = next(ticket for ticket in tickets if ticket.moments.begun is not None)
    others = [ticket for ticket in tickets if ticket is not first]
    first.cancel()
    device.go_on.release(2)
    assert first.result(SECONDS).cause == "cancelled"
    assert len(device.ended) == 1
    device.go_on.release(1000)
    assert [ticket.result(SECONDS).finish_reason for ticket in others] == ["length", "length"]
    others[0].cancel()  # too late: it has its result
    assert others[0].result().finish_reason == "length"


def test_a_request_is_cancelled_while_its_video_is_read_and_others_go_on(slow, tiny_processor):
    hold = threading.Event()

    def read(medium, frame_sampling):
        if len(medium.source) == 4:
            assert hold.wait(SECONDS)
        return tiny_processor.read_medium(medium, frame_sampling)

    session, device = slow(reader=read)
    device.go_on.release(1000)
    held = session.submit(question("held", "what?", videos=[clip(1, frames=4)], max_new_tokens=4))
    other = session.submit(ask("other", tokens=4))
    assert other.result(SECONDS).finish_reason == "length", "it waits for nobody's video"
    held.cancel()
    assert held.result(SECONDS).cause == "cancelled", "it does not wait for its own either"
    hold.set()


def test_a_deadline_cancels(slow):
    session, device = slow()
    late = session.submit(ask("late"), timeout=0.05)
    with pytest.raises(TimeoutError):
        late.result(0.01)
    time.sleep(0.1)  # its time has passed; the device is at work
    device.go_on.release(3)
    result = late.result(SECONDS)
    assert (result.cause, result.error) == ("deadline", "there was no answer within 0.05 s")


def test_a_full_queue_refuses_at_once(slow):
    session, device = slow(max_requests=2)
    tickets = [session.submit(ask(str(i), tokens=3)) for i in range(2)]
    with pytest.raises(QueueFull, match="2 requests have no result yet"):
        session.submit(ask("more"))
    device.go_on.release(1000)
    for ticket in tickets:
        ticket.result(SECONDS)
    assert session.submit(ask("again", tokens=3)).result(SECONDS).error is None


def test_what_on_text_raises_cancels_its_request_alone(slow):
    session, device = slow()

    def broken(piece):
        raise KeyError("a bug of the caller")

    bad, good = session.submit(ask("bad"), on_text=broken), session.submit(ask("good", tokens=5))
    device.go_on.release(1000)
    with pytest.raises(KeyError, match="a bug of the caller"):
        bad.result(SECONDS)
    assert good.result(SECONDS).error is None


def test_when_the_device_fails_every_request_hears_of_it(slow):
    session, device = slow()
    tickets = [session.submit(ask(str(i))) for i in range(3)]
    device.broken = RuntimeError("the device is gone")
    device.go_on.release(1)
    for ticket in tickets:
        with pytest.raises(SessionClosed, match="the engine has stopped: the device is gone"):
            ticket.result(SECONDS)
    with pytest.raises(SessionClosed, match="the device is gone"):
        session.submit(ask("more"))


def test_steps_stand_still_while_the_device_hangs(slow):
    session, device = slow()
    ticket = session.submit(ask("a", 4))
    wait_until(lambda: session.usage.prefills or session.steps > 3)
    time.sleep(0.2)
    hung = session.steps
    time.sleep(0.2)
    assert session.steps == hung
    device.go_on.release(100)
    ticket.result(SECONDS)
    assert session.steps > hung


def test_closing_waits_for_answers_or_cancels_them(slow):
    session, device = slow()
    heard = []
    ticket = session.submit(ask("a", tokens=4))
    ticket.add_done_callback(lambda done: heard.append(done.result().id))
    device.go_on.release(1000)
    session.close()
    assert ticket.done
    assert heard == ["a"]
    with pytest.raises(SessionClosed, match="the session was closed"):
        session.submit(ask("more"))
    session, device = slow()
    ticket = session.submit(ask("b"))
    wait_until(lambda: device.counts.any())
    threading.Timer(0.3, device.go_on.release, [10]).start()
    session.close(drain_seconds=0.05)
    assert ticket.result().cause == "closed"


def test_a_session_without_requests_ends(slow):
    session, _ = slow()
    with session:
        pass


def test_a_video_that_nobody_wants_any_more_is_not_read(slow, tiny_processor):
    """Two threads read; those whose clients have gone before one was free are passed over."""
    hold, read = threading.Event(), []

    def reader(medium, frame_sampling):
        read.append(len(medium.source))
        assert hold.wait(SECONDS)
        return tiny_processor.read_medium(medium, frame_sampling)

    session, device = slow(reader=reader)
    device.go_on.release(1000)
    tickets = [
        session.submit(question(str(i), "what?", videos=[clip(i, frames=i)], max_new_tokens=2)) for i in range(1, 7)
    ]
    wait_until(lambda: session.usage.reading == 6 and len(read) == 2)
    begun = tuple(read)  # those that were hashed first
    *gone, last = [ticket for i, ticket in enumerate(tickets, 1) if i not in begun]
    for ticket in gone:
        ticket.cancel()
    assert [ticket.result(SECONDS).cause for ticket in gone] == ["cancelled"] * 3
    hold.set()
    kept = [*(tickets[i - 1] for i in begun), last]
    assert [ticket.result(SECONDS).error for ticket in kept] == [None] * 3
    assert sorted(read) == sorted(int(ticket.request.id) for ticket in kept)


def test_a_reader_with_a_bug_costs_the_requests_about_its_file_alone(slow, tiny_processor):
    def reader(medium, frame_sampling):
        if len(medium.source) == 3:
            raise KeyError("/secret/path")
        return tiny_processor.read_medium(medium, frame_sampling)

    session, device = slow(reader=reader)
    device.go_on.release(1000)
    bad = session.submit(question("bad", "what?", videos=[clip(1, frames=3)], max_new_tokens=2)).result(SECONDS)
    assert (bad.cause, bad.error) == ("reader_failed", "its media could not be read: the reader raised KeyError")
    assert session.submit(ask("good", tokens=2)).result(SECONDS).error is None


def test_what_a_request_holds_goes_with_its_result_and_not_with_its_deadline(slow):
    session, device = slow()
    device.go_on.release(1000)
    for i in range(5):
        session.submit(ask(str(i), tokens=2), timeout=1000).result(SECONDS)
    wait_until(lambda: not session._deadlines._calls)


def test_an_unexpected_error_of_submit_leaves_no_request_behind(slow, monkeypatch):
    session, _ = slow()

    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(session._preparer, "question", broken)
    with pytest.raises(KeyError, match="a bug"):
        session.submit(ask("a"))
    assert session.unanswered == 0


def test_the_session_says_what_ended_it(slow):
    session, device = slow()
    assert session.error is None
    ticket = session.submit(ask("a"))
    device.broken = RuntimeError("the device is gone")
    device.go_on.release(1)
    with pytest.raises(SessionClosed):
        ticket.result(SECONDS)
    assert session.error is device.broken


def test_a_session_whose_device_hangs_is_closed_without_it(slow):
    session, _ = slow()
    ticket = session.submit(ask("a"))
    wait_until(lambda: session.usage.running or ticket.moments.begun is not None)
    with pytest.raises(TimeoutError, match=r"a call of the device has not returned within 0\.1 s of the end"):
        session.close(drain_seconds=0, stop_seconds=0.1)
    with pytest.raises(SessionClosed, match="a call of the device has not returned"):
        ticket.result(SECONDS)
    assert session.unanswered == 0
