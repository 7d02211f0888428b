"""JAX's persistent compilation cache, on by default: a program is compiled once a machine, not once a run."""

from __future__ import annotations

import os
from pathlib import Path

import jax

ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"


def default_directory() -> Path:
    """`$XDG_CACHE_HOME/videollava_jax/compiled`, which is `~/.cache/videollava_jax/compiled` for most."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "videollava_jax" / "compiled"


def enable(directory: Path | None = None) -> None:
    """Keeps compiled programs in a directory, unless JAX was told of another one or of none.

    JAX_COMPILATION_CACHE_DIR names another; the empty string switches the cache off. A directory that cannot be
    written is left alone.
    """
    known = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if known is not None or ENVIRONMENT in os.environ:
        return
    directory = directory or default_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))  # type: ignore[no-untyped-call]
