"""Checkpoints to convert in adversity, and what is looked at afterwards."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.children import command
from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint

COMMANDS = ("convert", "export")
Snapshot = dict[str, tuple[int, int, str]]


@contextmanager
def workshop(width: int = 256) -> Iterator[Path]:
    """Yields a directory with two checkpoints of some megabytes, `source` and `other`, that differ only in values."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)  # another user works here as well
        vision = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
        config = small_config(vision=vision, text={"hidden_size": width, "intermediate_size": 4 * width})
        for seed, directory in enumerate(("source", "other")):
            write_checkpoint(place / directory, config, random_parameters(config, seed), "hub", shards=2)
            (place / directory / "tokenizer.json").write_text("{}\n")
            for path in (place / directory).iterdir():  # safetensors makes files that only their owner can read
                path.chmod(0o644)
        yield place


def command_line(what: str, source: Path, target: Path) -> tuple[str, ...]:
    """Returns the command line of `convert` or `export`."""
    return (what, str(source), str(target))


def snapshot(directory: Path) -> Snapshot:
    """Returns (inode, time of the last change, SHA-256) of every file by its path."""
    return {
        path.relative_to(directory).as_posix(): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def complaint_about(status: int, said: str, about: Path) -> str:
    """Returns what is wrong with the error of a run that had to fail; an empty string if nothing is."""
    if status != 1:
        return f"exit status {status}: {said[-300:]}"
    if not said.startswith("videollava: ") or "Traceback" in said or str(about) not in said:
        return f"an error that is not one, or names no file: {said[-500:]}"
    return ""


def verified(target: Path) -> str:
    """Returns what `videollava verify` finds wrong; an empty string if nothing is."""
    status, said = command("verify", str(target))
    return said if status else ""
