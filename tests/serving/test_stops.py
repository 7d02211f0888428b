"""Texts that end before a stop string, whole and in pieces."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollava_jax.serving.stops import TextBefore, before

LETTERS = st.text(alphabet="ab ", max_size=12)


@given(LETTERS, st.lists(LETTERS.filter(bool), max_size=3), st.lists(st.integers(0, 12), max_size=6))
def test_pieces_join_to_the_whole(text, stops, cuts):
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)] or [""]
    call = TextBefore(stops)
    parts = [call(piece, last=i + 1 == len(pieces)) for i, piece in enumerate(pieces)]
    assert "".join(parts) == before(text, stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "passed"),
    [
        ((), ["a", "b"], ["a", "b"]),
        (("END",), ["so", " E", "N", "D more"], ["so", " ", "", ""]),
        (("END",), ["an E", "gg", ""], ["an ", "Egg", ""]),
        (("aab",), ["aa", "ab"], ["", "a"]),
    ],
)
def test_no_more_is_held_back_than_may_be_a_stop(stops, pieces, passed):
    call = TextBefore(stops)
    assert [call(piece, last=i + 1 == len(pieces)) for i, piece in enumerate(pieces)] == passed
