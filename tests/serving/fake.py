"""A session that a test drives: the test says what it answers, and when. No device."""

import threading
import time
from concurrent.futures import Future

from videollava_jax.engine.request import Result, Scored
from videollava_jax.engine.sizes import GridShape
from videollava_jax.engine.tickets import Moments, QueueFull, SessionClosed
from videollava_jax.engine.usage import Usage


class FakeTicket:
    """A request that a test answers."""

    def __init__(self, session, request, on_text, timeout):
        self.session, self.request, self.on_text, self.timeout = session, request, on_text, timeout
        self.future = Future()
        self.cancelled = False
        self.moments = Moments(time.monotonic())

    def result(self, timeout=None):
        return self.future.result(timeout)

    @property
    def done(self):
        return self.future.done()

    def add_done_callback(self, call):
        self.future.add_done_callback(lambda _: call(self))

    def cancel(self):
        self.cancelled = True
        self.fail("the request was cancelled", "cancelled")

    # ── for tests ──

    def write(self, text):
        if self.on_text is not None:
            self.on_text(text)

    def answer(self, text="done", **fields):
        known = {"token_ids": (5, 6), "finish_reason": "stop", "prompt_tokens": 7}
        self.end(Result(id=self.request.id, text=text, **known | fields))

    def fail(self, error, cause):
        self.end(Result(id=self.request.id, finish_reason="error", error=error, cause=cause))

    def end(self, result):
        if not self.future.done():
            self.session.open.discard(self)
            self.future.set_result(result)


class FakePin:
    """A prefix that is kept."""

    def __init__(self, session):
        self.session = session

    def release(self):
        self.session.pins.remove(self)


class FakeSession:
    """Has what the server calls of `Session`.

    Attributes:
      tickets: of all requests so far.
      open: those without a result.
      pins: that were not released.
      steps: what it has done, for those who watch whether it hangs.
      warm: set when `warm_up` may return.
      hangs: whether it cannot be closed.
    """

    def __init__(self, warm=True, max_requests=None):
        self.tickets, self.open = [], set()
        self.warm = threading.Event()
        if warm:
            self.warm.set()
        self.error = None
        self.steps = 0
        self.shape = GridShape(shards=1, slots=2, rows=2, prefix=64, question=64, answer=64)
        self.closed = False
        self.max_requests = max_requests
        self.answer_at_once = None
        self.pins = []
        self.hangs = False
        self._come = threading.Condition()

    def warm_up(self):
        assert self.warm.wait(60)
        return 0

    def submit(self, request, *, on_text=None, on_tokens=None, timeout=None):
        if self.closed or self.error is not None:
            raise SessionClosed("the session was closed")
        if self.max_requests is not None and len(self.open) >= self.max_requests:
            raise QueueFull("full")
        made = FakeTicket(self, request, on_text, timeout)
        self.open.add(made)
        with self._come:
            self.tickets.append(made)
            self._come.notify_all()
        if self.answer_at_once is not None:
            made.write(self.answer_at_once)
            made.answer(self.answer_at_once)
        return made

    def score(self, request, *, timeout=None):
        at_once, self.answer_at_once = self.answer_at_once, None
        made = self.submit(request, timeout=timeout)
        self.answer_at_once = at_once
        count = len(request.choices)
        made.end(Scored(id="", log_likelihoods=(-1.0,) * count, tokens=(1,) * count, greedy=(False,) * count))
        return made

    def pin(self, request, *, timeout=None):
        made = FakePin(self)
        self.pins.append(made)
        return made

    def wait_for(self, count, seconds=30):
        """Waits until `count` requests have been submitted; returns the last of them."""
        with self._come:
            assert self._come.wait_for(lambda: len(self.tickets) >= count, seconds)
        return self.tickets[count - 1]

    @property
    def usage(self):
        return Usage(running=len(self.open), rows=4, slots=2)

    @property
    def unanswered(self):
        return len(self.open)

    def die(self, error):
        """Ends as a session whose thread has an error."""
        self.error = error
        ended = SessionClosed(f"the engine has stopped: {error}")
        for ticket in list(self.open):
            self.open.discard(ticket)
            ticket.future.set_exception(ended)

    def close(self, drain_seconds=None, stop_seconds=None):
        self.closed = True
        if self.hangs:
            raise TimeoutError(f"a call of the device has not returned within {stop_seconds:g} s of the end")
        ends = time.monotonic() + (drain_seconds or 0)
        while self.open and time.monotonic() < ends:
            time.sleep(0.01)
        for ticket in list(self.open):
            ticket.fail("the engine has been closed", "closed")
