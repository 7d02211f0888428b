"""Segments, against transformers' tokenizer and SentencePiece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings

from tests.processing.drawn_conversations import (
    IMAGE,
    VIDEO,
    any_text,
    assistant,
    conversations,
    plain_text,
    template_names,
    user,
)
from videollava_jax.processing.prompt import (
    TEMPLATES,
    parse_conversation,
    render,
    to_string,
)
from videollava_jax.processing.segments import EndOfAnswer, Media, SegmentEncoder, Segments

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
    # And the ids decode to exactly the prompt.
    text = tokenizer.decode(ids[1:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert text == to_string(pieces).replace("▁", " ")


def test_the_literal_is_encoded_as_sentencepiece_encodes_it(directory: Path, encoder: SegmentEncoder) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    for text in ("type </s> or <video> here", "<pad>", "a<s>b\nc  d", "</s>"):
        (part,) = encoder.encode([text]).parts
        assert list(part.ids) == [1, *reference.encode(text)]


@settings(max_examples=100, deadline=None)
@given(
    conversation=conversations(any_text),
    last=any_text,
    name=template_names.filter(lambda name: name != "llava_v0"),  # a token may be of an answer and of ### after it
)
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


def test_text_stands_between_the_frames_of_a_video(encoder: SegmentEncoder) -> None:
    segments = encode(encoder, [user(VIDEO, IMAGE, "which?")], "llava_v1_spaced")
    space = encoder.encode_string("<video> ").parts[-1].ids  # type: ignore[union-attr]
    expanded = segments.expand([4, 6], encoder.media_ids, frame_tokens=2)
    video = encoder.media_ids["video"]
    start, stop = expanded.media_spans[1]
    assert expanded.input_ids[start:stop].tolist() == [video, video, *space, video, video, *space, video, video]
    assert segments.media[1].text_tokens(3) == 2 * len(space)
    assert (segments.media[0].text_tokens(1), segments.media[0].frame_join) == (0, "")
    with pytest.raises(ValueError, match="expected frame_tokens, for ' ' stands between frames; got 0"):
        segments.expand([4, 6], encoder.media_ids)


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
