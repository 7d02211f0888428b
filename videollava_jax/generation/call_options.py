"""The options of one call of `generate`: what was given, the call's `generation_config`, the checkpoint's. No JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videollava_jax.config import ModelConfig
from videollava_jax.generation.fields import ACCEPTED, FACE_ARGUMENTS, KNOWN, SEARCH_KINDS, SearchOptions, require_done
from videollava_jax.generation.options import KINDS, GenerationOptions

FILE = "the checkpoint's generation_config.json: "
_OFF: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "eos_token_id": (),
    "suppress_tokens": (),
    "stop_strings": (),
}
"""What None as an argument means to transformers: not the checkpoint's value, but none at all."""


@dataclass(frozen=True)
class CallOptions:
    """The options of one call.

    Attributes:
      every: those that every face has.
      search: those that only `generate` has.
      min_new_tokens: tokens before which an answer does not end, of `min_new_tokens` and `min_length`.
      padding: the id of padding among prompts; None where neither the caller nor the checkpoint has one that is not an
        end token too.
    """

    every: GenerationOptions
    search: SearchOptions
    min_new_tokens: int
    padding: int | None

    @classmethod
    def resolve(
        cls,
        given: Mapping[str, Any],
        generation_config: object | None,
        defaults: Mapping[str, Any],
        config: ModelConfig,
        prompt: int,
    ) -> CallOptions:
        """Takes each option from the arguments, else from `generation_config`, else from the checkpoint.

        Args:
          given: arguments by name. None turns an option off, as in transformers.
          generation_config: transformers' object, or a mapping; None where the call has none.
          defaults: the checkpoint's generation_config.json.
          config: of the model.
          prompt: width of the prompts in tokens, padding included.

        Raises:
          TypeError: an unknown argument.
          ValueError: a value of a wrong type or out of range, or one that asks for what is not done.
        """
        if unknown := sorted(given.keys() - KINDS.keys() - KNOWN - FACE_ARGUMENTS.keys()):
            raise TypeError(
                f"unknown option {unknown[0]!r}: expected {', '.join(KINDS)}, or others of docs/generate.md"
            )
        of_call = fields_of(generation_config)
        file = {name: value for name, value in defaults.items() if name not in given and name not in of_call}
        require_done(given)
        require_done(of_call, "generation_config: ")
        require_done(file, FILE)
        own = {name: value for name, value in of_call.items() if name not in given}
        sources = ((file, FILE), (own, "generation_config: "), (given, ""))
        search = SearchOptions(
            **{n: v for source, whose in sources for n, v in SearchOptions.of(source, whose).items()}
        )
        said = {n: _OFF.get(n) if v is None else v for n, v in {**own, **given}.items() if n in KINDS}
        # The nearest source that limits the answer counts, in tokens of the answer or of the whole.
        limits = (source for source in (given, own, file) if _limits(source))
        nearest: Mapping[str, Any] = next(limits, {})
        if nearest and nearest.get("max_new_tokens") is None:
            if search.max_length <= prompt:
                raise ValueError(
                    f"max_length: expected more than the {prompt} tokens of the prompt, got {search.max_length}"
                )
            said["max_new_tokens"] = search.max_length - prompt
        known = {name: value for name, value in file.items() if name in KINDS}
        every = GenerationOptions.resolve(said, known, config)
        _require_in_vocabulary(search, config.text_config.vocab_size)
        _require_choosable(search, every)
        stated = next(
            (source["pad_token_id"] for source in (said, known) if source.get("pad_token_id") is not None),
            config.text_config.pad_token_id,
        )
        return cls(
            every,
            search,
            min_new_tokens=search.min_new_tokens or max(0, search.min_length - prompt),
            padding=None if stated in every.eos_token_id else stated,
        )


def fields_of(generation_config: object | None) -> dict[str, Any]:
    """Returns the fields of a `GenerationConfig`, or of a mapping, that are not None.

    Raises:
      ValueError: anything else.
    """
    if generation_config is None:
        return {}
    found = generation_config if isinstance(generation_config, Mapping) else getattr(generation_config, "__dict__", {})
    if not isinstance(generation_config, Mapping) and not hasattr(generation_config, "max_new_tokens"):
        raise ValueError(
            "generation_config: expected transformers' GenerationConfig or a dictionary, got a "
            f"{type(generation_config).__name__}"
        )
    return {name: value for name, value in found.items() if value is not None and not name.startswith("_")}


def generation_config_of(found: Mapping[str, Any], config: ModelConfig) -> Any:
    """Returns transformers' `GenerationConfig` with these fields; without any, of the model's special tokens.

    transformers is imported here and not with this module: no command needs the object.
    """
    from transformers import GenerationConfig

    ends = config.eos_token_ids
    special = {
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": config.text_config.pad_token_id,
    }
    return GenerationConfig(**(found or special))


def as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `GenerationConfig` as generation_config.json holds them, where no key is a tuple."""
    biases = found.get("sequence_bias")
    pairs = {"sequence_bias": [[list(ids), bias] for ids, bias in biases.items()]} if isinstance(biases, dict) else {}
    return {**found, **pairs}


def _limits(source: Mapping[str, Any]) -> bool:
    return source.get("max_new_tokens") is not None or source.get("max_length") is not None


def treatment(name: str) -> str:
    """Returns what happens to a field of `GenerationConfig`, as docs/generate.md says it.

    Returns:
      "everywhere" or "generate" for those that are honoured, "accepted" or "refused"; "unknown" for other names.
    """
    if name in KINDS:
        return "everywhere"
    if name in KNOWN:
        return "accepted" if name in ACCEPTED else "generate" if name in SEARCH_KINDS else "refused"
    return "unknown"


def _require_in_vocabulary(search: SearchOptions, vocabulary: int) -> None:
    """Raises a ValueError, by name, for a token that the vocabulary does not have."""
    forced_first = () if search.forced_bos_token_id is None else (search.forced_bos_token_id,)
    tokens = {
        "bad_words_ids": [token for word in search.bad_words_ids for token in word],
        "sequence_bias": [token for word, _ in search.sequence_bias for token in word],
        "begin_suppress_tokens": search.begin_suppress_tokens,
        "forced_bos_token_id": forced_first,
        "forced_eos_token_id": search.forced_eos_token_id,
    }
    for name, ids in tokens.items():
        if beyond := [token for token in ids if token >= vocabulary]:
            raise ValueError(f"{name}: expected ids below {vocabulary}, the vocabulary's size, got {beyond[0]}")


def _require_choosable(search: SearchOptions, options: GenerationOptions) -> None:
    """Raises a ValueError where every token that is forced is suppressed too: no token would be left."""
    first = () if search.forced_bos_token_id is None else (search.forced_bos_token_id,)
    for name, forced in (("forced_bos_token_id", first), ("forced_eos_token_id", search.forced_eos_token_id)):
        if forced and set(forced) <= set(options.suppress_tokens):
            raise ValueError(f"{name}: every token of it is in suppress_tokens too, so none would be left")
