"""Runs all media of a run through its frozen towers once, before the first step, and writes the features to disk.

    media ──those without a file──▶ pixels, by worker processes ──▶ towers, over all devices ──▶ a file each

Each process reads and writes its share of the media; all processes compute the towers together, sharded over all
devices. A run that is killed here encodes only the missing media when it starts again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from tqdm import tqdm

from videollava_jax.config import ModelConfig
from videollava_jax.media import Preprocessor
from videollava_jax.processing.segments import Media, MediaKind
from videollava_jax.training.data.corpus import Corpus
from videollava_jax.training.data.features import FACTS, FeatureStore
from videollava_jax.training.data.loader import MediaBatches, PixelReader
from videollava_jax.training.data.workers import end_reading, read_ahead
from videollava_jax.training.run.base_model import rows_on_devices
from videollava_jax.training.run.processes import gathered, require_agreement, summed
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.options import is_tower
from videollava_jax.training.update.parameters import Parameters
from videollava_jax.weights.checkpoint import open_checkpoint
from videollava_jax.weights.fingerprint import json_digest
from videollava_jax.weights.manifest import tensor_hash

FORMAT = 2
"""Version of the files, their names and the arithmetic; 1 normalised videos with the images' mean and std."""
FRAMES = 32
"""Frames that each device encodes at a time."""
KINDS: tuple[MediaKind, ...] = ("image", "video")
_CHUNK, _THREADS = 1000, 16
"""Media that a thread looks up at a time, and threads: a network file system answers a single thread slowly."""


def open_features(
    root: Path,
    checkpoint: Path,
    config: ModelConfig,
    reader: PixelReader,
    dtype: Literal["bfloat16", "float32"],
) -> FeatureStore:
    """Opens the store of features for a run, and makes it where it does not exist. All processes call this together.

    The store's fingerprint covers the towers' weights, not the whole checkpoint: a model whose projector or decoder was
    trained since has the same features.

    Args:
      root: the directory of all stores.
      checkpoint: the model's directory, from which the towers' weights are hashed.
      config: of the model.
      reader: of the media, whose preprocessing is part of the fingerprint.
      dtype: of compute.

    Raises:
      ValueError: the processes do not share the directory, or have different fingerprints.
    """
    tensors = open_checkpoint(checkpoint).tensors
    frames, width = reader.tokens.frames, config.vision_config.hidden_size * len(config.feature_layers)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "weights": json_digest({name: tensor_hash(tensors[name].read()).sha256 for name in tensors if is_tower(name)}),
        "vision_config": dataclasses.asdict(config.vision_config),
        "variant": [config.variant, config.frame_window],
        "layers": config.feature_layers,
        "select_strategy": config.vision_feature_select_strategy,
        "preprocessing": {kind: _settings(found) for kind, found in reader.preprocess.items()},
        "frame_sampling": repr(reader.tokens.frame_sampling),
        "frames": frames,
        "dtype": dtype,
        "shapes": {"image": (config.tokens_per_image, width), "video": (frames * config.tokens_per_frame, width)},
    }
    store = FeatureStore(root / json_digest(facts), facts["shapes"], dtype)
    require_agreement({"features": str(store.directory)})
    file = store.directory / FACTS
    if jax.process_index() == 0:
        store.directory.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, indent=2) + "\n")
    multihost_utils.sync_global_devices(FACTS)
    if not file.exists():
        raise ValueError(
            f"{store.directory}: made by the first process, not seen by this one; expected one that all hosts share"
        )
    return store


def _settings(preprocess: Preprocessor) -> dict[str, Any]:
    """The fields of a preprocessor; without padding, which is rare, they are those of stores that are there already."""
    return {name: value for name, value in vars(preprocess).items() if name != "pad_to_square" or value}


@dataclass(frozen=True)
class Encoded:
    """The work of all processes together.

    Attributes:
      media: the number of media that were encoded.
      failed: the number of media that could not be read. They have no features, and their samples are left out.
    """

    media: int
    failed: int


