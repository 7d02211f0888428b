"""Conversations for tests, written and drawn."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from videollava_jax.processing.prompt import (
    TEMPLATES,
)
from videollava_jax.processing.segments import Media

SPECIALS = ("<video>", "<image>", "<pad>", "</s>", "<s>", "<unk>")

VIDEO, IMAGE = Media("video"), Media("image")

alphabet = st.one_of(
    st.characters(codec="utf-8", exclude_categories=("Cs",)),
    st.sampled_from(" \n\t:.<>/aeosUSERvd"),
    st.sampled_from("🙂👩‍👩‍👧é日本ß▁"),
)
plain_text = st.text(alphabet, min_size=1, max_size=30).filter(lambda text: not any(s in text for s in SPECIALS))
any_text = st.lists(st.one_of(plain_text, st.sampled_from(SPECIALS)), min_size=1, max_size=5).map("".join)
template_names = st.sampled_from(sorted(name for name, template in TEMPLATES.items() if not template.frame_join))


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [part_of(part) for part in parts]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [part_of(text)]}


def part_of(part: Any) -> dict[str, Any]:
    return {"type": part.kind} if isinstance(part, Media) else {"type": "text", "text": part}


@st.composite
def conversations(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": [part_of(draw(texts))]})
    for i in range(draw(st.integers(1, 3))):
        if i:
            messages.append(assistant(draw(texts)))
        media = draw(st.lists(st.sampled_from([VIDEO, IMAGE]), max_size=2))
        parts = [*media, *draw(st.lists(texts, min_size=0 if media else 1, max_size=2))]
        messages.append(user(*draw(st.permutations(parts))))
    return messages
