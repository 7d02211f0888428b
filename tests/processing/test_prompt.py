"""Templates, conversations and segments, against transformers' tokenizer and templates and SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processing.llama_vocabulary import train_small_model
from videollava_jax.processing.prompt import (
    TEMPLATES,
    PromptTemplate,
    get_template,
    parse_conversation,
    render,
    to_string,
)
from videollava_jax.processing.segments import EndOfAnswer, Media, SegmentEncoder, Segments
from videollava_jax.processing.tokenizer import TokenIds, affixes, load_tokenizer

SPECIALS = ("<video>", "<image>", "<pad>", "</s>", "<s>", "<unk>")

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


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_model(tmp_path_factory.mktemp("vocabulary")).parent


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> SegmentEncoder:
    return SegmentEncoder(tokenizer)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [_part(part) for part in parts]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [_part(text)]}


def _part(part: Any) -> dict[str, Any]:
    return {"type": part.kind} if isinstance(part, Media) else {"type": "text", "text": part}


VIDEO, IMAGE = Media("video"), Media("image")

alphabet = st.one_of(
    st.characters(codec="utf-8", exclude_categories=("Cs",)),
    st.sampled_from(" \n\t:.<>/aeosUSERvd"),
    st.sampled_from("🙂👩‍👩‍👧é日本ß▁"),
)
plain_text = st.text(alphabet, min_size=1, max_size=30).filter(lambda text: not any(s in text for s in SPECIALS))
any_text = st.lists(st.one_of(plain_text, st.sampled_from(SPECIALS)), min_size=1, max_size=5).map("".join)


@st.composite
def conversations(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": [_part(draw(texts))]})
    for i in range(draw(st.integers(1, 3))):
        if i:
            messages.append(assistant(draw(texts)))
        media = draw(st.lists(st.sampled_from([VIDEO, IMAGE]), max_size=2))
        messages.append(user(*media, *draw(st.lists(texts, min_size=0 if media else 1, max_size=2))))
    return messages


template_names = st.sampled_from(sorted(TEMPLATES))


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
        assert to_string(render(parse_conversation(conversation), name)) == "Be brief. USER: Hi ASSISTANT:"


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
@given(conversation=conversations(any_text), name=template_names, generate=st.booleans())
def test_to_jinja_renders_the_same_in_transformers(
    tokenizer: Any, conversation: list[dict[str, Any]], name: str, generate: bool
) -> None:
    pytest.importorskip("jinja2")
    template = TEMPLATES[name]
    expected = tokenizer.apply_chat_template(
        conversation, chat_template=template.to_jinja(), add_generation_prompt=generate, tokenize=False
    )
    assert to_string(render(parse_conversation(conversation), template, generate)) == expected


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
            [user("x"), {"role": "assistant", "content": [_part(IMAGE)]}],
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
        ("image", "b.png"),
        ("image", "d.png"),
        ("video", "a.mp4"),
        ("video", "c.mp4"),
        ("video", None),
    ]


def test_no_generation_prompt_after_an_answer() -> None:
    turns = parse_conversation([user("x"), assistant("y")])
    with pytest.raises(ValueError, match="message 1 is already the assistant's"):
        render(turns, "hf")
    assert to_string(render(turns, "vicuna_v1_no_system", add_generation_prompt=False)) == ("USER: x ASSISTANT: y</s>")


def test_an_answer_may_be_empty() -> None:
    """A model can end at once; the conversation goes on all the same."""
    turns = parse_conversation([user("x"), assistant(""), user("y")])
    assert to_string(render(turns, "vicuna_v1_no_system")) == "USER: x ASSISTANT: </s>USER: y ASSISTANT:"


# ── segments ──


def encode(encoder: SegmentEncoder, conversation: Any, template: str, generate: bool = True) -> Segments:
    return encoder.encode(render(parse_conversation(conversation), template, generate))


@settings(max_examples=150, deadline=None)
@given(conversation=conversations(plain_text), name=template_names)
def test_segments_are_the_ids_of_the_whole_string(
    tokenizer: Any, encoder: SegmentEncoder, conversation: list[dict[str, Any]], name: str
) -> None:
    pieces = render(parse_conversation(conversation), name)
    segments = encoder.encode(pieces)
    expanded = segments.expand([1] * len(segments.media), encoder.media_ids)
    assert expanded.input_ids.tolist() == tokenizer(to_string(pieces))["input_ids"]


@pytest.mark.parametrize("settings_", [{"legacy": True}, {"legacy": False}, {"add_eos_token": True}])
def test_segments_follow_the_tokenizers_own_settings(directory: Path, settings_: dict[str, bool]) -> None:
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(str(directory), add_bos_token=True, **settings_)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    encoder = SegmentEncoder(tokenizer)
    conversation = [user(VIDEO, " two  spaces "), assistant("Yes\n"), user(IMAGE, "why?")]
    pieces = render(parse_conversation(conversation), "vicuna_v1")
    segments = encoder.encode(pieces)
    got = segments.expand([1, 1], encoder.media_ids).input_ids.tolist()
    assert got == tokenizer(to_string(pieces))["input_ids"]


@settings(max_examples=150, deadline=None)
@given(conversation=conversations(any_text), name=template_names)
def test_special_tokens_typed_by_a_user_stay_text(
    tokenizer: Any, encoder: SegmentEncoder, conversation: list[dict[str, Any]], name: str
) -> None:
    pieces = render(parse_conversation(conversation), name)
    segments = encoder.encode(pieces)
    ids = segments.expand([1] * len(segments.media), encoder.media_ids).input_ids.tolist()
    turns = parse_conversation(conversation)
    answers = sum(turn.role == "assistant" for turn in turns) * TEMPLATES[name].answer_eos
    media = [medium.kind for turn in turns for medium in turn.media]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == answers
    assert ids.count(tokenizer.pad_token_id) == ids.count(tokenizer.unk_token_id) == 0
    assert ids.count(encoder.media_ids["video"]) == media.count("video")
    assert ids.count(encoder.media_ids["image"]) == media.count("image")
    # Nothing is lost either: the ids read back as the very prompt.
    text = tokenizer.decode(ids[1:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert text == to_string(pieces).replace("▁", " ")


def test_the_literal_is_encoded_as_sentencepiece_encodes_it(directory: Path, encoder: SegmentEncoder) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    for text in ("type </s> or <video> here", "<pad>", "a<s>b\nc  d", "</s>"):
        (part,) = encoder.encode([text]).parts
        assert list(part.ids) == [1, *reference.encode(text)]


@settings(max_examples=100, deadline=None)
@given(conversation=conversations(any_text), last=any_text, name=template_names)
def test_answers_are_labelled_and_nothing_else(
    tokenizer: Any, encoder: SegmentEncoder, conversation: list[dict[str, Any]], last: str, name: str
) -> None:
    conversation = [*conversation, assistant(last)]
    segments = encode(encoder, conversation, name, generate=False)
    expanded = segments.expand([3] * len(segments.media), encoder.media_ids)
    spans = _runs(expanded.answer.tolist())
    said = [turn.texts[0] for turn in parse_conversation(conversation) if turn.role == "assistant"]
    end = "</s>" if TEMPLATES[name].answer_eos else ""
    texts = ["".join(tokenizer.convert_ids_to_tokens(expanded.input_ids[a:b])) for a, b in spans]
    got = [tokenizer.decode(expanded.input_ids[a:b], clean_up_tokenization_spaces=False) for a, b in spans]
    assert len(got) == len(said)
    for text, want, pieces in zip(got, said, texts, strict=True):
        want = f" {want}".replace("▁", " ") + end
        # Llama's decoder drops the one space an answer begins with; spaces at the very end may share a token
        # with the template's own space after the answer.
        assert text.rstrip(" ") == want[1:].rstrip(" "), pieces
    labels = expanded.labels
    assert (labels[~expanded.answer] == -100).all()
    assert (labels[expanded.answer] == expanded.input_ids[expanded.answer]).all()


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    edges = [i for i, (a, b) in enumerate(zip([False, *flags], [*flags, False], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_expand_places_each_medium(encoder: SegmentEncoder) -> None:
    segments = encode(encoder, [user(VIDEO, IMAGE, "which?")], "hf")
    assert [medium.kind for medium in segments.media] == ["image", "video"]
    expanded = segments.expand([4, 10], encoder.media_ids)
    assert len(expanded.input_ids) == segments.text_length + 14
    (a, b), (c, d) = expanded.media_spans
    assert (b - a, d - c) == (4, 10)
    assert set(expanded.input_ids[a:b]) == {encoder.media_ids["image"]}
    assert set(expanded.input_ids[c:d]) == {encoder.media_ids["video"]}
    with pytest.raises(ValueError, match="expected 2 media lengths, got 1"):
        segments.expand([4], encoder.media_ids)


def test_split_after_the_last_medium(encoder: SegmentEncoder) -> None:
    segments = encode(encoder, [user(VIDEO, "one"), assistant("two"), user(IMAGE, "three")], "vicuna_v1")
    prefix, tail = segments.split()
    assert prefix.parts + tail.parts == segments.parts
    assert prefix.parts[-1] == IMAGE
    assert tail.media == ()
    nothing, everything = encode(encoder, [user("no media")], "hf").split()
    assert nothing.parts == ()
    assert everything.text_length > 0


def test_with_sources(encoder: SegmentEncoder) -> None:
    segments = encode(encoder, [user(IMAGE, VIDEO, "x")], "hf").with_sources(["a.png", "b.mp4"])
    assert segments.media == (Media("image", "a.png"), Media("video", "b.mp4"))


def test_a_string_is_read_as_the_tokenizer_reads_it(tokenizer: Any, encoder: SegmentEncoder) -> None:
    prompt = "<video>What? ASSISTANT: x</s>USER: <image> y"
    segments = encoder.encode_string(prompt)
    assert [medium.kind for medium in segments.media] == ["video", "image"]
    expanded = segments.expand([7, 5], encoder.media_ids)
    whole = prompt.replace("<video>", "<video>" * 7).replace("<image>", "<image>" * 5)
    assert expanded.input_ids.tolist() == tokenizer(whole)["input_ids"]
    assert not expanded.answer.any()


@pytest.mark.parametrize("opening", [VIDEO, EndOfAnswer()])
def test_text_after_an_opening_special_token(tokenizer: Any, encoder: SegmentEncoder, opening: Any) -> None:
    pieces = [opening, "What is it?"]
    segments = encoder.encode(pieces)
    got = segments.expand([1] * len(segments.media), encoder.media_ids).input_ids.tolist()
    assert got == tokenizer(to_string(pieces))["input_ids"]


# ── the tokenizer's loader ──


def test_a_bare_tokenizer_model_is_made_good(tokenizer: Any) -> None:
    assert affixes(tokenizer) == ((1,), ())
    assert tokenizer.padding_side == "left"
    size = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<pad>"]) == [size - 3, size - 2, size - 1]
    assert tokenizer.pad_token == "<pad>"
    assert {"<image>", "<video>", "<pad>"} <= {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    }


def test_a_saved_tokenizer_loads_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved = tmp_path / "tokenizer_config.json"
    raw = json.loads(saved.read_text())
    for change in ({}, {"padding_side": "right"}, {"tokenizer_class": "LlamaTokenizerFast"}, None):
        if change is None:
            saved.unlink()
        else:
            saved.write_text(json.dumps(raw | change))
        again = load_tokenizer(tmp_path)
        prompt = "USER: <video>\nhi there</s>x"
        assert again(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]
        assert again.padding_side == "left"
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.pad_token_id == tokenizer.pad_token_id


def test_ids_that_differ_from_the_configuration(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((directory / "tokenizer.model").read_bytes())
    config = {"model_type": "video_llava", "image_token_index": 32000, "video_token_index": 32001}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"<image> is id 600 in the tokenizer and 32000 in the model's config"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"<video> is id 601 in the tokenizer and 7 in"):
        load_tokenizer(tmp_path, TokenIds(video=7))
    with pytest.raises(ValueError, match=r"the pad token is id 602 in the tokenizer and 9999 in"):
        load_tokenizer(tmp_path, TokenIds(pad=9999))
    assert load_tokenizer(tmp_path, TokenIds(pad=0)).pad_token == "<unk>"


def test_a_directory_without_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer here; expected tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got a list"):
        load_tokenizer(tmp_path)


def test_a_merge_that_spells_a_special_token_is_not_followed(directory: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = load_tokenizer(directory)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["</"] = 700
    spec["model"]["vocab"]["s>"] = 701
    spec["model"]["vocab"]["/"] = 702
    spec["model"]["merges"] = [["<", "/"], ["s", ">"], ["</", "s>"], *spec["model"]["merges"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    (part,) = SegmentEncoder(tokenizer).encode(["a</s>"]).parts
    assert part.ids[-2:] == (700, 701)
