"""Which base an adapter was trained on, and whether a checkpoint can be it: a language model or a Video-LLaVA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from videollava_jax.weights.adapters.opening import Adapter, settings_of
from videollava_jax.weights.checkpoint import PARTS, Checkpoint
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.source import Source

Kind = Literal["a language model", "a Video-LLaVA"]
_TOWERS = "--image-tower LanguageBind_Image --video-tower LanguageBind_Video_merge"


@dataclass(frozen=True)
class Trained:
    """What an adapter's files say of the model that it was trained on.

    Attributes:
      name: a name on the hub or a path on the machine of the training; None where nothing says.
      kind: by the name or, failing that, by what was trained; None where neither says.
      said_by: the file and key, for messages.
    """

    name: str | None
    kind: Kind | None
    said_by: str


def trained_on(adapter: Adapter) -> Trained:
    """Returns what an adapter's files say of its base."""
    for file, key, raw in (
        ("adapter_config.json", "base_model_name_or_path", adapter.config),
        ("config.json", "_name_or_path", settings_of(adapter)),
    ):
        name = raw.get(key)
        if isinstance(name, str) and _identity(name):
            return Trained(name, _kind_named(name) or _kind_trained(adapter), f"{key} of {file}")
    return Trained(None, _kind_trained(adapter), "the names of its tensors")


def require_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Makes sure that a checkpoint can be what an adapter was trained on, as far as both say.

    Compared is what the base is, a language model or a finished Video-LLaVA, whose decoder was trained further, and
    then its names: that of its directory, of its repository on the hub and in its config.json.

    Raises:
      WeightsError: it is another one; the message says which to give, and how to insist.
    """
    trained = trained_on(adapter)
    is_kind: Kind = "a language model" if checkpoint.layout == PARTS else "a Video-LLaVA"
    base, insist = checkpoint.directory, "; --trust-base merges all the same, if it is that model under another name"
    name = trained.name or "lmsys/vicuna-7b-v1.5, for example"
    if trained.kind not in (None, is_kind):
        if trained.kind == "a language model":
            raise WeightsError(
                f"{adapter.directory}: trained on a language model, {name} ({trained.said_by}), and {base} is a "
                "finished Video-LLaVA, whose decoder and projector were trained further: the sum would be neither: "
                f"give --base {_short(name)} {_TOWERS}{insist}"
            )
        raise WeightsError(
            f"{adapter.directory}: trained on a Video-LLaVA{f', {trained.name}' if trained.name else ''} "
            f"({trained.said_by}), and {base} is a language model: give the Video-LLaVA as --base{insist}"
        )
    known = _names(checkpoint.source, by_directory=is_kind == "a language model")
    if trained.name is not None and known and _identity(trained.name) not in {_identity(one) for one in known}:
        raise WeightsError(
            f"{adapter.directory}: trained on {trained.name} ({trained.said_by}), and the base is {' or '.join(known)} "
            f"({base}): give --base {_short(trained.name)}{insist}"
        )


def _names(source: Source | None, *, by_directory: bool) -> list[str]:
    """Returns the names that a checkpoint goes by. A converted Video-LLaVA's directory may have any name."""
    if source is None:
        return []
    path = source.directory
    names = [path.name] if by_directory else []
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):  # the hub's cache
        names = [path.parents[1].name.removeprefix("models--").replace("--", "/")]
    said: Any = source.config_if_any.get("_name_or_path")
    return [*names, *([said] if isinstance(said, str) and _identity(said) else [])]


def _identity(name: str) -> str:
    """Returns what is equal for a model's names: without owner or folders, case, punctuation and an ending -hf."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    return re.sub(r"[^a-z0-9]", "", re.sub(r"[-_]hf$", "", last))


def _kind_named(name: str) -> Kind | None:
    short = _identity(name)
    if "llava" in short:
        return "a Video-LLaVA"
    return "a language model" if any(word in short for word in ("vicuna", "llama", "alpaca")) else None


def _kind_trained(adapter: Adapter) -> Kind | None:
    """Returns the kind of base by what an adapter holds: the authors' first stage trains the projector alone."""
    if adapter.layout != "pku":
        return "a Video-LLaVA"
    only_projector = not adapter.lora and all(name.startswith("multi_modal_projector.") for name in adapter.replaced)
    return "a language model" if only_projector else None


def _short(name: str) -> str:
    return name.split(",")[0]
