"""A model's name or path to a directory here, fetched from the Hugging Face hub where it is a name there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from videollava_jax.assets import TINY

StrPath: TypeAlias = str | os.PathLike[str]

BUNDLED = "tiny"
"""The name of the model that comes with the package, in commands and recipes."""

_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SIDE_FILES = ["*.json", "*.jinja", "tokenizer.model"]
_SAFE_WEIGHTS = ["*.safetensors", "params/*"]  # params/: what Orbax writes
_PICKLED_WEIGHTS = ["pytorch_model*.bin", "adapter_model.bin", "mm_projector.bin"]
_OTHER_WEIGHTS = ["non_lora_trainables.bin"]  # a part of an adapter, whose other files are of either kind


class Wanted(Enum):
    """Which files of a model are fetched from the hub."""

    WEIGHTS = "weights"
    """The weights and the side files. Of a model in safetensors or Orbax no .bin is fetched: it would be read from the
    former, and .bin can carry code."""
    SIDE_FILES = "side files"
    """The files of configuration, tokenizer and processor: megabytes, where the weights are gigabytes."""


def local_path(path: StrPath) -> Path:
    """Returns an absolute path, with `~` as the home directory.

    Orbax takes absolute paths only, and TensorStore none with `..` in it. Symbolic links stay: messages show the path
    that the user typed.

    Raises:
      ValueError: an empty path, or a `~user` who does not exist.
    """
    if not os.fspath(path):
        raise ValueError("expected a path or a model's name, got an empty string")
    try:
        absolute = Path(path).expanduser().absolute()
    except RuntimeError as error:  # no such user
        raise ValueError(f"{path}: {error}") from None
    # A link's `..` is the parent of what it points to, which only resolve() finds.
    return absolute.resolve() if ".." in absolute.parts else absolute


def find_here(name: StrPath, *, bundled: bool = False) -> Path | None:
    """Returns the absolute path of a model's directory on this machine; None for a name to look up on the hub.

    Args:
      name, bundled: as in `find_model`.

    Raises:
      ValueError: a file, an empty directory, or no directory where the name cannot be one on the hub.
    """
    if bundled and name == BUNDLED:
        return TINY
    path = local_path(name)
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                if next(entries, None) is None:
                    raise ValueError(f"{name}: expected a directory with a model's files, found an empty directory")
            return path
        exists = path.exists()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None
    if exists:
        raise ValueError(f"{name}: expected a model's directory, found a file; give the directory that it lies in")
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{name}: no such directory; expected one, or a model's name on the Hugging Face hub such as owner/name"
        )
    return None


def find_model(
    name: StrPath,
    wanted: Wanted,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    bundled: bool = False,
    **download: Any,
) -> Path:
    """Returns the absolute path of a model's directory, after fetching what is missing from the hub.

    A directory here comes before a model of the same name on the hub. Offline (HF_HUB_OFFLINE=1, or no network), a
    model that was fetched before is found in the hub's cache.

    Args:
      name: a directory, or a name on the hub such as "LanguageBind/Video-LLaVA-7B-hf". A `Path` is always a directory.
      wanted: which files are fetched; a directory here is taken with the files that it has.
      revision: a branch, tag or commit on the hub; None for the default branch.
      token: for private models; None takes that of HF_TOKEN or `hf auth login`.
      bundled: whether "tiny" is the model that comes with the package, as in commands and recipes.
      download: further arguments of `huggingface_hub.snapshot_download`: `cache_dir`, `local_files_only`, ….

    Raises:
      ValueError: neither a directory nor a model on the hub, a file, an empty directory, or a model whose weights are
        wanted and which has none.
    """
    directory = find_here(name, bundled=bundled)
    if directory is not None:
        return directory
    name = str(name)
    if wanted is Wanted.SIDE_FILES:
        return _fetched(name, _SIDE_FILES, revision, token, download)
    directory = _fetched(name, _SIDE_FILES + _OTHER_WEIGHTS + _SAFE_WEIGHTS, revision, token, download)
    if _holds(directory, _SAFE_WEIGHTS):
        return directory
    directory = _fetched(name, _SIDE_FILES + _OTHER_WEIGHTS + _PICKLED_WEIGHTS, revision, token, download)
    if not _holds(directory, _PICKLED_WEIGHTS):
        raise ValueError(
            f"{name}: the Hugging Face hub has no weights in this model: expected "
            f"{', '.join(_SAFE_WEIGHTS + _PICKLED_WEIGHTS)}, found {', '.join(sorted(os.listdir(directory))[:8])}"
        )
    return directory


def _holds(directory: Path, patterns: list[str]) -> bool:
    return any(next(directory.glob(pattern), None) for pattern in patterns)


def _fetched(
    name: str, patterns: list[str], revision: str | None, token: str | bool | None, download: Mapping[str, Any]
) -> Path:
    from huggingface_hub import snapshot_download

    # An index is read together with the weights that it lists.
    ignored = ["*.index.json"] if patterns == _SIDE_FILES else None
    try:
        return Path(
            snapshot_download(
                name, revision=revision, token=token, allow_patterns=patterns, ignore_patterns=ignored, **download
            )
        )
    except Exception as error:  # the client raises its own, its HTTP library's, and OSError
        raise ValueError(
            f"{name}: not a directory here, and the Hugging Face hub did not give it: {_reason(error, revision)}"
        ) from error


def _reason(error: Exception, revision: str | None) -> str:
    """Says why the hub's client failed, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated: accept its terms on its page, and give a token (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it has no model of this name; a private one needs a token (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {revision!r}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "it cannot be reached (no network, or HF_HUB_OFFLINE is set), and the files that are wanted are not all in "
            "its cache; fetch them once with a network"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
