"""lmms-eval itself, with videollava_jax as its model, on tasks of the drawn world: the answers of `videollava eval`.

Run by `make lmms-eval`, in an environment of its own: lmms-eval cannot be installed together with videollava-jax as it
asks for other versions, and brings torch. Nothing is fetched while the tests run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image
from videollava_lmms_eval.answering import Settings
from videollava_lmms_eval.requests import Media, asked_of, conversation_of, cut, frames_of

from videollava_jax.cli import main as videollava
from videollava_jax.evaluation.answers import read_answers
from videollava_jax.evaluation.tasks import TASKS
from videollava_jax.media import Within

UTILS = """\
from PIL import Image


def visual(doc):
    return [doc["video"]] if doc["video"] else [Image.open(doc["image"])]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def messages(doc, lmms_eval_specific_kwargs=None):
    kind = "video" if doc["video"] else "image"
    medium = {"type": kind, "url": visual(doc)[0]}
    return [{"role": "user", "content": [medium, {"type": "text", "text": doc["question"]}]}]
"""
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: {output}
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: {target}
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
ASKED = 'generation_kwargs: {max_new_tokens: 16, temperature: 0, do_sample: false, num_beams: 1, until: ["ASSISTANT:"]}'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tasks about clips and images, their data, and what `videollava eval answer` answers: (directory, answers)."""
    root = tmp_path_factory.mktemp("lmms")
    documents, answers = [], []
    for task in ("msvd_qa", "gqa"):
        data, out = root / task, root / f"{task}-answers"
        assert videollava(["eval", "world", task, "--data", str(data), "--media", "3"]) == 0
        line = ["eval", "answer", task, "--data", str(data), "-o", str(out), "--as", "model"]
        assert videollava([*line, "--max-new-tokens", "16"]) == 0
        found = {answer.id: answer.text for answer in read_answers(out / "answers.jsonl")}
        for number, question in enumerate(TASKS[task].questions(data)[1]):
            ((kind, source),) = question.media
            right, others = number % 3, ["xyzzy", "not at all"]
            documents.append(
                {
                    "video": str(data / source) if kind == "video" else "",
                    "image": str(data / source) if kind == "image" else "",
                    "question": question.text,
                    "answer": question.target,
                    "options": [*others[:right], question.target, *others[right:]],
                    "right": right,
                }
            )
            answers.append(found[question.id])
    (root / "data.json").write_text(json.dumps(documents))
    tasks = root / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(UTILS)
    of_messages = f"{ASKED}\ndoc_to_messages: !function utils.messages"
    for name, output, target, more, metric in (
        ("shapes", "generate_until", "answer", ASKED, "exact_match"),
        ("shapes_messages", "generate_until", "answer", of_messages, "exact_match"),
        ("shapes_choices", "multiple_choice", "right", "doc_to_choice: options", "acc"),
    ):
        text = TASK.format(name=name, data=root / "data.json", output=output, target=target, more=more, metric=metric)
        (tasks / f"{name}.yaml").write_text(text)
    return root, answers


