"""JAX's persistent compilation cache, on by default: programs are compiled once on each machine, not in each run."""

from __future__ import annotations

import os
from pathlib import Path

import jax

ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"
LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def default_directory() -> Path:
    """Returns `$XDG_CACHE_HOME/videollava_jax/compiled`; by default `~/.cache/videollava_jax/compiled`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "videollava_jax" / "compiled"


def enable(directory: Path | None = None) -> None:
    """Keeps compiled programs in a directory, unless JAX is configured to use another one or none.

    JAX_COMPILATION_CACHE_DIR names another; an empty string switches the cache off. Nothing is cached if the directory
    cannot be made. Programs that compile in less than a second are kept too, unlike JAX's default: a short command
    spends most of its time on them.
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
    if LEAST_SECONDS.upper() not in os.environ:
        jax.config.update(LEAST_SECONDS, 0)  # type: ignore[no-untyped-call]
