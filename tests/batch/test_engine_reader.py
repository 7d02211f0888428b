"""The engine's `reader`: all media are read by it, and its errors keep their causes."""

from videollava_jax import Engine, Request
from videollava_jax.assets import MEDIA
from videollava_jax.batch.media.isolation import WorkerError

QUESTION = "USER: <video>\nWhich way does it move? ASSISTANT:"


def test_the_engine_reads_by_its_reader(tiny_model, tiny_processor, tmp_path):
    clip, bad = MEDIA / "rising-triangle.mp4", tmp_path / "bad.mp4"
    bad.write_bytes(b"bad")
    seen = []

    def reader(medium, frame_sampling):
        seen.append((medium.source, frame_sampling.num_frames))
        if medium.source == str(bad):
            raise WorkerError("worker_crashed", "its worker died")
        return tiny_processor.read_medium(medium, frame_sampling)

    requests = [
        Request(id=name, prompt=QUESTION, videos=[str(path)], max_new_tokens=4)
        for name, path in (("good", clip), ("bad", bad), ("none", tmp_path / "none"))
    ]
    results = {result.id: result for result in Engine(tiny_model, tiny_processor, reader=reader).run(requests)}
    assert results["good"].text == "up"
    assert (results["bad"].cause, results["bad"].error) == ("worker_crashed", "its worker died")
    assert results["none"].finish_reason == "error"
    assert sorted(seen) == sorted([(str(clip), 8), (str(bad), 8)])