def run(root, tasks, out, model_args, *more):
    """Runs lmms-eval, whose status is 0 even when it fails; returns its results, and the answers by task."""
    surroundings = {"HF_HOME": str(root / "hf"), "JAX_PLATFORMS": "cpu"}
    surroundings |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    line = [sys.executable, "-m", "lmms_eval", "--model", "videollava_jax", "--model_args", model_args]
    line += ["--include_path", str(root / "tasks"), "--tasks", ",".join(tasks), "--batch_size", "1"]
    done = subprocess.run(
        [*line, "--output_path", str(out), "--log_samples", *more],
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    files = list(out.glob("**/*_results.json"))
    assert len(files) == 1, done.stdout[-3000:] + done.stderr[-6000:]
    samples = {}
    for task in tasks:
        (file,) = out.glob(f"**/*_samples_{task}.jsonl")
        rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
        samples[task] = [row["filtered_resps"] for row in rows]
    return json.loads(files[0].read_text())["results"], samples


def test_answers_are_those_of_videollava_eval(place, tmp_path):
    root, expected = place
    results, samples = run(root, ["shapes", "shapes_messages"], tmp_path, "pretrained=tiny")
    assert samples["shapes"] == expected
    assert samples["shapes_messages"] == expected
    documents = json.loads((root / "data.json").read_text())
    right = [text == document["answer"] for text, document in zip(expected, documents, strict=True)]
    assert results["shapes"]["exact_match,none"] == pytest.approx(sum(right) / len(right))
    assert any(right)


def test_choices_are_scored_by_likelihood(place, tmp_path):
    root, expected = place
    results, samples = run(root, ["shapes_choices", "shapes"], tmp_path, "pretrained=tiny", "--force_simple")
    assert results["shapes_choices"]["acc,none"] > 0.9
    assert samples["shapes"] == expected


def test_a_running_server_answers(place, tmp_path):
    root, expected = place
    (tmp_path / "out").mkdir()
    with (tmp_path / "serve.log").open("w") as log:
        line = "import sys; from videollava_jax.cli import main; sys.exit(main(['serve', '--port', '0']))"
        server = subprocess.Popen([sys.executable, "-c", line], stdout=log, stderr=log)
    try:
        url = ready(tmp_path / "serve.log", server)
        _, samples = run(root, ["shapes"], tmp_path / "out", f"base_url={url}")
    finally:
        server.terminate()
        server.wait(60)
    assert samples["shapes"] == expected


def ready(log, server):
    """Waits until a server answers; returns its URL."""
    for _ in range(1800):  # it compiles first
        assert server.poll() is None, log.read_text()
        for word in log.read_text().split():
            if word.startswith("http://") and word.rpartition(":")[2].strip("/.,").isdecimal():
                url = word.rstrip("/.,")
                try:
                    with urllib.request.urlopen(f"{url}/health", timeout=5):
                        return url
                except OSError:
                    pass
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_what_tasks_ask_for():
    asked = asked_of({"max_new_tokens": 5000, "until": ["\n", ""], "temperature": 0, "do_sample": True}, 1024)
    assert (asked.max_new_tokens, asked.until, asked.unknown) == (1024, ("\n",), ())
    assert asked.options == {"do_sample": False, "stop_strings": ["\n"]}
    drawn = asked_of({"temperature": 0.7, "top_p": 0.9, "until": "x", "image_aspect_ratio": "pad"}, 1024)
    assert drawn.options == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "stop_strings": ["x"]}
    assert drawn.unknown == ("image_aspect_ratio",)
    with pytest.raises(ValueError, match="num_beams: the engine has no beam search; expected 1, got 3"):
        asked_of({"num_beams": 3}, 1024)
    assert cut("red\n\nASSISTANT: blue", ("ASSISTANT:", "\n\n")) == "red"
    assert cut("red", ("x",)) == "red"


def test_media_of_messages(tmp_path):
    media = Media(tmp_path)
    images = [Image.new(mode, (4, 4)) for mode in ("RGB", "L", "RGBA", "CMYK")]
    content = [{"type": "image", "url": image} for image in images]
    (turn,) = conversation_of([{"role": "user", "content": content}], media)
    for part, image in zip(turn["content"], images, strict=True):
        with Image.open(part["image"]) as read:
            assert read.convert("RGB").tobytes() == image.convert("RGB").tobytes()
    assert media.part("video", "file:///a%20b.mp4") == {"type": "video", "video": "/a b.mp4"}
    for part, message in (
        ({"type": "audio", "url": "a.wav"}, "expected text, images and videos in a message, got 'audio'"),
        ({"type": "image", "url": 3}, "expected the path of a medium or an image of PIL, got a int"),
    ):
        with pytest.raises(ValueError, match=message):
            conversation_of([{"role": "user", "content": [part]}], media)


def test_parts_of_videos():
    def asked(*spans):
        content = [{"type": "video", "url": "a.mp4", "start_time": start, "end_time": end} for start, end in spans]
        return [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]

    assert frames_of(asked((None, None)), 16) == 16
    assert frames_of([{"role": "user", "content": "What?"}], None) is None
    assert frames_of(asked((1.5, 3.0), (1.5, 3.0)), 16) == Within(1.5, 3.0, 16)
    assert frames_of(asked((None, 3.0)), None) == Within(0.0, 3.0, None)
    with pytest.raises(ValueError, match="expected one part"):
        frames_of(asked((1.0, 2.0), (None, None)), None)


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="mesh: a server has its own"):
        Settings(base_url="http://localhost:8000", mesh="1x8")
    from videollava_lmms_eval.models import Chat

    with pytest.raises(ValueError, match="modell: unknown; expected some of base_url, dtype"):
        Chat(modell="tiny")
