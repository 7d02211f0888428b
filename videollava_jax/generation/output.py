"""The result of `generate(return_dict_in_generate=True)`, with transformers' names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.generation.answers import Records

Steps = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class GenerateOutput:
    """transformers' `GenerateDecoderOnlyOutput` and `GenerateBeamDecoderOnlyOutput`, with numpy arrays.

    Its fields are also items: by name, or by their index among those that are not None.

    Attributes:
      sequences: int64 [rows, T + new], prompts and answers.
      sequences_scores: float32 [rows], the scores of beams; None without beams or `output_scores`.
      scores: for each step float32 [rows, V], or [B × beams, V], what tokens were chosen by: logits after all
        processors and filters, log-probabilities in a beam search. 0 for rows that had ended. None unless
        `output_scores`.
      logits: for each step, the same shape: what the model computed. None unless `output_logits`.
      beam_indices: int32 [rows, new], the row of `scores` that each token was chosen from, -1 behind an answer; None
        without beams.
      past_key_values: the cache that the call was given, with the answers in it; None where it was given none.
      decoder_passes: runs of the decoder after that of the prompt; no item.
    """

    sequences: npt.NDArray[np.int64]
    sequences_scores: npt.NDArray[np.float32] | None = None
    scores: Steps | None = None
    logits: Steps | None = None
    beam_indices: npt.NDArray[np.int32] | None = None
    past_key_values: Any = None
    decoder_passes: int = 0

    def __getitem__(self, item: str | int) -> Any:
        """Returns a field by its name, or by its index among those that are not None."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "decoder_passes"}
        found = {name: value for name, value in found.items() if value is not None}
        return found[item] if isinstance(item, str) else tuple(found.values())[item]


def steps_of(records: Records | None, count: int) -> tuple[Steps | None, Steps | None]:
    """Returns the scores and the logits of the first steps."""
    kept = (None, None) if records is None else (records.scores_NBV, records.logits_NBV)
    scores, logits = (None if array is None else tuple(np.asarray(array[:count])) for array in kept)
    return scores, logits
