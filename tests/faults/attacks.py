"""Small files that would take minutes or gigabytes, given to everything that reads media, with what each took.

    python -m tests.faults --only attacks

Each file is read in a new process on each path: the functions of `videollava_jax.media`, `ask`, `chat`, the processors,
the engine, a batch job, the server; with and without worker processes. It has to be read or refused within `SECONDS` of
the processor's time and `MEMORY`, which covers this process and its workers each, and an error has to name the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.faults.children import Child, Died, command
from tests.faults.memory import cpu_seconds, family, forgotten_peak, most_memory
from tests.faults.tables import Tally

SECONDS = 30.0
"""The most CPU seconds on any path; the model's loading is among them where it is loaded."""
MEMORY = 900 * 2**20
"""The most bytes beyond what a process held before: an image of 33 million pixels takes 100 MB, and its copies too."""
QUESTION = "What is it?"


def strip(length: int, format: str = "PNG") -> bytes:
    """Returns an image one pixel high: with its short edge resized to 224 it would have 50,000 times as many pixels."""
    file = io.BytesIO()
    Image.new("1" if format == "PNG" else "RGB", (length, 1)).save(file, format)
    return file.getvalue()


def long_gif(images: int, side: int) -> bytes:
    """Returns an animation whose images differ in nothing but a colour, so that each costs little but its decoding."""
    pictures = [Image.new("P", (side, side), i % 250) for i in range(images)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    return file.getvalue()


def attacks(place: Path) -> dict[str, bytes]:
    """Returns the files by name; the first four are those that were found first."""
    from tests.media import bombs
    from tests.media.clips import KINDS, write
    from tests.media.test_costly import animation, element, many_scans, recording

    small = write(place / "small.mp4", **KINDS["h264_b_frames.mp4"]).read_bytes()
    webp = bytearray(animation(300, (20, 20)))
    webp[24:30] = (5760 - 1).to_bytes(3, "little") * 2
    file = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    return {
        "strip.png": strip(32_000),
        "animation.webp": bytes(webp),
        "scans.jpg": jpeg[:-2] + jpeg[last:-2] * 200 + jpeg[-2:],
        "tags.mkv": recording(place, element("1254C367", b"\x73\x73\x80" * 10_000_000)),
        "longest strip.png": strip(33_000_000),
        "strip.jpg": strip(65_000, "JPEG"),
        "hundred scans.jpg": many_scans(100),
        "seek heads.mkv": recording(place, element("114D9B74", b"\x4d\xbb\x80" * 10_000_000)),
        "attachments.mkv": recording(place, element("1941A469", b"\x61\xa7\x80" * 10_000_000)),
        "index.mp4": bombs.announced(small, 30_000_000),
        "index.mov": bombs.compressed_index(150 * 2**20),
        "frames.mp4": bombs.h264_bomb(place, "huge.mp4").read_bytes(),
        "bomb.png": bombs.png_bomb(),
        "bomb.gif": bombs.image_bomb("GIF", 65535, 65535),
        "bomb.webp": bombs.image_bomb("WEBP", 16000, 16000),
        "bomb.bmp": bombs.image_bomb("BMP"),
        "long.gif": long_gif(200, 1500),
    }


def _is_image(path: Path) -> bool:
    return path.suffix in (".png", ".jpg", ".bmp")


# ── the paths ───────────────────────────────────────────────────────────────────────────────────────────────


def _functions(path: Path) -> None:
    from videollava_jax.media import open_medium

    open_medium(path)


def _command(name: str, *more: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        sys.stdin = io.StringIO(f"{QUESTION}\n")
        asked = [QUESTION] if name == "ask" else []
        status, said = command(name, str(path), *asked, "--max-new-tokens", "2", *more)
        if status:
            raise ValueError(said)

    return run


def _processor(face: bool, isolated: bool) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        from videollava_jax import IsolatedReader
        from videollava_jax.assets import TINY
        from videollava_jax.face.processor import VideoLlavaProcessor as Face
        from videollava_jax.processing.processor import VideoLlavaProcessor as Core

        processor = (Face if face else Core).from_pretrained(TINY)
        kind = "image" if _is_image(path) else "video"
        asked = {"text": f"USER: <{kind}>\n{QUESTION} ASSISTANT:", f"{kind}s": str(path)}
        with IsolatedReader(processor) if isolated else contextlib.nullcontext() as reader:
            processor(**asked, **({"reader": reader} if isolated else {}))

    return run


def _run_engine(path: Path, isolated: bool) -> None:
    from videollava_jax import Engine, IsolatedReader, Request
    from videollava_jax.assets import TINY
    from videollava_jax.generation.loaded import LoadedModel
    from videollava_jax.processing.processor import VideoLlavaProcessor

    processor = VideoLlavaProcessor.from_pretrained(TINY)
    kind = "image" if _is_image(path) else "video"
    content = [{"type": kind, kind: str(path)}, {"type": "text", "text": QUESTION}]
    request = Request(id="a", conversation=[{"role": "user", "content": content}], max_new_tokens=2)
    with IsolatedReader(processor) if isolated else contextlib.nullcontext() as reader:
        engine = Engine(LoadedModel.load(TINY), processor, **({"reader": reader} if isolated else {}))
        (result,) = engine.run([request])
    if result.error is not None:
        raise ValueError(result.error)


def _engine(path: Path) -> None:
    _run_engine(path, False)


def _engine_isolated(path: Path) -> None:
    _run_engine(path, True)


def _batch(path: Path) -> None:
    source, output = path.with_name(f"{path.name}.jsonl"), path.with_name(f"{path.name}.answers")
    kind = "image" if _is_image(path) else "video"
    source.write_text(json.dumps({"id": "a", "prompt": QUESTION, kind: path.name}) + "\n")
    status, said = command("batch", str(source), str(output), "--media-root", str(path.parent), "--max-error-rate", "1")
    if status:
        raise RuntimeError(said)  # a bad file may not end a job
    (record,) = map(json.loads, output.read_text().splitlines())
    if record["error"] is not None:
        raise ValueError(record["error"])


PATHS: dict[str, Callable[[Path], None]] = {
    "the functions": _functions,
    "ask": _command("ask"),
    "ask --isolate": _command("ask", "--isolate"),
    "chat": _command("chat"),
    "the processor": _processor(face=False, isolated=False),
    "transformers' processor": _processor(face=True, isolated=False),
    "a processor's reader": _processor(face=True, isolated=True),
    "the engine": _engine,
    "the engine's reader": _engine_isolated,
    "batch": _batch,
}


@dataclass(frozen=True)
class Took:
    """What reading a file took.

    Attributes:
      error: why it was refused; "" where it was read.
      seconds: of the processor, of this process and its workers.
      memory: bytes, of this process beyond what it held, or of its largest worker.
    """

    error: str
    seconds: float
    memory: int


def _measured(path: str, file: str) -> Took:
    """Reads a file on a path, in this process."""
    before, held = _used(), forgotten_peak()
    error = ""
    try:
        PATHS[path](Path(file))
    except ValueError as refused:
        error = str(refused) or type(refused).__name__
    memory = most_memory() - held
    return Took(error, _used() - before, max(memory, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))


def _used() -> float:
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _count(tally: Tally, name: str, took: Took, named: str = "") -> None:
    """Counts an outcome; an error has to have `named` in it, or else the name of the file."""
    if took.seconds > SECONDS:
        outcome, why = "hang", f"took {took.seconds:.1f} s of the processor"
    elif took.memory > MEMORY + (_MODEL if not took.error else 0):
        outcome, why = "violation", f"took {took.memory / 2**20:.0f} MiB"
    elif took.error and ((named or name) not in took.error or "Traceback" in took.error):
        outcome, why = "violation", f"an error without the file's name: {took.error[:500]}"
    else:
        outcome, why = "refused" if took.error else "read", ""
    tally.add(outcome, f"{name}: {why}", took.seconds, took.memory)


_MODEL = 600 * 2**20
"""What JAX and the tiny model take where a file was read and the model had to answer."""


def _server(place: Path, files: list[Path]) -> Tally:
    from tests.faults.serving import serving

    tally = Tally("serve")
    (place / "temporary").mkdir()
    with serving(place / "temporary", place) as server:
        for path in files:
            kind = "image" if _is_image(path) else "video"
            part = {"type": f"{kind}_url", f"{kind}_url": {"url": path.name}}
            content = [part, {"type": "text", "text": QUESTION}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            pid = server.process.pid
            before, held = cpu_seconds(pid), most_memory(pid)
            status, raw = server.post(json.dumps(body).encode())
            workers = [most_memory(child) for child in family(pid)[1:]]
            memory = max([most_memory(pid) - held, *workers])
            error = "" if status == 200 else raw.decode(errors="replace")
            if status not in (200, 400):
                tally.add("crash", f"{path.name}: status {status}: {error[:500]}")
            else:
                _count(tally, path.name, Took(error, cpu_seconds(pid) - before, memory), f"{kind} 1 of the request")
    return tally


@contextlib.contextmanager
def written(number: int | None = None) -> Iterator[list[Path]]:
    """Yields the files of the first attacks."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        made = list(attacks(place).items())[:number]
        for path in place.iterdir():
            path.unlink()
        files = []
        for file, content in made:
            files.append(place / file)
            files[-1].write_bytes(content)
        yield files


def part(seed: int, scale: float) -> list[Tally]:
    """Reads every attack on every path, below scale 0.3 the first four; see `tests.faults.parts`."""
    tallies: list[Tally] = []
    with written(4 if scale < 0.3 else None) as files:
        for path in PATHS:
            tallies.append(tally := Tally(path))
            for file in files:
                try:
                    took: Any = Child(_measured, path, str(file)).result(600)
                except Died as died:
                    tally.add(died.outcome, f"{file.name}: {died}")
                except RuntimeError as error:
                    tally.add("crash", f"{file.name}: {str(error)[-1500:]}")
                else:
                    _count(tally, file.name, took)
        tallies.append(_server(files[0].parent, files))
    return tallies
