"""Reads a job's input as numbered lines: recognises its form, parses lines to dictionaries, checks ids. No JAX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from videollava_jax.batch.forms import FORMS
from videollava_jax.batch.forms.form import Line, either, read_json_lines

_LOOKED_AT = 100
"""How many lines `recognise` reads at most; more than one, as the first may be damaged."""


def recognise(path: Path) -> str:
    """Returns the name of an input's form, recognised by its suffix, or by the keys of its first lines.

    Raises:
      ValueError: it has none of the known forms.
    """
    suffix = path.suffix.lower()
    for form in FORMS.values():
        if suffix in form.suffixes:
            return form.name
    ours, *others = (form for form in FORMS.values() if form.json_lines)
    first = None
    for line in islice(read_json_lines(path), _LOOKED_AT):
        for form in (*others, ours):  # ours is the last, as lines of other forms may have an 'id' too
            if form.id_key in line.fields:
                return form.name
        first = first or line
    if first is None:
        raise ValueError(f"{path}: expected a question on each line, but the file holds no lines")
    keys = [f"{form.id_key!r} ({form.owner})" if form.owner else repr(form.id_key) for form in (ours, *others)]
    what = first.error or f"an object with the keys {', '.join(map(repr, first.fields)) or '(none)'}"
    raise ValueError(
        f"{path}, line {first.number}: expected a JSON object with {either(keys)}, got {what}; --format says which "
        f"form it is ({', '.join(FORMS)})"
    )


def read_lines(path: Path, form: str) -> Iterator[Line]:
    """Reads the lines of an input, in order. A line that cannot be parsed has an `error`.

    Raises:
      ValueError: the file as a whole cannot be read in this form.
      OSError: it cannot be opened.
    """
    return FORMS[form].read(path)


def line_id(line: Line, form: str) -> str | int | None:
    """Returns the id of a line, a string or an integer; None if it has none or its value is neither."""
    value = line.fields.get(FORMS[form].id_key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return value


def count_lines(lines: Iterable[Line], form: str) -> int:
    """Counts the lines and checks that their ids differ; "1" and 1 are the same id.

    Raises:
      ValueError: an id occurs more than once; the message names its lines.
    """
    first: dict[str, int] = {}
    again: dict[str, list[int]] = {}
    count = 0
    for line in lines:
        count += 1
        if (found := line_id(line, form)) is not None:
            before = first.setdefault(str(found), line.number)
            if before != line.number:
                again.setdefault(str(found), [before]).append(line.number)
    if again:
        repeated = [f"{_short(name)} on lines {', '.join(map(str, numbers[:5]))}" for name, numbers in again.items()]
        more = f"; and {len(repeated) - 10} more" if len(repeated) > 10 else ""
        raise ValueError(
            f"expected a different id on each line, but {len(again)} come more than once: "
            f"{'; '.join(repeated[:10])}{more}"
        )
    return count


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}…")
