"""Parses conversations and renders them as prompts by templates. No JAX.

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
    r"""How a conversation is written as one prompt.

        {system}{system_end}USER: {<image>\n}{<video>\n}{text}{user_end}ASSISTANT: {answer}{answer_end}…

    In each turn the media come first, then the texts joined by spaces, because transformers' chat templates move media
    to the front. Those of a conversation are its images and then its videos (`parse_conversation`), as there too.

    Attributes:
        name: the name by which users choose it.
        system: the system prompt for conversations without one; empty for none.
        system_end: the text after a system prompt.
        user, assistant: the text that opens a turn. A generation prompt is `assistant` alone.
        media_end: the text after each media placeholder.
        user_end: the text after a user's turn.
        media_only_end: the text after a user's turn that has media but no text.
        answer_end: text after an answer; not part of the answer.
        answer_eos: whether `</s>` ends an answer. It is part of the answer, as the model must learn to produce it.
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
        """Returns this template in Jinja, for transformers' `apply_chat_template` (`chat_template.jinja`)."""
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

# `hf`: the prompts of transformers' documentation and chat templates for the converted checkpoints. No system prompt
#   and no `</s>`: earlier answers end in a space.
# `vicuna_v1`: the prompts that the authors trained with (conversation style "v1": separators " " and "</s>").
# `vicuna_v1_no_system`: the same without a system prompt. One question is written exactly as by `hf`, but answers end
#   in `</s>`, so this is the template for fine-tuning a converted checkpoint.
TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(name="hf", media_only_end="", answer_end=" ", answer_eos=False),
        PromptTemplate(name="vicuna_v1", system=_VICUNA_SYSTEM),
        PromptTemplate(name="vicuna_v1_no_system"),
    )
}


def get_template(template: str | PromptTemplate) -> PromptTemplate:
    """Returns the template of a name; a template is returned unchanged.

    Raises:
        ValueError: the name is unknown; the message lists all names.
    """
    if isinstance(template, PromptTemplate):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"unknown prompt template {template!r}; expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


@dataclass(frozen=True)
class Turn:
    """A checked message of a conversation: its texts and its media, each in their order in the prompt."""

    role: Role
    texts: tuple[str, ...]
    media: tuple[Media, ...] = ()


def parse_conversation(conversation: Iterable[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Checks a conversation in the format of transformers and OpenAI.

    Args:
        conversation: messages `{"role": "system" | "user" | "assistant", "content": …}`. The content is a string or a
            list of parts: `{"type": "text", "text": …}`, `{"type": "image", "image": …}` (or "path", or "url"), the
            same for "video", or OpenAI's "image_url" and "video_url" parts. A media part needs no source if the media
            are given elsewhere.

    Raises:
        ValueError: the conversation is malformed; the message says which message and part. After an optional system
            message the roles must alternate between user and assistant, beginning with the user, and only the user's
            messages may have media.
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
        raise ValueError(f"{where}: expected role 'system', 'user' or 'assistant', got {_shortened(role)}")
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
    if isinstance(kind, str) and kind in MEDIA_TOKENS:
        sources = [part[key] for key in (kind, "path", "url") if part.get(key) is not None]
        if len(sources) > 1:
            raise ValueError(f"{where}: expected one of {kind!r}, 'path' and 'url', got {len(sources)} of them")
        return Media(kind, sources[0] if sources else None)
    expected = "'text', 'image', 'video', 'image_url' or 'video_url'"
    raise ValueError(f"{where}: expected type {expected}, got {_shortened(kind)}")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _kind_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def render_conversations(
    given: Iterable[Any], template: str | PromptTemplate, add_generation_prompt: bool, continue_final_message: bool
) -> tuple[list[tuple[Piece, ...]], bool]:
    """Parses and renders a conversation or a list of them; also returns whether it is a list of them.

    Raises:
        ValueError: as `parse_conversation` and `render`; of several conversations the message says which.
    """
    batched = isinstance(given, Sequence) and bool(given) and _is_conversation(given[0])
    prompts = []
    for i, conversation in enumerate(given if batched else [given]):
        try:
            turns = parse_conversation(conversation)
            prompts.append(render(turns, template, add_generation_prompt, continue_final_message))
        except ValueError as error:
            raise ValueError(f"conversation {i}: {error}" if batched else str(error)) from None
    return prompts, batched


def _is_conversation(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def render(
    turns: Sequence[Turn],
    template: str | PromptTemplate,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> tuple[Piece, ...]:
    """Writes checked turns with a template, as pieces (see `segments`).

    Args:
        turns: of one conversation.
        template: or its name.
        add_generation_prompt: whether to open the assistant's next turn.
        continue_final_message: whether to leave the last message, the assistant's, open for more of it.

    Raises:
        ValueError: a generation prompt is asked for after an assistant's message, or an open end after another's; or
            the template is unknown.
    """
    template = get_template(template)
    if add_generation_prompt and turns[-1].role == "assistant" and not continue_final_message:
        raise ValueError(
            f"message {len(turns) - 1} is already the assistant's; expected the user's to be last, or "
            "add_generation_prompt=False"
        )
    pieces: list[Piece] = []
    if template.system and turns[0].role != "system":
        pieces.append(template.system + template.system_end)
    for turn in turns:
        pieces += _render_turn(turn, template)
    if continue_final_message:
        if turns[-1].role != "assistant" or add_generation_prompt:
            raise ValueError(
                f"continue_final_message: expected the assistant's message to be the last, got the {turns[-1].role}'s"
                + ("; and add_generation_prompt=False" if add_generation_prompt else "")
            )
        del pieces[max(i for i, piece in enumerate(pieces) if isinstance(piece, Answer)) + 1 :]
    if add_generation_prompt:
        pieces.append(template.assistant)
    return tuple(pieces)


def _render_turn(turn: Turn, template: PromptTemplate) -> list[Piece]:
    text = " ".join(turn.texts)
    if turn.role == "system":
        return [text + template.system_end]
    if turn.role == "assistant":
        # The space belongs to the answer, as Llama's tokenizer joins it with the first word.
        end: list[Piece] = [EndOfAnswer()] if template.answer_eos else []
        return [template.assistant, Answer(f" {text}"), template.answer_end, *end]
    media = [piece for medium in turn.media for piece in (medium, template.media_end)]
    return [template.user, *media, text + (template.user_end if turn.texts else template.media_only_end)]


def to_string(pieces: Iterable[Piece], eos_token: str = "</s>") -> str:
    """Returns the prompt as transformers' chat template renders it: one string, with `<image>` and `<video>` for media.

    In a string, unlike in pieces, a placeholder cannot be told from the same characters typed by a user.
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
