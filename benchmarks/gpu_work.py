"""What `gpu.py` measures, the same for both sides: the sections, and how much each of them does."""

from __future__ import annotations

from dataclasses import dataclass

SECTIONS = ("ceilings", "encode", "decode", "one", "ten", "caption", "int8")
"""In the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured.

    Attributes:
      small: the shape of the bundled model in the place of the 7B's.
      chip: by whose figures limits are reckoned; None for the device's.
      rounds: that count.
      question_tokens, answer_tokens, caption_tokens: of each question, of each answer to it, and of each caption.
      questions: about each video, where there are several.
      videos: of the jobs with questions; captions are written of as many as there are rows.
      rows, int8_rows: at most, of a batch of ours, and with int8 weights and prefixes.
      batch: of transformers' batched jobs.
      steps: of decoding in a round with many rows; four times as many with one.
      matrix: side of the matrices of the ceilings.
    """

    small: bool = False
    chip: str | None = None
    rounds: int = 3
    question_tokens: int = 50
    answer_tokens: int = 10
    caption_tokens: int = 256
    questions: int = 10
    videos: int = 64
    rows: int = 64
    int8_rows: int = 200
    batch: int = 32
    steps: int = 16
    matrix: int = 8192

    @classmethod
    def tiny(cls) -> Work:
        """For a CPU."""
        return cls(
            small=True,
            question_tokens=20,
            answer_tokens=3,
            caption_tokens=6,
            questions=2,
            videos=3,
            rows=3,
            int8_rows=3,
            batch=2,
            steps=4,
            matrix=256,
        )
