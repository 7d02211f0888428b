"""A prompt that is too long is refused before it costs: by its characters, without its text being tokenised."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from videollava_jax import Request
from videollava_jax.engine.preparation import Preparer
from videollava_jax.generation.chat import Chat
from videollava_jax.media import Uniform
from videollava_jax.processing.room import require_room, room_for_prompt
from videollava_jax.processing.tokenizer import PlainEncoder, load_tokenizer

LONG = "How many shapes are there? " * 400_000  # 10.8 MB


def by_call(processor, model, text):
    processor(text)


def by_template(processor, model, text):
    processor.conversation_inputs([{"role": "user", "content": text}], max_new_tokens=8)


def by_chat(processor, model, text):
    Chat(model, processor).ask(text)


def by_request(processor, model, text):
    prepare(processor, model, Request(id="0", conversation=[{"role": "user", "content": text}]))


def by_whole_prompt(processor, model, text):
    prepare(processor, model, Request(id="0", prompt=text))


FACES = (by_call, by_template, by_chat, by_request, by_whole_prompt)


def prepare(processor, model, request):
    return Preparer(processor, model.model_config, {}, 64).question(request)


@pytest.mark.parametrize("face", FACES)
def test_megabytes_of_text_are_refused_without_being_tokenised(tiny_processor, tiny_model, monkeypatch, face):
    tiny_processor.encoder  # noqa: B018  the copy of the tokenizer is made once
    monkeypatch.setattr(PlainEncoder, "encode", lambda *_, **__: pytest.fail("the text was tokenised"))
    started = time.process_time()
    with pytest.raises(ValueError, match=r"a text of 108000\d\d characters is too long: it has at least 10800\d\d tok"):
        face(tiny_processor, tiny_model, LONG)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("face", FACES)
def test_text_that_is_not_unicode_is_refused_by_its_place(tiny_processor, tiny_model, face):
    with pytest.raises(ValueError, match=r"the text is not Unicode: character \d+ is '\\ud800', half of a surrogate"):
        face(tiny_processor, tiny_model, "what\ud800?")


def test_the_longest_prompt_that_fits_is_computed(tiny_processor, tiny_model):
    """Every length up to the longest is taken, though longer texts were refused by their characters alone."""
    positions = tiny_model.model_config.text_config.max_position_embeddings
    longest = max(tiny_processor.tokenizer.get_vocab(), key=lambda piece: (piece.isalpha(), len(piece)))
    most = positions - 8
    for text in (longest.lstrip("▁") * 8, "a", "é", " ", "<image>"):
        encoder = tiny_processor.encoder
        count = next(n for n in range(1, 20_000, 7) if encoder.encode([text * n]).text_length > most)
        while encoder.encode([text * count]).text_length > most:
            count -= 1
        assert encoder.encode([text * count], most).text_length <= most
        with pytest.raises(ValueError, match=r"positions|characters"):
            by_template(tiny_processor, tiny_model, text * (count + 1))


def test_only_a_vocabulary_with_bytes_has_a_longest_token(directory):
    """Elsewhere any number of characters may become one token for unknown ones."""
    tokenizer = load_tokenizer(directory)
    assert PlainEncoder(tokenizer).longest_piece == max(map(len, tokenizer.get_vocab()))
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["byte_fallback"] = False
    other = SimpleNamespace(backend_tokenizer=Tokenizer.from_str(json.dumps(spec)), all_special_tokens=[])
    assert PlainEncoder(other).longest_piece is None


def test_an_answer_that_leaves_no_room_is_said(tiny_processor, tiny_model):
    with pytest.raises(ValueError, match=r"^max_new_tokens: expected at most 511, .* 512 positions .*; got 100000$"):
        Chat(tiny_model, tiny_processor).ask("What?", max_new_tokens=100_000)
    with pytest.raises(ValueError, match="max_new_tokens: expected at most 511"):
        tiny_processor("What?", max_new_tokens=512)
    with pytest.raises(ValueError, match="max_new_tokens: expected at most 511"):
        tiny_model.generate(np.array([[1, 5]]), max_new_tokens=2**31 - 1)
    with pytest.raises(ValueError, match="max_new_tokens: expected at most 511"):
        prepare(tiny_processor, tiny_model, Request(id="0", prompt="What?", max_new_tokens=512))


def test_frames_that_do_not_fit_are_refused_before_a_file_is_opened(tiny_processor, tiny_model, tmp_path):
    (tmp_path / "no.mp4").write_text("no video")
    request = Request(id="0", prompt="<video>\nWhat?", videos=[tmp_path / "no.mp4"], frame_sampling=Uniform(2**31 - 1))
    with pytest.raises(ValueError, match=r"a prompt of 3650722\d+ tokens and an answer of up to 128 do not fit"):
        prepare(tiny_processor, tiny_model, request)


def test_prompts_at_the_edge():
    assert room_for_prompt(512, 511) == 1
    require_room(384, 128, 512)
    with pytest.raises(ValueError, match=r"a prompt of 385 tokens .* 512 positions: expected a prompt of at most 384"):
        require_room(385, 128, 512)
