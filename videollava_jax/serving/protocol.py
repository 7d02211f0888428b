"""Bodies of requests: read, checked, and turned into requests of the engine. No JAX."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from videollava_jax.batch.forms.fields import described, short
from videollava_jax.batch.forms.form import DEEPEST
from videollava_jax.batch.forms.openai import conversation_of, refuse_unsupported
from videollava_jax.engine.request import MOST_LOGPROBS, Request
from videollava_jax.generation.options import OPENAI_NAMES, from_openai
from videollava_jax.media import Fps, FrameSampling
from videollava_jax.processing.prompt import parse_conversation
from videollava_jax.processing.segments import MediaKind
from videollava_jax.serving.errors import ApiError, invalid
from videollava_jax.serving.settings import Settings

UPLOADED = "vllm-file://"
"""What URLs of uploaded files begin with, as in vLLM."""

Body = TypeVar("Body", bound=msgspec.Struct)
KindOf = Callable[[str], MediaKind]
"""Returns whether an uploaded file is an image or a video, by its id; raises an ApiError if there is none."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options` of a chat completion."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(msgspec.Struct):
    """The fields of a chat completion that the server reads itself; `OPENAI_NAMES` lists those of generation."""

    messages: list[dict[str, Any]]
    model: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/score`: how likely each choice is as the answer to a conversation."""

    messages: list[dict[str, Any]]
    choices: list[str]
    model: str | None = None
    user: str | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/tokenize`: a text, or a conversation."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """A chat completion that is asked for.

    Attributes:
      requests: of the engine, one for each answer; they differ in their seeds. Media are what the client names.
      stream: whether the answer is wanted while it is written.
      include_usage: whether a stream ends with the numbers of tokens.
    """

    requests: tuple[Request, ...]
    stream: bool = False
    include_usage: bool = False


def parsed_json(raw: bytes) -> dict[str, Any]:
    """Returns a body as an object.

    Raises:
      ApiError: it is not JSON, not an object, or nested too deeply.
    """
    # Before it is parsed: a parser that runs out of recursion can leave the interpreter's count of it wrong.
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and _depth(raw) > DEEPEST:
        raise invalid(f"expected at most {DEEPEST} lists and objects inside each other in the body, got more")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not JSON in UTF-8: {_first_line(error)}") from None
    if not isinstance(body, dict):
        raise invalid(f"expected a JSON object as the body, got {described(body)}")
    return body


def _depth(raw: bytes) -> int:
    """How deep lists and objects are inside each other, whatever else is wrong with the text."""
    deepest = depth = 0
    for found in re.finditer(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', raw, re.DOTALL):
        first = raw[found.start()]
        depth += (first in b"[{") - (first in b"]}")
        deepest = max(deepest, depth)
    return deepest


def fields_of(body: Mapping[str, Any], kind: type[Body]) -> Body:
    """Returns the fields of a body that are read here, in their types.

    Raises:
      ApiError: a field is missing, unknown where all are known, or of another type.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        said, _, path = _first_line(error).partition(" - at ")
        field = path.strip("`").removeprefix("$").removeprefix(".")
        raise invalid(f"{field or 'the body'}: {said[0].lower()}{said[1:]}", field.split(".")[0] or None) from None


def chat_asked(raw: bytes, settings: Settings, kind_of: KindOf) -> Asked:
    """Reads the body of a chat completion.

    Raises:
      ApiError: it cannot be carried out as it is.
    """
    body = parsed_json(raw)
    given = fields_of(body, ChatBody)
    require_model(given.model, settings)
    try:
        refuse_unsupported(body, {*OPENAI_NAMES, *ChatBody.__struct_fields__})
        options = from_openai(body)
    except ValueError as error:
        raise invalid(str(error), _named_field(str(error), body), "unsupported_parameter") from None
    count = given.n or 1
    _at_most("n", count, settings.max_answers)
    _at_most("stop", len(options.get("stop_strings", ())), settings.max_stops, "strings")
    _at_most("logit_bias", len(options.get("logit_bias") or ()), settings.max_logit_bias, "tokens")
    if given.top_logprobs and not given.logprobs:
        raise invalid("top_logprobs: expected logprobs: true with it", "top_logprobs")
    seed = options.pop("seed", None)
    first = random.getrandbits(32) if seed is None else seed
    one = Request(
        id="",
        conversation=conversation(given.messages, kind_of),
        cut_to_fit="max_new_tokens" not in options,
        max_new_tokens=options.pop("max_new_tokens", settings.longest_answer),
        frame_sampling=frame_rule(given.media_io_kwargs, given.mm_processor_kwargs, settings),
        options=options,
        logprobs=(given.top_logprobs or 0) if given.logprobs else None,
    )
    requests = tuple(
        dataclasses.replace(one, id=str(i), seed=(first + i + 2**63) % 2**64 - 2**63) for i in range(count)
    )
    usage = given.stream_options is not None and bool(given.stream_options.include_usage)
    if given.stream_options is not None and not given.stream:
        raise invalid("stream_options: expected stream: true with it", "stream_options")
    return Asked(requests, bool(given.stream), usage)


