"""The numbers of a recipe, and the recipes of the package."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from videollava_jax.processing.preset import CHOICES
from videollava_jax.training.run.recipe import RANGES, Recipe, read_recipe

GIVEN = ("--config", "lora", "--data.train", "mine.json")
NONSENSE = ("-1", ".nan", ".inf", "1e30", "x")


def numbers(part=Recipe, before=""):
    """The paths of all fields of a recipe whose type has a number, by reflection; lists of numbers included."""
    for name, kind in typing.get_type_hints(part).items():
        kinds = [kind, *typing.get_args(kind)]
        inner = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
        if inner is not None:
            yield from numbers(inner, f"{before}{name}.")
        elif {int, float} & {*kinds, *(one for kind in kinds for one in typing.get_args(kind))}:
            yield f"{before}{name}"


def refusal(capsys, *arguments):
    """What is said of a command line that is refused; its last line."""
    with pytest.raises(SystemExit) as status:
        read_recipe([*GIVEN, *arguments])
    assert status.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_every_number_of_a_recipe_has_a_range():
    assert set(numbers()) == set(RANGES)
    assert len(RANGES) > 30


@pytest.mark.parametrize("name", RANGES)
def test_numbers_that_make_no_sense_are_refused_by_name_with_the_range(name, capsys):
    for text in NONSENSE:
        given = f"[{text}]" if name == "data.buckets" else text
        said = refusal(capsys, f"--{name}={given}")
        assert said.startswith(f"error: {name}: expected {RANGES[name].expected}"), (given, said)
        assert ", got " in said, said


@pytest.mark.parametrize("name", RANGES)
def test_zero_is_taken_where_the_range_has_it(name, capsys):
    try:
        RANGES[name].parse(0)
    except ValueError:
        given = "[0]" if name == "data.buckets" else "0"
        assert refusal(capsys, f"--{name}={given}").startswith(f"error: {name}: expected {RANGES[name].expected}")
    else:
        recipe, _ = read_recipe([*GIVEN, f"--{name}=0"])
        value = recipe
        for key in name.split("."):
            value = getattr(value, key)
        assert value == 0


def test_numbers_from_python_are_checked_too():
    from videollava_jax.training.run.recipe import Data
    from videollava_jax.training.update.options import Optimizer

    for value in (-1, math.nan, math.inf, 1e30, "x", True):
        with pytest.raises(ValueError, match=r"optimizer\.clip: expected a number from 0 to 1000000, or null, got"):
            Optimizer(clip=value)
        with pytest.raises(ValueError, match=r"data\.batch: expected a whole number from 1 to"):
            Data(train="mine.json", batch=value)


PAPER = ("pretrain", "finetune", "lora")


@pytest.mark.parametrize("name", PAPER)
def test_as_paper_is_the_authors_script(name):
    """Facts of their scripts that a recipe must not lose."""
    recipe, text = read_recipe(["--as", "paper", "--config", name])
    assert (recipe, text) == read_recipe(["--config", f"paper_{name}"])
    assert (recipe, text) == read_recipe([f"--config={name}", "--as=paper"])
    data, ours = recipe.data, read_recipe(["--config", name, "--data.train", "mine.json"])[0]
    assert recipe.optimizer == dataclasses.replace(ours.optimizer, clip=None)
    assert (recipe.rates, recipe.lora) == (ours.rates, ours.lora)
    assert (data.version, data.sampling, data.row_tokens) == ("v1", "linspace", 3072)
    assert data.loss_samples == data.batch // 8  # their 8 devices
    assert (data.loss_vocabulary, ours.data.loss_vocabulary) == ("text", "all")
    assert data.preset_changes["name"] == "original"
    assert data.image_aspect_ratio == ("square" if name == "pretrain" else "pad")
    assert data.batch == (256 if name == "pretrain" else 128)
    files = [file.rsplit("/", 1)[-1] for file in data.files]
    assert ("nlp_tune.json" in files) == (name != "pretrain")


def test_what_the_paper_has_no_recipe_for_is_refused(capsys):
    for arguments, message in {
        ("--as", "paper", "--config", "qlora"): "keeps the frozen weights in NF4, which is not supported",
        ("--as", "paper", "--config", "tiny"): "--as paper: expected --config pretrain, finetune or lora, got tiny",
        ("--as", "paper", "--config", "lora", "--compute.int8", "true"): "compute.int8: the authors' "
        "QLoRA keeps the frozen weights in NF4, which is not supported; expected no compute.int8 with --as paper",
        ("--as", "paper"): "--as paper: expected --config pretrain, finetune or lora, got no --config",
        ("--as", "article", "--config", "lora"): "--as: expected paper, got article",
        ("--config", "lora", "--as"): "--as: expected paper, got nothing",
    }.items():
        with pytest.raises(SystemExit):
            read_recipe(arguments)
        assert message in capsys.readouterr().err


def test_every_field_of_a_preset_is_a_field_of_a_recipe():
    given = []
    for name, values in CHOICES.items():
        value = values[-1]
        field, text = ("image_aspect_ratio", "pad") if name == "pad_to_square" else (name, str(value).lower())
        given.append(f"--data.{field}={text}")
    recipe, _ = read_recipe([*GIVEN, *given, "--data.preset=original"])
    expected = {name: values[-1] for name, values in CHOICES.items()} | {"name": "original"}
    changes = recipe.data.preset_changes
    assert changes.pop("template") == recipe.data.template
    assert changes == expected
    assert "resize" not in read_recipe(GIVEN)[0].data.preset_changes
