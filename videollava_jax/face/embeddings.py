"""Vocabularies that grow and shrink: the rows of an embedding or a head, as transformers draws new ones."""

from __future__ import annotations

from typing import Any

import numpy as np

_SHARE = 1e-9  # of the covariance: new rows are the mean of the old ones, and barely differ


def resized(weight_VD: Any, rows: int, *, mean: bool, std: float, seed: int) -> np.ndarray[Any, Any]:
    """Returns a weight with other rows: the first ones of the old, and new ones behind them.

    Args:
      weight_VD: the old weight.
      rows: of the new one.
      mean: draws new rows around the mean of the old ones, with a billionth of their covariance; else from N(0, std²).
      std: see `mean`.
      seed: of the draws.

    Source: transformers' `PreTrainedModel._get_resized_embeddings` and `_init_added_embeddings_weights_with_mean`
    (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). The draws are NumPy's.
    """
    old_VD = np.asarray(weight_VD)
    V, D = old_VD.shape
    if rows <= V:
        return old_VD[:rows]
    drawn_ND = np.random.default_rng(seed).standard_normal((rows - V, D))
    if mean:
        mean_D = old_VD.astype(np.float64).mean(axis=0)
        centred_VD = old_VD.astype(np.float64) - mean_D
        try:
            drawn_ND = mean_D + drawn_ND @ np.linalg.cholesky(_SHARE * (centred_VD.T @ centred_VD) / V).T
        except np.linalg.LinAlgError:  # fewer rows than columns, so no distribution: the mean itself
            drawn_ND = np.broadcast_to(mean_D, drawn_ND.shape)
    else:
        drawn_ND = drawn_ND * std
    return np.concatenate([old_VD, drawn_ND.astype(old_VD.dtype)])
