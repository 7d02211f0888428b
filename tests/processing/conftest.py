"""The vocabulary, the processors and the clip that the tests of this room share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processing.inputs import make
from tests.processing.llama_vocabulary import train_small_model
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import SegmentEncoder
from videollava_jax.processing.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_model(tmp_path_factory.mktemp("vocabulary")).parent


@pytest.fixture(scope="session")
def processor(vocabulary: Path) -> VideoLlavaProcessor:
    return make(load_tokenizer(vocabulary))


@pytest.fixture
def private(vocabulary: Path) -> VideoLlavaProcessor:
    """A processor for one test, which may change its settings."""
    return make(load_tokenizer(vocabulary))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP4 of 16 frames, each of one grey: 10, 24, 38 …"""
    import av

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 + 14 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def directory(vocabulary: Path) -> Path:
    """The directory of the small vocabulary."""
    return vocabulary


@pytest.fixture(scope="session")
def tokenizer(directory: Path) -> Any:
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def encoder(tokenizer: Any) -> SegmentEncoder:
    return SegmentEncoder(tokenizer)
