"""The work that both sides of `gpu.py` measure: the sections, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

SECTIONS = ("ceilings", "encode", "decode", "one", "ten", "caption", "int8")
"""In the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes of the work.

    Attributes:
      small: whether the model has the shape of the bundled one instead of the 7B's.
      chip: the chip whose rates give the limits; None for the device's own.
      rounds: rounds that count.
      question_tokens, answer_tokens, caption_tokens: tokens of a question, of its answer, and of a caption.
      questions: questions about each video in the section `ten`.
      videos: videos in jobs with questions; there are as many captions as rows.
      rows: the most rows in our batch.
      int8_rows: the same with int8 weights and prefixes.
      batch: rows in transformers' batched jobs.
      steps: decoding steps in a round with many rows; with one row, four times as many.
      matrix: side of the matrices in the section `ceilings`.
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
        """Returns tiny sizes, for a CPU."""
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
