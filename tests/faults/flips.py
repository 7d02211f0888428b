"""Flips single bits in what a conversion wrote: each must be found, or must not change what is loaded."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.children import Child, Died, messages
from tests.faults.tables import Tally

SECONDS = 120  # for a flip, the imports and the first compilation
GOOD, SILENT = ("found", "refused", "the same"), ("not found", "other parameters")
KINDS = ("Orbax", "Orbax in int8", "safetensors")
CHOICES = ("any byte", "any file")
"""How a byte is drawn: all bytes equally likely, or all files, so that small files are hit as well."""


def flip(number: int, seed: int, kinds: tuple[str, ...] = KINDS) -> list[Tally]:
    """Flips `number` bits, one at a time; returns rows for what verifying finds, and for what a full load returns."""
    found = {(kind, choice): Tally(f"bit flips: {kind}, {choice}: verify") for kind in kinds for choice in CHOICES}
    loaded = {kind: Tally(f"bit flips: {kind}: load") for kind in kinds}
    cases = [(i, *list(found)[i % len(found)]) for i in range(number)]
    for kind in kinds:
        ours = [case for case in cases if case[1] == kind]
        for message in messages(partial(_start, kind, ours, seed), SECONDS):
            position, _, choice = ours.pop(0)
            if isinstance(message, Died):
                found[kind, choice].add(message.outcome, f"flip {position} of seed {seed}: {message}")
                continue
            where, verified, load = message
            found[kind, choice].add(*_outcome(verified, f"flip {position} of seed {seed}: {where}"))
            loaded[kind].add(*_outcome(load, f"flip {position} of seed {seed}: {where}"))
    return [*found.values(), *loaded.values()]


def part(seed: int, scale: float) -> list[Tally]:
    """Flips `150 * scale` bits; see `tests.faults.parts`."""
    return flip(round(150 * scale), seed)


def _start(kind: str, cases: list[tuple[int, str, str]], seed: int) -> Child | None:
    return Child(_work, kind, cases, seed, say=True) if cases else None


def _outcome(outcome: str, where: str) -> tuple[str, str]:
    """Returns an outcome as a tally counts it: all but those in `GOOD` are bad."""
    bad = "silent" if outcome in SILENT else "crash"
    return (outcome, "") if outcome in GOOD else (bad, f"{where}: {outcome}")


def write_directory(place: Path, kind: str) -> Path:
    """Writes a directory of some megabytes with `convert` or `export`."""
    import videollava_jax.weights.manifest as manifest
    import videollava_jax.weights.stream as stream
    from tests.small_models import random_parameters, small_config
    from tests.weights.checkpoints import write_checkpoint
    from videollava_jax.weights import Options, convert_to_orbax, export

    # As with a large checkpoint: several groups, and files that are not hashed whole.
    stream.GROUP_BYTES = 2**20  # type: ignore[attr-defined]
    manifest.SMALL = 2**16
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    config = small_config(vision=vision, text=text)
    source = place / "source"
    write_checkpoint(source, config, random_parameters(config, 3), "hub")
    (source / "tokenizer.json").write_text('{"version": "1.0", "model": {"vocab": {"a": 0, "b": 1}}}\n' * 20)
    (source / "tokenizer_config.json").write_text('{"model_max_length": 2048}\n')
    (source / "tokenizer.model").write_bytes(bytes(range(256)) * 16)
    target = place / "target"
    if kind == "safetensors":
        export(source, target, "hub", max_shard_bytes=3 * 2**20)
    else:
        convert_to_orbax(source, target, Options(int8=kind == "Orbax in int8"))
    return target


def _work(say: Callable[[Any], None], kind: str, cases: list[tuple[int, str, str]], seed: int) -> None:
    from videollava_jax.weights import load_checkpoint, verify_checkpoint

    with tempfile.TemporaryDirectory() as place:
        directory = write_directory(Path(place), kind)
        files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
        assert verify_checkpoint(directory) == []
        whole = _bytes(load_checkpoint(directory, verify="full"))
        for position, _, choice in cases:
            rng = random.Random(f"{seed}/{position}")
            path, offset = _draw(rng, files, choice)
            with _flipped(path, offset, rng.randrange(8)) as bit:
                where = f"{path.relative_to(directory)}, byte {offset}, bit {bit}"
                say((where, _verify(directory), _load(directory, whole)))


def _draw(rng: random.Random, files: list[Path], choice: str) -> tuple[Path, int]:
    """Draws a byte; returns (file, offset)."""
    sizes = [path.stat().st_size for path in files]
    (path,) = rng.choices(files, sizes if choice == "any byte" else None)
    return path, rng.randrange(path.stat().st_size)


@contextmanager
def _flipped(path: Path, offset: int, bit: int) -> Iterator[int]:
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    try:
        yield bit
    finally:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(bytes([byte]))


def _verify(directory: Path) -> str:
    from videollava_jax.weights import WeightsError, verify_checkpoint

    try:
        return "found" if verify_checkpoint(directory, "full") else "not found"
    except WeightsError:
        return "found"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _load(directory: Path, whole: dict[str, bytes]) -> str:
    from videollava_jax.weights import WeightsError, load_checkpoint

    try:
        return "the same" if _bytes(load_checkpoint(directory, verify="full")) == whole else "other parameters"
    except WeightsError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _bytes(loaded: Any) -> dict[str, bytes]:
    import numpy as np

    return {name: np.asarray(value).tobytes() for name, value in loaded[1].items()}
