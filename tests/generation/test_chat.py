"""A conversation on a kept cache answers as the whole conversation sent anew, and computes only what is new."""

from itertools import pairwise

import numpy as np
import pytest

from videollava_jax.assets import MEDIA
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.chat import Chat
from videollava_jax.media import open_medium

CLIP = MEDIA / "rising-triangle.mp4"
IMAGE = MEDIA / "three-triangles.png"
QUESTIONS = ["What shape is it?", "Which way does it move?", "Does it change colour?", "How many shapes are there?"]


def sent_anew(model, processor, messages, template, **options):
    """The answer's tokens when the conversation is read, encoded and prefilled from its start."""
    inputs = processor.conversation_inputs(messages, template=template)
    ids = model.generate(**inputs, max_new_tokens=8, **options)
    return tuple(ids[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("template", ["hf", "vicuna_v1", "vicuna_v1_no_system"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 3.0, "seed": 7}])
def test_every_turn_equals_the_conversation_sent_anew(tiny_model, tiny_processor, template, options):
    chat = Chat(tiny_model, tiny_processor, images=[IMAGE], videos=[CLIP], template=template)
    for number, question in enumerate(QUESTIONS):
        turn = chat.ask(question, max_new_tokens=8, **options)
        expected = sent_anew(tiny_model, tiny_processor, chat.messages[:-1], template, **options)
        assert turn.token_ids == expected
        assert chat.messages[-1]["content"] == turn.answer
        assert len(chat.messages) == 2 * (number + 1)


def test_the_media_are_encoded_once_and_only_new_text_is_computed(tiny_model, tiny_processor, monkeypatch):
    encoded, extended = [], []
    encode, extend = compiled.encode_videos, compiled.extend
    monkeypatch.setattr(compiled, "encode_videos", lambda *a: encoded.append(1) or encode(*a))
    monkeypatch.setattr(compiled, "extend", lambda g, s, ids, *a: extended.append(ids.shape) or extend(g, s, ids, *a))
    chat = Chat(tiny_model, tiny_processor, videos=[CLIP])
    turns = [chat.ask(question, max_new_tokens=8) for question in QUESTIONS]
    assert len(encoded) == 1
    assert extended == [(1, 32)] * 3  # one bucket each, where the whole prompt has over 150 tokens
    assert [turn.cached_tokens == 0 for turn in turns] == [True, False, False, False]
    for before, turn in pairwise(turns):
        assert turn.cached_tokens >= before.prompt_tokens


def test_restarting_keeps_the_media(tiny_model, tiny_processor):
    chat = Chat(tiny_model, tiny_processor, videos=[CLIP])
    chat.ask(QUESTIONS[0], max_new_tokens=8)
    chat.ask(QUESTIONS[1], max_new_tokens=8)
    chat.restart()
    turn = chat.ask(QUESTIONS[2], max_new_tokens=8)
    assert chat.messages[0]["content"][-1]["text"] == QUESTIONS[2]
    assert turn.token_ids == sent_anew(tiny_model, tiny_processor, chat.messages[:1], "vicuna_v1_no_system")
    assert turn.cached_tokens >= 136


def test_a_full_cache_grows(tiny_model, tiny_processor):
    chat = Chat(tiny_model, tiny_processor, videos=[CLIP])
    for number in range(12):
        turn = chat.ask(QUESTIONS[number % 4], max_new_tokens=8)
        assert turn.token_ids == sent_anew(tiny_model, tiny_processor, chat.messages[:-1], None)


def test_a_failed_turn_is_not_kept(tiny_model, tiny_processor):
    chat = Chat(tiny_model, tiny_processor, videos=[CLIP])
    first = chat.ask(QUESTIONS[0], max_new_tokens=8)
    with pytest.raises(ValueError, match="512 positions"):
        chat.ask("why " * 400)
    with pytest.raises(ValueError, match="temperature"):
        chat.ask("why", do_sample=True, temperature=-1.0)
    assert len(chat.messages) == 2
    turn = chat.ask(QUESTIONS[1], max_new_tokens=8)
    assert turn.cached_tokens >= first.prompt_tokens

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[2], max_new_tokens=8, on_text=interrupt)
    assert len(chat.messages) == 4
    turn = chat.ask(QUESTIONS[2], max_new_tokens=8)  # from the start, media and all
    assert turn.cached_tokens == 0
    assert turn.token_ids == sent_anew(tiny_model, tiny_processor, chat.messages[:-1], None)


def test_text_alone_and_streaming(tiny_model, tiny_processor):
    pieces = []
    chat = Chat(tiny_model, tiny_processor)
    for question in ("What is it?", "And <video> or </s> in a text?"):
        turn = chat.ask(question, max_new_tokens=40, on_text=pieces.append)
        assert "".join(pieces).rstrip() == turn.answer
        pieces.clear()


def test_opened_media_are_what_the_files_hold(tiny_model, tiny_processor):
    from_files = Chat(tiny_model, tiny_processor, images=[IMAGE], videos=[CLIP]).ask("Where is it?", max_new_tokens=8)
    media = [open_medium(CLIP), open_medium(IMAGE)]
    opened = Chat.about(tiny_model, tiny_processor, media).ask("Where is it?", max_new_tokens=8)
    assert opened.token_ids == from_files.token_ids
    assert media[0].description == "rising-triangle.mp4: 112 by 112 pixels, 8 of 16 frames"
    assert media[1].description == "three-triangles.png: 112 by 112 pixels"
    np.testing.assert_array_equal(media[0].indices, np.arange(0, 16, 2))
