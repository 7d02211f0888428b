"""Our side of the programs that measure fine-tuning: what `train/finetune.py` runs, on a mesh of one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from finetune_work import IGNORED, KINDS, Kind, Rows, Sized, Work, drawn_rows, timed_steps
from random_models import drawn, jax_device, versions
from sides import OURS, Measured, Section

from videollava_jax import compilation_cache
from videollava_jax.media.preprocess import FramePreprocessor
from videollava_jax.model.sharding import Placement, make_mesh, put
from videollava_jax.training.update.lora import initial_lora
from videollava_jax.training.update.model import Batch, TrainingModel
from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.options import Lora, Optimizer, is_lora
from videollava_jax.training.update.parameters import placed
from videollava_jax.training.update.step import Trainer


class Ours:
    """The sections, with the programs that `train/finetune.py` runs, on a mesh of one device."""

    def __init__(self, work: Work):
        self.work = work

    def begun(self) -> tuple[dict[str, Any], Mapping[str, Section]]:
        """Returns facts about the device, and the sections by name.

        Raises:
          CannotRun: there is no accelerator.
        """
        self.device = jax_device(small=self.work.small or self.work.cpu)
        compilation_cache.enable()
        self.config, _ = self.work.shape()
        facts = {"device": self.device.device_kind, **versions("jax", "flax", "optax")}
        return facts, {name: lambda name=name: self.section(name) for name in KINDS}

    def section(self, name: str) -> Iterator[Measured]:
        """Measures the steps of one kind of training."""
        work, kind = self.work, KINDS[name]
        sized = Sized.of(name, self.config, work, self.device.device_kind)
        placement = Placement(sized.config, make_mesh(1, 1))
        model = TrainingModel(
            sized.config,
            preprocess=dict.fromkeys(("image", "video"), FramePreprocessor()),
            placement=placement,
            dtype=jnp.dtype(work.compute),
            lora=Lora(rank=work.rank, alpha=2.0 * work.rank) if kind.rates.lora else None,
        )
        trained, frozen = self._parameters(model, kind, placement)
        trainer = Trainer(model, build_optimizer(Optimizer(moments=kind.kept), kind.rates, 1000))
        state, sums = trainer.begin(trained), trainer.no_sums(trained)
        del trained  # the state has it, and donates it at every update
        rng = np.random.default_rng(0)
        batches = [self._batch(drawn_rows(sized.config, work, rng), placement) for _ in range(work.micro_batches)]

        def step() -> float:
            nonlocal state, sums
            for index, batch in enumerate(batches):
                sums = trainer.accumulate(sums, state.trained, frozen, batch, state.step, np.int32(index))
            state, sums, report = trainer.update(state, sums)
            return float(report.loss)

        yield sized.measured(OURS, timed_steps(step, work), work)

    def _parameters(self, model: TrainingModel, kind: Kind, placement: Placement) -> tuple[Any, Any]:
        """Draws the trained and the frozen parameters, in the dtypes that they are kept in."""
        found = {}
        for seed, (name, shape) in enumerate(model.shapes.items()):
            if not is_lora(name):
                dtype = kind.kept if kind.rates.trains(name) else self.work.compute
                found[name] = drawn(seed, name, shape, dtype, placement.stored(name, shape))
        narrow = {name: shape for name, shape in model.shapes.items() if is_lora(name)}
        found |= placed(initial_lora(narrow, jax.random.key(0)), placement)
        trained = {name: value for name, value in found.items() if kind.rates.trains(name)}
        return trained, {name: value for name, value in found.items() if name not in trained}

    def _batch(self, rows: Rows, placement: Placement) -> Batch:
        """Puts rows of one sequence each, without images, on the device."""
        R, T = rows.ids.shape
        S, video = self.config.vision_config.image_size, rows.ids == self.config.video_token_id
        batch = Batch(
            input_ids=rows.ids.astype(np.int32),
            positions=np.tile(np.arange(T, dtype=np.int32), (R, 1)),
            segments=np.ones((R, T), np.int32),
            targets=np.pad(rows.labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED).astype(np.int32),
            media_index=np.where(video, np.cumsum(video, axis=1) - 1, -1).astype(np.int32),
            images=np.zeros((R, 0, S, S, 3), np.uint8),
            videos=rows.frames[:, None],
        )
        return jax.tree.map(lambda x: put(x, placement.batch(R)), batch)
