"""Prompts: templates, conversations, and how the one writes the other. No JAX in here.

conversation ──parse──▶ turns ──render──▶ pieces ──encode──▶ segments (see `segments.py`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from videollava_jax.processing.segments import MEDIA_TOKENS, Answer, EndOfAnswer, Media, MediaKind, Piece

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a conversation is written as one prompt.

        {system}{system_end}USER: {<image>\\n}{<video>\\n}{text}{user_end}ASSISTANT: {answer}{answer_end}…

    A turn's images come first, then its videos, then its texts joined by a space, whatever their order in the
    message: both the authors' training code and transformers' chat templates move media to the front.

    Attributes:
        name: the name users choose it by.
        system: the system prompt of a conversation that brings none; empty for no system prompt.
        system_end: what follows a system prompt.
        user, assistant: what opens a turn. A generation prompt is `assistant` alone.
        media_end: what follows each media placeholder.
        user_end: what follows the text of a user's turn.
        media_only_end: the same for a turn that is media without text.
        answer_end: text after an answer; not part of the answer.
        answer_eos: whether `</s>` ends an answer; part of the answer, for the model has to learn it.
    """

    name: str
    system: str = ""
    system_end: str = " "
    user: str = "USER: "
    assistant: str = "ASSISTANT:"
    media_end: str = "\n"
    user_end: str = " "
    media_only_end: str = " "
    answer_end: str = ""
    answer_eos: bool = True

    def to_jinja(self) -> str:
        """The same template for transformers' `apply_chat_template` (`chat_template.jinja`)."""
        eos = " + eos_token" if self.answer_eos else ""
        default_system = (
            f"{{% if messages[0]['role'] != 'system' %}}{{{{ {_quote(self.system + self.system_end)} }}}}{{% endif %}}"
            if self.system
            else ""
        )
        user_end = f"({_quote(self.user_end)} if texts else {_quote(self.media_only_end)})"
        texts = "message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | list"
        return (
            f"{default_system}"
            "{% for message in messages %}"
            "{% if message['content'] is string %}{% set texts = [message['content']] %}"
            f"{{% else %}}{{% set texts = {texts} %}}{{% endif %}}"
            "{% if message['role'] == 'system' %}"
            f"{{{{ texts | join(' ') + {_quote(self.system_end)} }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {_quote(self.assistant + ' ')} + texts | join(' ') + {_quote(self.answer_end)}{eos} }}}}"
            "{% else %}"
            f"{{{{ {_quote(self.user)} }}}}"
            + "".join(self._media_jinja(kind) for kind in MEDIA_TOKENS)
            + f"{{{{ texts | join(' ') + {user_end} }}}}"
            "{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {_quote(self.assistant)} }}}}{{% endif %}}"
        )

    def _media_jinja(self, kind: MediaKind) -> str:
        return (
            "{% if message['content'] is not string %}"
            f"{{% for part in message['content'] | selectattr('type', 'equalto', '{kind}') %}}"
            f"{{{{ {_quote(MEDIA_TOKENS[kind] + self.media_end)} }}}}{{% endfor %}}{{% endif %}}"
        )


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# `hf`: as transformers' documentation and chat templates write prompts for the converted checkpoints. No
#   system prompt, no `</s>`: earlier answers end in a space.
# `vicuna_v1`: what the authors trained with (conversation style "v1": separators " " and "</s>").
# `vicuna_v1_no_system`: the same without a system prompt. For one question it is `hf` to the letter, and its
#   answers end in `</s>`: the one to fine-tune a converted checkpoint with.
TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(name="hf", media_only_end="", answer_end=" ", answer_eos=False),
        PromptTemplate(name="vicuna_v1", system=_VICUNA_SYSTEM),
        PromptTemplate(name="vicuna_v1_no_system"),
    )
}


def get_template(template: str | PromptTemplate) -> PromptTemplate:
    """The template of that name; a template is returned as it is.

    Raises:
        ValueError: no such name; the message lists the names there are.
    """
    if isinstance(template, PromptTemplate):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"unknown prompt template {template!r}; expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation, checked: its texts in order, and its media, images first."""

    role: Role
    texts: tuple[str, ...]
    media: tuple[Media, ...] = ()


