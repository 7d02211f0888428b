"""The generation options: a table of names, types, ranges and defaults, and every way to give them. No JAX.

Options come as keywords (`generate`, `Chat.ask`, `Request`), as JSON (a line of a job), under OpenAI's names, from the
command line, and from a checkpoint's generation_config.json. For each of these a function returns a dictionary of the
options that were given, checked and under transformers' names. `GenerationOptions.resolve` adds those that were not.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from videollava_jax.config import ModelConfig
from videollava_jax.generation.fields import FACE_ARGUMENTS, KNOWN, require_neutral
from videollava_jax.generation.kinds import TEXT, TEXTS, TRUTH, Kind, biases, number, parsed, several, whole

ANSWER_TOKENS = 128
"""Default `max_new_tokens` of chats, requests, jobs and commands; `generate` has transformers' default, 20."""

_SMALLEST, _LARGEST = 1e-6, 1e6
"""The range of numbers that logits are divided by: float32 holds the quotients."""


def _option(default: Any, kind: Kind, about: str, *, metavar: str | None = None, shared: bool = False) -> Any:
    """A field of `GenerationOptions`.

    Args:
      default: transformers'.
      kind: its type and range.
      about: the help text of its flag.
      metavar: the name of its value in the help text.
      shared: whether all rows of a batch have to have the same value, so that a request cannot have its own.
    """
    return field(default=default, metadata={"kind": kind, "about": about, "metavar": metavar, "shared": shared})


