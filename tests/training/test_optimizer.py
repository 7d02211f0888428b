"""The optimiser alone: clipping, and none of it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.options import Optimizer, Rates

NAME, RATE, STEPS = "multi_modal_projector.linear_1.weight", 1e-2, 6


def gradients():
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((3, 4)) * 10.0**i).astype(np.float32) for i in range(-2, STEPS - 2)]


def ours(clip):
    transformation = build_optimizer(
        Optimizer(clip=clip, warmup=0.0, schedule="constant"), Rates(projector=RATE), STEPS
    )
    parameters = {NAME: jnp.ones((3, 4))}
    state = transformation.init(parameters)
    for gradient in gradients():
        updates, state = transformation.update({NAME: jnp.asarray(gradient)}, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return np.asarray(parameters[NAME])


def torchs(torch, clip):
    value = torch.ones((3, 4), requires_grad=True)
    adamw = torch.optim.AdamW([value], lr=RATE, weight_decay=0.0)
    for gradient in gradients():
        value.grad = torch.tensor(gradient)
        if clip:
            torch.nn.utils.clip_grad_norm_([value], clip)
        adamw.step()
    return value.detach().numpy()


@pytest.mark.parametrize("clip", [None, 0, 0.0, 1.0, 1e-3])
def test_clipping_is_torchs_and_null_or_zero_turns_it_off(torch, clip):
    np.testing.assert_allclose(ours(clip), torchs(torch, clip), rtol=0, atol=1e-6)


def test_clipping_changes_what_is_learnt():
    assert np.abs(ours(1.0) - ours(None)).max() > 1e-3
    assert np.abs(ours(None) - 1).max() > 1e-2
