"""Lines that may say anything: jobs of them, with good lines among them that must be answered.

    python -m tests.faults.lines --lines 50000 --seed 0

Every job ends with a record for each line, whatever the lines say, and the good ones are answered. The requests are
checked as the engine checks them, by the same code, but no model answers them.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.odd_values import Raw, dump
from tests.faults.tables import Tally
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.batch.forms.openai import NEUTRAL
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.config import ModelConfig
from videollava_jax.engine import Request, Result
from videollava_jax.engine.preparation import Preparer
from videollava_jax.engine.row_arrays import unwritten_answers
from videollava_jax.engine.sizes import Branches
from videollava_jax.generation.options import KINDS, OPENAI_NAMES
from videollava_jax.processing.processor import VideoLlavaProcessor

IMAGE, VIDEO = "three-triangles.png", "circle-then-square.mp4"
ODD = 18
"""Odd lines of a job; two good ones stand among them."""

# ── values ──


def one_of(*kinds: Any) -> Any:
    """One of some kinds, each as likely as the others: hypothesis would take nested choices apart into one flat one."""
    return st.sampled_from(kinds).flatmap(lambda kind: kind)


TEXTS = one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),  # lone surrogates too
    st.sampled_from(["", " ", "\0", "\ud800", "a\0b", "<image>", "<video>", "</s>", "<image>\n" * 3, "é" * 3000, "-1"]),
    st.sampled_from(
        [IMAGE, VIDEO, "/dev/zero", "../x", "file://[", "file://host/x", "data:,", "http://[", "a\nb", "~"]
    ),
)
NUMBERS = one_of(
    st.sampled_from([2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**70), 10**400, -1, 0]),
    st.sampled_from([1e-40, 5e-324, 1e308, 0.5, 1.0, -0.0]),
    st.sampled_from(["NaN", "-Infinity", "1e400", "1E2", "9" * 5000, "-0"]).map(Raw),
    st.integers(),
    st.floats(),
)
SCALARS = one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
DEEP = st.sampled_from(
    [Raw("[" * n + "]" * n) for n in (40, 99, 120, 900, 3000)]
    + [Raw('{"type":' * n + "1" + "}" * n) for n in (50, 150)]
)
VALUES = one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    ),
    DEEP,
)


def fields(known: Iterable[str], **like: Any) -> Any:
    """Objects with some of the known keys and any values; `like` are values of the right kind for some keys."""
    return st.fixed_dictionaries({}, optional={key: like[key] | VALUES if key in like else VALUES for key in known})


PART = one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}),
    st.fixed_dictionaries({"type": st.just("image"), "image": st.just(IMAGE)}),
    st.fixed_dictionaries({"type": VALUES | st.just([]), "text": TEXTS}),
    fields(
        ["type", "text", "image", "video", "path", "url", "image_url", "video_url"],
        type=st.sampled_from(["text", "image", "video", "image_url", "video_url"]),
        image_url=st.fixed_dictionaries({"url": TEXTS}),
    ),
    VALUES,
)
CONTENT = TEXTS | st.lists(PART, min_size=1, max_size=3)
MESSAGES = one_of(
    CONTENT.map(lambda content: [{"role": "user", "content": content}]),
    st.lists(
        fields(
            ["role", "content", "name"],
            role=st.sampled_from(["user", "assistant", "system", "developer"]),
            content=CONTENT,
        ),
        max_size=3,
    ),
)
ASKED = st.just([{"role": "user", "content": "How many shapes are there?"}])
PATH = TEXTS | st.just(IMAGE)
PATHS = st.lists(TEXTS, max_size=2) | st.just(IMAGE)
QUESTION = st.just("How many shapes are there?")
IMAGE_ALONE = st.just(IMAGE)

# What options may be; `nearly` replaces one of them by anything.
OPTIONS: dict[str, Any] = {
    "max_new_tokens": st.integers(1, 300),
    "do_sample": st.booleans(),
    "temperature": st.floats(1e-6, 1e6),
    "top_k": st.integers(-1, 2**31 - 1),
    "top_p": st.floats(0, 1, exclude_min=True),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(1e-6, 1e6),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 642).map(str), st.floats(-100, 100), max_size=3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop_strings": st.lists(st.text(st.characters(exclude_categories=()), min_size=1), max_size=3),
}
OURS = {**OPTIONS, "frames": st.integers(1, 8), "pool": st.sampled_from([1, 2])}
THEIRS = {name: OPTIONS[option] for name, option in OPENAI_NAMES.items()}


def nearly(right: dict[str, Any], more: Iterable[str] = ()) -> Any:
    """Objects with some of the keys of `right` and values that are right; in most of them anything under one key."""
    one = st.sampled_from([*right, *more]).flatmap(lambda name: st.fixed_dictionaries({name: VALUES | NUMBERS}))
    return st.builds(
        lambda all, odd: {**all, **odd}, st.fixed_dictionaries({}, optional=right), one | one | st.just({})
    )


def lines_of(form: str) -> Any:
    """Lines of a form: many are nearly right, in one or a few fields anything at all."""
    if form == "openai":
        odd = fields(
            ["messages", *OPENAI_NAMES, *NEUTRAL, "model", "metadata", "guided_json"], messages=MESSAGES | ASKED
        )
        said = nearly(THEIRS) | nearly(THEIRS, NEUTRAL)
        right = st.builds(lambda asked, said: {"messages": asked, **said}, ASKED, said)
        spoken = st.fixed_dictionaries({"messages": MESSAGES})
        whole = st.fixed_dictionaries({"body": one_of(right, spoken, odd)})
        return whole | whole | fields(["method", "url", "body"], method=st.just("POST"), body=right)
    if form == "llava":
        right = {"text": QUESTION, "image": PATHS | IMAGE_ALONE, "video": PATHS | IMAGE_ALONE}
        return nearly({**right, "category": TEXTS}) | st.fixed_dictionaries({**right, "text": TEXTS | QUESTION})
    if form == "parquet":
        written = st.none() | st.text(max_size=12) | st.just("a\0b")
        columns = {"prompt": written | QUESTION, "image": written | IMAGE_ALONE, "video": written}
        others = {"n": st.none() | st.floats(), "raw": st.none() | st.binary(max_size=5)}
        return st.fixed_dictionaries({**columns, **others})
    if form == "csv":
        text = TEXTS.map(lambda text: text.translate({10: " ", 13: " "}))
        text = text | st.sampled_from(['"', '"open', 'a"b', '""', ","])
        return st.lists(text, max_size=4) | st.tuples(st.just("How many?"), PATH, st.just("") | text).map(list)
    asked = {"prompt": QUESTION | TEXTS, "image": IMAGE_ALONE}
    right = st.fixed_dictionaries({"prompt": QUESTION, "options": nearly(OURS) | nearly(OURS, [*KINDS, "heat"])})
    spoken = st.fixed_dictionaries({"conversation": MESSAGES})
    odd = nearly(
        {**asked, "video": PATHS, "media": st.lists(PATH, max_size=2), "options": fields(OURS)},
        ["images", "conversation", "temperature"],
    )
    return one_of(right, spoken, odd)


IDS = {"jsonl": "id", "openai": "custom_id", "llava": "question_id", "csv": "id", "parquet": "id"}
GOOD: dict[str, Any] = {
    "jsonl": {"image": IMAGE, "prompt": "How many shapes are there?"},
    "openai": {"body": {"messages": [{"role": "user", "content": "How many shapes are there?"}]}},
    "llava": {"video": VIDEO, "text": "What shape is it at first?"},
    "csv": ["How many shapes are there?", IMAGE, ""],
    "parquet": {"prompt": "How many shapes are there?", "image": IMAGE},
}


class Validating:
    """A runner that refuses what the engine refuses, by the engine's own code, and answers the rest without a model."""

    def __init__(self) -> None:
        self._config = ModelConfig.from_hf(TINY)
        self._preparer = Preparer(VideoLlavaProcessor.from_pretrained(TINY), self._config, {}, 64)

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields a result for each request."""
        answered = []
        for request in requests:
            try:
                answered.append(self._preparer.question(request))
                yield Result(id=request.id, text="answered", token_ids=(2,), finish_reason="stop")
            except (ValueError, OSError) as error:  # the engine takes a TypeError too, whose text would help nobody
                yield Result(id=request.id, finish_reason="error", error=" ".join(str(error).split()))
        rows = [*answered, *[None] * (ODD + 2 - len(answered))]  # always the same number, which compiles once
        V = self._config.text_config.vocab_size
        unwritten_answers(rows, [q.ids if q else None for q in rows], 8, V, Branches(), 2**20)


def write_job(path: Path, form: str, odd: Sequence[Any]) -> set[str]:
    """Writes a job of odd lines with a good one before and behind them; returns the ids of the good ones."""
    key, good = IDS[form], GOOD[form]
    if form == "parquet":
        import pyarrow.parquet

        rows = [{"id": "good 1", **good}, *odd, {"id": "good 2", **good}]
        kinds = {"n": pyarrow.float64(), "raw": pyarrow.binary()}
        columns = ("id", "prompt", "image", "video", "n", "raw")
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
        return {"good 1", "good 2"}
    with open(path, "wb") as file:
        if form == "csv":
            text = io.TextIOWrapper(file, "utf-8", "surrogatepass", newline="")
            text.write("id,prompt,image,video\n")
            for name, cells in [("good 1", good), *((f"{i}", cells) for i, cells in enumerate(odd)), ("good 2", good)]:
                text.write(",".join([name, *cells]) + "\n")
            text.flush()
        else:
            lines = [{key: "good 1", **good}, *odd, {key: "good 2", **good}]
            file.writelines(dump(line) + b"\n" for line in lines)
    return {"good 1", "good 2"}


def with_ids(form: str) -> Any:
    """Lists of odd lines of a form, most of them with an id that no other line of the list has."""
    if form == "csv":
        return st.lists(lines_of(form), min_size=ODD, max_size=ODD)
    if form == "parquet":
        rows = st.lists(lines_of(form), min_size=ODD, max_size=ODD)
        return rows.map(lambda lines: [{"id": str(i) if i else None, **line} for i, line in enumerate(lines)])

    def named(lines: list[Any], ids: list[Any]) -> list[Any]:
        taken, named = {"good 1", "good 2"}, []
        for i, (line, name) in enumerate(zip(lines, ids, strict=True)):
            name = f"line {i}" if name is None or str(name) in taken or isinstance(name, Raw) else name
            taken.add(str(name))
            named.append({IDS[form]: name, **line} if isinstance(line, dict) else line)
        return named

    ids = st.none() | st.none() | SCALARS
    return st.builds(
        named,
        st.lists(lines_of(form) | lines_of(form) | VALUES, min_size=ODD, max_size=ODD),
        st.lists(ids, min_size=ODD, max_size=ODD),
    )


def run_job(place: Path, form: str, odd: Sequence[Any], runner: Any) -> list[dict[str, Any]]:
    """Runs a job of odd lines; returns its records.

    Raises:
      AssertionError: a line has no record, a good one no answer, or an error says nothing.
    """
    source, output = place / "in", place / "out.jsonl"
    good = write_job(source, form, odd)
    output.unlink(missing_ok=True)
    summary = run_batch(
        source, output, lambda: runner, BatchOptions(form=form, media_root=MEDIA, max_error_rate=1, keep_ledger=False)
    )
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert summary.lines == len(records) >= len(odd) + 2 - (form == "csv") * len(odd)
    for record in records:
        error = error_of(record)
        if record[IDS[form]] in good:
            assert error is None, record
            good.remove(record[IDS[form]])
        assert error is None or 0 < len(error) < 1500, error
    assert not good, good
    return records


def error_of(record: dict[str, Any]) -> str | None:
    """Returns the error of a record of any form."""
    if "metadata" in record:
        return record["metadata"].get("error")
    error = record["error"]
    return error["message"] if isinstance(error, dict) else error


def try_lines(form: str, number: int, seed: int, runner: Any, tally: Tally | None = None) -> Counter[str]:
    """Runs jobs of at least a number of lines; returns how many jobs, lines and errors there were.

    Args:
      tally: counts each line, with the seconds of its job.
    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:

        @hypothesis.seed(seed)
        @settings(
            max_examples=number // (ODD + 2) + 1,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(with_ids(form))
        def check(odd: list[Any]) -> None:
            began = time.perf_counter()
            records = run_job(Path(directory), form, odd, runner)
            for record in records if tally else ():
                tally.add("refused" if error_of(record) else "answered", seconds=time.perf_counter() - began)
            counts["jobs"] += 1
            counts["lines"] += len(records)
            counts["errors"] += sum(error_of(record) is not None for record in records)

        check()
    return counts


def part(seed: int, scale: float) -> list[Tally]:
    """Runs jobs of `6000 * scale` lines; see `tests.faults.parts`."""
    tallies, runner = [], Validating()
    for form in IDS:
        tallies.append(tally := Tally(f"lines of {form}"))
        try:
            counts = try_lines(form, round(6000 * scale) // len(IDS), seed, runner, tally)
            tally.note = f"{counts['jobs']} jobs of {form}"
        except Exception as error:  # an assertion: a line without a record, a good one without an answer
            lost = isinstance(error, AssertionError)
            tally.add("lost" if lost else "crash", f"seed {seed}: {type(error).__name__}: {str(error)[:2000]}")
    return tallies


def main() -> None:
    """Runs jobs and prints what became of their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=50_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    started, runner, total = time.perf_counter(), Validating(), 0
    for form in IDS:
        counts = try_lines(form, arguments.lines // len(IDS), arguments.seed, runner)
        jobs, lines, errors = counts["jobs"], counts["lines"], counts["errors"]
        print(f"{form}: {jobs} jobs ended, {lines} lines: {lines - errors} answers, {errors} errors", flush=True)
        total += lines
    print(f"{total} lines, and none ended its job; seed {arguments.seed}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
