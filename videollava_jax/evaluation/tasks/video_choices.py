"""NExT-QA, MVBench and Video-MME: choices about videos. The paper has no figures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.scorers.choices import MVBENCH as MVBENCH_SCORER
from videollava_jax.evaluation.scorers.choices import NEXTQA as NEXTQA_SCORER
from videollava_jax.evaluation.scorers.choices import VIDEOMME as VIDEOMME_SCORER
from videollava_jax.evaluation.scorers.letters import LETTERS
from videollava_jax.evaluation.tasks.files import (
    first_existing,
    index_of,
    object_of,
    read_json,
    read_parquet,
    read_rows,
    read_table,
    text_of,
    texts_of,
)
from videollava_jax.evaluation.tasks.task import LETTER_ANSWER, Files, Needed, Task


def _read_nextqa(files: Files) -> list[Question]:
    path = files["table"]
    places = object_of(read_json(files["map"]), files["map"]) if files.get("map") else {}
    seen: Counter[str] = Counter()
    questions = []
    for row in read_table(path, ","):
        for column in ("video", "question", "answer", "type", "a0", "a1", "a2", "a3", "a4"):
            if column not in row:
                raise ValueError(f"{path}: expected a column {column!r}, got {', '.join(row)[:200]}")
        video = row["video"]
        number = row.get("qid") or str(seen[video])
        seen[video] += 1
        options = tuple(row[f"a{i}"].strip() for i in range(5))
        names = [f"videos/{video}.mp4", f"NExTVideo/{places.get(video, video)}.mp4", f"videos/{places.get(video)}.mp4"]
        kind = row["type"]
        questions.append(
            Question(
                id=f"{video}_{number}",
                text="\n".join([row["question"].strip(), *_lettered(options, "{}. {}")]) + LETTER_ANSWER,
                media=(("video", first_existing(files.root, names)),),
                target=LETTERS[index_of(row, "answer", path, 5)],
                cluster=video,
                categories={"kind": kind[:1], "type": "TN" if kind == "TP" else kind},
                options=options,
            )
        )
    return questions


def _lettered(options: tuple[str, ...], form: str) -> list[str]:
    return [form.format(letter, option) for letter, option in zip(LETTERS, options, strict=False)]


_MVBENCH_FOLDERS = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}


_MVBENCH_WHOLE = {
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "object_interaction": "star/Charades_v1_480",
}
"""Folders of the first release, whose videos are not cut: their rows say which part is asked about."""
_MVBENCH_PLACES = ("video/", "", "data0613/", "video/data0613/")


def _read_mvbench(files: Files) -> list[Question]:
    questions = []
    for task, folder in _MVBENCH_FOLDERS.items():
        path = files.get(task)
        for number, row in enumerate(read_rows(path) if path else ()):
            assert path is not None
            options = texts_of(row, "candidates", path)
            if (answer := text_of(row, "answer", path)) not in options or len(options) > len(LETTERS):
                raise ValueError(f"{path}, entry {number + 1}: expected an answer that is one of the 'candidates'")
            video = text_of(row, "video", path)
            cut = [f"{place}{folder}/{video}" for place in _MVBENCH_PLACES]
            uncut = [f"{place}{_MVBENCH_WHOLE[task]}/{video}" for place in _MVBENCH_PLACES if task in _MVBENCH_WHOLE]
            source = first_existing(files.root, [*cut, *uncut])
            lines = "".join(f"{line}\n" for line in _lettered(options, "({}) {}"))
            questions.append(
                Question(
                    id=f"{task}_{number}",
                    text=f"Question:{text_of(row, 'question', path)}\nOption:\n{lines}Only give the best option.\n",
                    media=(("video", source),),
                    span=_span(row, path, number) if source in uncut else None,
                    target=LETTERS[options.index(answer)],
                    cluster=f"{folder}/{video}",
                    categories={"task": task},
                    options=options,
                )
            )
    return questions


def _span(row: Mapping[str, Any], path: Path, number: int) -> tuple[float, float]:
    start: Any = row.get("start")
    end: Any = row.get("end")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (start, end))
    if not numbers or not 0 <= start < end < float("inf"):
        raise ValueError(
            f"{path}, entry {number + 1}: expected seconds under 'start' and, after that, 'end', got {start}, {end}"
        )
    return float(start), float(end)


_VIDEOMME_ASKS = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)


def _read_videomme(files: Files) -> list[Question]:
    path = files["table"]
    questions = []
    for row in read_parquet(path) if path.suffix == ".parquet" else read_rows(path):
        video, options = text_of(row, "videoID", path), texts_of(row, "options", path, 4)
        text = "\n".join([_VIDEOMME_ASKS, text_of(row, "question", path), *options, "The best answer is:"])
        questions.append(
            Question(
                id=text_of(row, "question_id", path),
                text=text,
                media=(
                    ("video", first_existing(files.root, [f"data/{video}{end}" for end in (".mp4", ".MP4", ".mkv")])),
                ),
                target=text_of(row, "answer", path).upper(),
                cluster=video,
                categories={
                    key: str(row[key]) for key in ("duration", "domain", "sub_category", "task_type") if key in row
                },
                options=options,
            )
        )
    return questions


NEXTQA = Task(
    name="nextqa",
    title="NExT-QA, multiple choice",
    files=(
        Needed(
            "table", ("test.csv", "nextqa/test.csv", "MC/test.csv", "val.csv", "nextqa/val.csv"), "NExT-QA's dataset"
        ),
        Needed("map", ("map_vid_vidorID.json",), "where VidOR keeps each video", optional=True),
    ),
    media="videos/ID.mp4, or NExTVideo/ID.mp4 and VidOR's folders",
    read=_read_nextqa,
    scorer=NEXTQA_SCORER,
    note="lmms-eval guesses a letter where it finds none; here such an answer is wrong and counted as unparsed.",
)
MVBENCH = Task(
    name="mvbench",
    title="MVBench",
    files=tuple(
        Needed(task, (f"json/{task}.json", f"{task}.json"), "MVBench", optional=True) for task in _MVBENCH_FOLDERS
    ),
    media="video/ and MVBench's folders, with segments already cut (the hub's revision `video`) or whole videos",
    read=_read_mvbench,
    scorer=MVBENCH_SCORER,
    note="Subtasks whose file is missing are left out. "
    "Folders of frames (episodic_reasoning of the first release) are not read: the revision `video` has videos.",
)
VIDEOMME = Task(
    name="videomme",
    title="Video-MME, without subtitles",
    files=(
        Needed(
            "table",
            ("videomme/test-00000-of-00001.parquet", "test-00000-of-00001.parquet", "test.json", "test.jsonl"),
            "Video-MME's rows",
        ),
    ),
    media="data/VIDEOID.mp4, .MP4 or .mkv",
    read=_read_videomme,
    scorer=VIDEOMME_SCORER,
    note="Eight frames are few for videos of up to an hour.",
)
