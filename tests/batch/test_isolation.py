"""Media read by worker processes: the same pixels, and files that crash, hang or take memory are errors."""

import dataclasses
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.faults.commands import MARK, await_no_process, marked_processes
from videollava_jax.assets import MEDIA
from videollava_jax.batch.media import isolation, worker
from videollava_jax.batch.media.isolation import IsolatedReader, WorkerError, WorkerLimits
from videollava_jax.engine import Engine, Request
from videollava_jax.media import (
    FloatPreprocessor,
    FramePreprocessor,
    Frames,
    Linspace,
    MediaLimits,
    Uniform,
    read_image,
)
from videollava_jax.processing.segments import Media

CLIP, IMAGE = Media("video", str(MEDIA / "rising-triangle.mp4")), Media("image", str(MEDIA / "three-triangles.png"))
FAULTS = {
    "crash": "signal.raise_signal(11)",
    "exit": "os._exit(3)",
    "hang": "time.sleep(99)",
    "spin": "while True: pass",
    "swell": "x = bytearray(2**36)",
    "write": "os.write(os.open(source + '.out', os.O_CREAT | os.O_WRONLY), b'x')",
    "print": "print('noise', flush=True)",
    "network": "refused(lambda: __import__('socket').socket())",
    "local socket": "refused(lambda: __import__('socket').socket(1))",
    "program": "refused(lambda: os.execv('/bin/true', ['true']))",
    "signal": "refused(lambda: os.kill(os.getppid(), 0))",
    "environment": "raise ValueError(f\"fine: {os.environ.get('HF_TOKEN')}\")",
}


@pytest.fixture
def mark(monkeypatch):
    value = f"isolation-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(MARK, value)
    return value


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Workers that crash, hang or take memory if a file's name says so, and read all other files."""
    code = "\n".join(
        [
            "import os, signal, time",
            "import videollava_jax.processing.given_media as inputs",
            "real = inputs.read_image",
            "def refused(call):",
            "    try:",
            "        call()",
            "    except OSError as error:",
            "        raise ValueError(f'fine: {type(error).__name__}')",
            "    raise ValueError('it went')",
            "def faulty(source, **options):",
            "    name = os.path.basename(os.fspath(source))",
            *(f"    if name == {name!r}:\n        {what}" for name, what in FAULTS.items()),
            "    return real(source, **options)",
            "inputs.read_image = faulty",
        ]
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    for name in FAULTS:
        (tmp_path / name).write_bytes(Path(IMAGE.source).read_bytes())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_pixels_are_those_of_the_processor(tiny_processor, mark):
    reader = IsolatedReader(tiny_processor)
    try:
        for medium, frame_sampling in ((CLIP, Uniform(8)), (CLIP, Linspace(4)), (IMAGE, Uniform(8))):
            np.testing.assert_array_equal(
                reader(medium, frame_sampling).pixels, tiny_processor.read_medium(medium, frame_sampling)
            )
        frames = np.zeros((2, 60, 70, 3), np.uint8)
        assert reader(Media("video", frames), Uniform(8)).pixels.shape[0] == 2
        assert reader.started == 1
    finally:
        reader.close()
    assert not marked_processes(mark)


def test_bad_files_are_told_with_their_causes(tiny_processor, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 99)
    reader = IsolatedReader(tiny_processor, WorkerLimits(max_bytes=20_000))
    try:
        for medium, cause in (
            (Media("video", str(tmp_path / "a.mp4")), "not_media"),
            (Media("image", str(tmp_path / "none")), "not_found"),
            (Media("image", str(tmp_path)), "not_a_file"),
        ):
            with pytest.raises(WorkerError) as refused:
                reader(medium, Uniform(8))
            assert refused.value.cause == cause
        assert reader(IMAGE, None).pixels.shape[0] == 1
        assert reader.started == 2  # a worker that failed at a file is not used again
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("fault", "cause", "message", "workers"),
    [
        ("crash", "worker_crashed", "its worker died (signal 11), 2 times of 2", 2),
        ("exit", "worker_crashed", "its worker died (status 3)", 2),
        ("hang", "worker_timeout", "still reading after 1 s", 2),
        ("spin", "worker_timeout", "still reading after 1 s", 2),
        ("swell", "too_large", "more memory than a worker has", 1),
        ("write", "invalid_request", "File too large", 1),
    ],
)
def test_what_a_file_does_to_its_worker_is_its_error(tiny_processor, faulty, mark, fault, cause, message, workers):
    reader = IsolatedReader(tiny_processor, WorkerLimits(seconds=1, attempts=2))
    try:
        with pytest.raises(WorkerError) as refused:
            reader(Media("image", str(faulty / fault)), None)
        assert refused.value.cause == cause
        assert message in str(refused.value)
        assert reader.started == workers
        np.testing.assert_array_equal(reader(IMAGE, None).pixels, tiny_processor.read_medium(IMAGE))
    finally:
        reader.close()
    assert not marked_processes(mark)


