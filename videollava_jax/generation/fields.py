"""What happens to each field of transformers' `GenerationConfig`: honoured, accepted or refused. No JAX.

`GenerationOptions` (options.py) holds the fields that every face honours: `generate`, chats, requests and jobs. Here
are the others: `SearchOptions`, which only `generate` honours; fields that are accepted because they ask for nothing
that changes an answer; and fields that are refused. docs/generate.md has a row for each, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from videollava_jax.generation.kinds import TRUTH, Kind, number, parsed, several, whole

_LARGEST = 1e6
SECONDS = 1e9
"""The most seconds of `max_time`: thirty years."""


def _of_lists(value: Any) -> tuple[tuple[int, ...], ...]:
    """Lists of token ids, none of them empty."""
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError
    words = tuple(_several_ids.parse(word) for word in value)
    if not all(hasattr(word, "__iter__") for word in value) or not all(words):
        raise ValueError
    return words


def _of_biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """A mapping of tuples of token ids to biases, or transformers' newer list of pairs of them."""
    pairs = list(value.items()) if isinstance(value, Mapping) else [tuple(pair) for pair in value]
    found = tuple((_several_ids.parse(ids), _bias.parse(bias)) for ids, bias in pairs)
    if not all(ids for ids, _ in found):
        raise ValueError
    return tuple(dict(found).items())


def _of_decay(value: Any) -> tuple[int, float]:
    start, factor = value
    return whole(0).parse(start), number(0, _LARGEST).parse(factor)


def _of_early_stopping(value: Any) -> bool | str:
    return "never" if isinstance(value, str) and value == "never" else bool(TRUTH.parse(value))


def _unread(text: str) -> Any:
    raise ValueError(f"{text}: no command has this option")


_several_ids = several(whole(0))
_bias = number(-3e38, 3e38)
_WORDS = Kind("a list of lists of token ids, such as [[5], [7, 8]]", _of_lists, _unread)
_BIASES = Kind("biases by sequence of token ids, such as {(5,): 2.0} or [[[5], 2.0]]", _of_biases, _unread)
_DECAY = Kind("a pair (start, factor) such as (10, 1.05)", _of_decay, _unread)
_EARLY = Kind('true, false or "never"', _of_early_stopping, _unread)
_FRACTION = number(0, 1)


