"""The forms of a job's lines: a file for each, and one table that all of `batch` goes by. No JAX."""

from videollava_jax.batch.forms.form import LineForm
from videollava_jax.batch.forms.llava import LLAVA
from videollava_jax.batch.forms.openai import OPENAI
from videollava_jax.batch.forms.ours import JSONL
from videollava_jax.batch.forms.tables import CSV, PARQUET

__all__ = ["FORMS", "LineForm"]

FORMS: dict[str, LineForm] = {form.name: form for form in (JSONL, OPENAI, LLAVA, CSV, PARQUET)}
"""By name, in the order of help texts and messages; our own form is the first."""
