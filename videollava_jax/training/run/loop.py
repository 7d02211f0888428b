"""Fine-tunes Video-LLaVA by a recipe: on a mesh of TPUs or GPUs, or on a laptop; and goes on where it was stopped.

    python train/finetune.py --config train/recipes/lora.yaml --model 7b-orbax --output runs/mine --data.train mine.json

On a pod, or on several machines, the same command runs on each of them. `jax.distributed` finds its peers by itself on
Cloud TPU, Slurm and Open MPI; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are.

A run's directory holds `recipe.yaml`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. `train/export.py` makes a
model or an adapter of it, for transformers and for `videollava`.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from videollava_jax import compilation_cache
from videollava_jax.media import Uniform
from videollava_jax.model.sharding import Placement
from videollava_jax.processing.processor import DEFAULT_LIMITS, VideoLlavaProcessor
from videollava_jax.training.data.corpus import Corpus, build_corpus
from videollava_jax.training.data.features import FeatureStore
from videollava_jax.training.data.loader import HostBatch, Loader, PixelReader, loader
from videollava_jax.training.data.packing import BatchShape, PackingPlan, RowShape, make_plan, steps_of
from videollava_jax.training.data.samples import read_samples
from videollava_jax.training.data.skips import SkipCounter
from videollava_jax.training.run.base_model import Loaded, load, mesh_of, model_directory, rows_on_devices
from videollava_jax.training.run.checkpoints import Checkpoints
from videollava_jax.training.run.encoding import Encoder, open_features
from videollava_jax.training.run.guards import StopSignals, Watchdog
from videollava_jax.training.run.metrics import Metrics, StepCounts
from videollava_jax.training.run.processes import ended_at_once, join_processes, require_agreement, summed
from videollava_jax.training.run.recipe import Recipe, read_recipe
from videollava_jax.training.run.run_directory import CHECKPOINTS, run_directory
from videollava_jax.training.run.speed import Work
from videollava_jax.training.update.evaluation import Evaluator
from videollava_jax.training.update.model import Batch
from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.parameters import Parameters
from videollava_jax.training.update.step import StepReport, Trainer
from videollava_jax.weights.fingerprint import model_fingerprint

GOING_ON = "The same command goes on from the last checkpoint."
EXPECTED = (ValueError, OSError, FloatingPointError)  # they say enough without a traceback


def main(arguments: list[str] | None = None) -> int:
    """One run, or what is left of it; the exit status."""
    recipe, text = read_recipe(arguments, description=__doc__ or "")
    join_processes()
    compilation_cache.enable()
    with ExitStack() as stack, ended_at_once(EXPECTED, GOING_ON):
        return fine_tune(recipe, text, stack)


def fine_tune(recipe: Recipe, text: str, stack: ExitStack) -> int:
    """The run, from top to bottom; what it opens is closed with the stack."""
    directory, output = model_directory(recipe.model), Path(recipe.output)
    mesh = mesh_of(recipe.compute)

    # ── data ──
    processor = VideoLlavaProcessor.from_pretrained(directory, template=recipe.data.template)
    shape = batch_shape(recipe, mesh.shape["data"])
    skips = SkipCounter(max_rate=recipe.data.max_bad)
    learnt, held_out = read_data(recipe, processor, shape, skips, stack)
    steps = learnt.plan.steps

    # ── model ──
    digests = {"data": learnt.corpus.digest, "plan": learnt.plan.digest}
    facts = {**recipe.decisive, **model_fingerprint(directory), **digests}
    # What else decides which collectives run, and when: processes that differ in it would wait for each other for ever.
    alike = {"compute": dataclasses.asdict(recipe.compute), "keeping": dataclasses.asdict(recipe.keeping)}
    alike |= {"held-out data": held_out and held_out.corpus.digest, "features": recipe.data.features}
    require_agreement({**facts, **alike})
    stack.enter_context(run_directory(output, facts, text))
    watchdog = stack.enter_context(Watchdog(recipe.stall_seconds, GOING_ON))
    watchdog.alive("loading the model")
    loaded, features = load(directory, recipe, mesh, processor), None
    if recipe.data.features is not None:
        features = media_encoded(recipe, directory, loaded, [learnt, held_out], processor, watchdog)
        loaded = loaded.without_towers()
    placement, frozen = Placement(loaded.config, mesh), loaded.frozen
    trainer = Trainer(loaded.model, build_optimizer(recipe.optimizer, recipe.rates, steps), seed=recipe.seed)
    evaluator = Evaluator(loaded.model, shape.samples_per_row)
    state, sums = trainer.begin(loaded.trained), trainer.no_sums(loaded.trained)
    work = Work.of(loaded.config, loaded.trained, mesh, towers=features is None)
    del loaded

    # ── what an earlier run has left ──
    batches = load_rows(learnt, processor, recipe, features)
    checkpoints = Checkpoints(output / CHECKPOINTS, recipe.keeping.keep)
    step = checkpoints.latest or 0
    require_agreement({"last checkpoint": step})
    if step:
        watchdog.alive(f"loading the checkpoint of step {step}")
        state, notes = checkpoints.restore(step, state)
        batches.restore(notes["data"])
        skips = SkipCounter(max_rate=recipe.data.max_bad, seen=notes["seen"], skipped=notes["skipped"])
    metrics = Metrics(output, step, steps)
    metrics.say(f"{learnt.plan.report}\n{describe(mesh, state.trained)}; from step {step} of {steps}")

    def save() -> None:
        checkpoints.save(step, state, {"data": batches.state(), "seen": skips.seen, "skipped": skips.skipped})

    def evaluate() -> None:
        if held_out is None:
            return
        unseen = load_rows(held_out, processor, recipe, features)
        found = evaluator(frozen | state.trained, (on_devices(batch, placement, shape.rows) for batch in unseen))
        metrics.write(step, {"held_out_loss": found.loss, "held_out_exact": found.accuracy})
        metrics.say(f"step {step}: held-out loss {found.loss:.4f}, {found.exact} of {found.samples} answers exact")

    # ── the loop ──
    stack.callback(metrics.close)
    stack.callback(checkpoints.close)
    stack.callback(batches.close)
    signals = stack.enter_context(StopSignals())
    while step < steps:
        counts, flops = StepCounts(), 0.0
        for index, batch in enumerate(counts.over(batches)):
            watchdog.alive(f"step {step + 1}")
            flops += work.flops(batch)
            rows = on_devices(batch, placement, shape.rows)
            sums = trainer.accumulate(sums, state.trained, frozen, rows, state.step, np.int32(index))
        state, sums, report = trainer.update(state, sums)
        step += 1

        # What every process has to know of the others: has one been told to stop, what did they leave out?
        stop, seen, left_out, tokens, gflop = summed(
            signals.received is not None, counts.seen, len(counts.bad), counts.tokens, round(flops / 1e9)
        )
        for bad in counts.bad:
            print(f"left out: {bad}", file=sys.stderr)
        skips.add(seen, counts.bad, elsewhere=left_out - len(counts.bad))
        samples = counts.samples()
        if step % recipe.keeping.log_every == 0 or step == steps:
            values = {"tokens": tokens, "left_out": left_out, "samples": samples}
            if (mfu := work.utilisation(gflop * 1e9, counts.seconds)) is not None:
                values["mfu"] = mfu
            metrics.write(step, values | step_values(report, counts, tokens))
        metrics.advance(float(report.loss), tokens / counts.seconds)
        if int(state.skipped) > recipe.max_skipped:
            raise FloatingPointError(not_finite(step, report, samples, recipe))
        checkpoints.require_written()
        watchdog.alive(f"saving or evaluating after step {step}")
        if stop and step < steps:
            save()
            checkpoints.wait()
            metrics.say(f"stopped at step {step} of {steps}, which is saved. {GOING_ON}")
            return 128 + (signals.received or signal.SIGTERM)
        if step % recipe.keeping.save_every == 0 or step == steps:
            save()
        if recipe.keeping.evaluate_every and step % recipe.keeping.evaluate_every == 0 and step < steps:
            evaluate()
    evaluate()
    checkpoints.wait()
    metrics.say(f"done: {steps} steps. python train/export.py {output} OUT makes a model of it")
    return 0


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def batch_shape(recipe: Recipe, shards: int) -> BatchShape:
    """The static shape of micro-batches; by default a row for each of the mesh's batch shards."""
    data = recipe.data
    rows = data.rows or shards
    if rows % shards:
        raise ValueError(f"data.rows: expected a multiple of the mesh's {shards} batch shards, got {rows}")
    row = RowShape(tokens=data.row_tokens, images=data.images_per_row, videos=data.videos_per_row)
    buckets = tuple(data.buckets or [data.row_tokens]) if data.layout == "padded" else ()
    return BatchShape(batch=data.batch, rows=rows, row=row, buckets=buckets)


