"""Parses conversations and renders them as prompts by templates. No JAX.

conversation ──parse──▶ turns ──render──▶ pieces ──encode──▶ segments (see `segments.py`)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from videollava_jax.processing.segments import MEDIA_TOKENS, Answer, EndOfAnswer, Media, MediaKind, Piece

Role = Literal["system", "user", "assistant"]
MediaOrder = Literal["first", "text"]
"""Where the media of a turn stand: before its text, images and then videos; or where its text has them."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    r"""How a conversation is written as one prompt.

        {system}{system_end}USER: {<image>\n}{<video>\n}{text}{user_end}ASSISTANT: {answer}{answer_end}…

    With the media order "first" the media of a turn come first, its images and then its videos, each with a newline
    after it, and then the texts joined by spaces: transformers' chat templates move media to the front. With "text"
    they stay where the turn has them, and a newline divides each run of media from text, as the authors write it.

    Attributes:
        name: the name by which users choose it.
        system: the system prompt for conversations without one; empty for none.
        system_end: the text after a system prompt.
        user, assistant: the text that opens a turn. A generation prompt is `assistant` alone.
        media_end: the text after a media placeholder.
        frame_join: the text between the frames of a video; empty for none.
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
    frame_join: str = ""
    user_end: str = " "
    media_only_end: str = " "
    answer_end: str = ""
    answer_eos: bool = True

    def to_jinja(self, media_order: MediaOrder = "first", repeat_end: bool = False) -> str:
        """Returns this template in Jinja, for transformers' `apply_chat_template` (`chat_template.jinja`).

        Args:
            media_order, repeat_end: as in `render`.
        """
        eos = " + eos_token" if self.answer_eos else ""
        own_end = "(eos_token if add_generation_prompt else '') + " if repeat_end else ""
        default_system = (
            f"{{% if messages[0]['role'] != 'system' %}}{{{{ {_quote(self.system + self.system_end)} }}}}{{% endif %}}"
            if self.system
            else ""
        )
        user_end = f"({_quote(self.user_end)} if texts else {_quote(self.media_only_end)})"
        texts = "message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | list"
        if media_order == "first":
            content = "".join(self._media_jinja(kind) for kind in MEDIA_TOKENS) + "{{ texts | join(' ') + "
        else:
            content = self._content_jinja() + "{{ "
        return (
            f"{default_system}"
            "{% for message in messages %}"
            "{% if message['content'] is string %}{% set texts = [message['content']] %}"
            f"{{% else %}}{{% set texts = {texts} %}}{{% endif %}}"
            "{% if message['role'] == 'system' %}"
            f"{{{{ texts | join(' ') + {_quote(self.system_end)} }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {_quote(self.assistant + ' ')} + texts | join(' ') + {own_end}{_quote(self.answer_end)}{eos} }}}}"
            "{% else %}"
            f"{{{{ {_quote(self.user)} }}}}{content}{user_end} }}}}"
            "{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {_quote(self.assistant)} }}}}{{% endif %}}"
        )

    def _media_jinja(self, kind: MediaKind) -> str:
        return (
            "{% if message['content'] is not string %}"
            f"{{% for part in message['content'] | selectattr('type', 'equalto', '{kind}') %}}"
            f"{{{{ {_quote(MEDIA_TOKENS[kind] + self.media_end)} }}}}{{% endfor %}}{{% endif %}}"
        )

    def _content_jinja(self) -> str:
        """The parts of a turn in their order; `seen` has whether the one before was text."""
        media = "".join(
            f"{{% elif part['type'] == '{kind}' %}}"
            f"{{{{ ({_quote(self.media_end)} if seen.text == 'yes' else '') + {_quote(token)} }}}}"
            "{% set seen.text = 'no' %}"
            for kind, token in MEDIA_TOKENS.items()
        )
        return (
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% set seen = namespace(text='') %}{% for part in message['content'] %}"
            "{% if part['type'] == 'text' %}"
            f"{{{{ {{'yes': ' ', 'no': {_quote(self.media_end)}, '': ''}}[seen.text] + part['text'] }}}}"
            f"{{% set seen.text = 'yes' %}}{media}{{% endif %}}{{% endfor %}}"
            f"{{% if not texts %}}{{{{ {_quote(self.media_end)} }}}}{{% endif %}}{{% endif %}}"
        )


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _system(who: str) -> str:
    return (
        f"A chat between a curious {who} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
    )