def _option(default: Any, kind: Kind, *, alone: Literal["refused", "nothing"] = "refused") -> Any:
    """A field of `SearchOptions`.

    Args:
      default: asks for nothing.
      kind: its type and range.
      alone: what a value of it means to chats, requests and jobs: one that changes answers is "refused"; "nothing" is
        one that shapes the output, or another option's way.
    """
    return field(default=default, metadata={"kind": kind, "alone": alone})


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options that only `generate` honours, under transformers' names. The defaults ask for nothing.

    Attributes:
      max_length: of prompt and answer together, where `max_new_tokens` is left out.
      min_length: of prompt and answer together, before which no end token is chosen.
      min_new_tokens: of the answer, likewise; comes before `min_length`.
      max_time: seconds after which answers are cut, looked at every few steps.
      num_beams: beams of each prompt; 1 for no beam search.
      early_stopping: beam search ends once it has `num_beams` ended answers (True), when a better one is unlikely
        (False), or when there can be none ("never").
      length_penalty: exponent of the length that the score of a beam is divided by.
      num_return_sequences: answers for each prompt: draws, or the best beams.
      top_h: draws from the likeliest tokens with this share of the distribution's entropy; 1 keeps all but the rarest.
      typical_p: draws from the most typical tokens with this probability mass.
      epsilon_cutoff: draws only tokens of this probability.
      eta_cutoff: the same, lower where the distribution is flat.
      encoder_repetition_penalty: above 1 makes the prompt's tokens likelier.
      no_repeat_ngram_size: runs of this many tokens occur once in prompt and answer.
      encoder_no_repeat_ngram_size: runs of this many tokens of the prompt do not occur in the answer.
      bad_words_ids: sequences that are never completed.
      sequence_bias: what is added to the score of the token that completes a sequence.
      renormalize_logits: scores are log-probabilities again after everything else.
      forced_bos_token_id: the first token behind a prompt of one token.
      forced_eos_token_id: the last token of an answer that reaches its limit.
      remove_invalid_values: scores that are not finite become the largest and smallest numbers, and NaN 0.
      exponential_decay_length_penalty: (start, factor): from `start` tokens on, end tokens become likelier.
      begin_suppress_tokens: tokens that are not chosen first.
      return_dict_in_generate: the result is a `GenerateOutput`.
      output_scores, output_logits: it holds the scores, or the logits, of each step.
      output_attentions, output_hidden_states: it holds those of every layer and step.
      prompt_lookup_num_tokens: tokens that are guessed from earlier ones at a time; 0 for none. Answers stay the same.
      max_matching_ngram_size: the most last tokens that are looked up for a guess.
    """

    max_length: int = _option(0, whole(1))
    min_length: int = _option(0, whole(0))
    min_new_tokens: int = _option(0, whole(0))
    max_time: float = _option(SECONDS, number(0, SECONDS))
    num_beams: int = _option(1, whole(1))
    early_stopping: bool | str = _option(False, _EARLY, alone="nothing")
    length_penalty: float = _option(1.0, number(-_LARGEST, _LARGEST), alone="nothing")
    num_return_sequences: int = _option(1, whole(1))
    top_h: float | None = _option(None, number(0, 1, above=True))
    typical_p: float = _option(1.0, number(0, 1, above=True))
    epsilon_cutoff: float = _option(0.0, _FRACTION)
    eta_cutoff: float = _option(0.0, _FRACTION)
    encoder_repetition_penalty: float = _option(1.0, number(1e-6, _LARGEST))
    no_repeat_ngram_size: int = _option(0, whole(0))
    encoder_no_repeat_ngram_size: int = _option(0, whole(0))
    bad_words_ids: tuple[tuple[int, ...], ...] = _option((), _WORDS)
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = _option((), _BIASES)
    renormalize_logits: bool = _option(False, TRUTH, alone="nothing")
    forced_bos_token_id: int | None = _option(None, whole(0))
    forced_eos_token_id: tuple[int, ...] = _option((), _several_ids)
    remove_invalid_values: bool = _option(False, TRUTH)
    exponential_decay_length_penalty: tuple[int, float] | None = _option(None, _DECAY)
    begin_suppress_tokens: tuple[int, ...] = _option((), _several_ids)
    return_dict_in_generate: bool = _option(False, TRUTH, alone="nothing")
    output_scores: bool = _option(False, TRUTH, alone="nothing")
    output_logits: bool = _option(False, TRUTH, alone="nothing")
    output_attentions: bool = _option(False, TRUTH, alone="nothing")
    output_hidden_states: bool = _option(False, TRUTH, alone="nothing")
    prompt_lookup_num_tokens: int = _option(0, whole(1))
    max_matching_ngram_size: int = _option(2, whole(1), alone="nothing")

    @classmethod
    def of(cls, found: Mapping[str, Any], whose: str = "") -> dict[str, Any]:
        """Returns those values of a mapping that are options of this class, parsed, without those that are None.

        Args:
          found: values by name.
          whose: begins the message of an error.

        Raises:
          ValueError: a value of a wrong type or out of range.
        """
        return {
            name: parsed(f"{whose}{name}", kind, found[name])
            for name, kind in SEARCH_KINDS.items()
            if found.get(name) is not None
        }


SEARCH_KINDS: Mapping[str, Kind] = {f.name: f.metadata["kind"] for f in dataclasses.fields(SearchOptions)}
"""The type and range of each option that only `generate` honours."""
_ALONE = {f.name: f.metadata["alone"] for f in dataclasses.fields(SearchOptions)}
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SearchOptions)}

ACCEPTED: Mapping[str, str] = {
    "use_cache": "answers are the same with and without a cache, and there is always one",
    "max_cache_len": "caches are sized by the call, in steps of 32 tokens",
    "bos_token_id": "the processor has written it into the prompt",
    "decoder_start_token_id": "there is no encoder whose output a first token would start to decode",
    "num_assistant_tokens": "of an assistant, and none is accepted",
    "num_assistant_tokens_schedule": "of an assistant",
    "assistant_confidence_threshold": "of an assistant",
    "assistant_lookbehind": "of an assistant with another tokenizer",
    "target_lookbehind": "of an assistant with another tokenizer",
    "assistant_ensemble_weight": "of an assistant that returns logits",
    "compile_config": "torch's; programs are compiled by XLA",
    "disable_compile": "torch's; programs are compiled by XLA",
    "prefill_chunk_size": "the answer is the same however a prompt is computed",
    "transformers_version": "says what wrote the file",
    "_from_model_config": "says where transformers took the values from",
}
"""Fields that are accepted whatever their value, with the reason: it changes no answer."""


@dataclass(frozen=True)
class Refused:
    """A field that is refused.

    Attributes:
      instead: what to do.
      neutral: values that ask for nothing, and are accepted; None always is.
    """

    instead: str
    neutral: tuple[Any, ...] = ()


REFUSED: Mapping[str, Refused] = {
    "use_mtp": Refused("the model predicts one token at a time; prompt_lookup_num_tokens guesses several", (False,)),
    "cache_implementation": Refused(
        "leave it out: caches stay on the device; Engine(int8_cache=True) keeps prefixes in int8",
        ("dynamic", "static", "hybrid"),
    ),
    "cache_config": Refused("leave it out: caches stay on the device; Engine(int8_cache=True) halves prefixes", ({},)),
    "token_healing": Refused("let the prompt end where a token ends", (False,)),
    "guidance_scale": Refused("combine the logits of two prompts from model(...).logits yourself", (1, 1.0)),
    "watermarking_config": Refused("pass a watermark as logits_processor=, a function of JAX arrays"),
    "is_assistant": Refused("models do not assist each other; prompt_lookup_num_tokens guesses tokens", (False,)),
    "assistant_early_exit": Refused("use prompt_lookup_num_tokens, which guesses tokens without a model"),
    "speculation_type": Refused("use prompt_lookup_num_tokens, which guesses tokens without a model"),
    "continuous_batching_config": Refused("use Engine, which fills rows as answers end"),
    "low_memory": Refused("leave it out: beams share the cache of their prompt already", (False,)),
    "penalty_alpha": Refused("transformers has no contrastive search of its own any more; use num_beams", (0, 0.0)),
    "dola_layers": Refused("transformers has no DoLa of its own any more; leave it out"),
    "diversity_penalty": Refused("use num_beams with do_sample=True for beams that differ", (0, 0.0)),
    "num_beam_groups": Refused("use num_beams with do_sample=True for beams that differ", (1,)),
    "constraints": Refused("raise the score of the words with sequence_bias"),
    "force_words_ids": Refused("raise the score of the words with sequence_bias"),
}
"""Fields that are refused, unless their value asks for nothing."""

FACE_ARGUMENTS: Mapping[str, Refused] = {
    "prefix_allowed_tokens_fn": Refused("pass logits_processor=, a function of JAX arrays"),
    "synced_gpus": Refused("processes of one mesh always run the same steps", (False,)),
    "assistant_model": Refused("use prompt_lookup_num_tokens, which guesses tokens without a model"),
    "assistant_tokenizer": Refused("use prompt_lookup_num_tokens, which guesses tokens without a model"),
    "negative_prompt_ids": Refused("combine the logits of two prompts from model(...).logits yourself"),
    "negative_prompt_attention_mask": Refused("combine the logits of two prompts from model(...).logits yourself"),
    "custom_generate": Refused("call your function with model.prefill and model.decode"),
    "trust_remote_code": Refused("code of a checkpoint is never run", (False,)),
    "logits_to_keep": Refused("a token is chosen by the last logits; call the model for others", (0, 1)),
    "use_model_defaults": Refused("give the options whose defaults you do not want", (True,)),
}
"""Arguments of transformers' `generate` that are no fields of `GenerationConfig`, likewise."""

