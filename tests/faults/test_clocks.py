"""Wall clocks that jump by days: nothing waits for them, expires by them or is done again."""

import time

import pytest

from tests.faults.children import run
from tests.faults.failing_calls import jumping_clock, shift_clock, why_not
from tests.faults.failing_trials import Job, TrainingSaves, Trial

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "the clock can be shifted")

DAY = 86400


def runs_by_a_jumping_clock(trial, place):
    with jumping_clock():
        return trial.run(place)


@pytest.mark.parametrize("trial", [Job(), TrainingSaves()], ids=lambda trial: trial.name)
def test_runs_end_as_by_a_steady_clock(trial: Trial, tmp_path):
    trial.make(tmp_path / "source")
    results = []
    for name, arguments in (("steady", (trial.run,)), ("jumping", (runs_by_a_jumping_clock, trial))):
        place = tmp_path / name
        (place / "out").mkdir(parents=True)
        trial.prepare(place / "out")
        assert run(*arguments, place, seconds=120) == (0, "")
        assert trial.resumed(place) is None
        results.append(trial.result(place))
    assert results[0] == results[1]


def uploads_after_a_jump(place, seconds, jump, wait):
    """Returns whether an upload is still there."""
    from videollava_jax.batch.media.spool import Spool
    from videollava_jax.serving.files import Uploads
    from videollava_jax.serving.settings import UploadLimits

    uploads = Uploads(Spool(place / "spool"), UploadLimits(seconds=seconds))
    made = uploads.add(uploads._spool.take(lambda file: file.write(b"x")), "image", "x", "vision", 1)
    shift_clock(jump)
    time.sleep(wait)
    return [file.id for file in uploads.all()] == [made.id]


@pytest.mark.parametrize("jump", [10 * DAY, -10 * DAY])
def test_uploads_expire_by_time_that_passes(tmp_path, jump):
    assert run(uploads_after_a_jump, tmp_path, 3600, jump, 0)
    assert not run(uploads_after_a_jump, tmp_path, 0.1, jump, 0.3)


def reads_by_a_jumping_clock():
    """Reads a clip in a worker process, within a time limit that is far from what it takes."""
    from videollava_jax.assets import MEDIA, TINY
    from videollava_jax.batch.media.isolation import IsolatedReader, WorkerLimits
    from videollava_jax.processing.processor import VideoLlavaProcessor
    from videollava_jax.processing.segments import Media

    medium = Media("video", str(MEDIA / "rising-triangle.mp4"))
    processor = VideoLlavaProcessor.from_pretrained(TINY)
    with jumping_clock(), IsolatedReader(processor, WorkerLimits(seconds=60, attempts=1)) as reader:
        return [reader(medium, None).pixels.shape[0] for _ in range(3)], reader.started


def test_a_worker_that_reads_is_not_late_by_a_jump():
    assert run(reads_by_a_jumping_clock, seconds=120) == ([8, 8, 8], 1)