# `hf`: the prompts of transformers' documentation and chat templates for the converted checkpoints. No system prompt
#   and no `</s>`: earlier answers end in a space.
# `vicuna_v1`: the prompts that the authors trained with (their conversation style "v1": separators " " and "</s>").
# `vicuna_v1_no_system`: the same without a system prompt. One question is written exactly as by `hf`, but answers end
#   in `</s>`, so this is the template for fine-tuning a converted checkpoint.
# `llava_v1`: the authors' style of that name, which their benchmarks of videos use: "human" instead of "user".
# `llava_v1_spaced`: the same with a space between the frames of a video, as the snippet of their README joins them.
# `llava_v0`: the default of their command line.
_HUMAN = _system("human")
TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(name="hf", media_only_end="", answer_end=" ", answer_eos=False),
        PromptTemplate(name="vicuna_v1", system=_system("user")),
        PromptTemplate(name="vicuna_v1_no_system"),
        PromptTemplate(name="llava_v1", system=_HUMAN),
        PromptTemplate(name="llava_v1_spaced", system=_HUMAN, frame_join=" "),
        PromptTemplate(
            name="llava_v0",
            system=_HUMAN,
            system_end="###",
            user="Human: ",
            assistant="Assistant:",
            user_end="###",
            media_only_end="###",
            answer_end="###",
            answer_eos=False,
        ),
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
    """A checked message of a conversation.

    Attributes:
        role: who says it.
        content: its texts and media, in their order.
        verbatim: whether the texts hold all that stands between the media, as those of training data do; else they are
            parts, and the template joins them.
    """

    role: Role
    content: tuple[str | Media, ...]
    verbatim: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, in their order."""
        return tuple(part for part in self.content if isinstance(part, str))

    @property
    def media(self) -> tuple[Media, ...]:
        """The media, in their order."""
        return tuple(part for part in self.content if isinstance(part, Media))


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
    turn = Turn(cast(Role, role), tuple(parts))
    if turn.media and role != "user":
        raise ValueError(f"{where}: holds a {turn.media[0].kind}; expected media in the user's messages only")
    if not turn.media and not any(turn.texts) and role != "assistant":  # a model may answer with nothing
        raise ValueError(f"{where}: the content is empty; expected text" + (" or media" if role == "user" else ""))
    return turn


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
    given: Iterable[Any], write: Callable[[Sequence[Turn]], tuple[Piece, ...]]
) -> tuple[list[tuple[Piece, ...]], bool]:
    """Parses and renders a conversation or a list of them; also returns whether it is a list of them.

    Args:
        given: a conversation, or a list of them.
        write: renders checked turns (see `render`).

    Raises:
        ValueError: as `parse_conversation` and `render`; of several conversations the message says which.
    """
    batched = isinstance(given, Sequence) and bool(given) and _is_conversation(given[0])
    prompts = []
    for i, conversation in enumerate(given if batched else [given]):
        try:
            prompts.append(write(parse_conversation(conversation)))
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
    *,
    media_order: MediaOrder = "first",
    repeat_end: bool = False,
) -> tuple[Piece, ...]:
    """Writes checked turns with a template, as pieces (see `segments`).

    Args:
        turns: of one conversation.
        template: or its name.
        add_generation_prompt: whether to open the assistant's next turn.
        continue_final_message: whether to leave the last message, the assistant's, open for more of it.
        media_order: where media stand in a turn.
        repeat_end: whether earlier answers keep the `</s>` with which the model ended them, before the template's own
            end: where a generation prompt is asked for, `</s></s>`.

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
        pieces += _render_turn(turn, template, media_order, own_end=repeat_end and add_generation_prompt)
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


def _render_turn(turn: Turn, template: PromptTemplate, media_order: MediaOrder, own_end: bool) -> list[Piece]:
    if turn.role == "system":
        return [" ".join(turn.texts) + template.system_end]
    if turn.role == "assistant":
        # The space belongs to the answer, as Llama's tokenizer joins it with the first word.
        own: list[Piece] = [EndOfAnswer()] if own_end else []
        end: list[Piece] = [EndOfAnswer()] if template.answer_eos else []
        return [template.assistant, Answer(f" {' '.join(turn.texts)}"), *own, template.answer_end, *end]
    content = _media_first(turn, template) if media_order == "first" else _in_order(turn, template)
    has_text = bool("".join(turn.texts).strip()) if turn.verbatim else bool(turn.texts)
    return [
        template.user,
        *(_with_join(part, template.frame_join) for part in content),
        template.user_end if has_text else template.media_only_end,
    ]


def _with_join(part: str | Media, join: str) -> str | Media:
    return replace(part, frame_join=join) if isinstance(part, Media) and part.kind == "video" else part


def _media_first(turn: Turn, template: PromptTemplate) -> list[str | Media]:
    """The media, a newline after each, and then the texts."""
    media, text = turn.media, " ".join(turn.texts)
    if turn.verbatim:
        text = "".join(turn.texts).strip()
    else:
        media = tuple(medium for kind in MEDIA_TOKENS for medium in media if medium.kind == kind)
    return [*(piece for medium in media for piece in (medium, template.media_end)), text]


def _in_order(turn: Turn, template: PromptTemplate) -> list[str | Media]:
    """Texts and media as the turn has them, a newline between a run of media and text."""
    if turn.verbatim:
        return list(turn.content)
    pieces: list[str | Media] = []
    for before, part in zip((None, *turn.content), turn.content, strict=False):
        if before is not None and isinstance(before, str) != isinstance(part, str):
            pieces.append(template.media_end)
        elif isinstance(before, str):
            pieces.append(" ")
        pieces.append(part)
    return pieces if turn.texts else [*pieces, template.media_end]


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
