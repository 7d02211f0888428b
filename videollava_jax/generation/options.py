"""The options of generation: one table of names, types, ranges and defaults, and the faces that fill it. No JAX.

Options come as keywords (`generate`, `Chat.ask`, `Request`), as JSON (a line of a job), under OpenAI's names, from the
command line, and from a checkpoint's generation_config.json. Each face gives a dictionary of checked values under
transformers' names that holds only what was said; `GenerationOptions.resolve` fills in the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from videollava_jax.config import VideoLlavaConfig

ANSWER_TOKENS = 128
"""`max_new_tokens` of chats, requests, jobs and commands that do not say it; `generate` has transformers' 20."""

_INT32 = 2**31 - 1
_SMALLEST, _LARGEST = 1e-6, 1e6
"""Of what logits are divided by, so that float32 holds the quotient."""


# ── types and ranges ──


class Kind(Protocol):
    """The type and range of an option; as text, what an error message says was expected."""

    @property
    def hint(self) -> str:
        """The range in few words, for help texts; empty where there is nothing to say."""

    def parse(self, value: Any) -> Any:
        """Returns the value in its own type; raises TypeError, ValueError or OverflowError for any other."""

    def read(self, text: str) -> Any:
        """Returns the value that a command line writes as `text`, its range unchecked; raises ValueError."""


@dataclass(frozen=True)
class Whole:
    """A whole number: Python's or numpy's, no bool and no float."""

    low: int
    high: int = _INT32

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    @property
    def hint(self) -> str:
        return f"{self.low} or more" if self.high == _INT32 else "64 bits"

    def parse(self, value: Any) -> int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
        _require_within(number, self.low, self.high)
        return number

    def read(self, text: str) -> int:
        return int(text)


@dataclass(frozen=True)
class Number:
    """A finite number; with `open_low` it lies above `low`."""

    low: float
    high: float
    open_low: bool = False

    def __str__(self) -> str:
        return f"a number {self.hint}"

    @property
    def hint(self) -> str:
        lower = f"above {self.low:g}, at most" if self.open_low else f"from {self.low:g} to"
        return f"{lower} {self.high:.7g}"

    def parse(self, value: Any) -> float:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        number = float(value)
        _require_within(number, self.low, self.high)
        if self.open_low and number == self.low:
            raise ValueError
        return number

    def read(self, text: str) -> float:
        return float(text)


