"""Writes the complete output of a job and its receipt, and recognises them again. No JAX.

In the receipt, as in the ledger, the identity is stored as "fingerprint".
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from videollava_jax.batch.job_files import LedgerError, Paths

Identity = Mapping[str, str]


class JobMismatch(ValueError):
    """The ledger or the output belongs to another job."""


def write_output(paths: Paths, records: Iterable[str], causes: Iterable[str | None], identity: Identity) -> None:
    """Writes the complete output and its receipt. An equal output is left untouched.

    Args:
      records: of every line, in the input's order.
      causes: of each line's error, None for an answer; in any order.
      identity: of the job.

    Raises:
      LedgerError: the records cannot be read, or the disk is full. Then nothing has changed.
    """
    causes = list(causes)
    temporary = paths.directory / "output.new"
    try:
        digest = hashlib.sha256()
        with open(temporary, "wb") as file:
            for text in records:
                raw = f"{text}\n".encode()
                digest.update(raw)
                file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        before = _file_digest(paths.output) if paths.output.exists() else None
        receipt = {
            "fingerprint": dict(identity),
            "lines": len(causes),
            "errors": dict(Counter(cause for cause in causes if cause is not None)),
            "sha256": digest.hexdigest(),
            # The hash of the old output, in case this run is killed before the new output has replaced it.
            **({} if before in (None, digest.hexdigest()) else {"replaces": before}),
        }
        # The receipt comes first, because an output without one counts as somebody else's file.
        _write_durably(paths.receipt, json.dumps(receipt, indent=1) + "\n", paths.directory)
        if before == digest.hexdigest():
            temporary.unlink()
        else:
            os.replace(temporary, paths.output)
            _sync_directory(paths.output.parent)
    except (OSError, sqlite3.Error) as error:
        why = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise LedgerError(
            f"{paths.output}: cannot be written ({why}); all answers are kept in {paths.directory}: "
            "run the same command again"
        ) from None


def require_same_job(where: Path, then: Identity, now: Identity) -> None:
    """Checks that a ledger or output belongs to this job.

    Args:
      where: the file or directory, for the message.
      then: the identity stored with it.
      now: the identity of this job.

    Raises:
      JobMismatch: they differ; the message says where.
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        differences = "\n".join(f"  {n}: {then.get(n, 'nothing')} then, {now.get(n, 'nothing')} now" for n in names)
        raise JobMismatch(
            f"{where} is of another job:\n{differences}\n"
            "Run the same command as then, or choose another output, or remove it"
        )


def read_receipt(paths: Paths, identity: Identity) -> Mapping[str, Any] | None:
    """Returns the receipt of a complete output.

    Returns:
      The receipt; None if there is no output yet, or one that a run was about to replace when it was killed.

    Raises:
      JobMismatch: the output belongs to another job, or was not written by a job.
    """
    if not paths.output.exists():
        return None
    try:
        receipt = json.loads(paths.receipt.read_text())
        digest, then = _file_digest(paths.output), receipt["fingerprint"]
        whole, replaced = digest == receipt["sha256"], digest == receipt.get("replaces")
    except (OSError, ValueError, KeyError, TypeError):
        whole = replaced = False
    if not whole and not replaced:
        raise JobMismatch(
            f"{paths.output} is there already, and not as videollava wrote it: choose another output, or remove it"
        )
    require_same_job(paths.output, then, identity)
    return dict(receipt) if whole else None


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str, directory: Path) -> None:
    temporary = directory / f"{path.name}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
