"""`videollava serve`: a server with OpenAI's protocol around one model."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.assets import TINY
from videollava_jax.cli.common import (
    FRAMES,
    KEY,
    add_device_arguments,
    add_media_arguments,
    add_reading_arguments,
    argument_type,
    begin_command,
    frame_sampling_of,
    make_engine,
    open_processor,
    print_json,
    worker_limits,
)
from videollava_jax.cli.errors import UsageError, print_error, report
from videollava_jax.extras import installs
from videollava_jax.generation.kinds import number, whole

if TYPE_CHECKING:
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.engine.session import Session
    from videollava_jax.processing.processor import VideoLlavaProcessor
    from videollava_jax.serving.metrics import MeasuredReader
    from videollava_jax.serving.settings import Settings

ANSWER = 512
"""Tokens of the longest answer where `--longest-answer` does not say."""
DETAILS = f"""\
Serves one model over HTTP: POST /v1/chat/completions as OpenAI's clients send it, with images and videos; files are
uploaded to /v1/files. A page to ask from is at /. The server listens on this machine alone unless --host says more.

  videollava serve --open                           the bundled tiny model, and its page in the browser
  videollava serve --model 7b-orbax --dtype bfloat16 --port 8000
  {KEY}=secret videollava serve --model 7b-orbax --host 0.0.0.0 --media-root /data

SIGTERM and Ctrl-C let the requests that are open end, for --drain-seconds at most.
"""


def add_serve(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `serve`."""
    begin_command(made, serve, DETAILS)
    seconds = argument_type(number(0, 86400, above=True))
    server = made.add_argument_group("the server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    server.add_argument(
        "--port", type=argument_type(whole(0, 65535)), default=8000, help="0: any that is free; default: %(default)s"
    )
    server.add_argument("--open", action="store_true", help="open the page in the browser")
    server.add_argument("--served-model-name", metavar="NAME", help="the model's name for clients; default: its own")
    server.add_argument(
        "--api-key", metavar="KEY", help=f"key that clients have to send; default: that of {KEY}, or none"
    )
    server.add_argument(
        "--public-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of a host by which clients may call the server, besides addresses, localhost and this machine's "
        "name; can be given several times",
    )
    server.add_argument(
        "--max-queue",
        type=argument_type(whole(1)),
        default=256,
        metavar="N",
        help="answers that may be waited for; further requests are refused with 429; default: %(default)s",
    )
    server.add_argument(
        "--request-timeout",
        type=seconds,
        default=600.0,
        metavar="S",
        help="time that a request may take; default: %(default)g",
    )
    server.add_argument(
        "--drain-seconds",
        type=argument_type(number(0, 86400)),
        default=25.0,  # Kubernetes kills after 30
        metavar="S",
        help="time that open requests have to end after SIGTERM; default: %(default)g",
    )
    sizes = made.add_argument_group("sizes, fixed while the server runs")
    sizes.add_argument(
        "--rows",
        type=argument_type(whole(1)),
        default=8,
        metavar="N",
        help="questions about one medium that are answered at a time; default: %(default)s",
    )
    sizes.add_argument(
        "--most-frames",
        type=argument_type(whole(1)),
        metavar="N",
        help="frames of a video that a request may ask for; default: --frames",
    )
    sizes.add_argument(
        "--longest-prefix",
        type=argument_type(whole(1)),
        metavar="N",
        help="tokens of a prompt up to its last medium; default: what --most-frames take, and some text",
    )
    sizes.add_argument(
        "--longest-question",
        type=argument_type(whole(1)),
        default=128,
        metavar="N",
        help="tokens after the media; of longer ones the start is computed first; default: %(default)s",
    )
    sizes.add_argument(
        "--longest-answer",
        type=argument_type(whole(1)),
        metavar="N",
        help=f"tokens of an answer; default: what the other sizes leave of the model's positions, at most {ANSWER}",
    )
    add_media_arguments(made)
    add_device_arguments(made)
    add_reading_arguments(made)


