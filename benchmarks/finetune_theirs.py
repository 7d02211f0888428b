"""The side of transformers in the programs that measure fine-tuning, with PEFT and torch's AdamW."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from finetune_work import KINDS, Rows, Sized, Work, drawn_rows, timed_steps
from random_models import their_model, torch_device, versions
from sides import THEIRS, Measured, Section

from videollava_jax.training.update.options import PROJECTIONS, Lora


class Theirs:
    """The sections, with transformers, PEFT and torch."""

    def __init__(self, work: Work):
        self.work = work

    def begun(self) -> tuple[dict[str, Any], Mapping[str, Section]]:
        """Returns facts about the device, and the sections by name.

        Raises:
          CannotRun: torch is not installed, or finds no GPU.
        """
        self.device = torch_device(small=self.work.small or self.work.cpu)
        import torch

        self.torch = torch
        self.compute = getattr(torch, self.work.compute)
        if self.work.small:
            torch.set_num_threads(1)
        self.device_kind = torch.cuda.get_device_name(0) if self.device.type == "cuda" else "cpu"
        self.config, self.processor = self.work.shape()
        facts = {"device": self.device_kind, **versions("torch", "transformers")}
        return facts, {name: lambda name=name: self.section(name) for name in KINDS}

    def section(self, name: str) -> Iterator[Measured]:
        """Measures the steps of one kind of training."""
        torch, work, kind = self.torch, self.work, KINDS[name]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        sized = Sized.of(name, self.config, work, self.device_kind)
        torch.manual_seed(0)
        model = self._model(sized)
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rate = kind.rates.lora or kind.rates.decoder
        optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.0, fused=self.device.type == "cuda")
        rng = np.random.default_rng(0)
        batches = [self._batch(drawn_rows(sized.config, work, rng)) for _ in range(work.micro_batches)]
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=kind.kept != work.compute)

        def step() -> float:
            total = 0.0
            for batch in batches:
                with autocast:
                    loss = model(**batch, use_cache=False).loss / work.micro_batches
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(total)

        yield sized.measured(THEIRS, timed_steps(step, work), work)

    def _model(self, sized: Sized) -> Any:
        """Makes the model, with trained parameters in the dtype that they are kept in, and with checkpointed layers."""
        kept = getattr(self.torch, sized.kind.kept)
        model = their_model(sized.config, self.device, self.compute if sized.kind.rates.lora else kept)
        model.model.image_tower.to(self.compute)
        model.model.video_tower.to(self.compute)
        model.requires_grad_(False)
        model.model.multi_modal_projector.to(kept)
        if sized.kind.rates.lora is None:
            model.model.multi_modal_projector.requires_grad_(True)
            model.model.language_model.requires_grad_(True)
            model.lm_head.requires_grad_(True)
        else:
            import peft

            settings = peft.LoraConfig(
                r=self.work.rank,
                lora_alpha=2 * self.work.rank,
                lora_dropout=Lora().dropout,
                target_modules=rf".*language_model.*\.({'|'.join(PROJECTIONS)})",
                bias="none",
            )
            model = peft.get_peft_model(model, settings)  # which freezes everything else
            model.base_model.model.model.multi_modal_projector.requires_grad_(True)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()

    def _batch(self, rows: Rows) -> dict[str, Any]:
        pixels = self.processor.preprocessors["video"].normalize(rows.frames)
        return {
            "input_ids": self.torch.tensor(rows.ids, device=self.device),
            "labels": self.torch.tensor(rows.labels, device=self.device),
            "pixel_values_videos": self.torch.tensor(np.moveaxis(pixels, -1, -3)).to(self.device, self.compute),
        }
