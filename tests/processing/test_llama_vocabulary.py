"""Prompts in the real Llama 2 vocabulary, fetched from npm at test time: the ids of the checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processing.llama_vocabulary import VocabularyUnavailable, real_llama_model
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import Media

pytestmark = pytest.mark.network

USER = [3148, 1001, 29901]  # "USER:" at the start of a prompt
USER_AFTER_ANSWER = [11889, 29901]  # "USER:" right after </s>, without a space before it
ASSISTANT = [319, 1799, 9047, 13566, 29901]
NEWLINE = 13
SPACE = 29871
IMAGE, VIDEO, PAD = 32000, 32001, 32002


@pytest.fixture(scope="module")
def model_file() -> Path:
    try:
        return real_llama_model()
    except VocabularyUnavailable as reason:
        pytest.skip(f"Llama's vocabulary is out of reach: {reason}")


@pytest.fixture(scope="module")
def processor(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoLlavaProcessor:
    directory = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(model_file, directory / "tokenizer.model")
    text = {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064, "pad_token_id": 0}
    config = {"model_type": "video_llava", "text_config": text}
    (directory / "config.json").write_text(json.dumps(config))
    return VideoLlavaProcessor.from_pretrained(directory)


def question(*content: Any) -> list[dict[str, Any]]:
    parts = [{"type": c.kind} if isinstance(c, Media) else {"type": "text", "text": c} for c in content]
    return [{"role": "user", "content": parts}]


def ids_of(processor: VideoLlavaProcessor, conversation: list[dict[str, Any]], **options: Any) -> list[int]:
    segments = processor.encode(conversation, **options)
    lengths = [{"image": 256, "video": 2056}[medium.kind] for medium in segments.media]
    ids: list[int] = segments.expand(lengths, processor.encoder.media_ids).input_ids.tolist()
    return ids


def test_ids_of_the_tokens(processor: VideoLlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, PAD)
    assert (processor.image_token_id, processor.video_token_id) == (IMAGE, VIDEO)
    assert len(tokenizer) == 32003
    assert tokenizer("ASSISTANT:")["input_ids"] == [1, *ASSISTANT]
    assert tokenizer("Hello world!")["input_ids"] == [1, 15043, 3186, 29991]
    assert tokenizer.convert_ids_to_tokens([NEWLINE, SPACE]) == ["<0x0A>", "▁"]
    assert tokenizer.padding_side == "left"


def test_a_question_about_a_video(processor: VideoLlavaProcessor) -> None:
    frames = np.zeros((8, 224, 224, 3), np.uint8)
    want = [1, *USER, SPACE, *[VIDEO] * 2056, NEWLINE, 11008, 338, 445, 2090, 1460, 29973, *ASSISTANT]
    inputs = processor(text="USER: <video>\nWhy is this funny? ASSISTANT:", videos=frames)
    assert inputs.input_ids[0].tolist() == want
    assert inputs.pixel_values_videos.shape == (1, 8, 3, 224, 224)
    assert ids_of(processor, question(Media("video"), "Why is this funny?"), template="hf") == want


def test_a_question_about_an_image(processor: VideoLlavaProcessor) -> None:
    want = [1, *USER, SPACE, *[IMAGE] * 256, NEWLINE, 22110, 29973, *ASSISTANT]  # "Who" without a space
    inputs = processor("USER: <image>\nWho? ASSISTANT:", np.zeros((224, 224, 3), np.uint8))
    assert inputs.input_ids[0].tolist() == want
    assert ids_of(processor, question(Media("image"), "Who?")) == want


def test_an_answer_ends_in_eos(processor: VideoLlavaProcessor) -> None:
    conversation = [
        *question("Who?"),
        {"role": "assistant", "content": "Hello world!"},
        *question("Who?"),
    ]
    who = [11644, 29973]  # " Who?"
    want = [1, *USER, *who, *ASSISTANT, 15043, 3186, 29991, 2, *USER_AFTER_ANSWER, *who, *ASSISTANT]
    assert ids_of(processor, conversation, template="vicuna_v1_no_system") == want
    segments = processor.encode(conversation, template="vicuna_v1_no_system")
    expanded = segments.expand([], processor.encoder.media_ids)
    assert expanded.input_ids[expanded.answer].tolist() == [15043, 3186, 29991, 2]


def test_sixteen_frames_overrun_the_positions(processor: VideoLlavaProcessor) -> None:
    frames = np.zeros((16, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"4112 = 16 frames of 257\); .* 4096 positions\. Take fewer frames: 15 fit"):
        processor("USER: <video>\nWhy? ASSISTANT:", videos=frames)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=40))
def test_plain_text_is_encoded_as_sentencepiece_encodes_it(
    processor: VideoLlavaProcessor, model_file: Path, text: str
) -> None:
    reference = _reference(model_file)
    (part,) = processor.encoder.encode([f"x{text}"]).parts  # texts that begin with a space differ
    assert list(part.ids) == [1, *reference.encode(f"x{text}")]


@pytest.mark.parametrize("literal", ["</s>", "<s>", "<unk>", "<pad>", "<image>", "<video>", "<0x0A>"])
def test_a_literal_is_encoded_as_sentencepiece_encodes_it(
    processor: VideoLlavaProcessor, model_file: Path, literal: str
) -> None:
    text = f"Is {literal} a tag?"
    (part,) = processor.encoder.encode([text]).parts
    assert list(part.ids) == [1, *_reference(model_file).encode(text)]
    assert min(part.ids[1:]) > 258
    assert max(part.ids) < 32000


_references: dict[Path, sentencepiece.SentencePieceProcessor] = {}


def _reference(model_file: Path) -> sentencepiece.SentencePieceProcessor:
    if model_file not in _references:
        _references[model_file] = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    return _references[model_file]
