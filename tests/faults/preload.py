"""Imports for the server of child processes: everything that a conversion needs, and one rehearsal of it."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import tempfile
import threading
from pathlib import Path

import grain  # noqa: F401
import jsonargparse  # noqa: F401
import pytest  # noqa: F401  the children of a test import its main module anew
import tensorboardX  # noqa: F401
from tqdm import tqdm

import videollava_jax.batch.runner
import videollava_jax.training.run.loop  # noqa: F401  programs import both late
from tests.faults.failing_calls import forget
from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.assets import TINY
from videollava_jax.config import ModelConfig
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.weights import open_checkpoint

forget()  # what a child starts has its own calls
# Its own lock is a semaphore of the system's, which a killed child would leave behind.
tqdm.set_lock(threading.RLock())
# The imports that are made late are made here. No device is touched: a process that has started JAX must not fork.
with tempfile.TemporaryDirectory() as place:
    write_checkpoint(Path(place) / "a", small_config(), random_parameters(small_config(), 0), "hub")
    open_checkpoint(Path(place) / "a")
    # One with a key that we do not know is read by transformers, which imports torch.
    ModelConfig.from_hf(small_config().to_hf() | {"one_more_key": 1})
    VideoLlavaProcessor.from_pretrained(TINY)
# The garbage collector of a child would write to all that it shares with the server, and so copy it.
gc.collect()
gc.freeze()