class Samples(NamedTuple):
    """Samples, and which of them make which micro-batch."""

    corpus: Corpus
    plan: PackingPlan


def read_data(
    recipe: Recipe, processor: VideoLlavaProcessor, shape: BatchShape, skips: SkipCounter, stack: ExitStack
) -> tuple[Samples, Samples | None]:
    """What is learnt from, tokenised and planned to the last step; and what is held out, once."""
    data = recipe.data
    corpus = read_corpus(data.files, recipe, processor, shape, skips, stack)
    steps = data.steps or steps_of(data.epochs, len(corpus), data.batch)
    learnt = Samples(corpus, make_plan(corpus.sizes, shape, steps=steps, seed=recipe.seed))
    if not data.held_out_files:
        return learnt, None
    unseen = read_corpus(data.held_out_files, recipe, processor, shape, SkipCounter(max_rate=0.0), stack)
    once = BatchShape(batch=len(unseen), rows=shape.rows, row=shape.row, buckets=shape.buckets)
    return learnt, Samples(unseen, make_plan(unseen.sizes, once, steps=1, seed=0))


def read_corpus(
    files: list[str],
    recipe: Recipe,
    processor: VideoLlavaProcessor,
    shape: BatchShape,
    skips: SkipCounter,
    stack: ExitStack,
) -> Corpus:
    """All samples of some files, tokenised; what cannot be learnt from is named on standard error."""
    data = recipe.data
    corpus = build_corpus(
        read_samples(files, media_root=data.media_root),
        processor,
        shape.row,
        skips,
        frame_sampling=Uniform(data.frames),
        # Those that load map the arrays from here: otherwise each would have a copy.
        directory=stack.enter_context(tempfile.TemporaryDirectory(prefix="videollava-")) if data.workers else None,
        workers=data.workers,
    )
    for bad in skips.bad:
        print(f"left out: {bad}", file=sys.stderr)
    return corpus


