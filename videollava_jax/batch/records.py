"""Writes results as lines of the output, in the form that matches the input's. No JAX."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from videollava_jax.batch.forms import FORMS
from videollava_jax.batch.forms.form import JobFacts, Line, Tag
from videollava_jax.batch.lines import line_id

if TYPE_CHECKING:
    from videollava_jax.engine import Result


def tag_of(line: Line, form: str) -> Tag:
    """Returns what the record of a line repeats; the prompt is "" if the line has none."""
    prompt = line.fields.get(FORMS[form].prompt_key)
    return Tag(line.index, line.number, line_id(line, form), prompt if isinstance(prompt, str) else "", line.file)


def record(form: str, tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> str:
    """Returns the line of the output for a result, without a line break.

    Args:
      form: of the input.
      tag: the line that was answered.
      result: its answer or error.
      cause: the kind of error, for programs that count; None for an answer.
      facts: of the job.
    """
    value = FORMS[form].record(tag, result, cause, facts)
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot encode
        return json.dumps(value)
    return text