def score_asked(raw: bytes, settings: Settings, kind_of: KindOf) -> Request:
    """Reads the body of a score.

    Raises:
      ApiError: it cannot be carried out as it is.
    """
    given = fields_of(parsed_json(raw), ScoreBody)
    require_model(given.model, settings)
    if not given.choices:
        raise invalid("choices: expected at least one, got none", "choices")
    _at_most("choices", len(given.choices), settings.max_choices)
    return Request(
        id="score",
        conversation=conversation(given.messages, kind_of),
        frame_sampling=frame_rule(given.media_io_kwargs, given.mm_processor_kwargs, settings),
        choices=tuple(given.choices),
    )


def require_model(name: str | None, settings: Settings) -> None:
    """Raises an ApiError for another model than the one that is served; None is that one."""
    if name is not None and name != settings.model:
        raise ApiError(
            404,
            f"the model {short(name)!r} does not exist here: expected {settings.model!r}",
            param="model",
            code="model_not_found",
        )


def conversation(messages: list[dict[str, Any]], kind_of: KindOf) -> list[Mapping[str, Any]]:
    """Returns messages for the engine, checked whole: a part that is not understood is never left out.

    Args:
      messages: OpenAI's; a part of type "file" becomes a part of the file's kind.
      kind_of: returns whether an uploaded file is an image or a video, by its id.

    Raises:
      ApiError: a message or a part is malformed, or names no file.
    """
    try:
        found = [
            {**message, "content": [_without_file(part, kind_of) for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else message
            for message in conversation_of(messages, "messages")
        ]
        turns = parse_conversation(found)
    except ValueError as error:
        raise invalid(str(error), "messages") from None
    for turn in turns:
        for medium in turn.media:
            if not isinstance(medium.source, str):
                raise invalid(
                    f"a part of type {medium.kind!r}: expected a URL, got {described(medium.source)}", "messages"
                )
    return found


def _without_file(part: Any, kind_of: KindOf) -> Any:
    """Returns a part; instead of OpenAI's type "file" one of type "image_url" or "video_url"."""
    if not isinstance(part, Mapping) or part.get("type") != "file":
        return part
    file = part.get("file")
    file = file if isinstance(file, Mapping) else {}
    name, data = file.get("file_id"), file.get("file_data")
    if isinstance(name, str) and data is None:
        kind, url = kind_of(name), UPLOADED + name
    elif isinstance(data, str) and name is None and data[:11].lower() in ("data:image/", "data:video/"):
        kind, url = ("image" if data[5:10].lower() == "image" else "video"), data
    else:
        raise ValueError(
            "a part of type 'file': expected {'file_id': …} of an uploaded file, or {'file_data': 'data:video/…'}"
        )
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


# ── frames ──

_RULE = ("num_frames", "fps")
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {"do_sample_frames": (True,)}


def frame_rule(
    by_loading: Mapping[str, Any] | None, by_processor: Mapping[str, Any] | None, settings: Settings
) -> FrameSampling | int | None:
    """Returns which frames of videos a request asks for, in either of vLLM's spellings; None for the server's own.

    Args:
      by_loading: `media_io_kwargs`, `{"video": {"num_frames": …, "fps": …}}`.
      by_processor: `mm_processor_kwargs`, `{"num_frames": …, "fps": …}`.

    Raises:
      ApiError: an unknown key, a number out of range, or two spellings that differ.
    """
    asked: dict[str, float] = {}
    loading = dict(by_loading or {})
    video = loading.pop("video", None)
    for kind, given in loading.items():
        if given:  # `{"image": {}}` asks for nothing
            raise invalid(f"media_io_kwargs.{short(kind)}: expected 'video' alone", "media_io_kwargs")
    if not isinstance(video, Mapping | None):
        raise invalid(f"media_io_kwargs.video: expected an object, got {described(video)}", "media_io_kwargs")
    for where, param, given in (
        ("media_io_kwargs.video", "media_io_kwargs", video),
        ("mm_processor_kwargs", "mm_processor_kwargs", by_processor),
    ):
        for key, value in (given or {}).items():
            if value is None or value in _WITHOUT_EFFECT.get(key, ()):
                continue
            if key not in _RULE:
                raise invalid(f"{where}.{short(key)} is not known: expected {' or '.join(_RULE)}", param)
            number = _frame_number(f"{where}.{key}", param, key, value)
            if asked.setdefault(key, number) != number:
                raise invalid(f"{where}.{key} is {number:g}, and {asked[key]:g} in the other place", param)
    count = asked.get("num_frames")
    if count is not None and count > settings.max_frames:
        raise invalid(
            f"num_frames: {count:g} frames do not fit the server's longest prompt: expected at most "
            f"{settings.max_frames}",
            "media_io_kwargs" if video else "mm_processor_kwargs",
            "too_long",
        )
    if "fps" in asked:
        most = int(count or settings.max_frames)
        window = settings.frame_window
        return Fps(asked["fps"], max_frames=max(most // window, 1) * window, multiple_of=window)
    return int(count) if count is not None else settings.frame_sampling


def _frame_number(where: str, param: str, key: str, value: Any) -> float:
    whole = key == "num_frames"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value <= 1e6:
        kind = "a whole number" if whole else "a number"
        raise invalid(f"{where}: expected {kind} above 0, at most 1000000, got {described(value)}", param)
    return value


# ── checks ──


def _at_most(name: str, count: int, most: int, what: str = "") -> None:
    if count > most:
        raise invalid(f"{name}: expected at most {most}{what and f' {what}'}, got {count}", name)


def _named_field(message: str, body: Mapping[str, Any]) -> str | None:
    """The field of a body that a message begins with."""
    return next((key for key in body if message.startswith((f"{key}:", f"{key} "))), None)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:300]