@dataclass(frozen=True)
class Truth:
    """True or False, and no number in their place."""

    def __str__(self) -> str:
        return "true or false"

    @property
    def hint(self) -> str:
        return ""

    def parse(self, value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError
        return bool(value)

    def read(self, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"


@dataclass(frozen=True)
class Text:
    """A string that is not empty."""

    def __str__(self) -> str:
        return "a string that is not empty"

    @property
    def hint(self) -> str:
        return ""

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise TypeError
        return value

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Several:
    """One value or a list of values; a tuple after parsing."""

    each: Kind

    def __str__(self) -> str:
        return f"{self.each}, or a list of such"

    @property
    def hint(self) -> str:
        return self.each.hint

    def parse(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, (bytes, Mapping)):
            raise TypeError
        alone = isinstance(value, str) or not hasattr(value, "__iter__")
        return tuple(self.each.parse(item) for item in ([value] if alone else value))

    def read(self, text: str) -> tuple[Any, ...]:
        return tuple(self.each.read(part) for part in text.split(","))


def _require_within(value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is outside too
        raise ValueError


def _option(default: Any, kind: Kind, about: str, *, metavar: str | None = None, shared: bool = False) -> Any:
    """A field of `GenerationOptions`.

    Args:
      about: the help text of its flag.
      metavar: of its flag.
      shared: rows that are answered together cannot differ in it, so it holds for an engine and not for a request.
    """
    return field(default=default, metadata={"kind": kind, "about": about, "metavar": metavar, "shared": shared})


# ── the table ──


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How answers are generated: every option under transformers' name, with transformers' default.

    Attributes:
      max_new_tokens: tokens that an answer is cut at.
      do_sample: draw tokens; otherwise the likeliest one is taken, and `temperature`, `top_k`, `top_p` and `seed`
        change nothing.
      temperature: divides the logits; at least 1e-6 where tokens are drawn.
      top_k: likeliest tokens to draw from; 0 for all.
      top_p: probability mass of the likeliest tokens to draw from.
      repetition_penalty: above 1 makes tokens that were there less likely, 1 changes nothing.
      seed: of the draws; seeds that are equal modulo 2**32 draw the same.
      eos_token_id: tokens that end an answer.
      pad_token_id: written behind the end of an answer.
      suppress_tokens: tokens that are never chosen.
      stop_strings: an answer ends with the token that completes one of them.
    """

    max_new_tokens: int = _option(20, Whole(1), "cut the answer after this number of tokens", metavar="N")
    do_sample: bool = _option(False, Truth(), "draw tokens instead of taking the likeliest one")
    temperature: float = _option(
        1.0, Number(0, _LARGEST), "draw tokens at this temperature, 0 for the likeliest ones", metavar="T"
    )
    top_k: int = _option(50, Whole(0), "draw from this number of likeliest tokens, 0 for all", metavar="K")
    top_p: float = _option(
        1.0, Number(0, 1, open_low=True), "draw from the likeliest tokens with this probability mass", metavar="P"
    )
    repetition_penalty: float = _option(
        1.0, Number(_SMALLEST, _LARGEST), "make tokens that were there less likely, above 1", metavar="FACTOR"
    )
    seed: int = _option(0, Whole(-(2**63), 2**63 - 1), "of the draws", metavar="N")
    eos_token_id: tuple[int, ...] = _option(
        (), Several(Whole(-1)), "tokens that end an answer", metavar="ID,ID,...", shared=True
    )
    pad_token_id: int = _option(0, Whole(-1), "token written behind the end of an answer", metavar="ID", shared=True)
    suppress_tokens: tuple[int, ...] = _option(
        (), Several(Whole(0)), "tokens that are never chosen", metavar="ID,ID,...", shared=True
    )
    stop_strings: tuple[str, ...] = _option(
        (), Several(Text()), "end the answer once it holds this text, can be repeated", metavar="TEXT"
    )

    def __post_init__(self) -> None:
        for name, value in checked({name: getattr(self, name) for name in KINDS}).items():
            object.__setattr__(self, name, value)
        if self.do_sample and self.temperature < _SMALLEST:
            raise ValueError(
                f"temperature: expected at least {_SMALLEST:g} with do_sample=True, got {self.temperature:g} (for the "
                "likeliest tokens, do_sample=False)"
            )

    @classmethod
    def resolve(
        cls, given: Mapping[str, Any], generation_config: Mapping[str, Any], config: VideoLlavaConfig
    ) -> GenerationOptions:
        """Returns what was given, then what the checkpoint says, then transformers' defaults.

        Args:
          given: by name; None for what is left to the checkpoint.
          generation_config: the checkpoint's generation_config.json; keys that are no options are ignored.
          config: gives the end and padding tokens that generation_config.json leaves out.

        Raises:
          TypeError: an unknown name.
          ValueError: a value of a wrong type or out of range; the message names the option.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(given.keys() - KINDS.keys()):
            raise TypeError(f"unknown option {unknown[0]!r}: expected {', '.join(KINDS)}")
        given = checked(given)
        values = {"eos_token_id": config.eos_token_ids, **from_generation_config(generation_config, given), **given}
        if "pad_token_id" not in values:
            own = config.text_config.pad_token_id
            values["pad_token_id"] = next(iter([*([] if own is None else [own]), *values["eos_token_id"], 0]))
        options = cls(**values)
        vocabulary = config.text_config.vocab_size
        if beyond := [token for token in options.suppress_tokens if token >= vocabulary]:
            raise ValueError(
                f"suppress_tokens: expected ids below {vocabulary}, the vocabulary's size, got {beyond[0]}"
            )
        return options


KINDS: Mapping[str, Kind] = {f.name: f.metadata["kind"] for f in dataclasses.fields(GenerationOptions)}
"""The type and range of each option by its name."""
SHARED = frozenset(f.name for f in dataclasses.fields(GenerationOptions) if f.metadata["shared"])
"""Options that hold for all requests of an engine, and not for one."""


def checked(given: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns known options in their types; what is None is left out.

    Args:
      shown: the names that error messages have instead of ours.

    Raises:
      ValueError: a value of a wrong type or out of range.
    """
    values = {}
    for name, value in given.items():
        if value is not None:
            values[name] = parsed((shown or {}).get(name, name), KINDS[name], value)
    return values


def parsed(name: str, kind: Kind, value: Any) -> Any:
    """Returns a value in the type of its kind.

    Raises:
      ValueError: it has another type or is out of range; the message begins with `name`.
    """
    try:
        return kind.parse(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected {kind}, got {_in_short(value)}") from None


def _in_short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"


# ── generation_config.json ──


def from_generation_config(found: Mapping[str, Any], given: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Returns the options of a checkpoint's generation_config.json, without those that are given anyway.

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
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop_strings",
}
"""OpenAI's and vLLM's names of options to ours; of two for one option the later counts."""


def from_json(
    found: Mapping[str, Any], *, others: Collection[str] = (), shown: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the options of one question from a JSON object; null is as good as left out.

    A temperature above 0 asks for drawn tokens, and 0 for the likeliest ones.

    Args:
      others: names in the same object that the caller reads itself.
      shown: the names that error messages have instead of ours.

    Raises:
      ValueError: an unknown name, a value of a wrong type or out of range, or an option that one question of many
        cannot have for itself.
    """
    if unknown := sorted(found.keys() - KINDS.keys() - set(others)):
        known = [*(name for name in KINDS if name not in SHARED), *others]
        raise ValueError(f"unknown option {unknown[0]!r}: expected {', '.join(known)}")
    require_own(found)
    return _drawn_by_temperature(checked({n: value for n, value in found.items() if n not in others}, shown))


def from_openai(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of one question from those fields of an OpenAI body that `OPENAI_NAMES` lists.

    Raises:
      ValueError: as of `from_json`, with OpenAI's names.
    """
    said = [name for name in OPENAI_NAMES if found.get(name) is not None]
    return from_json({OPENAI_NAMES[n]: found[n] for n in said}, shown={OPENAI_NAMES[n]: n for n in said})


def require_own(given: Mapping[str, Any]) -> None:
    """Raises a ValueError where the options of one request hold one that all requests of an engine share."""
    if shared := sorted(name for name in SHARED & given.keys() if given[name] is not None):
        raise ValueError(f"{shared[0]}: all requests of an engine share it, so one of them cannot set it")


def _drawn_by_temperature(values: dict[str, Any]) -> dict[str, Any]:
    """Lets a temperature decide `do_sample` where that was not said."""
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
        if isinstance(kind, Truth):
            decided = "(default: when --temperature is above 0)"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{about} {decided}")
            continue
        own = "the checkpoint's" if option.name in SHARED else f"the checkpoint's, or {option.default or 'none'}"
        default = f"default: {_FLAG_DEFAULTS.get(option.name, own)}"
        repeated = kind == Several(Text())
        parser.add_argument(
            flag,
            type=_reader(kind.each if repeated else kind),
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
            raise argparse.ArgumentTypeError(f"expected {kind}, got {text!r}") from None

    return read


def from_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the flags of `add_option_flags` say, completed as of `for_command`.

    Raises:
      ValueError: a value out of range.
    """
    return for_command({name: getattr(arguments, name) for name in KINDS})


def for_command(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns checked options with the defaults of commands and jobs: at most 128 tokens, each the likeliest one.

    As in `from_json`, a temperature decides whether tokens are drawn. Options that came out of here stay unchanged.
    """
    return {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, **_drawn_by_temperature(checked(given))}