# ── the table ──


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How answers are generated: every option under transformers' name, with transformers' default.

    Attributes:
      max_new_tokens: the most tokens of an answer.
      do_sample: whether tokens are drawn. Otherwise the likeliest one is taken, and `temperature`, `top_k`, `top_p` and
        `seed` change nothing.
      temperature: divides the logits; 0 only where no tokens are drawn.
      top_k: number of likeliest tokens to draw from; 0 for all; -1 is taken for 0, as in vLLM.
      top_p: probability mass of the likeliest tokens to draw from.
      min_p: draws only tokens with this share of the likeliest one's probability; 0 for all.
      repetition_penalty: above 1 makes tokens of the prompt and the answer so far less likely; 1 changes nothing.
      frequency_penalty: OpenAI's: subtracted from a token's score for each time that it is in the answer so far.
      presence_penalty: OpenAI's: subtracted once from the score of each token that is in the answer so far.
      logit_bias: OpenAI's: added to the scores of tokens, before any penalty; from -100 to 100 by token id.
      seed: of the draws. Seeds that are equal modulo 2**32 draw the same tokens.
      eos_token_id: tokens that end an answer.
      pad_token_id: written behind the end of an answer.
      suppress_tokens: tokens that are never chosen.
      stop_strings: an answer ends with the token that completes one of them.
    """

    max_new_tokens: int = _option(20, whole(1), "cut the answer after this number of tokens", metavar="N")
    do_sample: bool = _option(False, TRUTH, "draw tokens instead of taking the likeliest one")
    temperature: float = _option(
        1.0,
        number(_SMALLEST, _LARGEST, or_zero=True),
        "draw tokens at this temperature; 0: take the likeliest ones",
        metavar="T",
    )
    top_k: int = _option(50, whole(0, off=-1), "draw from this number of likeliest tokens; 0: from all", metavar="K")
    top_p: float = _option(
        1.0, number(0, 1, above=True), "draw from the likeliest tokens with this probability mass", metavar="P"
    )
    min_p: float = _option(
        0.0, number(0, 1), "draw only tokens with this share of the likeliest one's probability", metavar="SHARE"
    )
    repetition_penalty: float = _option(
        1.0, number(_SMALLEST, _LARGEST), "above 1: make tokens that occurred before less likely", metavar="FACTOR"
    )
    frequency_penalty: float = _option(
        0.0, number(-2, 2), "above 0: make tokens less likely each time they are in the answer", metavar="X"
    )
    presence_penalty: float = _option(
        0.0, number(-2, 2), "above 0: make tokens less likely that are in the answer", metavar="X"
    )
    logit_bias: tuple[tuple[int, float], ...] = _option(
        (), biases(-100, 100), "add to the scores of tokens", metavar="ID:X,ID:X,..."
    )
    seed: int = _option(0, whole(-(2**63), 2**63 - 1), "seed of the draws", metavar="N")
    eos_token_id: tuple[int, ...] = _option(
        (), several(whole(-1)), "tokens that end an answer", metavar="ID,ID,...", shared=True
    )
    pad_token_id: int = _option(0, whole(-1), "token written behind the end of an answer", metavar="ID", shared=True)
    suppress_tokens: tuple[int, ...] = _option(
        (), several(whole(0)), "tokens that are never chosen", metavar="ID,ID,...", shared=True
    )
    stop_strings: tuple[str, ...] = _option(
        (), TEXTS, "end the answer once it contains this text; can be given several times", metavar="TEXT"
    )

    def __post_init__(self) -> None:
        for name, value in checked({name: getattr(self, name) for name in KINDS}).items():
            object.__setattr__(self, name, value)
        if self.do_sample and not self.temperature:
            raise ValueError(
                f"temperature: expected at least {_SMALLEST:g} with do_sample=True, got 0 (for the likeliest tokens, "
                "do_sample=False)"
            )

    @property
    def penalises(self) -> bool:
        """Whether scores change by a penalty or a bias."""
        other = self.frequency_penalty or self.presence_penalty or self.logit_bias
        return self.repetition_penalty != 1.0 or bool(other)

    @classmethod
    def resolve(
        cls, given: Mapping[str, Any], generation_config: Mapping[str, Any], config: ModelConfig
    ) -> GenerationOptions:
        """Takes each option from `given`, else from the checkpoint, else transformers' default.

        Args:
          given: options by name; None is the same as leaving one out.
          generation_config: the checkpoint's generation_config.json. transformers' other fields are accepted where they
            ask for nothing (fields.py); keys that are no fields of transformers' are ignored, as there.
          config: has the end and padding tokens where generation_config.json has none.

        Raises:
          TypeError: an unknown name.
          ValueError: a value of a wrong type or out of range, or one that asks for what is not done here; the message
            names the option.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(given.keys() - KINDS.keys() - KNOWN - FACE_ARGUMENTS.keys()):
            raise TypeError(f"unknown option {unknown[0]!r}: expected {', '.join(KINDS)}")
        require_neutral(given)
        # Whoever answers without `generate` has `max_new_tokens`, and never the length of a prompt in advance.
        left = {name: value for name, value in generation_config.items() if name not in given}
        require_neutral(left, "the checkpoint's generation_config.json: ", passing_over=("max_length",))
        given = checked({name: value for name, value in given.items() if name in KINDS})
        values = {"eos_token_id": config.eos_token_ids, **from_generation_config(generation_config, given), **given}
        if "pad_token_id" not in values:
            own = config.text_config.pad_token_id
            values["pad_token_id"] = next(iter([*([] if own is None else [own]), *values["eos_token_id"], 0]))
        options = cls(**values)
        vocabulary = config.text_config.vocab_size
        biased = [token for token, _ in options.logit_bias]
        for name, tokens in (("suppress_tokens", options.suppress_tokens), ("logit_bias", biased)):
            if beyond := [token for token in tokens if token >= vocabulary]:
                raise ValueError(f"{name}: expected ids below {vocabulary}, the vocabulary's size, got {beyond[0]}")
        return options


KINDS: Mapping[str, Kind] = {f.name: f.metadata["kind"] for f in dataclasses.fields(GenerationOptions)}
"""The type and range of each option by its name."""
SHARED = frozenset(f.name for f in dataclasses.fields(GenerationOptions) if f.metadata["shared"])
"""Options that all requests of an engine share."""


def checked(given: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns options in their types, without those that are None.

    Args:
      given: options by name; every name is one of `KINDS`.
      shown: for an option's name, the name in error messages.

    Raises:
      ValueError: a value of a wrong type or out of range.
    """
    values = {}
    for name, value in given.items():
        if value is not None:
            values[name] = parsed((shown or {}).get(name, name), KINDS[name], value)
    return values


# ── generation_config.json ──


def from_generation_config(found: Mapping[str, Any], given: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Returns the options of a checkpoint's generation_config.json.

    Args:
      found: the file's content; keys that are not options are ignored.
      given: options to leave out, unchecked: a caller has given them.

    Raises:
      ValueError: a value of a wrong type or out of range; the message names the file and the option.
    """
    try:
        return checked({name: value for name, value in found.items() if name in KINDS and name not in given})
    except ValueError as error:
        raise ValueError(f"the checkpoint's generation_config.json: {error}") from None


# ── JSON, OpenAI's names ──

OPENAI_NAMES: Mapping[str, str] = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "logit_bias": "logit_bias",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop_strings",
}
"""The option that OpenAI or vLLM has under another name. If a body has both names of one, the later here counts,
whatever their order in the body: `max_completion_tokens` comes before the deprecated `max_tokens`."""


