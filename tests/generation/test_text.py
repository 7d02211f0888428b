"""Streams of text: the pieces joined are the whole text, whatever the tokens are and however they come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.text import TextStream, answer_text, ended, piece
from videollava_jax.serving.answers import token_bytes

BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0x59, 0x80, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x99, 0x82)]


@pytest.fixture(scope="module", params=["light", "transformers"])
def tokenizer(request, tiny_processor):
    return tiny_processor.light_tokenizer if request.param == "light" else tiny_processor.tokenizer


def streamed(tokenizer, chunks):
    pieces = []
    stream = TextStream(tokenizer, pieces.append)
    for chunk in chunks:
        stream(np.array([chunk], np.int64))
        yield "".join(pieces)
    stream.end()
    yield "".join(pieces)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_pieces_join_to_the_text_of_all_tokens(tokenizer, data):
    """Bytes that are no UTF-8, special tokens between them, and spaces at the start."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (*BYTES, "</s>", "▁", "<unk>")]
    token = st.sampled_from(ids) | st.integers(0, 700)  # the last ones have no token: models' vocabularies are larger
    chunks = data.draw(st.lists(st.lists(token, min_size=1, max_size=5), max_size=8))
    whole = answer_text(tokenizer, [token for chunk in chunks for token in chunk])
    *so_far, last = streamed(tokenizer, chunks)
    assert all(whole.startswith(text) for text in so_far)
    assert last == whole


def test_ids_without_a_token_end_no_answer_and_break_none(tokenizer):
    options = GenerationOptions(stop_strings=("red",))
    red = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert ended(np.array([700], np.int32), 0, options, tokenizer) is None
    assert ended(np.array([700, *red], np.int32), 0, options, tokenizer) == 1 + len(red)


def test_text_comes_as_soon_as_it_cannot_change(tokenizer):
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("red circle", "is"))
    euro = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "€".encode()]
    found = list(streamed(tokenizer, [first, euro[:1], euro[1:], second, euro]))
    assert found[:4] == ["red circle", "red circle", "red circle", "red circle€ is"]
    assert found[4:] == ["red circle€ is", "red circle€ is€"]


def test_the_token_of_an_id_is_a_text_also_where_there_is_none(tokenizer):
    assert piece(tokenizer, tokenizer.convert_tokens_to_ids("<0x59>")) == "<0x59>"
    assert piece(tokenizer, 700) == ""
    assert token_bytes(tokenizer, 700) == b""
