"""Conversations that may say anything: no text of a user is a medium, the end of a turn or another control word.

python -m tests.faults --only prompts
"""

from __future__ import annotations

import random
import time
from typing import Any

from tests.faults.tables import Tally

SECONDS = 5.0
"""The most CPU seconds for one."""
PIECES = (
    "<image>", "<video>", "<s>", "</s>", "<pad>", "<unk>", "<0x0A>", "USER:", "ASSISTANT:", "USER: <video>\n", "###",
    "▁", "<im", "age>", "< image >", "&lt;image&gt;", "{{ 7*7 }}", "{% raw %}", "\\n", "\n", "\r\n", "\0", "\t", " ",
    "   ", "\u202e", "\u200b", "\ufeff", "é", "e\u0301", "日本", "🙂", "👩‍👩‍👧", "\U0010ffff", "\ud800", "a" * 300,
    "What is it?", "[INST]", "<|endoftext|>", "<<SYS>>", "</S>", "＜image＞", "\x1b[2J", "%s%n", "../../etc/passwd",
)  # fmt: skip


def drawn_text(rng: random.Random) -> str:
    """Draws a text of pieces and of single characters."""
    pieces = [
        rng.choice(PIECES) if rng.random() < 0.8 else chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)]))
        for _ in range(rng.choice([1, 1, 2, 3, 5, 9]))
    ]
    return "".join(pieces)


def drawn_conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Draws a conversation, with media in its first turn or without."""
    media = [{"type": rng.choice(["image", "video"]), "path": "x"} for _ in range(rng.choice([0, 1, 1, 2]))]
    text = {"type": "text", "text": drawn_text(rng)}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [*media, text]}]
    for _ in range(rng.choice([0, 0, 1, 2])):
        turns.append({"role": "assistant", "content": drawn_text(rng)})
        turns.append({"role": "user", "content": drawn_text(rng)})
    if rng.random() < 0.2:
        turns.insert(0, {"role": "system", "content": drawn_text(rng)})
    return turns


def _tried(processor: Any, conversation: list[dict[str, Any]], template: str) -> tuple[str, str]:
    """Encodes a conversation; returns an outcome and what was wrong."""
    from videollava_jax.processing.prompt import TEMPLATES, parse_conversation, render

    encoder = processor.encoder
    try:
        turns = parse_conversation(conversation)
        segments = encoder.encode(render(turns, template))
        ids = segments.expand([1] * len(segments.media), encoder.media_ids).input_ids.tolist()
    except ValueError as refused:
        text = str(refused)
        fine = text.isprintable() and len(text) < 1000
        return ("refused", "") if fine else ("violation", f"its error: {text[:300]!r}")
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    tokenizer = processor.light_tokenizer
    answers = sum(turn.role == "assistant" for turn in turns) * TEMPLATES[template].answer_eos
    media = [medium.kind for turn in turns for medium in turn.media]
    expected = {
        "begins of a text": (ids.count(tokenizer.bos_token_id), 1),
        "ends of answers": (ids.count(tokenizer.eos_token_id), answers),
        "paddings": (ids.count(tokenizer.pad_token_id), 0),
        "images": (ids.count(encoder.media_ids["image"]), media.count("image")),
        "videos": (ids.count(encoder.media_ids["video"]), media.count("video")),
    }
    wrong = [f"{found} {what} for {right}" for what, (found, right) in expected.items() if found != right]
    return ("silent", ", ".join(wrong)) if wrong else ("encoded", "")


def part(seed: int, scale: float) -> list[Tally]:
    """Encodes `12,000 * scale` conversations with every template; see `tests.faults.parts`."""
    from videollava_jax.assets import TINY
    from videollava_jax.processing.processor import VideoLlavaProcessor
    from videollava_jax.processing.prompt import TEMPLATES

    processor = VideoLlavaProcessor.from_pretrained(TINY)
    tallies = {name: Tally(f"template {name}") for name in TEMPLATES}
    for number in range(round(12_000 * scale)):
        rng = random.Random(f"{seed}/{number}")
        template = rng.choice(list(TEMPLATES))
        conversation = drawn_conversation(rng)
        began = time.process_time()
        outcome, detail = _tried(processor, conversation, template)
        if (seconds := time.process_time() - began) > SECONDS:
            outcome, detail = "hang", f"took {seconds:.1f} s"
        detail = f"conversation {number} of seed {seed}: {detail}: {conversation!r:.800}"
        tallies[template].add(outcome, detail, seconds)
    return list(tallies.values())