def from_json(
    found: Mapping[str, Any], *, others: Collection[str] = (), shown: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the options of one question from a JSON object; null is the same as leaving an option out.

    Where `do_sample` is left out, a temperature above 0 sets it, and a temperature of 0 clears it.

    Args:
      found: the object.
      others: names in it that the caller reads itself.
      shown: for an option's name, the name in error messages.

    Raises:
      ValueError: an unknown name, a value of a wrong type or out of range, or an option that all requests share.
    """
    if unknown := sorted(found.keys() - KINDS.keys() - KNOWN - set(others)):
        known = [*(name for name in KINDS if name not in SHARED), *others]
        raise ValueError(f"unknown option {unknown[0]!r}: expected {', '.join(known)}")
    require_own(found)
    own = {name: value for name, value in found.items() if name not in others}
    require_neutral(own)
    return _drawn_by_temperature(checked({name: value for name, value in own.items() if name in KINDS}, shown))


def from_openai(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of one question from those fields of an OpenAI body that `OPENAI_NAMES` lists.

    Raises:
      ValueError: a value of a wrong type or out of range; the message has OpenAI's name.
    """
    said = [name for name in OPENAI_NAMES if found.get(name) is not None]
    return from_json({OPENAI_NAMES[n]: found[n] for n in said}, shown={OPENAI_NAMES[n]: n for n in said})


def require_own(given: Mapping[str, Any]) -> None:
    """Raises a ValueError if the options of one request include one that all requests of an engine share."""
    if shared := sorted(name for name in SHARED & given.keys() if given[name] is not None):
        raise ValueError(f"{shared[0]}: all requests of an engine share it, so one of them cannot set it")


def _drawn_by_temperature(values: dict[str, Any]) -> dict[str, Any]:
    """Sets `do_sample` by the temperature where it was left out."""
    temperature = values.get("temperature")
    if temperature is None:
        return values
    if temperature > 0:
        return {"do_sample": True, **values}
    if values.get("do_sample"):
        raise ValueError(
            "temperature: 0 asks for the likeliest tokens and do_sample for drawn ones: expected one of them"
        )
    return {"do_sample": False, **{name: value for name, value in values.items() if name != "temperature"}}


# ── the command line ──

_FLAG_DEFAULTS = {"max_new_tokens": str(ANSWER_TOKENS), "temperature": "0", "seed": "0"}


def add_option_flags(parser: argparse._ActionsContainer) -> None:
    """Adds a flag for each option to a parser or a group of arguments."""
    for option in dataclasses.fields(GenerationOptions):
        kind, about = option.metadata["kind"], option.metadata["about"]
        flag = f"--{option.name.replace('_', '-')}"
        if kind is TRUTH:
            decided = "(default: when --temperature is above 0)"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{about} {decided}")
            continue
        own = "the checkpoint's" if option.name in SHARED else f"the checkpoint's, or {option.default or 'none'}"
        default = f"default: {_FLAG_DEFAULTS.get(option.name, own)}"
        repeated = kind is TEXTS
        parser.add_argument(
            flag,
            type=_reader(TEXT if repeated else kind),
            action="append" if repeated else "store",
            metavar=option.metadata["metavar"],
            help=f"{about} ({'; '.join(filter(None, [kind.hint, default]))})",
        )


def _reader(kind: Kind) -> Callable[[str], Any]:
    """An argument's `type` for argparse, with an error that says what was expected."""

    def read(text: str) -> Any:
        try:
            return kind.read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.expected}, got {text!r}") from None

    return read


def from_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of the flags that `add_option_flags` added, with the defaults of `for_command`.

    Raises:
      ValueError: a value out of range.
    """
    return for_command({name: getattr(arguments, name) for name in KINDS})


def for_command(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns checked options with the defaults of commands and jobs: at most 128 tokens, each the likeliest one.

    A temperature decides `do_sample` as in `from_json`. Options that this function returned come back unchanged.
    """
    return {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, **_drawn_by_temperature(checked(given))}
