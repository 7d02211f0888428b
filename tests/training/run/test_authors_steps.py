"""Twenty steps of each of the paper's recipes, from parts of a model to the last checkpoint, against the authors'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.authors import steps
from tests.weights.parts import write_projector
from videollava_jax.cli import main
from videollava_jax.model.sharding import STACKED
from videollava_jax.training.run.metrics import read_metrics
from videollava_jax.weights.orbax import open_layers

LOSS, VALUE = 1e-5, 2e-6
"""float32, of losses near 7 and of numbers that 20 steps have moved by up to 1e-2 in stage 1, 2e-4 else."""


@pytest.fixture(scope="module")
def directory(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model `start` and the data."""
    place = tmp_path_factory.mktemp("steps")
    parts = steps.write_parts(place / "parts")
    (place / "pretrained").mkdir()
    projector = write_projector(torch, place / "pretrained", parts.config, parts.projector)
    given = ["--llm", str(parts.llm), *parts.towers, "--projector", str(projector)]
    assert main(["assemble", str(place / "start"), *given]) == 0
    steps.write_samples(place / "data")
    return place


@pytest.mark.parametrize(
    "name", ["finetune", pytest.param("pretrain", marks=pytest.mark.slow), pytest.param("lora", marks=pytest.mark.slow)]
)
def test_twenty_steps_are_the_authors(directory: Path, name: str) -> None:
    """The slow ones differ from the first in what is trained alone."""
    theirs = steps.recorded()[name]
    assert main(["finetune", *steps.arguments(name, directory)]) == 0
    lines = read_metrics(directory / "runs" / name)
    for line, samples in zip(lines, np.reshape(theirs["samples"], (steps.STEPS, steps.BATCH)), strict=True):
        assert sorted(line["samples"]) == sorted(samples.tolist())  # else nothing below can hold
    np.testing.assert_allclose([line["loss"] for line in lines], theirs["losses"], rtol=0, atol=LOSS)
    for group, rates in theirs["rates"].items():
        got = [line[f"learning_rate_{group}"] for line in lines]
        np.testing.assert_allclose(got, rates, rtol=0, atol=1e-6 * max(rates))
    learnt = open_layers(directory / "runs" / name / "checkpoints" / str(steps.STEPS), "trained", STACKED)
    assert learnt.keys() == theirs["values"].keys()
    for tensor, values in theirs["values"].items():
        array = np.asarray(learnt[tensor].read())
        if tensor in ("language_model.embed_tokens.weight", "lm_head.weight"):
            array = array[: len(steps.PIECES)]  # theirs have no rows of media
        np.testing.assert_allclose(array.ravel()[steps.places(array.size)], values, rtol=0, atol=VALUE, err_msg=tensor)
