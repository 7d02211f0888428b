"""Templates and conversations, against transformers' chat templates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processing.drawn_conversations import (
    IMAGE,
    VIDEO,
    any_text,
    assistant,
    conversations,
    part_of,
    template_names,
    user,
)
from videollava_jax.processing.prompt import (
    TEMPLATES,
    PromptTemplate,
    Turn,
    get_template,
    parse_conversation,
    render,
    to_string,
)

# How the llava-hf family writes Vicuna prompts for transformers, with videos after images.
HF_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


# ── templates ──


def test_documented_prompts() -> None:
    one = [user(VIDEO, "Why is this funny?")]
    three = [*one, assistant("A baby."), user("And why?")]
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    question = "USER: <video>\nWhy is this funny? ASSISTANT:"

    def prompt(conversation: list[dict[str, Any]], template: str) -> str:
        return to_string(render(parse_conversation(conversation), template))

    assert prompt(one, "hf") == question
    assert prompt(one, "vicuna_v1") == system + question
    assert prompt(one, "vicuna_v1_no_system") == question
    assert prompt(three, "hf") == question + " A baby. USER: And why? ASSISTANT:"
    assert prompt(three, "vicuna_v1") == system + question + " A baby.</s>USER: And why? ASSISTANT:"


def test_a_conversations_own_system_prompt_replaces_the_templates() -> None:
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for name in TEMPLATES:
        expected = "Be brief.###Human: Hi###Assistant:" if name == "llava_v0" else "Be brief. USER: Hi ASSISTANT:"
        assert to_string(render(parse_conversation(conversation), name)) == expected


def test_an_unknown_template_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"'v2'; expected one of hf, vicuna_v1, vicuna_v1_no_system"):
        get_template("v2")
    own = PromptTemplate(name="own")
    assert get_template(own) is own


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(any_text))
def test_hf_is_what_the_family_chat_template_renders(tokenizer: Any, conversation: list[dict[str, Any]]) -> None:
    pytest.importorskip("jinja2")
    expected = tokenizer.apply_chat_template(
        conversation, chat_template=HF_CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert to_string(render(parse_conversation(conversation), "hf")) == expected


@settings(max_examples=60, deadline=None)
@given(
    conversation=conversations(any_text),
    name=template_names,
    generate=st.booleans(),
    media_order=st.sampled_from(["first", "text"]),
    repeat_end=st.booleans(),
)
def test_to_jinja_renders_the_same_in_transformers(
    tokenizer: Any, conversation: list[dict[str, Any]], name: str, generate: bool, media_order: Any, repeat_end: bool
) -> None:
    pytest.importorskip("jinja2")
    template = TEMPLATES[name]
    jinja = template.to_jinja(media_order, repeat_end)
    expected = tokenizer.apply_chat_template(
        conversation, chat_template=jinja, add_generation_prompt=generate, tokenize=False
    )
    turns = parse_conversation(conversation)
    got = render(turns, template, generate, media_order=media_order, repeat_end=repeat_end)
    assert to_string(got) == expected


@pytest.mark.parametrize(
    ("parts", "first", "in_order"),
    [
        ((VIDEO, IMAGE, "Q"), "<image>\n<video>\nQ", "<video><image>\nQ"),
        (("Q", IMAGE), "<image>\nQ", "Q\n<image>"),
        (("A", IMAGE, IMAGE, "B", "C"), "<image>\n<image>\nA B C", "A\n<image><image>\nB C"),
        ((IMAGE,), "<image>\n", "<image>\n"),
        (("A", "B"), "A B", "A B"),
    ],
)
def test_where_media_stand(parts: Any, first: str, in_order: str) -> None:
    turns = parse_conversation([user(*parts)])
    for order, expected in (("first", first), ("text", in_order)):
        got = to_string(render(turns, "vicuna_v1_no_system", media_order=order))  # type: ignore[arg-type]
        assert got == f"USER: {expected} ASSISTANT:"


def test_verbatim_texts_are_not_joined() -> None:
    turn = Turn("user", ("  A\n", IMAGE, " B ", VIDEO), verbatim=True)
    as_given = to_string(render([turn], "vicuna_v1_no_system", media_order="text"))
    assert as_given == "USER:   A\n<image> B <video> ASSISTANT:"
    assert to_string(render([turn], "hf")) == "USER: <image>\n<video>\nA\n B ASSISTANT:"


def test_earlier_answers_keep_the_models_end_where_a_preset_says_so() -> None:
    turns = parse_conversation([user("x"), assistant("y"), user("z")])
    for template, said in (("vicuna_v1_no_system", "y</s></s>USER: z"), ("llava_v0", "y</s>###Human: z")):
        assert said in to_string(render(turns, template, repeat_end=True))
        assert said.replace("</s>", "", 1) in to_string(render(turns, template))
    learnt = to_string(render(turns[:2], "vicuna_v1_no_system", False, repeat_end=True))
    assert learnt == "USER: x ASSISTANT: y</s>"


def test_to_jinja_takes_strings_as_content(tokenizer: Any) -> None:
    pytest.importorskip("jinja2")
    conversation = [{"role": "user", "content": "Hi"}]
    got = tokenizer.apply_chat_template(
        conversation, chat_template=TEMPLATES["hf"].to_jinja(), add_generation_prompt=True, tokenize=False
    )
    assert got == "USER: Hi ASSISTANT:"


# ── conversations ──


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("hello", "expected a conversation, a list of messages; got a str"),
        ([], "at least one message"),
        (["hello"], "message 0: expected a dict"),
        ([{"role": "human", "content": "x"}], "message 0: expected role .* got 'human'"),
        ([{"role": "user", "content": None}], r"message 0 \(user\): expected content .* got nothing"),
        (
            [{"role": "user", "content": ""}],
            r"message 0 \(user\): the content is empty; expected text or media",
        ),
        ([{"role": "user", "content": ["x"]}], r"message 0 \(user\), part 0: expected a dict"),
        ([{"role": "user", "content": [{"type": "audio"}]}], r"part 0: expected type .* got 'audio'"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"part 0: expected a string under 'text'"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": 3}]}], "expected {'url'"),
        (
            [{"role": "user", "content": [{"type": "image", "path": "a", "url": "b"}]}],
            "expected one of 'image'",
        ),
        ([assistant("x")], "message 0: expected role 'user', got 'assistant'"),
        ([user("x"), user("y")], "message 1: expected role 'assistant', got 'user'"),
        (
            [user("x"), {"role": "system", "content": "y"}],
            "message 1: expected role 'assistant', got 'system'",
        ),
        ([{"role": "system", "content": "y"}], "message 0 is a system prompt and nothing follows"),
        (
            [user("x"), {"role": "assistant", "content": [part_of(IMAGE)]}],
            r"message 1 \(assistant\): holds a image",
        ),
        (
            [{"role": "system", "content": ""}, user("x")],
            r"message 0 \(system\): the content is empty; expected text$",
        ),
    ],
)
def test_a_conversation_that_cannot_be_read_says_where(conversation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_conversation(conversation)


def test_media_sources_in_every_spelling() -> None:
    content = [
        {"type": "video", "video": "a.mp4"},
        {"type": "text", "text": "then"},
        {"type": "image", "path": "b.png"},
        {"type": "video_url", "video_url": {"url": "c.mp4"}},
        {"type": "image_url", "image_url": "d.png"},
        {"type": "video"},
    ]
    (turn,) = parse_conversation([{"role": "user", "content": content}])
    assert turn.texts == ("then",)
    assert [(m.kind, m.source) for m in turn.media] == [
        ("video", "a.mp4"),
        ("image", "b.png"),
        ("video", "c.mp4"),
        ("image", "d.png"),
        ("video", None),
    ]


def test_no_generation_prompt_after_an_answer() -> None:
    turns = parse_conversation([user("x"), assistant("y")])
    with pytest.raises(ValueError, match="message 1 is already the assistant's"):
        render(turns, "hf")
    assert to_string(render(turns, "vicuna_v1_no_system", add_generation_prompt=False)) == ("USER: x ASSISTANT: y</s>")


def test_an_answer_may_be_empty() -> None:
    """A model may end its answer at once, and the conversation can go on."""
    turns = parse_conversation([user("x"), assistant(""), user("y")])
    assert to_string(render(turns, "vicuna_v1_no_system")) == "USER: x ASSISTANT: </s>USER: y ASSISTANT:"
