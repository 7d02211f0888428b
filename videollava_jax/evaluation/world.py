"""The drawn world as a task: the tiny model's clips and images with their questions, in each task's published form.

It is the test data of every reader and scorer, and a task that the tiny model was trained for. A seed determines all of
it: `write` makes the same files wherever it runs.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.assets import world
from videollava_jax.evaluation.tasks import TASKS
from videollava_jax.evaluation.tasks.task import SHORT_ANSWER

_CLIP_TASKS = (
    *("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa", "video_chatgpt", "video_chatgpt_temporal"),
    *("video_chatgpt_consistency", "nextqa", "mvbench", "videomme"),
)
_REPHRASED: dict[str, tuple[str, str]] = {
    "colour": ("What colour is it?", "Which colour is it?"),
    "shape": ("What shape is it?", "Which shape is it?"),
    "how many": ("How many shapes are there?", "How many shapes do you see?"),
    "direction": ("Which way does it move?", "In which direction does it move?"),
    "where": ("Where is it?", "Where is the shape?"),
    "change": ("Does it change colour?", "Does it change color?"),
}


@dataclass(frozen=True)
class _Drawn:
    """A scene, its name, and where its file is."""

    name: str
    scene: world.Scene
    path: Path


def write(task: str, root: Path, media: int = 8, seed: int = 0) -> None:
    """Writes the drawn world as a task's data.

    Args:
      task: a name in `TASKS`.
      root: the directory; it is made.
      media: how many clips or images.
      seed: of the first one, from 0; clips and images that the tiny model has not seen.

    Raises:
      ValueError: the task is unknown, or files are there that would be overwritten.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if not 1 <= media <= 100_000 or not 0 <= seed <= 800_000:
        raise ValueError(f"expected 1 to 100000 clips or images and a seed from 0 to 800000, got {media} and {seed}")
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root}: expected an empty directory, or none, to write the drawn world into")
    _WRITERS[task](_Writer(root, task in _CLIP_TASKS, range(seed, seed + media)))


