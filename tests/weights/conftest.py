"""Base checkpoints that adapters are merged into, and PEFT."""

import warnings

import numpy as np
import pytest

from tests.small_models import random_parameters, small_config
from tests.weights.adapters_helper import (
    CONFIG,
    arrays,
)
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import open_checkpoint


@pytest.fixture(scope="session")
def peft():
    """The library, for comparisons with it live."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", reason="the comparison with live PEFT needs peft (pip install peft)")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(directory, arrays) of a checkpoint of small whole numbers, so that sums are exact."""
    directory = tmp_path_factory.mktemp("base") / "hub"
    parameters = {name: np.rint(4 * value) for name, value in random_parameters(CONFIG, 0).items()}
    write_checkpoint(directory, CONFIG, parameters, "hub")
    return directory, parameters


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """(directory, configuration, arrays) of an original model, which has attention over time."""
    config = small_config("original")
    directory = tmp_path_factory.mktemp("authors") / "pku"
    parameters = {name: np.rint(4 * value) for name, value in random_parameters(config, 1).items()}
    write_checkpoint(directory, config, parameters, "pku")
    return directory, config, arrays(open_checkpoint(directory))