def media_encoded(
    recipe: Recipe,
    directory: Path,
    loaded: Loaded,
    samples: Iterable[Samples | None],
    processor: VideoLlavaProcessor,
    watchdog: Watchdog,
) -> FeatureStore:
    """What the towers make of all media, on disk; what an earlier run has left there is taken."""
    assert recipe.data.features is not None
    watchdog.alive("hashing the towers")
    corpora = [found.corpus for found in samples if found is not None]
    reader = PixelReader.of(processor, corpora[0].media, DEFAULT_LIMITS)
    store = open_features(Path(recipe.data.features), directory, loaded.config, reader, recipe.compute.dtype)
    workers, ahead = recipe.data.workers, recipe.data.ahead
    encoded = Encoder(store, reader, loaded.model, workers, ahead, watchdog.alive)(loaded.frozen, corpora)
    if jax.process_index() == 0:
        unread = f", {encoded.failed} cannot be read" if encoded.failed else ""
        print(f"features: {encoded.media} media encoded{unread}; in {store.directory}", file=sys.stderr)
    return store


def load_rows(
    samples: Samples, processor: VideoLlavaProcessor, recipe: Recipe, features: FeatureStore | None
) -> Loader:
    """This process's rows of a plan."""
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
    """A micro-batch of `rows` rows, of which this process has its share, over all devices."""
    names = (field.name for field in dataclasses.fields(Batch))
    return Batch(**{name: rows_on_devices(batch.arrays[name], placement, rows) for name in names})


def step_values(report: StepReport, counts: StepCounts, tokens: int) -> dict[str, float | list[int]]:
    """Numbers of a step, for the log; `tokens` are those of all processes."""
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "loss": float(report.loss),
        "gradient_norm": float(report.gradient_norm),
        "targets": int(report.tokens),
        "tokens_per_second": tokens / counts.seconds,
        "padding": 1 - tokens / (counts.positions * jax.process_count()),
        "data_wait": counts.waited / counts.seconds,
        "seconds": counts.seconds,
        "device_memory_gib": memory / 2**30,
    }


def not_finite(step: int, report: StepReport, samples: list[int], recipe: Recipe) -> str:
    """Why a step ends the run, and what can be done."""
    return (
        f"step {step}: gradients that are not finite (norm {float(report.gradient_norm)}) in the step of "
        f"samples {samples}; parameters are as before it. Lower the rates, look at these samples, "
        f"or allow some such steps with max_skipped (now {recipe.max_skipped})"
    )


def describe(mesh: Mesh, trained: Parameters) -> str:
    """The mesh, and how much is trained, on a line."""
    kind = mesh.devices.flat[0].device_kind
    number = sum(value.size for value in trained.values())
    return f"{mesh.shape['data']} × {mesh.shape['tensor']} {kind}, {number / 1e6:.1f} M parameters are trained"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EXPECTED as error:
        sys.exit(f"finetune: {error}")