def serve(arguments: argparse.Namespace) -> None:
    """Serves until a signal ends it.

    Raises:
      SystemExit: with the status of the error by which the engine has stopped.
    """
    try:
        import msgspec  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"serving needs {error.name}: {installs('serve')}") from None
    from videollava_jax.serving.http_process.start import Beginning, HttpEnded, HttpProcess
    from videollava_jax.serving.listening import listen
    from videollava_jax.serving.process import leave_at_once, leave_if_compiling

    key = arguments.api_key or os.environ.get(KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("--api-key: expected printable ASCII characters without spaces")
    if arguments.media_root is not None and not arguments.media_root.is_dir():
        raise ValueError(f"--media-root {arguments.media_root}: expected a directory")
    # Before the model is loaded, which takes minutes.
    socket = listen(arguments.host, arguments.port)
    with socket:
        path, processor = open_processor(arguments)
        settings = _settings(arguments, path, processor, key)
        http = HttpProcess(socket)
    with http:
        reader, measured, session = _session(arguments, path, processor)
        begins = Beginning(settings, processor, worker_limits(arguments), session.shape)
        said = _Saying(print_json if arguments.json else _say, page=arguments.open)
        try:
            failed = http.run(session, begins, reader=measured, said=said)
        finally:
            reader.close()
    if isinstance(failed, TimeoutError):
        print_error(f"the engine hangs: {failed}")
        leave_at_once(1)
    if failed is not None:
        if not isinstance(failed, HttpEnded):
            print_error("the engine has stopped")
        # The command line may hold the key.
        raise SystemExit(report(failed, ["serve", "…"]) if isinstance(failed, Exception) else 1)
    leave_if_compiling()


class _Saying:
    """Says what the server does, and opens its page when it takes requests."""

    def __init__(self, say: Callable[[dict[str, Any]], None], *, page: bool):
        self._say, self._page, self._url = say, page, ""

    def __call__(self, record: dict[str, Any]) -> None:
        """Takes a record. It is lost where nobody hears it any more, as the pipe is closed."""
        with contextlib.suppress(OSError):
            self._say(record)
        self._url = record.get("url", self._url)
        if record["state"] == "ready" and self._page:
            self._page = False
            threading.Thread(target=webbrowser.open, args=(self._url,), name="browser", daemon=True).start()


def _say(record: dict[str, Any]) -> None:
    """Prints in a line what the server does."""
    said = {
        "starting": "{url} serves {model}; its programs are being compiled",
        "ready": "ready after {seconds:.1f} s" if "seconds" in record else "ready again",
        "stuck": "the engine has done nothing for {seconds:.0f} s, with requests open",
        "draining": "going down: waiting for {open} requests, {seconds:g} s at most",
        "ended": "ended",
    }[record["state"]]
    print(said.format(**record), flush=True)


def _session(
    arguments: argparse.Namespace, path: str | Path, processor: VideoLlavaProcessor
) -> tuple[IsolatedReader, MeasuredReader, Session]:
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.serving.metrics import MeasuredReader

    reader = IsolatedReader(processor, worker_limits(arguments))
    measured = MeasuredReader(reader)
    engine = make_engine(
        arguments, path, processor, measured, on_sizes=lambda line: print(line, file=sys.stderr, flush=True)
    )
    session = engine.session(
        longest_prefix=_longest_prefix(arguments, processor),
        longest_question=arguments.longest_question,
        longest_answer=_longest_answer(arguments, processor),
        rows=arguments.rows,
    )
    return reader, measured, session


def _most_frames(arguments: argparse.Namespace) -> int:
    chosen = FRAMES if arguments.indices is None else len(arguments.indices)
    return max(arguments.most_frames or 0, arguments.frames or chosen)


def _longest_prefix(arguments: argparse.Namespace, processor: VideoLlavaProcessor) -> int:
    """The tokens of the longest prefix: with room for the most frames, and as much text as the engine's default has."""
    from videollava_jax.engine.sizes import PREFIX_BUCKET

    if arguments.longest_prefix is not None:
        return int(arguments.longest_prefix)
    wanted = _most_frames(arguments) * processor.tokens_per_frame + PREFIX_BUCKET
    return wanted if processor.max_positions is None else min(wanted, processor.max_positions)


def _longest_answer(arguments: argparse.Namespace, processor: VideoLlavaProcessor) -> int:
    """The tokens of the longest answer: what follows the longest prefix and question always fits the positions."""
    given = arguments.longest_answer
    if given is not None:
        if processor.max_positions is not None and given >= processor.max_positions:
            raise ValueError(
                f"--longest-answer {given}: expected less than the model's {processor.max_positions} positions"
            )
        return int(given)
    if processor.max_positions is None:
        return ANSWER
    prefix, question = _longest_prefix(arguments, processor), arguments.longest_question
    left: int = processor.max_positions - prefix - question
    if left < 1:
        raise ValueError(
            f"the model has {processor.max_positions} positions, and prefixes of {prefix} with questions of {question} "
            "leave none for an answer: lower --most-frames, --longest-prefix or --longest-question"
        )
    return min(ANSWER, left)


def _settings(
    arguments: argparse.Namespace, path: str | Path, processor: VideoLlavaProcessor, key: str | None
) -> Settings:
    from videollava_jax.serving.settings import Settings

    name = arguments.served_model_name or (arguments.model if not isinstance(path, Path) else path.name)
    return Settings(
        model=name,
        api_key=key,
        public_names=tuple(arguments.public_name),
        media_root=arguments.media_root,
        hosts=tuple(arguments.allow_host),
        max_queue=arguments.max_queue,
        request_timeout=arguments.request_timeout,
        drain_seconds=arguments.drain_seconds,
        max_medium_bytes=arguments.limit_bytes,
        max_frames=max(1, _longest_prefix(arguments, processor) // processor.tokens_per_frame),
        frame_window=processor.frame_window,
        max_tokens=processor.max_positions or 0,
        longest_answer=_longest_answer(arguments, processor),
        frame_sampling=frame_sampling_of(arguments, processor),
        examples=path == TINY,
    )
