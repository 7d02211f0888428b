"""Flash attention of cuDNN, through JAX: for prefill and for the towers on NVIDIA GPUs.

Read in JAX 0.10.2 and 0.11.2 (`jax.nn.dot_product_attention`, `fused_attention_stablehlo.py`): float16 and bfloat16
only; the causal rule starts at the first key; a mask becomes a bias of [rows, 1, T, S] in the dtype of the queries;
gradients with a bias need even T and S. Its log-sum-exp is rounded to the dtype of the queries, which `merged` could
not use: three significant digits of bfloat16 would change a part's weight by percents.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import Operands

FEWEST_QUERIES = 128
"""It is chosen from this many on: its tiles have 128 queries, and the scores of fewer are small."""


def attend(operands: Operands) -> jax.Array:
    """Computes attention in bfloat16 or float16 over keys in order "GSKH"; any mask, any causal offset.

    Returns:
      [B, T, N, H] in the dtype of the queries.
    """
    q_BTNH = operands.q_BTNH
    B, T, N, H = q_BTNH.shape
    G, Q = operands.size("G"), operands.queries
    # All queries that share keys go into one product, as in the reference.
    q_GQNH, keys, values = q_BTNH.reshape(G, Q, N, H), operands.keys, operands.values
    plain_causal = isinstance(operands.causal_offset, int) and operands.causal_offset == 0 and Q == T
    mask_GNQS = _mask(operands, with_causal_rule=not plain_causal)
    if mask_GNQS is not None:
        # The gradient needs even lengths: an odd one gets one more query, or one more key that no query sees.
        q_GQNH, keys, values = (_even(x, 1) for x in (q_GQNH, keys, values))
        mask_GNQS = _even(_even(mask_GNQS, 2), 3)
    out_GQNH = jax.nn.dot_product_attention(
        q_GQNH, keys, values, mask=mask_GNQS, is_causal=plain_causal, implementation="cudnn"
    )
    return out_GQNH[:, :Q].reshape(B, T, N, H)


def _mask(operands: Operands, *, with_causal_rule: bool) -> jax.Array | None:
    """Returns the mask that cuDNN's own causal rule does not cover: bool [G, 1, Q, S]; None where there is none."""
    G, Q, S, T = operands.size("G"), operands.queries, operands.size("S"), operands.q_BTNH.shape[1]
    mask = None if operands.mask_GS is None else operands.mask_GS[:, None, None, :]
    if with_causal_rule and operands.causal_offset is not None:
        query_Q = operands.causal_offset + jnp.tile(jnp.arange(T), Q // T)
        seen = jnp.arange(S) <= query_Q[:, None]
        mask = seen[None, None] if mask is None else mask & seen
    if operands.segments_GS is not None:
        same = (operands.segments_GS[:, :, None] == operands.segments_GS[:, None, :])[:, None]
        mask = same if mask is None else mask & same
    return None if mask is None else jnp.broadcast_to(mask, (G, 1, Q, S))


def _even(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(x, [(0, x.shape[axis] % 2 if i == axis else 0) for i in range(x.ndim)])


def _refusal(operands: Operands) -> str | None:
    H = operands.size("H")
    if H % 8 or H > 128:
        return f"takes heads of up to 128, a multiple of 8, not {H}"
    return None


def _has_flash_attention(kind: str | None) -> bool:
    """Whether the devices of a kind are NVIDIA's, Ampere or later; None for the devices here.

    A kind that is not here is that of a described chip, and only chips from Ampere on are described
    (`planning.devices`).
    """
    here = [device for device in jax.local_devices() if kind in (None, device.device_kind)]
    capabilities = [str(getattr(device, "compute_capability", "")) for device in here]
    if not here:
        return str(kind).startswith("NVIDIA")
    return all(text[:1].isdigit() and float(text) >= 8 for text in capabilities)  # AMD's begin with "gfx"


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: (attend(operands), None),
    platforms=("gpu",),
    chosen_from={"gpu": FEWEST_QUERIES},
    runs_on=_has_flash_attention,
    gives_lse=False,
    dtypes=("bfloat16", "float16"),
    one_dtype=True,
    orders=("GSKH",),
    own_refusal=_refusal,
)