Absent = tuple[Media, Path | None]
"""A medium without features, and the path for them; None where the medium does not exist."""


@dataclass(frozen=True)
class Encoder:
    """Encodes the media that have no features yet.

    Attributes:
      store: of the features.
      reader: of the media.
      model: the model with the towers, on a mesh.
      workers, ahead: as in `data.loader`, with 32 frames a device instead of a micro-batch.
      alive: called with the name of each next piece of work, as a sign of life.
    """

    store: FeatureStore
    reader: PixelReader
    model: TrainingModel
    workers: int
    ahead: int
    alive: Callable[[str], None]

    def __call__(self, parameters: Parameters, corpora: Iterable[Corpus]) -> Encoded:
        """Encodes the media of some corpora that have no features yet. All processes call this together.

        Args:
          parameters: by name, at least those of the towers.
          corpora: the samples whose media are encoded.

        Raises:
          OSError: a file cannot be written.
        """
        self.alive("looking for media without features")
        samples = (corpus.media_of(number) for corpus in corpora for number in range(len(corpus)))
        media = list(dict.fromkeys(chain.from_iterable(samples)))
        absent = self._absent(media[jax.process_index() :: jax.process_count()])
        towers = {name: value for name, value in parameters.items() if is_tower(name)}
        # Only the first process shows a bar; None shows it where there is a terminal.
        silent = True if jax.process_index() else None
        with tqdm(total=len(absent), desc="encoding", unit="medium", disable=silent, leave=False) as bar:
            written = sum(
                self._encode(kind, [found for found in absent if found[0].kind == kind], towers, bar) for kind in KINDS
            )
        return Encoded(*summed(written, len(absent) - written))  # the sum waits until all processes have written

    def _absent(self, media: Sequence[Media]) -> list[Absent]:
        def absent_from(start: int) -> list[Absent]:
            files = ((medium, self.store.file(medium)) for medium in media[start : start + _CHUNK])
            return [(medium, file) for medium, file in files if file is None or not self.store.holds(file, medium.kind)]

        with ThreadPoolExecutor(_THREADS) as threads:
            return list(chain.from_iterable(threads.map(absent_from, range(0, len(media), _CHUNK))))

    def _encode(self, kind: MediaKind, absent: Sequence[Absent], towers: Parameters, bar: tqdm[Any]) -> int:
        """Encodes this process's media of a kind; returns the number of files written."""
        placement = self.model.placement
        assert placement is not None
        rows = placement.mesh.size * (FRAMES if kind == "image" else math.ceil(FRAMES / self.reader.tokens.frames))
        count = rows // jax.process_count()
        # Where other processes have more media than this one, it joins their batches with empty media.
        number = int(gathered(np.asarray([math.ceil(len(absent) / count)], np.int32)).max())
        if not number:
            return 0
        encode, written = jax.jit(partial(self.model.encoded, kind)), 0
        pixels = MediaBatches(kind, tuple(medium for medium, _ in absent), count, self.reader)
        batches = read_ahead(pixels, 0, number, workers=self.workers, ahead=self.ahead)
        try:
            for i, (array, found) in enumerate(batches):
                self.alive(f"encoding {kind}s, batch {i + 1} of {number}")
                array = np.array(array, subok=False)  # copied out of shared memory
                features = _own_rows(encode(towers, rows_on_devices(array, placement, rows)))
                here = absent[i * count : (i + 1) * count]
                for (_, file), was_read, row in zip(here, found, features, strict=False):
                    if was_read and file is not None:
                        self.store.write(file, row)
                        written += 1
                bar.update(len(here))
        finally:
            end_reading(batches)
        return written


def _own_rows(x: jax.Array) -> npt.NDArray[Any]:
    """Returns the rows of an array that the devices of this process hold, without duplicates."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
