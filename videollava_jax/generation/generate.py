"""`generate`: prompts and options in, answers out. Options are resolved and checked before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.call_options import CallOptions
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.fields import SearchOptions
from videollava_jax.generation.inputs import checked_text, inferred_mask
from videollava_jax.generation.kinds import parsed
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.options import KINDS
from videollava_jax.generation.text import OnTokens, Streamer, require_tokenizer, to_streamer
from videollava_jax.processing.room import require_room


@dataclass(frozen=True)
class Prompts:
    """Prompts with their media, as users give them: the arguments of `VideoLlavaForConditionalGeneration.__call__`."""

    input_ids: ArrayLike
    attention_mask: ArrayLike | None
    images: ArrayLike | None
    videos: ArrayLike | None
    video_pooling: SupportsIndex


def generate(
    model: LoadedModel,
    prompts: Prompts,
    given: Mapping[str, Any],
    *,
    generation_config: Any = None,
    seed: int | Sequence[int] | None = None,
    tokenizer: Any = None,
    on_tokens: OnTokens | None = None,
    streamer: Streamer | None = None,
) -> npt.NDArray[np.int64]:
    """Generates answers; arguments, results and errors are those of `VideoLlavaForConditionalGeneration.generate`.

    Args:
      given: the fields of transformers' `GenerationConfig` among its arguments.
    """
    ids, mask = checked_text(model.config, prompts.input_ids, prompts.attention_mask)
    B, T = ids.shape
    seeds = [parsed("seed", KINDS["seed"], row) for row in seed] if isinstance(seed, Iterable) else None
    said = given if seed is None or seeds is not None else {**given, "seed": seed}
    chosen = CallOptions.resolve(said, generation_config, model.generation_defaults, model.config, T)
    if prompts.attention_mask is None:
        ids, mask = checked_text(model.config, ids, inferred_mask(ids, chosen.padding))
    options, search = chosen.every, chosen.search
    _require_built(search)
    copies = search.num_return_sequences
    require_tokenizer(options, tokenizer)
    positions = model.config.text_config.max_position_embeddings
    require_room(int(mask.sum(axis=1).max()), options.max_new_tokens, positions)
    keys = row_keys(options.seed if seeds is None else seeds, B, copies)
    if copies > 1 and not options.do_sample:
        raise ValueError("num_return_sequences above 1 needs do_sample=True: greedy answers would all be the same")
    if streamer is not None:
        streamer.put(np.repeat(ids, copies, axis=0).astype(np.int64))
    logits, cache = model.prefill(
        ids,
        mask,
        prompts.images,
        prompts.videos,
        video_pooling=prompts.video_pooling,
        capacity=answer_capacity(options.max_new_tokens),
    )
    if copies > 1:
        logits, cache = jnp.repeat(logits, copies, axis=0), cache.repeat(copies)
    rows = [ids[row][mask[row]] for row in range(B) for _ in range(copies)]
    answers, _ = model.decode(
        logits,
        cache,
        keys,
        rows,
        options,
        tokenizer=tokenizer,
        on_tokens=on_tokens if streamer is None else to_streamer(streamer, on_tokens),
    )
    if streamer is not None:
        streamer.end()
    return np.concatenate([np.repeat(ids, copies, axis=0), answers], axis=1).astype(np.int64)


def _require_built(search: SearchOptions) -> None:
    built = ("max_length", "num_return_sequences")
    for option in dataclasses.fields(search):
        changes = option.metadata["alone"] == "refused" or option.name == "return_dict_in_generate"
        if changes and option.name not in built and getattr(search, option.name) != option.default:
            raise ValueError(f"{option.name}: not done yet")
