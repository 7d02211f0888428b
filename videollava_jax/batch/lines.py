"""Reads a job's input as numbered lines: recognises its form, parses lines to dictionaries, checks ids. No JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from videollava_jax.batch.forms import FORMS
from videollava_jax.batch.forms.form import Line, either, read_json_lines
from videollava_jax.compressed import own_suffix

_LOOKED_AT = 100
"""How many lines `recognise` reads at most; more than one, as the first may be damaged."""


def recognise(files: Sequence[Path]) -> str:
    """Returns the name of an input's form, recognised by its suffix, or by the keys of its first lines.

    Args:
      files: of the input. Those without lines are passed over, unless all are.

    Raises:
      ValueError: it has none of the known forms, or its files have several.
    """
    forms = {path: form for path in files if (form := _form_of(path)) is not None}
    if not forms:
        raise ValueError(f"{_names(files)}: expected a question on each line, but there are no lines")
    first = next(iter(forms))
    for path, form in forms.items():
        if form != forms[first]:
            raise ValueError(
                f"{path}: expected lines in one form in all files of a job, "
                f"got {form} here and {forms[first]} in {first}"
            )
    return forms[first]


def _names(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _form_of(path: Path) -> str | None:
    """The name of a file's form; None if it has no lines."""
    suffix = own_suffix(path)
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
        return None
    keys = [f"{form.id_key!r} ({form.owner})" if form.owner else repr(form.id_key) for form in (ours, *others)]
    what = first.error or f"an object with the keys {', '.join(map(repr, first.fields)) or '(none)'}"
    raise ValueError(
        f"{path}, line {first.number}: expected a JSON object with {either(keys)}, got {what}; --format says which "
        f"form it is ({', '.join(FORMS)})"
    )


def read_lines(files: Sequence[Path], form: str) -> Iterator[Line]:
    """Reads the lines of an input, in order. A line that cannot be parsed has an `error`.

    Raises:
      ValueError: a file as a whole cannot be read in this form.
      OSError: it cannot be opened.
    """
    if len(files) == 1:
        yield from FORMS[form].read(files[0])
        return
    lines = (dataclasses.replace(line, file=str(path)) for path in files for line in FORMS[form].read(path))
    for index, line in enumerate(lines):
        yield dataclasses.replace(line, index=index)


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
    first: dict[str, tuple[str, int]] = {}
    again: dict[str, list[tuple[str, int]]] = {}
    count = 0
    for line in lines:
        count += 1
        if (found := line_id(line, form)) is not None:
            name, place = str(found), (line.file, line.number)
            if name in first:
                again.setdefault(name, [first[name]]).append(place)
            else:
                first[name] = place
    if again:
        repeated = [f"{_short(name)} on {_places(places[:5])}" for name, places in again.items()]
        more = f"; and {len(repeated) - 10} more" if len(repeated) > 10 else ""
        raise ValueError(
            f"expected a different id on each line, but {len(again)} come more than once: "
            f"{'; '.join(repeated[:10])}{more}"
        )
    return count


def _places(places: Sequence[tuple[str, int]]) -> str:
    if not places[0][0]:
        return f"lines {', '.join(str(number) for _, number in places)}"
    return ", ".join(f"line {number} of {file}" for file, number in places)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}…")
