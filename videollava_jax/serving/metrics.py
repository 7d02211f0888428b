"""Metrics for Prometheus, under vLLM's names with the prefix `videollava:`; the model's name is their label."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from videollava_jax.serving.asking import Written
from videollava_jax.serving.lifecycle import Lifecycle
from videollava_jax.serving.live_session import LiveSession
from videollava_jax.serving.media import MediaStore
from videollava_jax.serving.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "videollava:"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_CAUSES = frozenset(
    (
        *("not_found", "not_a_file", "unreadable", "not_media", "forbidden_format", "no_video_stream", "no_frames"),
        *("truncated", "too_large", "decode_failed", "worker_crashed", "worker_timeout", "fetch_failed"),
        *("forbidden_source", "bad_data_url", "no_such_file"),
    )
)
"""Causes of errors that are about media: no other text becomes a label."""


class Metrics:
    """The metrics of a server. `Stopwatch` measures a request."""

    def __init__(self, session: LiveSession, lifecycle: Lifecycle, media: MediaStore, settings: Settings):
        self._registry = CollectorRegistry()
        self._model = settings.model
        self._registry.register(_Now(session, lifecycle, media, settings))
        self.requests = self._counter("request_success", "Answers that were given", "finished_reason")
        self.errors = self._counter("request_errors", "Requests that were not answered, by their status", "status")
        self.media_errors = self._counter("media_errors", "Requests whose media could not be used", "cause")
        self.media_seconds = self._histogram("media_fetch_seconds", "Time to get a request's media as files", _SECONDS)
        self.decoding = self._histogram("media_decode_seconds", "Time to read a medium as pixels", _SECONDS)
        self.media_bytes = Counter(
            _PREFIX + "media_bytes", "Bytes of the media that were read", ["model_name"], registry=self._registry
        ).labels(self._model)
        self.first = self._histogram("time_to_first_token_seconds", "Time to the first token of an answer", _SECONDS)
        self.between = self._histogram("inter_token_latency_seconds", "Time for each token after the first", _SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", "Time to the end of an answer", _SECONDS)
        self.queue = self._histogram(
            "request_queue_time_seconds", "Time from the engine's queue to the device, media read in it", _SECONDS
        )
        self.inference = self._histogram(
            "request_inference_time_seconds", "Time from the start on the device to the end of an answer", _SECONDS
        )
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "Time from the start on the device to the first token", _SECONDS
        )
        self.decode = self._histogram(
            "request_decode_time_seconds", "Time from the first token to the end of an answer", _SECONDS
        )
        self.prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.written = self._histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        self.asked = self._histogram("request_params_n", "Answers that a request asks for", (1, 2, 5, 10, 20))
        self.most = self._histogram("request_params_max_tokens", "Tokens that an answer may have", _TOKENS)

    def text(self) -> bytes:
        """Returns all metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def medium_read(self, seconds: float, size: int) -> None:
        """Counts a medium that was read, or could not be."""
        self.decoding.observe(seconds)
        self.media_bytes.inc(size)

    def failed(self, status: int, code: str | None) -> None:
        """Counts a request that was not answered."""
        self.errors(str(status)).inc()
        if code in _CAUSES:
            self.media_errors(code).inc()

    def _counter(self, name: str, about: str, label: str) -> Any:
        made = Counter(_PREFIX + name, about, ["model_name", label], registry=self._registry)
        return lambda value: made.labels(self._model, value)

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Any:
        made = Histogram(_PREFIX + name, about, ["model_name"], buckets=buckets, registry=self._registry)
        return made.labels(self._model)


