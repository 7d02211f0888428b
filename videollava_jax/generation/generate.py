"""`generate`: prompts and options in, answers out. Options are resolved and checked before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from videollava_jax.generation import beam_search
from videollava_jax.generation.asked import asked_by
from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.call_options import CallOptions
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.functions import criteria, score_functions
from videollava_jax.generation.inputs import Mask, checked_text, inferred_mask, require_tokens_at_the_end
from videollava_jax.generation.kinds import parsed
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.options import KINDS
from videollava_jax.generation.output import GenerateOutput, steps_of
from videollava_jax.generation.text import OnTokens, Streamer, require_tokenizer, to_streamer
from videollava_jax.generation.traced import traced
from videollava_jax.model.cache import Cache
from videollava_jax.model.sharding import whole
from videollava_jax.processing.room import require_room


class Start(Protocol):
    """How prompts are computed that are not ids alone: embeddings, or the continuation of a cache."""

    def prefill(self, mask: Mask, *, capacity: int) -> tuple[jax.Array, Cache]:
        """Computes the logits [B, V] after the prompts, and their cache with `capacity` free positions.

        Args:
          mask: of the prompts, bool [B, T], with no row that ends in padding.
        """

    def keep(self, cache: Cache, new: int) -> None:
        """Gets the cache of the prompts, with the first `new` tokens of their answers behind them."""


@dataclass(frozen=True)
class Prompts:
    """Prompts with their media, as users give them: the arguments of `VideoLlavaForConditionalGeneration.__call__`.

    Attributes:
      start: computes them; None for ids and pixels.
      said: whether the ids are those of the prompts. False for embeddings: ids then mark media alone, and answers come
        without the prompts.
    """

    input_ids: ArrayLike
    attention_mask: ArrayLike | None
    images: ArrayLike | None
    videos: ArrayLike | None
    video_pooling: SupportsIndex
    start: Start | None = None
    said: bool = True


def generate(
    model: LoadedModel,
    prompts: Prompts,
    given: Mapping[str, Any],
    *,
    generation_config: Any = None,
    seed: int | Sequence[int] | None = None,
    tokenizer: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    on_tokens: OnTokens | None = None,
    streamer: Streamer | None = None,
) -> npt.NDArray[np.int64] | GenerateOutput:
    """Generates answers; arguments, results and errors are those of `VideoLlavaForConditionalGeneration.generate`.

    Args:
      given: the fields of transformers' `GenerationConfig` among its arguments.
    """
    ids, mask = checked_text(model.model_config, prompts.input_ids, prompts.attention_mask)
    B, T = ids.shape
    V = model.model_config.text_config.vocab_size
    if isinstance(seed, np.ndarray) and not seed.ndim:
        seed = seed.item()
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise ValueError(f"streamer: expected an object with put(tokens) and end(), got a {type(streamer).__name__}")
    seeds = [parsed("seed", KINDS["seed"], row) for row in seed] if isinstance(seed, Iterable) else None
    said = given if seed is None or seeds is not None else {**given, "seed": seed}
    chosen = CallOptions.resolve(said, generation_config, model.generation_defaults, model.model_config, T)
    if prompts.attention_mask is None and prompts.said:
        ids, mask = checked_text(model.model_config, ids, inferred_mask(ids, chosen.padding))
    options, search = chosen.every, chosen.search
    copies = _copies(chosen, streamed=streamer is not None or on_tokens is not None)
    require_tokenizer(options, tokenizer)
    wanted = search.return_dict_in_generate and (search.output_attentions or search.output_hidden_states)
    if wanted and (copies > 1 or prompts.start is not None):
        raise ValueError(
            "output_hidden_states and output_attentions: expected one answer to each prompt, and neither inputs_embeds "
            "nor past_key_values: call the model with the sequences, model(…, output_hidden_states=True)"
        )
    text = model.model_config.text_config
    # Guesses are checked several at a time.
    guesses = bool(search.prompt_lookup_num_tokens)
    positions, why = (text.max_positions_in_parts, text.why_in_parts) if guesses else (text.max_positions, "")
    require_room(int(mask.sum(axis=1).max()), options.max_new_tokens, positions, why)
    keys = row_keys(options.seed if seeds is None else seeds, B, copies)
    told = ids if prompts.said else ids[:, :0]
    rows = [told[row][mask[row, : told.shape[1]]] for row in range(B) for _ in range(copies)]
    repeated = np.repeat(told, copies, axis=0).astype(np.int64)
    asked = asked_by(
        chosen,
        repeated,
        rows,
        V,
        logits_processor=score_functions(logits_processor, B * copies, V),
        stopping_criteria=criteria(stopping_criteria),
    )
    if streamer is not None:
        streamer.put(repeated)
    # Guesses are written behind the answer before they are checked.
    capacity = answer_capacity(options.max_new_tokens + search.prompt_lookup_num_tokens)
    if prompts.start is None:
        media = prompts.images, prompts.videos
        logits, cache = model.prefill(ids, mask, *media, video_pooling=prompts.video_pooling, capacity=capacity)
    else:
        require_tokens_at_the_end(mask)
        logits, cache = prompts.start.prefill(mask, capacity=capacity)
    if copies > 1:
        if prompts.start is not None:
            prompts.start.keep(cache, 0)  # the answers to a prompt differ: none of them is kept
        logits, cache = jnp.repeat(whole(logits), copies, axis=0), cache.repeat(copies)
    if search.num_beams > 1:
        found = beam_search.search(model, logits, cache, keys, rows, chosen, asked, tokenizer)
        prompt = np.repeat(told, search.num_return_sequences, axis=0)
        sequences = np.concatenate([prompt, found.tokens], axis=1)
        if not search.return_dict_in_generate:
            return sequences
        scores, step_logits = steps_of(found.records, found.steps)
        return GenerateOutput(
            sequences,
            found.scores if search.output_scores else None,
            scores,
            step_logits,
            found.rows,
            decoder_passes=found.steps - 1,
        )
    decoded = model.decode(
        logits,
        cache,
        keys,
        rows,
        options,
        tokenizer=tokenizer,
        on_tokens=on_tokens if streamer is None else to_streamer(streamer, on_tokens),
        asked=asked,
    )
    if prompts.start is not None and copies == 1:
        prompts.start.keep(decoded.cache, decoded.tokens.shape[1] - 1)
    if streamer is not None:
        streamer.end()
    sequences = np.concatenate([repeated, decoded.tokens], axis=1)
    if not search.return_dict_in_generate:
        return sequences
    scores, step_logits = steps_of(decoded.records, decoded.tokens.shape[1])
    output = GenerateOutput(sequences, scores=scores, logits=step_logits, decoder_passes=decoded.passes)
    if not wanted:
        return output
    steps = traced(
        model,
        ids,
        mask,
        decoded.tokens,
        *(prompts.images, prompts.videos, prompts.video_pooling),
        hidden_states=search.output_hidden_states,
        attentions=search.output_attentions,
    )
    return dataclasses.replace(output, attentions=steps.attentions, hidden_states=steps.hidden_states)


def _copies(call: CallOptions, *, streamed: bool) -> int:
    """The rows of each prompt: its beams, or its draws.

    Raises:
      ValueError: options that do not go together.
    """
    beams, returned = call.search.num_beams, call.search.num_return_sequences
    if beams == 1:
        if returned > 1 and not call.every.do_sample:
            raise ValueError(
                "num_return_sequences above 1 needs do_sample=True or num_beams: greedy answers would all be the same"
            )
        return returned
    if returned > beams:
        raise ValueError(f"num_return_sequences: expected at most num_beams={beams}, got {returned}")
    if streamed:
        raise ValueError("num_beams: a beam search knows its answer at the end alone, so there is nothing to stream")
    return beams
