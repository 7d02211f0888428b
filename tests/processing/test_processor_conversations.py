"""Conversations to model inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processing.inputs import SIDE, ask, hf_pixels, image, video
from videollava_jax.media import Uniform
from videollava_jax.processing.processor import VideoLlavaProcessor


def test_a_conversation_is_the_string_it_renders_to(processor: VideoLlavaProcessor) -> None:
    still, movie = image(), video()
    conversation = ask({"type": "video", "video": movie}, {"type": "image", "image": still}, "What is it?")
    prompt = processor.conversation_text(conversation)
    assert prompt == "USER: <image>\n<video>\nWhat is it? ASSISTANT:"
    got = processor.conversation_inputs(conversation)
    want = processor(prompt, still, movie)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_conversations_in_a_batch(processor: VideoLlavaProcessor) -> None:
    one, two = ask({"type": "image", "image": image()}, "Who?"), ask("And who else is there?")
    strings = processor.conversation_text([one, two])
    assert strings == ["USER: <image>\nWho? ASSISTANT:", "USER: And who else is there? ASSISTANT:"]
    got = processor.conversation_inputs([one, two], padding=True)
    np.testing.assert_array_equal(got.input_ids, processor(strings, image(), padding=True).input_ids)
    with pytest.raises(ValueError, match="conversation 1: message 0: expected role"):
        processor.conversation_inputs([one, [{"role": "gpt", "content": "x"}]])


def test_files_in_a_conversation(processor: VideoLlavaProcessor, clip: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(image()).save(picture)
    conversation = ask({"type": "video", "path": str(clip)}, {"type": "image", "url": str(picture)}, "What?")
    inputs = processor.conversation_inputs(conversation, frame_sampling=Uniform(4))
    assert inputs.pixel_values_videos.shape == (1, 4, 3, SIDE, SIDE)
    np.testing.assert_allclose(inputs.pixel_values_images, hf_pixels(image()), rtol=0, atol=1e-6)
    for part, message in (
        ({"type": "video"}, "conversation 0: a part of type 'video' has no source"),
        ({"type": "image", "image": 3}, "conversation 0: expected a path, .* as image, got a int"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.conversation_inputs(ask(part, "x"))


def test_placeholders_typed_by_a_user_stay_text(processor: VideoLlavaProcessor) -> None:
    conversation = ask({"type": "image", "image": image()}, "Is <image> or <video> or </s> a tag?")
    ids = processor.conversation_inputs(conversation).input_ids[0].tolist()
    assert ids.count(processor.image_token_id) == 4
    assert ids.count(processor.video_token_id) == ids.count(2) == 0
    assert "Is <image> or <video> or </s> a tag?" in processor.decode(ids)


def test_assistant_masks_mark_the_answers(processor: VideoLlavaProcessor) -> None:
    conversation = [
        *ask({"type": "video", "video": video(2)}, "What?"),
        {"role": "assistant", "content": "A red ball."},
        *ask("Why?"),
        {"role": "assistant", "content": "The dog."},
    ]
    inputs = processor.conversation_inputs(
        [conversation, [*ask("x"), {"role": "assistant", "content": "y"}]],
        template="vicuna_v1",
        add_generation_prompt=False,
        return_assistant_tokens_mask=True,
        padding=True,
    )
    said = [
        processor.decode(ids[mask == 1]) for ids, mask in zip(inputs.input_ids, inputs.assistant_masks, strict=True)
    ]
    assert said == ["A red ball.</s> The dog.</s>", "y</s>"]
    assert inputs.assistant_masks.shape == inputs.input_ids.shape
    assert (inputs.assistant_masks <= inputs.attention_mask).all()
