"""Threads that hash and read media ahead of the device; what they finish becomes an event for the schedule."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue

from videollava_jax.engine.events import Event, Identified, MediaRead
from videollava_jax.engine.preparation import Preparer, Question


class Readers:
    """Identifies prefixes and reads their media, each in threads of its own.

    Hashing a file is quick and decoding a video is slow. In the same threads, a new question's key would have to wait
    until the hundreds of videos that are read ahead are decoded.
    """

    def __init__(self, preparer: Preparer, threads: int):
        """Starts no thread before there is something to read.

        Args:
          threads: that read media; the same number of others hashes them.
        """
        self._preparer = preparer
        self._hashing = ThreadPoolExecutor(threads, thread_name_prefix="hash-media")
        self._reading = ThreadPoolExecutor(threads, thread_name_prefix="read-media")
        self._reads: dict[Hashable, Future[None]] = {}
        self._events: SimpleQueue[Event] = SimpleQueue()

    def identify(self, question: Question) -> None:
        """Finds the key of a question's prefix: at once where no file has to be read for it."""
        if self._preparer.key_is_known(question.prefix):
            self._identify(question)
        else:
            self._hashing.submit(self._identify, question)

    def read(self, key: Hashable, question: Question) -> None:
        """Reads the media of a question's prefix."""
        reading = self._reads[key] = self._reading.submit(self._read, key, question)

        def ended(future: Future[None]) -> None:
            if self._reads.get(key) is future:
                del self._reads[key]

        reading.add_done_callback(ended)

    def stop(self, key: Hashable) -> None:
        """Does not read the media of a key, if no thread has begun."""
        if (reading := self._reads.get(key)) is not None:
            reading.cancel()

    def finished(self) -> Iterator[Event]:
        """Yields the events that have come since the last call."""
        while True:
            try:
                yield self._events.get_nowait()
            except Empty:
                return

    def wait(self, seconds: float | None = None) -> Event | None:
        """Returns the next event when it comes; None if none comes within `seconds`."""
        try:
            return self._events.get(timeout=seconds)
        except Empty:
            return None

    def put(self, event: Event) -> None:
        """Adds an event that comes from elsewhere. Any thread may call it."""
        self._events.put(event)

    def close(self) -> None:
        """Stops the threads; waits for what they have begun."""
        for pool in (self._hashing, self._reading):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._hashing, self._reading):
            pool.shutdown(wait=True)

    def _identify(self, question: Question) -> None:
        key: Hashable
        try:
            key = self._preparer.key(question.prefix)
        except Exception as error:  # the schedule decides which errors end the run
            key = error
        self._events.put(Identified(question, key))

    def _read(self, key: Hashable, question: Question) -> None:
        try:
            self._events.put(MediaRead(key, self._preparer.read(question.prefix)))
        except Exception as error:
            self._events.put(MediaRead(key, error))
