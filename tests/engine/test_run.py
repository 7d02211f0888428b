"""A run joins readers, schedule and device: who hashes and reads media, and when. The device computes nothing."""

import threading

import numpy as np
import pytest
from PIL import Image

from tests.engine.jobs import clip, question
from tests.engine.simulated import limits, schedule
from videollava_jax.engine import digests
from videollava_jax.engine.device import Report
from videollava_jax.engine.preparation import Preparer
from videollava_jax.engine.readers import Readers
from videollava_jax.engine.run import Run

WINDOW = 1024


class FakeDevice:
    """Answers every question with one token at once."""

    TOKEN = 5

    def __init__(self):
        self.grids, self.prefilled = [], []

    def make_grid(self, shape, branches):
        self.grids.append(shape)

    def prefill(self, slot, prefixes):
        self.prefilled.append(prefixes)

    def begin(self, slot, questions):
        pass

    def decode(self, steps, enough, rows):
        B, N = self.grids[-1].batch, self.grids[-1].answer
        return Report(np.full((B, N), self.TOKEN, np.int32), np.ones(B, np.int32), np.ones(B, bool), np.ones(B, bool))

    def end_rows(self, rows):
        raise AssertionError("no row has a stop string")


@pytest.fixture
def answer(tiny_model, tiny_processor):
    """Runs requests on a fake device; gives the results by id, and the device."""

    def run(requests, reader=None, readers=4, window=WINDOW):
        preparer = Preparer(tiny_processor, tiny_model.model_config, {}, 512, reader)
        device = FakeDevice()
        made = schedule(limits(window=window), max_rows=64)
        joined = Run(preparer, made, device, tiny_processor.tokenizer, Readers(preparer, readers))
        results = list(joined.results(requests))
        assert len(results) == len(requests)
        return {result.id: result for result in results}, device

    return run


@pytest.fixture
def pictures(tmp_path):
    """Writes files that differ in their last byte alone, which no decoder looks at."""
    Image.fromarray(clip(0)[0]).save(tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()

    def write(count):
        paths = [tmp_path / f"{i}.png" for i in range(count)]
        for i, path in enumerate(paths):
            path.write_bytes(content + i.to_bytes(2, "big"))
        return paths

    return write


def test_media_are_hashed_by_threads_and_read_before_the_last_is_hashed(answer, pictures, monkeypatch, tiny_processor):
    """The last of a window waits to be hashed until the first is being read: it would for ever, were it otherwise."""
    paths = pictures(WINDOW)
    hashed, reading = [], threading.Event()
    real = digests.content_digest

    def digest(source):
        hashed.append(threading.current_thread())
        if source == paths[-1]:
            assert reading.wait(60), "nothing was read before the last file of the window was hashed"
        return real(source)

    def read(medium, frame_sampling):
        reading.set()
        return tiny_processor.read_medium(medium, frame_sampling)

    monkeypatch.setattr(digests, "content_digest", digest)
    requests = [question(str(i), "what?", images=[path], max_new_tokens=1) for i, path in enumerate(paths)]
    results, _ = answer(requests, read)
    assert [result.error for result in results.values()] == [None] * WINDOW
    assert len(hashed) == WINDOW
    assert threading.main_thread() not in hashed


def test_each_version_of_a_file_is_hashed_once(answer, pictures, monkeypatch):
    """By one thread, whatever the others ask at that time; pixels in memory are hashed for each question."""
    hashed = []
    real = digests.content_digest
    monkeypatch.setattr(digests, "content_digest", lambda source: hashed.append(source) or real(source))
    (path,) = pictures(1)
    requests = [question(str(i), f"what {i}?", images=[path], max_new_tokens=1) for i in range(20)]
    _, device = answer(requests)
    assert hashed == [path]
    assert len(device.prefilled) == 1


def test_equal_content_under_other_names_shares_a_prefix_and_each_error_names_its_own_file(answer, tmp_path, pictures):
    path, other = pictures(2)
    other.write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "copy.png").write_bytes(b"no picture")
    names = [path, other, tmp_path / "broken.png", tmp_path / "copy.png"]
    results, device = answer([question(name.name, "what?", images=[name], max_new_tokens=1) for name in names])
    assert len(device.prefilled) == 1
    assert results[path.name].shared_tokens == results[other.name].shared_tokens > 0
    for name in ("broken.png", "copy.png"):
        assert str(tmp_path / name) in results[name].error


def test_a_file_that_goes_between_its_request_and_its_hash_fails_alone(answer, pictures, monkeypatch):
    gone, good = pictures(2)
    real = digests.content_digest

    def digest(source):
        if source == gone:
            source.unlink(missing_ok=True)
        return real(source)

    monkeypatch.setattr(digests, "content_digest", digest)
    requests = [question(path.name, "what?", images=[path], max_new_tokens=1) for path in (gone, good)]
    results, _ = answer(requests, window=1)
    assert "No such file" in results[gone.name].error
    assert results[good.name].error is None


@pytest.mark.parametrize("readers", [1, 8])
def test_decisions_do_not_depend_on_the_threads(answer, pictures, readers):
    paths = pictures(6)
    requests = [
        question(f"{i}-{j}", f"what {j}?", images=[path], max_new_tokens=1)
        for j in range(3)
        for i, path in enumerate(paths)
    ]
    results, device = answer(requests, readers=readers)
    assert [result.token_ids for result in results.values()] == [(FakeDevice.TOKEN,)] * 18
    assert len(device.prefilled) == 6


def test_media_of_other_poolings_are_not_encoded_together(tiny_model, tiny_processor):
    """Their pixels have one shape, and the towers' programs one pooling."""
    preparer = Preparer(tiny_processor, tiny_model.model_config, {}, 512)
    asked = [question(str(p), "what?", videos=[clip(0)], video_pooling=p) for p in (1, 2)]
    one, other = (preparer.read(preparer.question(request).prefix) for request in asked)
    assert one.pixels[0].shape == other.pixels[0].shape
    assert one.signature != other.signature