def test_what_a_library_prints_spoils_no_answer(tiny_processor, faulty):
    reader = IsolatedReader(tiny_processor)
    try:
        medium = Media("image", str(faulty / "print"))
        np.testing.assert_array_equal(reader(medium, None).pixels, tiny_processor.read_medium(medium))
    finally:
        reader.close()


def test_good_files_among_bad_ones_in_threads(tiny_processor, faulty, mark):
    reader = IsolatedReader(tiny_processor, WorkerLimits(seconds=2, attempts=1))
    expected = tiny_processor.read_medium(IMAGE)

    def outcome(i):
        name = ("good", "crash", "hang", "exit")[i % 4]
        try:
            return name, reader(IMAGE if name == "good" else Media("image", str(faulty / name)), None).pixels
        except WorkerError as error:
            return name, error.cause

    try:
        with ThreadPoolExecutor(3) as pool:
            for name, found in pool.map(outcome, range(12)):
                if name == "good":
                    np.testing.assert_array_equal(found, expected)
                else:
                    assert found == ("worker_timeout" if name == "hang" else "worker_crashed")
    finally:
        reader.close()
    assert not marked_processes(mark)


def test_stop_ends_what_is_being_read(tiny_processor, faulty, mark):
    reader = IsolatedReader(tiny_processor, WorkerLimits(seconds=60))
    assert reader(IMAGE, None).pixels.shape[0] == 1
    started = time.monotonic()
    threading.Timer(0.5, reader.stop).start()
    with pytest.raises(WorkerError) as refused:
        reader(Media("image", str(faulty / "hang")), None)
    assert refused.value.cause == "stopped"
    assert time.monotonic() - started < 20
    with pytest.raises(WorkerError):
        reader(IMAGE, None)
    reader.close()
    assert await_no_process(mark, 10)


