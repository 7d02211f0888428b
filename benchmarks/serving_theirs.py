"""transformers' `generate` behind the HTTP of `videollava serve`: one question at a time, its text streamed.

    python benchmarks/serving_theirs.py MODEL MAX-QUEUE

serves MODEL on a free port, with media below the working directory, and prints what `videollava serve --json` prints.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import torch
import transformers
from serving_ours import answer_lines

from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.engine.request import Request, Result
from videollava_jax.engine.sizes import GridShape
from videollava_jax.engine.tickets import Moments, QueueFull, SessionClosed
from videollava_jax.engine.usage import Usage
from videollava_jax.generation.text import TextStream
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.serving.listening import listen
from videollava_jax.serving.run import run
from videollava_jax.serving.settings import Settings


class Ticket:
    """A request that waits for its turn, as `engine.session.Ticket`."""

    def __init__(self, request: Request, on_text: Callable[[str], None] | None):
        self.request, self.on_text = request, on_text
        self.future: Future[Result] = Future()
        self.gone = False
        self.moments = Moments(time.monotonic())

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the result."""
        return self.future.result(timeout)

    @property
    def done(self) -> bool:
        """Whether it is there."""
        return self.future.done()

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        """Calls a function when it is."""
        self.future.add_done_callback(lambda _: call(self))

    def cancel(self) -> None:
        """Says that nobody waits."""
        self.gone = True


class Pin:
    """A prefix that nobody keeps, as there is no cache."""

    def release(self) -> None:
        """Does nothing."""


class Session:
    """What the server calls of `engine.session.Session`, answered by `generate`, a request after the other."""

    def __init__(self, model: Any, processor: VideoLlavaProcessor, most: int):
        self._model, self._processor, self._most = model, processor, most
        self._reader = IsolatedReader(processor)
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        self.steps = 0
        self.shape = GridShape(shards=1, slots=1, rows=1, prefix=0, question=0, answer=0)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def warm_up(self) -> int:
        """There is nothing to compile."""
        return 0

    def submit(self, request: Request, *, on_text: Any = None, on_tokens: Any = None, timeout: Any = None) -> Ticket:
        """Takes a request."""
        if self.error is not None:
            raise SessionClosed("closed")
        with self._lock:
            if self._open >= self._most:
                raise QueueFull("full")
            self._open += 1
        ticket = Ticket(request, on_text)
        self._waiting.put(ticket)
        return ticket

    def pin(self, request: Request, *, timeout: Any = None) -> Pin:
        """Does nothing."""
        return Pin()

    @property
    def unanswered(self) -> int:
        """The number of requests without a result."""
        return self._open

    @property
    def usage(self) -> Usage:
        """Numbers for the metrics."""
        return Usage(running=min(self._open, 1), rows=1, slots=1)

    def close(self, drain_seconds: float | None = None, stop_seconds: float | None = None) -> None:
        """Ends the thread."""
        self._waiting.put(None)
        self._thread.join(drain_seconds)
        self._reader.close()

    def _work(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            try:
                result = self._answer(ticket)
            except Exception as error:
                result = Result(id="", finish_reason="error", error=str(error), cause="not_finite")
            with self._lock:
                self._open -= 1
                self.steps += 1
            ticket.future.set_result(result)

    def _answer(self, ticket: Ticket) -> Result:
        request = ticket.request
        if ticket.gone:
            return Result(id="", finish_reason="error", error="nobody waits", cause="cancelled")
        arrays = self._processor.conversation_inputs(request.conversation, return_tensors="np")
        given = {name: torch.tensor(value) for name, value in arrays.items()}
        ids: list[int] = []
        stream = TextStream(self._processor.tokenizer, ticket.on_text or (lambda piece: None))

        class Streamer(transformers.generation.streamers.BaseStreamer):
            first = True

            def put(self, value: Any) -> None:
                if self.first:  # the prompt
                    self.first = False
                    return
                ids.append(int(value))
                stream(value.numpy().reshape(1, 1))

            def end(self) -> None:
                pass

        bias = {(token,): x for token, x in request.options.get("logit_bias") or ()}
        self._model.generate(
            **given, max_new_tokens=request.max_new_tokens, do_sample=False, sequence_bias=bias or None,
            streamer=Streamer(),
        )  # fmt: skip
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Result(
            id="", text=text, token_ids=tuple(ids), finish_reason="length", prompt_tokens=given["input_ids"].shape[1]
        )


def main(model: str, most: int) -> None:
    """Serves until SIGTERM."""
    threading.Thread(target=answer_lines, daemon=True).start()
    torch.set_grad_enabled(False)
    theirs = transformers.VideoLlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    processor = VideoLlavaProcessor.from_pretrained(model)
    session = Session(theirs, processor, most)
    settings = Settings(model="served", media_root=Path.cwd(), max_queue=most, max_tokens=4096, longest_answer=64)
    with listen("127.0.0.1", 0) as bound:
        run(
            session, processor, settings, bound, reader=session._reader,
            said=lambda record: print(json.dumps(record), flush=True),
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
