"""The result of `generate(return_dict_in_generate=True)`, with transformers' names."""

from __future__ import annotations

import dataclasses
from collections.abc import ItemsView, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from videollava_jax.generation.answers import Records

Steps = tuple[npt.NDArray[np.float32], ...]


class Items:
    """A dataclass whose fields are also items: by name, or by their index among those that are not None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None."""
        return tuple(self._present().values())

    def keys(self) -> KeysView[str]:
        """Returns the names of the fields that are not None."""
        return self._present().keys()

    def values(self) -> ValuesView[Any]:
        """Returns the fields that are not None."""
        return self._present().values()

    def items(self) -> ItemsView[str, Any]:
        """Returns the names and values of the fields that are not None."""
        return self._present().items()

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field by its name; `default` where it is None."""
        return self._present().get(_ALIASES.get(name, name), default)

    def __getitem__(self, item: str | int | slice) -> Any:
        """Returns a field by its name, or by its index among those that are not None."""
        return self._present()[_ALIASES.get(item, item)] if isinstance(item, str) else self.to_tuple()[item]

    def __contains__(self, name: str) -> bool:
        return _ALIASES.get(name, name) in self._present()

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def _present(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}


_ALIASES = {"cache": "past_key_values"}
"""transformers 5.24 renames a field, and knows both names."""


@dataclass(frozen=True)
class GenerateOutput(Items):
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
      attentions: for each step and layer [rows, N, T, S], weights of attention; None unless `output_attentions`.
      hidden_states: for each step the embeddings and each layer's output [rows, T, D], the last one behind the final
        norm; None unless `output_hidden_states`. T is that of the prompt in the first step, and 1 in the others.
      past_key_values: the cache that the call was given, with the answers in it; None where it was given none.
      decoder_passes: runs of the decoder after that of the prompt; no item.
    """

    sequences: npt.NDArray[np.int64]
    sequences_scores: npt.NDArray[np.float32] | None = None
    scores: Steps | None = None
    logits: Steps | None = None
    beam_indices: npt.NDArray[np.int32] | None = None
    attentions: tuple[tuple[npt.NDArray[Any], ...], ...] | None = None
    hidden_states: tuple[tuple[npt.NDArray[Any], ...], ...] | None = None
    past_key_values: Any = None
    decoder_passes: int = 0

    def _present(self) -> dict[str, Any]:
        return {name: value for name, value in super()._present().items() if name != "decoder_passes"}


def steps_of(records: Records | None, count: int) -> tuple[Steps | None, Steps | None]:
    """Returns the scores and the logits of the first steps."""
    kept = (None, None) if records is None else (records.scores_NBV, records.logits_NBV)
    scores, logits = (None if array is None else tuple(np.asarray(array[:count])) for array in kept)
    return scores, logits


def transition_scores(
    sequences: ArrayLike, scores: Sequence[ArrayLike], beam_indices: ArrayLike | None, normalize: bool
) -> npt.NDArray[np.float32]:
    """Returns the scores float32 [rows, n] of the tokens of answers, 0 behind the end of a beam.

    Args:
      sequences: int [rows, T + n].
      scores: for each step float [B × beams, V].
      beam_indices: int [rows, n], the row of `scores` that each token was chosen from, -1 behind an answer; None for
        the row of the same number.
      normalize: whether to take the log-softmax of the scores first.

    Source: transformers' `GenerationMixin.compute_transition_scores`.

    Raises:
      ValueError: scores that are not those of the sequences.
    """
    steps = [np.asarray(step, np.float32) for step in scores] if isinstance(scores, (list, tuple)) else []
    tokens, rows_NBV = np.asarray(sequences), np.array(steps)
    if tokens.ndim != 2 or rows_NBV.ndim != 3 or rows_NBV.shape[0] > tokens.shape[1]:
        raise ValueError(
            "scores: expected those of each step, as generate(…, return_dict_in_generate=True, output_scores=True) "
            f"returns them, got {list(rows_NBV.shape)} for sequences {list(tokens.shape)}"
        )
    if normalize:
        top = rows_NBV.max(axis=-1, keepdims=True)
        shifted = rows_NBV - np.where(np.isfinite(top), top, 0)
        rows_NBV = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    n = len(rows_NBV)
    row_RN = np.repeat(np.arange(len(tokens))[:, None], n, axis=1) if beam_indices is None else np.asarray(beam_indices)
    n = int((row_RN >= 0).sum(axis=1).max())
    row_RN, answers_RN = row_RN[:, :n], tokens[:, tokens.shape[1] - n :]
    if row_RN.max() >= rows_NBV.shape[1] or len(row_RN) != len(tokens):
        raise ValueError(f"scores: expected those of {len(tokens)} sequences, got {list(rows_NBV.shape)}")
    found = rows_NBV[np.arange(n), np.maximum(row_RN, 0), answers_RN]
    return np.where(row_RN >= 0, found, np.float32(0))