LIES = {
    "a number as the shape": b'{"shape": 5}\n',
    "a text as the shape": b'{"shape": "abcd"}\n',
    "numbers that are none": b'{"shape": [1.0, 32, 32, 3]}\n' + bytes(32 * 32 * 3),
    "truth as a number": b'{"shape": [true, 32, 32, 3]}\n' + bytes(32 * 32 * 3),
    "no frames": b'{"shape": [0, 32, 32, 3]}\n',
    "negative frames": b'{"shape": [-1, 32, 32, 3]}\n',
    "a huge number": b'{"shape": [' + b"9" * 5000 + b", 32, 32, 3]}\n",
    "too few pixels": b'{"shape": [2, 32, 32, 3]}\n' + bytes(32 * 32 * 3),
    "deep JSON": b'{"shape": ' + b"[" * 60_000 + b"\n",
    "no JSON": b"\xff\xfe\n",
    "a list": b"[]\n",
    "no line": bytes(70_000),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", [*LIES, "3 GiB to come"])
def test_what_a_worker_sends_is_not_trusted(tiny_processor, tmp_path, monkeypatch, lie):
    """A hostile file may have taken the worker over: its answer is checked like a stranger's."""
    (tmp_path / "answer").write_bytes(LIES.get(lie, b""))
    length = len(LIES[lie]) if lie in LIES else 3 * 2**30
    code = f"""
import os
import videollava_jax.batch.media.worker as worker
def lie(file, reply, content=b""):
    if "confined" in reply:
        return real(file, reply, content)
    answer = open({str(tmp_path / "answer")!r}, "rb").read()
    file.write(worker.LENGTH.pack({length}) + answer)
    file.flush()
real, worker._send = worker._send, lie
worker.main()
os._exit(0)
"""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nif sys.argv[:1] == ['-m']:\n    exec({code!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reader = IsolatedReader(tiny_processor, WorkerLimits(attempts=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(WorkerError, match="its worker sent garbage") as refused:
            reader(IMAGE, None)
        assert refused.value.cause == "worker_crashed"
    finally:
        reader.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_float_pixels_come_as_they_are_and_are_checked():
    preprocess = FloatPreprocessor(size=4, crop_size=4)
    reader = IsolatedReader(SimpleNamespace(preprocessors={"image": preprocess}, frames=lambda asked: asked))
    try:
        got = reader(IMAGE, None).pixels
        expected = preprocess(read_image(IMAGE.source)[None])
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.float32
    finally:
        reader.close()
    task = worker.Task("image", "i.png", None, preprocess, MediaLimits(), 1.0)
    for wrong in (np.nan, np.inf, -2000.0):
        pixels = np.full((1, 4, 4, 3), wrong, np.float32)
        with pytest.raises(isolation._WorkerLost, match="its worker sent garbage"):
            isolation._checked({"shape": [1, 4, 4, 3]}, memoryview(pixels.tobytes()), task)


@pytest.mark.parametrize(
    "wrong",
    [
        {"indices": [0], "seconds": None, "total": 9},
        {"indices": [0, True], "seconds": None, "total": 9},
        {"indices": [0, 1], "seconds": [0.0], "total": 9},
        {"indices": [0, 1], "seconds": [0.0, np.nan], "total": 9},
        {"indices": [0, 1], "seconds": ["0", "1"], "total": 9},
        {"indices": [0, 1], "seconds": None},
        {"indices": 7, "seconds": None, "total": 9},
        "frames",
    ],
)
def test_frames_that_a_worker_made_up_are_checked(wrong):
    task = worker.Task("video", "v.mp4", None, FramePreprocessor(size=4, crop_size=4), MediaLimits(), 1.0)
    pixels = memoryview(bytes(2 * 4 * 4 * 3))
    with pytest.raises(isolation._WorkerLost, match="its worker sent garbage"):
        isolation._checked({"shape": [2, 4, 4, 3], "frames": wrong}, pixels, task)
    right = {"indices": [0, 3], "seconds": [0.0, 0.5], "total": 9}
    found = isolation._checked({"shape": [2, 4, 4, 3], "frames": right}, pixels, task)
    assert found.frames == Frames((0, 3), (0.0, 0.5), 9)


def test_a_worker_is_confined(tiny_processor, faulty, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hidden")
    reader = IsolatedReader(tiny_processor, WorkerLimits(attempts=1))
    try:
        for name in ("network", "local socket", "program", "signal", "environment"):
            with pytest.raises(WorkerError, match=r"fine: (PermissionError|None)"):
                reader(Media("image", str(faulty / name)), None)
        reader(IMAGE, None)
        assert reader.confined
    finally:
        reader.close()


def test_where_a_worker_cannot_be_confined_it_is_said_once(tiny_processor, tmp_path, monkeypatch):
    code = "import videollava_jax.batch.media.confinement as c\nc.platform.machine = lambda: 'mips'\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reader = IsolatedReader(tiny_processor)
    try:
        with pytest.warns(RuntimeWarning, match="does not keep the processes that read media from the network"):
            reader(IMAGE, None)
        reader(IMAGE, None)  # warnings are errors
        assert reader.confined is False
    finally:
        reader.close()


def test_a_worker_ends_itself_when_its_parent_cannot(tiny_processor, faulty, monkeypatch):
    """The worker's own time limit, for the case that its parent is killed during a task."""
    import subprocess
    import sys

    task = worker.Task(
        "image", str(faulty / "hang"), None, tiny_processor.preprocessors["image"], worker.MediaLimits(), 0.5
    )
    import pickle

    raw = pickle.dumps(task)
    done = subprocess.run(
        [sys.executable, "-m", "videollava_jax.batch.media.worker", str(2**32)],
        input=worker.LENGTH.pack(len(raw)) + raw, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -14


def test_a_worker_imports_no_jax():
    import subprocess
    import sys

    code = (
        "import sys, videollava_jax.batch.media.worker; assert not {'jax', 'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bad_file_in_a_session_costs_its_own_request_alone(tiny_model, tiny_processor, faulty, mark):
    """Workers that hang or die are replaced; questions about other files are answered meanwhile, with their frames."""
    reader = IsolatedReader(tiny_processor, WorkerLimits(seconds=3, attempts=1))
    engine = Engine(tiny_model, tiny_processor, reader=reader, readers=3, max_rows=4)
    asked = {"prompt": "USER: <image>\nHow many shapes are there? ASSISTANT:", "max_new_tokens": 4}
    for fault in ("hang", "crash", "exit"):
        (faulty / fault).write_bytes(fault.encode())  # files of equal content are one medium
    try:
        with engine.session(rows=2, longest_answer=32) as session:
            bad = {
                fault: session.submit(Request(id=fault, images=[str(faulty / fault)], **asked))
                for fault in ("hang", "crash", "exit")
            }
            prompt = "USER: <video>\nWhat is it? ASSISTANT:"
            good = Request(id="good", prompt=prompt, videos=[CLIP.source], max_new_tokens=9)
            result = session.submit(good).result(100)
            assert result.error is None
            assert result.frames == (tiny_processor.read(CLIP, Uniform(8)).frames,)
            causes = {fault: ticket.result(100).cause for fault, ticket in bad.items()}
            assert causes == {"hang": "worker_timeout", "crash": "worker_crashed", "exit": "worker_crashed"}
            again = session.submit(dataclasses.replace(good, id="again")).result(100)
            assert (again.text, again.cached_tokens) == (result.text, result.shared_tokens)
            usage = session.usage
            assert (usage.waiting, usage.reading, usage.running) == (0, 0, 0)
    finally:
        reader.close()
    assert not marked_processes(mark)
