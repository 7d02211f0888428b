"""Fine-tuning the bundled tiny model in this process, on a small data set."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.training.data_sets import write_data

ROOT = Path(__file__).parents[2]


def program(name: str) -> ModuleType:
    """Imports a program of train/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"train_{name}", ROOT / "train" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Clips, images and text, 13 samples."""
    return write_data(tmp_path_factory.mktemp("data"), 13)


@pytest.fixture(scope="session")
def fine_tune(data):
    """Runs `train/finetune.py` with arguments for a small run: (output, *more) to the exit status."""
    main = program("finetune").main

    def run(output: Path, *more: str, steps: int = 3) -> int:
        arguments = [
            *("--model", "tiny", "--output", str(output), "--data.train", str(data), "--data.steps", str(steps)),
            *("--data.batch", "6", "--data.rows", "2", "--data.row_tokens", "400", "--data.videos_per_row", "2"),
            *("--data.images_per_row", "2", "--data.workers", "0", "--compute.data", "1"),
            *("--compute.dtype", "float32", *more),
        ]
        status: int = main(arguments)
        return status

    return run
