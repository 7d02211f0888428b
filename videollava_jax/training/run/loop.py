"""A fine-tuning run from top to bottom: data, model, the last checkpoint, then step after step to the end.

`videollava finetune` and `train/finetune.py` call `fine_tune` with the recipe that they have read.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from contextlib import ExitStack

import jax
import numpy as np
from jax.sharding import Mesh

from videollava_jax import compilation_cache
from videollava_jax.hub import Wanted, find_model, local_path
from videollava_jax.model.sharding import Placement
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.training.data.skips import SkipCounter
from videollava_jax.training.run.base_model import load, mesh_of
from videollava_jax.training.run.checkpoints import Checkpoints
from videollava_jax.training.run.guards import StopSignals, Watchdog, silence_resource_tracker
from videollava_jax.training.run.held_out_task import HeldOutTask, TaskEvaluator
from videollava_jax.training.run.inputs import batch_shape, encode_media, load_rows, on_devices, read_data
from videollava_jax.training.run.metrics import Metrics, StepCounts
from videollava_jax.training.run.peers import Peers
from videollava_jax.training.run.processes import ended_at_once, joined, require_agreement, summed
from videollava_jax.training.run.recipe import Recipe, require_packages
from videollava_jax.training.run.run_directory import CHECKPOINTS, run_directory
from videollava_jax.training.run.speed import Work
from videollava_jax.training.update.evaluation import Evaluator
from videollava_jax.training.update.optimizer import build_optimizer, learning_rates
from videollava_jax.training.update.parameters import Parameters
from videollava_jax.training.update.step import StepReport, Trainer
from videollava_jax.weights.fingerprint import model_fingerprint

GOING_ON = "The same command goes on from the last checkpoint."
EXPECTED = (ValueError, OSError, FloatingPointError)
"""Exceptions whose message says enough without a traceback."""


def fine_tune(recipe: Recipe, text: str) -> int:
    """Runs a recipe, or the steps that an earlier start of the same run has left.

    Every process of the run calls this; they find each other by their environment (`joined`).

    Args:
      text: the recipe as YAML, to keep in the run's directory.

    Returns:
      The exit status: 0 when the last step is done, 128 + the signal's number when a signal stopped the run.

    Raises:
      ValueError: data, model or recipe do not fit each other, too many samples were left out, or the run's directory
        belongs to another run.
      OSError: a file cannot be read or written, or another process is at work in the directory.
      FloatingPointError: more steps than `max_skipped` had gradients that are not finite.
    """
    require_packages("grain", "tensorboardX")
    # transformers would advise to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    silence_resource_tracker()
    with joined(GOING_ON) as peers, ExitStack() as stack, ended_at_once(EXPECTED, GOING_ON, peers):
        compilation_cache.enable()
        return _run(recipe, text, stack, peers)


def _run(recipe: Recipe, text: str, stack: ExitStack, peers: Peers | None) -> int:
    """The run, from top to bottom; the stack closes what it opens."""
    checkpoint, output = find_model(recipe.model, Wanted.WEIGHTS, bundled=True), local_path(recipe.output)
    mesh = mesh_of(recipe.compute)

    # ── data ──
    processor = VideoLlavaProcessor.from_pretrained(checkpoint, preset=recipe.data.preset_changes)
    shape = batch_shape(recipe, mesh.shape["data"])
    skips = SkipCounter(max_rate=recipe.data.max_bad)
    task = HeldOutTask.open(recipe.data, checkpoint, processor)
    learnt, held_out = read_data(recipe, processor, shape, skips, stack)
    steps = learnt.plan.steps

    # ── model ──
    digests = {"data": learnt.corpus.digest, "plan": learnt.plan.digest}
    facts = {**recipe.decisive, **model_fingerprint(checkpoint), **digests}
    # These decide which collectives run, and when: processes that differ in one would wait for each other for ever.
    alike = {"compute": dataclasses.asdict(recipe.compute), "keeping": dataclasses.asdict(recipe.keeping)}
    others = {"held-out data": held_out and held_out.corpus.digest, "features": recipe.data.features}
    evaluated = {"data.evaluate": None if task is None else task.facts}
    require_agreement({**facts, **alike, **others, **evaluated})
    stack.enter_context(run_directory(output, facts, text))
    watchdog = stack.enter_context(Watchdog(recipe.stall_seconds, GOING_ON, peers.silent if peers else str))
    watchdog.alive("loading the model")
    loaded, features = load(checkpoint, recipe, mesh, processor), None
    complete = loaded.frozen  # an evaluation needs the towers, even if training reads features
    if recipe.data.features is not None:
        features = encode_media(recipe, checkpoint, loaded, [learnt, held_out], processor, watchdog)
        loaded = loaded.without_towers()
    placement, frozen = Placement(loaded.config, mesh), loaded.frozen
    trainer = Trainer(loaded.model, build_optimizer(recipe.optimizer, recipe.rates, steps), seed=recipe.seed)
    evaluator = Evaluator(loaded.model, shape.samples_per_row)
    scorer = None
    if task is not None:
        scorer = TaskEvaluator(task, recipe, checkpoint, loaded.model, placement, watchdog)
    state, sums = trainer.begin(loaded.trained), trainer.no_sums(loaded.trained)
    work = Work.of(loaded.config, loaded.trained, mesh, towers=features is None)
    del loaded
    if task is None:
        complete = frozen

    # ── where an earlier start has stopped ──
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
    if task is not None:
        metrics.say(f"evaluated {task.description}")

    def save() -> None:
        checkpoints.save(step, state, {"data": batches.state(), "seen": skips.seen, "skipped": skips.skipped})

    def evaluate() -> bool:
        """Evaluates what is due after this step, but for what an earlier start has; returns whether a signal came."""
        every = recipe.keeping.evaluate_every
        if step < steps and not (every and step % every == 0):
            return False
        watchdog.alive(f"evaluating after step {step}")
        if held_out is not None and step and not metrics.has(step, "held_out_loss"):
            unseen = load_rows(held_out, processor, recipe, features)
            found = evaluator(frozen | state.trained, (on_devices(batch, placement, shape.rows) for batch in unseen))
            metrics.write(step, {"held_out_loss": found.loss, "held_out_exact": found.accuracy})
            metrics.say(f"step {step}: held-out loss {found.loss:.4f}, {found.exact} of {found.samples} answers exact")
        if scorer is not None and not metrics.has(step, scorer.name):
            scores = scorer(complete | state.trained, step, lambda: bool(summed(signals.received is not None)[0]))
            if scores is None:
                return True
            metrics.write(step, {f"{scorer.name}/{name}": value for name, value in scores.items()})
            shown = ", ".join(f"{name} {value:.2f} %" for name, value in scores.items())
            metrics.say(f"step {step}: {scorer.name} {shown}")
        return False

    def stopped() -> int:
        if step:
            save()
        checkpoints.wait()
        metrics.say(f"stopped at step {step} of {steps}{', which is saved' if step else ''}. {GOING_ON}")
        return 128 + (signals.received or signal.SIGTERM)

    # ── the loop ──
    stack.callback(metrics.close)
    stack.callback(checkpoints.close)
    stack.callback(batches.close)
    signals = stack.enter_context(StopSignals())
    if evaluate():
        return stopped()
    while step < steps:
        rates = learning_rates(recipe.optimizer, recipe.rates, steps, done=step - int(state.skipped))
        counts, flops = StepCounts(), 0.0
        for index, batch in enumerate(counts.over(batches)):
            watchdog.alive(f"step {step + 1}")
            flops += work.flops(batch)
            rows = on_devices(batch, placement, shape.rows)
            sums = trainer.accumulate(sums, state.trained, frozen, rows, state.step, np.int32(index))
        state, sums, report = trainer.update(state, sums)
        step += 1

        # The processes tell each other: has one received a signal to stop, and which samples did they leave out?
        stop, seen, left_out, tokens, gflop = summed(
            signals.received is not None, counts.seen, len(counts.bad), counts.tokens, round(flops / 1e9)
        )
        for bad in counts.bad:
            print(f"left out: {bad}", file=sys.stderr)
        skips.add(seen, counts.bad, elsewhere=left_out - len(counts.bad))
        samples = counts.samples()
        if step % recipe.keeping.log_every == 0 or step == steps:
            values: dict[str, float | list[int]] = {"tokens": tokens, "left_out": left_out, "samples": samples}
            if (mfu := work.utilisation(gflop * 1e9, counts.seconds)) is not None:
                values["mfu"] = mfu
            metrics.write(step, values | rates | step_values(report, counts, tokens))
        metrics.advance(float(report.loss), tokens / counts.seconds)
        if int(state.skipped) > recipe.max_skipped:
            raise FloatingPointError(not_finite(step, report, samples, recipe))
        checkpoints.require_written()
        watchdog.alive(f"saving after step {step}")
        if stop and step < steps:
            return stopped()
        if step % recipe.keeping.save_every == 0 or step == steps:
            save()
        if evaluate():
            return stopped()
    checkpoints.wait()
    metrics.say(f"done: {steps} steps. To make a model of it: videollava train-export {output} TARGET")
    return 0


def step_values(report: StepReport, counts: StepCounts, tokens: int) -> dict[str, float | list[int]]:
    """Returns the numbers of a step for `metrics.jsonl`.

    Args:
      counts: of this process.
      tokens: of all processes together.
    """
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
    """Returns the message of a run that ends because a step's gradients are not finite."""
    return (
        f"step {step}: gradients that are not finite (norm {float(report.gradient_norm)}) in the step of "
        f"samples {samples}; parameters are as before it. Lower the rates, look at these samples, "
        f"or allow some such steps with max_skipped (now {recipe.max_skipped})"
    )


def describe(mesh: Mesh, trained: Parameters) -> str:
    """Returns a line that names the mesh and the number of trained parameters."""
    kind = mesh.devices.flat[0].device_kind
    number = sum(value.size for value in trained.values())
    return f"{mesh.shape['data']} × {mesh.shape['tensor']} {kind}, {number / 1e6:.1f} M parameters are trained"