@dataclass(frozen=True)
class _Writer:
    root: Path
    clips: bool
    seeds: range

    def drawn(self, folder: str, name: str) -> Iterator[_Drawn]:
        """Draws the scenes and writes their files; `name` has the seed in braces, and the suffix."""
        for seed in self.seeds:
            scene = (world.sample_clip if self.clips else world.sample_image)(world.EVAL_SEEDS[0] + seed)
            path = self.root / folder / name.format(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(world.encode_mp4(scene.frames) if self.clips else _png(scene))
            yield _Drawn(path.stem, scene, path)

    def json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        self._write(name, json.dumps(value, indent=1))

    def lines(self, name: str, rows: Sequence[Any]) -> None:
        """Writes an object on each line."""
        self._write(name, "".join(f"{json.dumps(row)}\n" for row in rows))

    def table(self, name: str, rows: Sequence[dict[str, Any]], delimiter: str) -> None:
        """Writes a table with the columns of its first row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write(name, text.getvalue())

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _png(scene: world.Scene) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(scene.frames[0]).save(file, "PNG")
    return file.getvalue()


def _options(question: world.Question, count: int, turn: int) -> tuple[list[str], int]:
    """Returns options of a choice, the right one among them, and its index; the same for the same question."""
    others = [name for name in world.ANSWERS[question.kind] if name != question.answer]
    others += [
        name for name in ("red", "circle", "left", "two", "up", "cross") if name not in (*others, question.answer)
    ]
    right = (turn * 7 + len(question.text)) % count
    options = others[: count - 1]
    options.insert(right, question.answer)
    return options, right


def _video_qa(prefix: str) -> Callable[[_Writer], None]:
    def write_files(writer: _Writer) -> None:
        asked, answers = [], []
        for drawn in writer.drawn("videos", f"{prefix}clip{{}}.mp4"):
            for number, question in enumerate(drawn.scene.questions):
                name = drawn.name.removeprefix(prefix)
                row = {"question_id": f"{name}_{number}"}
                asked.append({"video_name": name, **row, "question": question.text})
                answers.append({"answer": question.answer, **row})
        writer.json("test_q.json", asked)
        writer.json("test_a.json", answers)

    return write_files


def _video_chatgpt(file: str, paired: bool = False) -> Callable[[_Writer], None]:
    def write_files(writer: _Writer) -> None:
        rows = []
        for drawn in writer.drawn("Test_Videos", "clip{}.mp4"):
            for question in drawn.scene.questions:
                row = {"video_name": drawn.name, "Q": question.text, "A": question.answer}
                if paired:
                    both = _REPHRASED.get(question.kind, (question.text,))
                    other = next((text for text in both if text != question.text), question.text)
                    row = {"video_name": drawn.name, "Q1": question.text, "Q2": other, "A": question.answer}
                rows.append(row)
        writer.json(f"Benchmarking_QA/{file}", rows)

    return write_files


def _ten(answer: str, turn: int) -> list[dict[str, Any]]:
    """Returns ten people's answers: most agree, and two say something else."""
    given = [answer] * 8 + [f"a {answer}", "not sure"]
    given = given[turn % 10 :] + given[: turn % 10]
    return [{"answer": text, "answer_id": i, "answer_confidence": "yes"} for i, text in enumerate(given, 1)]


def _vqav2(writer: _Writer) -> None:
    rows = [
        {"question_id": int(drawn.name) * 10 + number, "image": drawn.path.name, "text": question.text + SHORT_ANSWER}
        for drawn in writer.drawn("test2015", "{:06d}.png")
        for number, question in enumerate(drawn.scene.questions)
    ]
    writer.lines("llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    writer.lines("llava_vqav2_mscoco_test2015.jsonl", [*rows, {**rows[0], "question_id": 10**9}])


def _vqav2_val(writer: _Writer) -> None:
    questions, annotations = [], []
    for drawn in writer.drawn("val2014", "COCO_val2014_{:012d}.jpg"):
        for number, question in enumerate(drawn.scene.questions):
            name = int(drawn.name.rpartition("_")[2])
            ids = {"image_id": name, "question_id": name * 10 + number}
            questions.append({**ids, "question": question.text})
            annotations.append({**ids, "answers": _ten(question.answer, number), "answer_type": question.kind})
    writer.json("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    writer.json("v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def _vizwiz(writer: _Writer) -> None:
    writer.lines(
        "llava_test.jsonl",
        [
            {
                "question_id": drawn.path.name,
                "image": drawn.path.name,
                "text": drawn.scene.questions[0].text + SHORT_ANSWER,
            }
            for drawn in writer.drawn("test", "VizWiz_test_{:08d}.jpg")
        ],
    )


def _vizwiz_val(writer: _Writer) -> None:
    rows = []
    for turn, drawn in enumerate(writer.drawn("val", "VizWiz_val_{:08d}.jpg")):
        question = drawn.scene.questions[0]
        facts = {"answer_type": "other", "answerable": 1, "answers": _ten(question.answer, turn)}
        rows.append({"image": drawn.path.name, "question": question.text, **facts})
    writer.json("val.json", rows)


def _textvqa(writer: _Writer) -> None:
    rows, annotations = [], []
    for drawn in writer.drawn("train_images", "image{}.jpg"):
        for turn, question in enumerate(drawn.scene.questions):
            text = f"{question.text}\nReference OCR token: {question.answer}, shape{SHORT_ANSWER}"
            rows.append({"question_id": drawn.name, "image": drawn.path.name, "text": text})
            given = [each["answer"] for each in _ten(question.answer, turn)]
            annotations.append({"image_id": drawn.name, "question": question.text, "answers": given})
    writer.lines("llava_textvqa_val_v051_ocr.jsonl", rows)
    writer.json("TextVQA_0.5.1_val.json", {"data": annotations})


def _gqa(writer: _Writer) -> None:
    rows, annotations = [], {}
    for drawn in writer.drawn("data/images", "{}.jpg"):
        for number, question in enumerate(drawn.scene.questions):
            name = f"{drawn.name}{number:03d}"
            rows.append({"question_id": name, "image": drawn.path.name, "text": question.text + SHORT_ANSWER})
            kind = "query" if number else "verify"
            annotations[name] = {
                "question": question.text,
                "answer": question.answer,
                "imageId": drawn.name,
                "isBalanced": True,
                "types": {"structural": kind, "semantic": question.kind, "detailed": question.kind},
                "groups": {"global": question.kind, "local": None},
                "semantic": [{"operation": "select", "argument": "shape"}],
                "entailed": [],
            }
    writer.lines("llava_gqa_testdev_balanced.jsonl", rows)
    writer.json("data/testdev_balanced_questions.json", annotations)


def _pope(writer: _Writer) -> None:
    rows: list[dict[str, Any]] = []
    labels: dict[str, list[dict[str, Any]]] = {category: [] for category in ("adversarial", "popular", "random")}
    for turn, drawn in enumerate(writer.drawn("val2014", "COCO_val2014_{:012d}.jpg")):
        shape = drawn.scene.tracks[0].shape
        absent = [name for name in world.SHAPES if name != shape]
        for offset, (category, table) in enumerate(labels.items()):
            there = (turn + offset) % 2 == 0
            text = f"Is there a {shape if there else absent[turn % 3]} in the image?"
            table.append({"question_id": len(table) + 1, "image": drawn.path.name, "text": text})
            table[-1]["label"] = "yes" if there else "no"
            rows.append({"question_id": len(rows) + 1, "image": drawn.path.name, "text": text + SHORT_ANSWER})
            rows[-1]["category"] = category
    writer.lines("llava_pope_test.jsonl", rows)
    for category, table in labels.items():
        writer.lines(f"coco/coco_pope_{category}.json", table)


def _mmbench(writer: _Writer) -> None:
    rows: list[dict[str, Any]] = []
    for turn, drawn in enumerate(writer.drawn("images", "{}.png")):
        image = base64.b64encode(drawn.path.read_bytes()).decode()
        question = drawn.scene.questions[0]
        options, right = _options(question, 4 if turn % 2 else 3, turn)
        for shift in range(len(options)):
            rotated = options[shift:] + options[:shift]
            cells = dict(zip("ABCD", [*rotated, ""], strict=False))
            rows.append(
                {
                    "index": shift * 1_000_000 + turn,
                    "question": question.text,
                    "hint": "The shapes are flat." if turn % 3 == 0 else "",
                    **cells,
                    "answer": "ABCD"[(right - shift) % len(options)],
                    "category": question.kind,
                    "image": image,
                    "source": "drawn",
                    "l2-category": "perception",
                    "comment": "",
                    "split": "dev",
                }
            )
    writer.table("mmbench_dev_20230712.tsv", rows, "\t")


def _scienceqa(writer: _Writer) -> None:
    lines, problems = [], {}
    for turn, drawn in enumerate(writer.drawn("images/test", "{}/image.png")):
        question = drawn.scene.questions[0]
        options, right = _options(question, 3, turn)
        name = drawn.path.parent.name
        letters = " ".join(f"({letter}) {option}" for letter, option in zip("ABC", options, strict=True))
        text = f"{question.text}\nContext: N/A\nOptions: {letters}"
        line: dict[str, Any] = {"id": name, "conversations": [{"from": "human", "value": f"<image>\n{text}"}]}
        if turn % 3 == 2:
            line["conversations"][0]["value"] = text  # a question without an image
        else:
            line["image"] = f"{name}/image.png"
        lines.append(line)
        problems[name] = {
            "choices": options,
            "answer": right,
            "subject": "natural science",
            "grade": f"grade{turn % 3}",
        }
    writer.json("llava_test_CQM-A.json", lines)
    writer.json("problems.json", problems)
    writer.json("pid_splits.json", {"test": list(problems)})


_NEXTQA_TYPES = {"change": "CW", "order": "TC", "direction": "TN", "where": "DL", "how many": "DC"}


def _nextqa(writer: _Writer) -> None:
    rows = []
    for turn, drawn in enumerate(writer.drawn("videos", "{}.mp4")):
        for number, question in enumerate(drawn.scene.questions):
            options, right = _options(question, 5, turn + number)
            facts = {"frame_count": world.FRAMES, "width": world.SIZE, "height": world.SIZE, "question": question.text}
            kind = _NEXTQA_TYPES.get(question.kind, "DO")
            choice = {f"a{i}": option for i, option in enumerate(options)}
            rows.append({"video": drawn.name, **facts, "answer": right, "qid": number, "type": kind, **choice})
    writer.table("test.csv", rows, ",")


_MVBENCH_TASKS = {"direction": "moving_direction", "how many": "moving_count", "colour": "moving_attribute"}


def _mvbench(writer: _Writer) -> None:
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in _MVBENCH_TASKS.values()}
    for turn, drawn in enumerate(writer.drawn("video/clevrer/video_validation", "video_{}.mp4")):
        for question in drawn.scene.questions:
            if question.kind in _MVBENCH_TASKS:
                options, _ = _options(question, 4, turn)
                row = {"video": drawn.path.name, "question": question.text, "candidates": options}
                rows[_MVBENCH_TASKS[question.kind]].append({**row, "answer": question.answer})
    for task, found in rows.items():
        writer.json(f"json/{task}.json", found)


def _videomme(writer: _Writer) -> None:
    rows = []
    for turn, drawn in enumerate(writer.drawn("data", "clip{}.mp4")):
        for number, question in enumerate(drawn.scene.questions):
            options, right = _options(question, 4, turn + number)
            rows.append(
                {
                    "video_id": f"{turn:03d}",
                    "videoID": drawn.name,
                    "duration": "short",
                    "domain": "Drawn",
                    "sub_category": drawn.scene.medium,
                    "task_type": question.kind,
                    "question_id": f"{turn:03d}-{number + 1}",
                    "question": question.text,
                    "options": [f"{letter}. {option}." for letter, option in zip("ABCD", options, strict=True)],
                    "answer": "ABCD"[right],
                }
            )
    writer.json("test.json", rows)


def _mmvet(writer: _Writer) -> None:
    rows, answers = [], {}
    for number, drawn in enumerate(writer.drawn("images", "v1_{}.png")):
        question, *rest = drawn.scene.questions
        text = " ".join(each.text for each in (question, *rest[:1]))
        rows.append({"question_id": number, "image": drawn.path.name, "text": text})
        both = "<AND>".join(each.answer for each in (question, *rest[:1]))
        answers[f"v1_{number}"] = {"question": text, "answer": f"{both}<OR>anything", "capability": ["rec", "spat"]}
        if number % 2:
            answers[f"v1_{number}"] |= {"answer": both, "capability": ["rec"]}
    writer.lines("llava-mm-vet.jsonl", rows)
    writer.json("mm-vet.json", answers)


def _llava_bench(writer: _Writer) -> None:
    rows: list[dict[str, Any]] = []
    answers, context = [], []
    for drawn in writer.drawn("images", "{:03d}.png"):
        captions = [f"There is a {track.colours[0]} {track.shape}." for track in drawn.scene.tracks]
        context.append({"image": drawn.path.name, "caption": captions if len(rows) % 2 else captions[0]})
        for question, category in zip(drawn.scene.questions, ("conv", "detail", "complex"), strict=False):
            row = {"question_id": len(rows), "image": drawn.path.name, "category": category}
            rows.append({**row, "text": question.text})
            answers.append({"question_id": row["question_id"], "text": question.answer, "answer_id": f"a{len(rows)}"})
    writer.lines("questions.jsonl", rows)
    writer.lines("answers_gpt4.jsonl", answers)
    writer.lines("context.jsonl", context)


_WRITERS: dict[str, Callable[[_Writer], None]] = {
    "msvd_qa": _video_qa(""),
    "msrvtt_qa": _video_qa(""),
    "tgif_qa": _video_qa(""),
    "activitynet_qa": _video_qa("v_"),
    "video_chatgpt": _video_chatgpt("generic_qa.json"),
    "video_chatgpt_temporal": _video_chatgpt("temporal_qa.json"),
    "video_chatgpt_consistency": _video_chatgpt("consistency_qa.json", paired=True),
    "vqav2": _vqav2,
    "vqav2_val": _vqav2_val,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "vizwiz_val": _vizwiz_val,
    "scienceqa_img": _scienceqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mmbench": _mmbench,
    "llava_bench": _llava_bench,
    "mmvet": _mmvet,
    "nextqa": _nextqa,
    "mvbench": _mvbench,
    "videomme": _videomme,
}
