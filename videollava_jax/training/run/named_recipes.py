"""The recipes of the package by name, and those that train as the authors' scripts do. No JAX in here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from videollava_jax.hub import local_path

RECIPES = Path(__file__).parents[1] / "recipes"
"""The recipes of the package, by file name."""
PAPER = "paper"
"""What `--as` takes: the recipes of the package that train as the authors' scripts do."""
PAPERS = "pretrain, finetune or lora"
"""What `--config` takes with it."""
NOT_NF4 = "the authors' QLoRA keeps the frozen weights in NF4, which is not supported"
"""Why int8 is refused there."""


def with_recipe_files(arguments: Sequence[str]) -> list[str]:
    """Replaces the name of a packaged recipe after `--config` with its file; a file of that name goes first.

    Raises:
      ValueError: neither a file nor a packaged recipe.
    """
    found, paper = _without_as(arguments)

    def file_of(name: str) -> str:
        if paper:
            name = _of_the_paper(name)
        path, packaged = local_path(name), RECIPES / f"{name}.yaml"
        if path.exists():
            return str(path)
        if not packaged.exists():
            raise ValueError(f"--config: expected a YAML file, or one of {names()}; got {name}")
        return str(packaged)

    if paper and not any(argument.split("=")[0] == "--config" for argument in found):
        raise ValueError(f"--as {PAPER}: expected --config {PAPERS}, got no --config")
    for i, argument in enumerate(found):
        if i and found[i - 1] == "--config":
            found[i] = file_of(argument)
        elif argument.startswith("--config="):
            found[i] = f"--config={file_of(argument.removeprefix('--config='))}"
    return found


def recipe_files(arguments: Sequence[str]) -> list[str]:
    """Returns the files that arguments name after `--config`, as `with_recipe_files` returns them."""
    after = [argument for before, argument in pairwise(arguments) if before == "--config"]
    return after + [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]


def as_paper(arguments: Sequence[str]) -> bool:
    """Returns whether arguments that `with_recipe_files` takes ask for the authors' training."""
    return _without_as(arguments)[1]


def _without_as(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Returns the arguments without `--as paper`, and whether it was there.

    Raises:
      ValueError: `--as` with another word, or with none.
    """
    left, paper = [], False
    rest = iter(arguments)
    for argument in rest:
        if argument != "--as" and not argument.startswith("--as="):
            left.append(argument)
            continue
        word = next(rest, "nothing") if argument == "--as" else argument.removeprefix("--as=")
        if word != PAPER:
            raise ValueError(f"--as: expected {PAPER}, got {word}")
        paper = True
    return left, paper


def _of_the_paper(name: str) -> str:
    """Returns the name of the recipe that trains as the authors' script for `name` does.

    Raises:
      ValueError: there is no such recipe.
    """
    if name == "qlora":
        raise ValueError(
            f"--as {PAPER} --config qlora: {NOT_NF4}; "
            f"expected --config {PAPERS}, or qlora without --as {PAPER}, whose weights are int8"
        )
    if not (RECIPES / f"{PAPER}_{name}.yaml").exists():
        raise ValueError(f"--as {PAPER}: expected --config {PAPERS}, got {name}")
    return f"{PAPER}_{name}"


def names() -> str:
    """Returns the names of all packaged recipes."""
    return ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
