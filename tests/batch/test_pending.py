"""Pending lines grouped by media: each line comes once, and no more are held than allowed."""

import json

import pytest

from videollava_jax.batch.pending import grouped_by_media, pending_lines
from videollava_jax.batch.requests import Defaults


def lines_of(tmp_path, lines, done=()):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return pending_lines([path], "jsonl", Defaults(), done)


def about(*names):
    """Writes questions about these videos; None is one without a video."""
    return [
        {"id": i, "prompt": "?", **({} if name is None else {"video": name})} for i, name in enumerate(names)
    ]  # fmt: skip


def order(lines, **most):
    return [line.tag.index for line in grouped_by_media(lines, **most)]


@pytest.mark.parametrize(
    ("names", "most", "expected"),
    [
        ("abcabcb", {}, [0, 3, 1, 4, 6, 2, 5]),
        ("abcabcb", {"most_lines": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ("abcabcb", {"most_lines": 3}, [0, 3, 1, 4, 6, 2, 5]),  # each line that leaves makes room for the next
        ("abcdacb", {"most_lines": 3}, [0, 1, 2, 5, 3, 4, 6]),
        ("abcabcb", {"most_characters": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ("a", {}, [0]),
        ("", {}, []),
    ],
)
def test_lines_about_the_same_media_follow_each_other(tmp_path, names, most, expected):
    assert order(lines_of(tmp_path, about(*names)), **most) == expected


def test_what_is_alike_and_what_is_not(tmp_path):
    lines = [
        *about("a", None, "a", None),
        {"id": "image", "prompt": "?", "image": "a"},
        "no JSON\n",
        {"id": "messages", "conversation": [{"role": "user", "content": [{"type": "video", "path": "a"}]}]},
        {"id": "both", "prompt": "?", "video": ["a", "b"]},
        {"id": "half a pair", "prompt": "?", "video": "\ud800"},
        "no JSON\n",
    ]
    found = list(lines_of(tmp_path, lines))
    keys = [line.about for line in found]
    assert keys[0] == keys[2] == keys[6]
    assert len(set(keys)) == len(lines) - 2
    assert isinstance(found[5].request, ValueError)
    assert [line.tag.id for line in found[:2]] == [0, 1]
    assert order(found) == [0, 2, 6, 1, 3, 4, 5, 7, 8, 9]


def test_what_is_done_is_left_out(tmp_path):
    assert order(lines_of(tmp_path, about(*"abab"), done={0, 3})) == [1, 2]


def test_no_more_is_read_than_may_be_held(tmp_path):
    read = []

    def counted():
        for line in lines_of(tmp_path, about(*"abcdef")):
            read.append(line.tag.index)
            yield line

    lines = grouped_by_media(counted(), most_lines=2)
    next(lines)
    assert read == [0, 1]
    next(lines)
    assert read == [0, 1, 2]
