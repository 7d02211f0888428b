"""What a run reads: samples planned to the last step, rows of tokens and pixels, features of frozen towers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax

from videollava_jax.model.sharding import Placement
from videollava_jax.processing.media_processor import DEFAULT_LIMITS
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.temporary import TemporaryPlace
from videollava_jax.training.data.corpus import Corpus, build_corpus
from videollava_jax.training.data.features import FeatureStore
from videollava_jax.training.data.loader import HostBatch, Loader, PixelReader, loader
from videollava_jax.training.data.packing import BatchShape, PackingPlan, RowShape, make_plan, steps_of
from videollava_jax.training.data.samples import read_samples
from videollava_jax.training.data.skips import SkipCounter
from videollava_jax.training.run.base_model import Loaded, rows_on_devices
from videollava_jax.training.run.encoding import Encoder, open_features
from videollava_jax.training.run.guards import Watchdog
from videollava_jax.training.run.recipe import Recipe
from videollava_jax.training.update.model import Batch


class PlannedSamples(NamedTuple):
    """Tokenised samples, and the plan that says which of them make which micro-batch."""

    corpus: Corpus
    plan: PackingPlan


def batch_shape(recipe: Recipe, shards: int) -> BatchShape:
    """Returns the static shape of micro-batches, by default with one row for each of the mesh's batch shards.

    Raises:
      ValueError: the recipe's rows do not split evenly over the shards.
    """
    data = recipe.data
    rows = data.rows or shards
    if rows % shards:
        raise ValueError(f"data.rows: expected a multiple of the mesh's {shards} batch shards, got {rows}")
    row = RowShape(tokens=data.row_tokens, images=data.images_per_row, videos=data.videos_per_row)
    buckets = tuple(data.buckets or [data.row_tokens]) if data.layout == "padded" else ()
    return BatchShape(batch=data.batch, rows=rows, row=row, buckets=buckets)


def read_data(
    recipe: Recipe, processor: VideoLlavaProcessor, shape: BatchShape, skips: SkipCounter, stack: ExitStack
) -> tuple[PlannedSamples, PlannedSamples | None]:
    """Reads and tokenises the training samples and the held-out ones, and plans all steps over them.

    Args:
      shape: of a micro-batch.
      skips: counts the training samples that are left out. No held-out sample may be left out.
      stack: deletes the corpora's temporary files when it closes.

    Returns:
      The training samples, planned to the run's last step; and the held-out samples, planned to come once each, or
      None where the recipe names none.
    """
    data = recipe.data
    corpus = read_corpus(data.files, recipe, processor, shape, skips, stack)
    steps = data.steps or steps_of(data.epochs, len(corpus), data.batch)
    plan = make_plan(
        corpus.sizes, shape, steps=steps, seed=recipe.seed, loss_samples=data.loss_samples, order=data.order
    )
    learnt = PlannedSamples(corpus, plan)
    if not data.held_out_files:
        return learnt, None
    unseen = read_corpus(data.held_out_files, recipe, processor, shape, SkipCounter(max_rate=0.0), stack)
    once = BatchShape(batch=len(unseen), rows=shape.rows, row=shape.row, buckets=shape.buckets)
    return learnt, PlannedSamples(unseen, make_plan(unseen.sizes, once, steps=1, seed=0))


def read_corpus(
    files: list[str],
    recipe: Recipe,
    processor: VideoLlavaProcessor,
    shape: BatchShape,
    skips: SkipCounter,
    stack: ExitStack,
) -> Corpus:
    """Reads and tokenises all samples of some files; names each one that is left out on standard error."""
    data = recipe.data
    corpus = build_corpus(
        read_samples(
            files,
            media_root=data.media_root,
            image_root=data.image_root,
            video_root=data.video_root,
            keep_empty=data.version is not None,
        ),
        processor,
        shape.row,
        skips,
        frame_sampling=data.frames,
        version=data.version,
        # Worker processes map the arrays from these files; without them each worker would hold a copy.
        directory=stack.enter_context(TemporaryPlace("videollava-data-")) if data.workers else None,
        workers=data.workers,
    )
    for bad in skips.bad:
        print(f"left out: {bad}", file=sys.stderr)
    first_medium = min(corpus.media.ids.values())
    if data.loss_vocabulary == "text" and corpus.largest_target >= first_medium:
        raise ValueError(
            f"data.loss_vocabulary: text has the ids before {first_medium}, the first of a medium, and an answer has "
            f"{corpus.largest_target}: expected all for a vocabulary with words after the ids of media"
        )
    return corpus


def encode_media(
    recipe: Recipe,
    checkpoint: Path,
    loaded: Loaded,
    samples: Iterable[PlannedSamples | None],
    processor: VideoLlavaProcessor,
    watchdog: Watchdog,
) -> FeatureStore:
    """Runs the frozen towers over all media that have no features on disk yet; returns the store of all features.

    Args:
      recipe: with `data.features`, the directory of the store.
      checkpoint: the directory of the model, whose towers' weights are part of the store's fingerprint.
      loaded: the model, with its towers.
      samples: whose media are encoded; None stands for no samples.
      watchdog: gets a sign of life for each batch of media.
    """
    assert recipe.data.features is not None
    watchdog.alive("hashing the towers")
    corpora = [found.corpus for found in samples if found is not None]
    reader = PixelReader.of(processor, corpora[0].media, DEFAULT_LIMITS)
    store = open_features(Path(recipe.data.features), checkpoint, loaded.config, reader, recipe.compute.dtype)
    workers, ahead = recipe.data.workers, recipe.data.ahead
    encoded = Encoder(store, reader, loaded.model, workers, ahead, watchdog.alive)(loaded.frozen, corpora)
    if jax.process_index() == 0:
        unread = f", {encoded.failed} cannot be read" if encoded.failed else ""
        print(f"features: {encoded.media} media encoded{unread}; in {store.directory}", file=sys.stderr)
    return store


def load_rows(
    samples: PlannedSamples, processor: VideoLlavaProcessor, recipe: Recipe, features: FeatureStore | None
) -> Loader:
    """Returns the loader of this process's rows of all micro-batches.

    Args:
      features: of all media; None reads pixels.
    """
    return loader(
        samples.plan,
        samples.corpus,
        processor,
        features=features,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=recipe.data.workers,
        ahead=recipe.data.ahead,
    )


def on_devices(batch: HostBatch, placement: Placement, rows: int) -> Batch:
    """Shards a micro-batch over all devices.

    Args:
      batch: this process's rows.
      rows: of the whole micro-batch, on all processes together.
    """
    names = (field.name for field in dataclasses.fields(Batch) if field.name in batch.arrays)
    return Batch(**{name: rows_on_devices(batch.arrays[name], placement, rows) for name in names})
