"""Real files that nobody here made, from the file to an answer: each is answered, or refused with the typed error."""

import pytest

from tests.real_media import real_files
from videollava_jax.generation.chat import Chat
from videollava_jax.media import MediaError, open_medium

pytestmark = pytest.mark.network


def test_every_real_file_is_answered_or_refused(tiny_model, tiny_processor):
    answered, refused = [], []
    for path in real_files():
        try:
            medium = open_medium(path)
        except MediaError:
            refused.append(path.suffix)
            continue
        turn = Chat.about(tiny_model, tiny_processor, [medium]).ask("What shape is it?", max_new_tokens=8)
        # What it says of a world it never saw means nothing; that it says something in its own words does.
        assert turn.token_ids, path
        assert turn.answer.isprintable(), path
        answered.append(path.suffix)
    assert {".mp4", ".avi", ".gif", ".jpg", ".png"} <= set(answered)
    assert not {".mp4", ".jpg", ".jpeg"} & set(refused)
