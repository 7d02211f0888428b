"""Media read by worker processes: the same pixels, and files that crash, hang or take memory are errors."""

import base64
import dataclasses
import io
import math
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.faults import workers
from tests.faults.commands import MARK, await_no_process, marked_processes
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.batch.media import replies, tasks, worker
from videollava_jax.batch.media.isolation import IsolatedReader, WorkerError, WorkerLimits
from videollava_jax.cli.asked import StandardInput
from videollava_jax.engine import Engine, Request
from videollava_jax.face.processor import VideoLlavaProcessor as FaceProcessor
from videollava_jax.media import (
    FloatPreprocessor,
    FrameFiles,
    FramePreprocessor,
    Frames,
    Linspace,
    MediaLimits,
    Uniform,
    open_medium,
    read_image,
    read_video,
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


def test_files_are_read_as_the_functions_of_media_read_them(tiny_processor, tmp_path, mark):
    """`open_medium`, `read_image` and `read_video`, for paths, bytes, file objects and files that are frames."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + i // 9, 30), (90 * i, 7, 0)).save(path)
    clip, image = Path(CLIP.source).read_bytes(), Path(IMAGE.source).read_bytes()
    with IsolatedReader(tiny_processor) as reader:
        for source, rule in ((CLIP.source, Uniform(4)), (clip, Uniform(4)), (FrameFiles(paths, fps=2), Linspace(2))):
            expected, found = read_video(source, rule), reader.read_video(source, rule)
            for name in ("frames", "indices", "timestamps"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            for name in ("fps", "total_frames", "decoded_frames", "source"):
                assert getattr(found, name) == getattr(expected, name)
        for source in (IMAGE.source, image, io.BytesIO(image)):
            np.testing.assert_array_equal(reader.read_image(source), read_image(IMAGE.source))
        for source in (CLIP.source, clip, IMAGE.source, image):
            expected, found = open_medium(source), reader.open_medium(source)
            assert (found.kind, found.path, found.description) == (expected.kind, expected.path, expected.description)
            np.testing.assert_array_equal(found.frames, expected.frames)
        pixels = reader(Media("video", [str(path) for path in paths]), Uniform(3)).pixels
        np.testing.assert_array_equal(pixels, tiny_processor.read_medium(Media("video", paths), Uniform(3)))
        assert reader.started == 1
        named = StandardInput(b"nothing" * 9)
        with pytest.raises(WorkerError, match=r"^<standard input>: expected a"):
            reader.open_medium(named)
    assert not marked_processes(mark)
    with IsolatedReader(tiny_processor, WorkerLimits(max_bytes=100)) as reader:
        with pytest.raises(WorkerError, match=r"^<bytes>: more than 100 bytes; raise WorkerLimits.max_bytes"):
            reader.read_image(bytes(101))
        assert reader.started == 0


REPLY = {"kind": "video", "shape": [2, 3, 4, 3], "indices": [0, 5], "times": [0.0, None], "total": 9, "decoded": 6}
REPLY |= {"fps": 2.5}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "image"}, {"kind": ["video"]}, {"kind": None}, {"shape": [2, 3, 4, 4]}, {"shape": [2, -3, -4, 3]},
        {"shape": [2, 3.0, 4, 3]}, {"shape": [1, 6, 4, 3]}, {"shape": None}, {"indices": [0]}, {"indices": [0, -1]},
        {"indices": [0, True]}, {"indices": [0, 2**70]}, {"indices": {"0": 1, "1": 2}}, {"times": [0.0]},
        {"times": [0.0, math.inf]}, {"times": [0.0, "0"]}, {"total": None}, {"total": 2.5}, {"decoded": "6"},
        {"fps": math.nan}, {"fps": [2.5]},
    ],
    ids=str,
)  # fmt: skip
def test_frames_of_a_file_that_a_worker_made_up_are_checked(wrong):
    task = tasks.FileTask("video", "v.mp4", "v.mp4", None, MediaLimits(max_pixels=20), 1.0)
    pixels = memoryview(bytes(2 * 3 * 4 * 3))
    found = replies.medium_of(REPLY, pixels, task)
    assert (found.frames.shape, found.fps, found.total_frames) == ((2, 3, 4, 3), 2.5, 9)
    assert np.isnan(found.timestamps[1])
    with pytest.raises(replies.Garbage):
        replies.medium_of(REPLY | wrong, pixels, task)
    for limits in (MediaLimits(max_pixels=11), MediaLimits(max_frames_returned=1)):
        with pytest.raises(replies.Garbage):
            replies.medium_of(REPLY, pixels, dataclasses.replace(task, limits=limits))


def test_drawn_replies_cost_their_own_file():
    """`python -m tests.faults --only workers` draws more."""
    violations = [violation for tally in workers.part(3, 0.08) for violation in tally.violations]
    assert not violations, violations


def test_a_call_of_a_processor_reads_in_workers(tiny_processor, mark, faulty):
    """Also where transformers makes the pixels, and where a file comes as bytes; a file that crashes is an error."""
    face = FaceProcessor.from_pretrained(TINY)
    prompt = "USER: <video>\nWhat? ASSISTANT: USER: <image>\nWhat? ASSISTANT:"
    url = "data:image/png;base64," + base64.b64encode(Path(IMAGE.source).read_bytes()).decode()
    with IsolatedReader(tiny_processor) as reader:
        for processor in (tiny_processor, face):
            for more in ({}, {"do_center_crop": True}) if processor is face else ({},):
                for image in (IMAGE.source, url) if processor is face else (IMAGE.source,):
                    asked = dict(text=prompt, images=image, videos=CLIP.source, return_tensors="np", **more)
                    expected, found = processor(**asked), processor(**asked, reader=reader)
                    assert set(found) == set(expected)
                    for name in expected:
                        np.testing.assert_array_equal(found[name], expected[name])
        assert reader.started == 1
        for processor in (tiny_processor, face):
            with pytest.raises(WorkerError, match="its worker died"):
                processor(text="USER: <image>\nWhat?", images=str(faulty / "crash"), reader=reader)


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
    task = tasks.Task("image", "i.png", None, preprocess, MediaLimits(), 1.0)
    for wrong in (np.nan, np.inf, -2000.0):
        pixels = np.full((1, 4, 4, 3), wrong, np.float32)
        with pytest.raises(replies.Garbage):
            replies.pixels_of({"shape": [1, 4, 4, 3]}, memoryview(pixels.tobytes()), task)


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
    task = tasks.Task("video", "v.mp4", None, FramePreprocessor(size=4, crop_size=4), MediaLimits(), 1.0)
    pixels = memoryview(bytes(2 * 4 * 4 * 3))
    with pytest.raises(replies.Garbage):
        replies.pixels_of({"shape": [2, 4, 4, 3], "frames": wrong}, pixels, task)
    right = {"indices": [0, 3], "seconds": [0.0, 0.5], "total": 9}
    found = replies.pixels_of({"shape": [2, 4, 4, 3], "frames": right}, pixels, task)
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

    task = tasks.Task("image", str(faulty / "hang"), None, tiny_processor.preprocessors["image"], MediaLimits(), 0.5)
    import pickle

    raw = pickle.dumps(task)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(faulty), str(Path(__file__).parents[2])]))
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
