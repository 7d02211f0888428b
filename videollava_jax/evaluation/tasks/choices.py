"""MMBench and ScienceQA: choices about images."""

from __future__ import annotations

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.scorers.choices import MMBENCH as MMBENCH_SCORER
from videollava_jax.evaluation.scorers.choices import SCIENCEQA as SCIENCEQA_SCORER
from videollava_jax.evaluation.scorers.letters import LETTERS
from videollava_jax.evaluation.tasks.files import (
    by_id,
    index_of,
    object_of,
    read_json,
    read_rows,
    read_table,
    rows_under,
    text_of,
    texts_of,
)
from videollava_jax.evaluation.tasks.task import LETTER_ANSWER, Files, Needed, Task

ROTATED = 1_000_000
"""MMBench numbers the rotations of question i: i, i + 1000000, i + 2000000, …"""
_NOTHING = "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"
_EMPTY = frozenset(_NOTHING.split("|"))
"""What pandas, by which the authors' program reads the table, takes for an empty cell."""


def _empty(cell: str) -> bool:
    return cell in _EMPTY or cell.lower() in ("nan", "none")


def _data_url(base64: str) -> str:
    return f"data:image/{'png' if base64.startswith('iVBOR') else 'jpeg'};base64,{base64}"


def _read_mmbench(files: Files) -> list[Question]:
    path = files["table"]
    questions = []
    for row in read_table(path, "\t"):
        for column in ("index", "question", "image", "A", "B"):
            if column not in row:
                raise ValueError(f"{path}: expected a column {column!r}, got {', '.join(row)[:200]}")
        options: list[str] = []
        for letter in "ABCD":
            if _empty(row.get(letter, "")):
                break
            options.append(row[letter])
        hint = row.get("hint", "")
        text = row["question"] if _empty(hint) else f"{hint}\n{row['question']}"
        text += "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
        try:
            index = int(row["index"])
        except ValueError:
            raise ValueError(f"{path}: expected whole numbers under 'index', got {row['index']!r}") from None
        questions.append(
            Question(
                id=str(index),
                unit=str(index % ROTATED),
                text=text + LETTER_ANSWER,
                media=(("image", _data_url(row["image"])),),
                target=row.get("answer") or None,
                cluster=str(index % ROTATED),
                categories={name: row[name] for name in ("category", "l2-category") if name in row},
                options=tuple(options),
            )
        )
    return questions


def _read_scienceqa(files: Files) -> list[Question]:
    asked, path = files["questions"], files["problems"]
    lines = by_id(read_rows(asked), "id", asked)
    problems = object_of(read_json(path), path)
    questions = []
    for name in rows_under(files["splits"], "test"):
        line, problem = lines.get(str(name)), problems.get(str(name))
        if line is None or problem is None:
            raise ValueError(f"{asked if line is None else path}: no problem {name!r}, which the test split has")
        turns = line.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"{asked}: expected turns under 'conversations' of {name!r}")
        prompt = text_of(turns[0], "value", asked).replace("<image>", "").strip()
        image = f"images/test/{text_of(line, 'image', asked)}" if "image" in line else None
        options = texts_of(problem, "choices", path)
        questions.append(
            Question(
                id=str(name),
                text=prompt + LETTER_ANSWER,
                media=(("image", image),) if image else (),
                target=LETTERS[index_of(problem, "answer", path, len(options))],
                cluster=str(name),
                categories={key: str(problem[key]) for key in ("subject", "grade") if key in problem},
                options=options,
            )
        )
    return questions


MMBENCH = Task(
    name="mmbench",
    title="MMBench, dev",
    files=(Needed("table", ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv"), "MMBench's, with rotations"),),
    media="in the table",
    read=_read_mmbench,
    scorer=MMBENCH_SCORER,
    pads=True,
    paper={"accuracy": 60.9},
    max_new_tokens=1024,
    note="The paper's figure is from MMBench's server, which asks a judge about answers without a letter; here these "
    "are wrong and counted as unparsed.",
)
SCIENCEQA_IMG = Task(
    name="scienceqa_img",
    title="ScienceQA-IMG, test",
    files=(
        Needed("questions", ("llava_test_CQM-A.json",), "LLaVA-1.5's eval.zip"),
        Needed("problems", ("problems.json",), "ScienceQA"),
        Needed("splits", ("pid_splits.json",), "ScienceQA"),
    ),
    media="images/test/ID/image.png",
    read=_read_scienceqa,
    scorer=SCIENCEQA_SCORER,
    paper={"img_accuracy": 66.4},
    max_new_tokens=1024,
)