KNOWN: frozenset[str] = frozenset({*SEARCH_KINDS, *ACCEPTED, *REFUSED})
"""The fields of this file: all but those that every face honours."""


def require_done(found: Mapping[str, Any], whose: str = "") -> None:
    """Raises a ValueError, by name, for a value that asks for something that nothing here does.

    Args:
      found: values by name; names of other tables are passed over.
      whose: begins the message.
    """
    for name, value in found.items():
        refused = REFUSED.get(name) or FACE_ARGUMENTS.get(name)
        if refused is not None and value is not None and not _is_one_of(value, refused.neutral):
            raise ValueError(f"{whose}{name}={value!r} is not done: {refused.instead}")


def require_neutral(found: Mapping[str, Any], whose: str = "", *, passing_over: Collection[str] = ()) -> None:
    """Raises a ValueError, by name, for a value that only `generate` honours, or that nothing here does.

    Args:
      found: values by name; names of other tables are passed over.
      whose: begins the message.
      passing_over: names that are not looked at.
    """
    require_done(found, whose)
    for name, value in SearchOptions.of(found, whose).items():
        if name not in passing_over and _ALONE[name] == "refused" and value != _DEFAULTS[name]:
            raise ValueError(
                f"{whose}{name}={found[name]!r} is honoured by model.generate alone, not by chats, requests and jobs: "
                "leave it out, or set it to its default there"
            )


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value is one of these; arrays and other objects are none."""
    return any(type(value) is type(one) and value == one for one in neutral)