class Stopwatch:
    """Measures one request: when it came, and of each answer its first text, its times on the device, its end."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._began = time.monotonic()
        self._first: dict[int, float] = {}

    def media_there(self) -> None:
        """Is called when the media are files."""
        self._metrics.media_seconds.observe(time.monotonic() - self._began)

    def text_came(self, index: int, at: float | None = None) -> None:
        """Is called with each text of a streamed answer; `at` is its moment, None for now."""
        if index not in self._first:
            self._first[index] = time.monotonic() if at is None else at
            self._metrics.first.observe(self._first[index] - self._began)

    def ended(self, answer: Written) -> None:
        """Is called with the last part of each answer."""
        result, moments = answer.result, answer.moments
        now, metrics, count = time.monotonic(), self._metrics, len(result.token_ids)
        metrics.requests(result.finish_reason).inc()
        metrics.whole.observe(now - self._began)
        metrics.prompt.observe(result.prompt_tokens)
        metrics.written.observe(count)
        if moments is not None and moments.first_token is not None:
            self.text_came(answer.index, moments.first_token)  # of an answer that is not streamed
            if moments.begun is not None and moments.ended is not None:
                metrics.queue.observe(moments.begun - moments.submitted)
                metrics.prefill.observe(moments.first_token - moments.begun)
                metrics.decode.observe(moments.ended - moments.first_token)
                metrics.inference.observe(moments.ended - moments.begun)
        if answer.index in self._first and count > 1:
            metrics.between.observe((now - self._first[answer.index]) / (count - 1))

    def scored(self, answer: Written) -> None:
        """Is called with the scores of choices, which have no tokens of their own."""
        moments, metrics = answer.moments, self._metrics
        metrics.whole.observe(time.monotonic() - self._began)
        metrics.prompt.observe(answer.result.prompt_tokens)
        if moments is not None and moments.begun is not None and moments.ended is not None:
            metrics.queue.observe(moments.begun - moments.submitted)
            metrics.inference.observe(moments.ended - moments.begun)


class MeasuredReader:
    """Reads media by another reader, and says how long each took and how large its file is. Thread-safe."""

    def __init__(self, reader: Callable[..., Any]):
        self._reader = reader
        self.observe: Callable[[float, int], None] = lambda seconds, size: None

    def __call__(self, medium: Any, frame_sampling: Any) -> Any:
        """Reads a medium; see `IsolatedReader`."""
        began = time.monotonic()
        try:
            return self._reader(medium, frame_sampling)
        finally:
            size = 0
            if isinstance(medium.source, (str, os.PathLike)):
                with contextlib.suppress(OSError):
                    size = os.stat(medium.source).st_size
            self.observe(time.monotonic() - began, size)


class _Now(Collector):
    """Metrics that the session and the server count themselves, read when they are asked for."""

    def __init__(self, session: LiveSession, lifecycle: Lifecycle, media: MediaStore, settings: Settings):
        self._session, self._lifecycle, self._media, self._settings = session, lifecycle, media, settings

    def collect(self) -> Iterable[Metric]:
        """Yields them."""
        usage, uploads = self._session.usage, self._media.uploads.all()
        gauges = {
            "num_requests_running": ("Requests that are being answered", usage.running),
            "num_requests_waiting": (
                "Requests that wait, for media too",
                usage.waiting + usage.reading,
            ),
            "num_requests_reading": ("Requests whose media are being read", usage.reading),
            "num_requests_open": ("Answers that were asked for and not given", self._lifecycle.open),
            "kv_cache_usage_perc": ("Share of the rows in use, 1 is all", usage.running / max(1, usage.rows)),
            "num_rows": ("Questions that can be answered at a time", usage.rows),
            "num_slots": ("Prefixes that the device has room for", usage.slots),
            "num_slots_running": ("Slots whose prefix somebody needs now", usage.slots_in_use),
            "num_prefixes_held": ("Slots that hold a prefix", usage.held),
            "num_prefixes_pinned": ("Prefixes that stay on the device", usage.pinned),
            "num_files": ("Files that were uploaded", len(uploads)),
            "file_bytes": ("Bytes of the files that were uploaded", sum(file.bytes for file in uploads)),
            "request_body_bytes": ("Bytes of the bodies of open requests", self._lifecycle.body_bytes),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts", usage.prompt_tokens),
            "generation_tokens": ("Tokens of answers", usage.generated_tokens),
            "prefix_cache_queries": ("Requests whose prefix was looked for", usage.prefix_queries),
            "prefix_cache_hits": ("Requests whose prefix was there", usage.prefix_hits),
            "prefills": ("Prefixes that were computed", usage.prefills),
            "compiled_programs": ("Programs that were compiled since the server is ready", usage.compiled),
            "num_preemptions": ("Answers that gave their row to another: there are none", 0),
        }
        model = [self._settings.model]
        for families, kind in ((gauges, GaugeMetricFamily), (counters, CounterMetricFamily)):
            for name, (about, value) in families.items():
                family = kind(_PREFIX + name, about, labels=["model_name"])
                family.add_metric(model, value)
                yield family
        sizes = {name: str(value) for name, value in dataclasses.asdict(self._session.shape).items()}
        info = GaugeMetricFamily(
            _PREFIX + "cache_config_info", "Sizes of the keys and values", labels=["model_name", *sizes]
        )
        info.add_metric([*model, *sizes.values()], 1)
        yield info
        refused = CounterMetricFamily(_PREFIX + "rejected", "Requests turned away", labels=["model_name", "why"])
        for why, count in self._lifecycle.refused.items():
            refused.add_metric([*model, why], count)
        yield refused