def parse_conversation(conversation: Iterable[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Checks a conversation in the style of transformers and OpenAI.

    Args:
        conversation: messages `{"role": "system" | "user" | "assistant", "content": …}`. The content is a
            string or a list of parts: `{"type": "text", "text": …}`, `{"type": "image", "image": …}` (or
            "path", or "url"), the same for "video", or OpenAI's "image_url" and "video_url" parts. A media
            part may leave its source out when the media are given elsewhere.

    Raises:
        ValueError: anything else, saying which message and part. Roles alternate between user and assistant
            and begin with the user, after one optional system message; media belong to the user's turns.
    """
    if isinstance(conversation, (str, Mapping)) or not isinstance(conversation, Iterable):
        raise ValueError(f"expected a conversation, a list of messages; got a {type(conversation).__name__}")
    turns = tuple(_parse_message(message, f"message {i}") for i, message in enumerate(conversation))
    if not turns:
        raise ValueError("expected a conversation of at least one message, got none")
    _check_order(turns)
    return turns


def _check_order(turns: Sequence[Turn]) -> None:
    start = int(turns[0].role == "system")
    if start == len(turns):
        raise ValueError("message 0 is a system prompt and nothing follows it; expected a user's message")
    for i, turn in enumerate(turns[start:], start):
        expected = "user" if (i - start) % 2 == 0 else "assistant"
        if turn.role != expected:
            raise ValueError(
                f"message {i}: expected role {expected!r}, got {turn.role!r}; user and assistant take turns, "
                "after at most one system message at the start"
            )


def _parse_message(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: expected a dict with 'role' and 'content', got a {type(message).__name__}")
    role = message.get("role")
    if role not in get_args(Role):
        raise ValueError(f"{where}: expected role 'system', 'user' or 'assistant', got {role!r}")
    where = f"{where} ({role})"
    content = message.get("content")
    if isinstance(content, str):
        parts: list[str | Media] = [content]
    elif isinstance(content, (list, tuple)):
        parts = [_parse_part(part, f"{where}, part {i}") for i, part in enumerate(content)]
    else:
        raise ValueError(f"{where}: expected content as a string or a list of parts, got {_kind_of(content)}")
    texts = tuple(part for part in parts if isinstance(part, str))
    media = [part for part in parts if isinstance(part, Media)]
    if media and role != "user":
        raise ValueError(f"{where}: holds a {media[0].kind}; expected media in the user's messages only")
    if not media and not any(texts) and role != "assistant":  # a model may answer with nothing
        raise ValueError(f"{where}: the content is empty; expected text" + (" or media" if role == "user" else ""))
    ordered = [m for m in media if m.kind == "image"] + [m for m in media if m.kind == "video"]
    return Turn(cast(Role, role), texts, tuple(ordered))


def _parse_part(part: Any, where: str) -> str | Media:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: expected a dict with a 'type', got {_kind_of(part)}")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{where}: expected a string under 'text', got {_kind_of(text)}")
        return text
    if kind in ("image_url", "video_url"):
        value = part.get(kind)
        url = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(url, str):
            raise ValueError(f"{where}: expected {{'url': …}} under {kind!r}, got {_kind_of(url)}")
        return Media("image" if kind == "image_url" else "video", url)
    if kind in MEDIA_TOKENS:
        sources = [part[key] for key in (kind, "path", "url") if part.get(key) is not None]
        if len(sources) > 1:
            raise ValueError(f"{where}: expected one of {kind!r}, 'path' and 'url', got {len(sources)} of them")
        return Media(kind, sources[0] if sources else None)
    raise ValueError(f"{where}: expected type 'text', 'image', 'video', 'image_url' or 'video_url', got {kind!r}")


def _kind_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def render(
    turns: Sequence[Turn], template: str | PromptTemplate, add_generation_prompt: bool = True
) -> tuple[Piece, ...]:
    """Writes checked turns in a template.

    Raises:
        ValueError: a generation prompt after an assistant's message, or an unknown template.
    """
    template = get_template(template)
    if add_generation_prompt and turns[-1].role == "assistant":
        raise ValueError(
            f"message {len(turns) - 1} is already the assistant's; expected the user's to be last, or "
            "add_generation_prompt=False"
        )
    pieces: list[Piece] = []
    if template.system and turns[0].role != "system":
        pieces.append(template.system + template.system_end)
    for turn in turns:
        pieces += _render_turn(turn, template)
    if add_generation_prompt:
        pieces.append(template.assistant)
    return tuple(pieces)


def _render_turn(turn: Turn, template: PromptTemplate) -> list[Piece]:
    text = " ".join(turn.texts)
    if turn.role == "system":
        return [text + template.system_end]
    if turn.role == "assistant":
        # The space belongs to the answer: Llama's first word of an answer is one piece with it.
        end: list[Piece] = [EndOfAnswer()] if template.answer_eos else []
        return [template.assistant, Answer(f" {text}"), template.answer_end, *end]
    media = [piece for medium in turn.media for piece in (medium, template.media_end)]
    return [template.user, *media, text + (template.user_end if turn.texts else template.media_only_end)]


def to_string(pieces: Iterable[Piece], eos_token: str = "</s>") -> str:
    """The prompt as one string, media as `<image>` and `<video>`: what transformers' chat template renders.

    A string cannot tell a placeholder from the same characters typed by a user; the pieces can.
    """
    return "".join(
        piece
        if isinstance(piece, str)
        else piece.text
        if isinstance(piece, Answer)
        else eos_token
        if isinstance(piece, EndOfAnswer)
        else MEDIA_TOKENS[piece.kind]
        for piece in pieces
    )
