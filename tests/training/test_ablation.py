"""`train/ablation.py`: conditions that differ in one thing, a run that goes on, tables that say what was measured."""

from __future__ import annotations

import importlib
import json
import multiprocessing
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.tolerances import SELF
from videollava_jax.model.video_llava import named_parameters

QUICK = ("--quick", "--seeds", "1")
CONDITIONS = [(towers, data) for towers in ("aligned", "unaligned") for data in ("images", "clips", "both")]


@pytest.fixture(scope="module")
def ablation():
    """The program, which imports its neighbours in train/ as when it is run.

    One process draws scenes for the whole module: otherwise each test would start as many as there are cores, and a
    process needs seconds to import JAX.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "train")
        program = importlib.import_module("ablation")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            context = SimpleNamespace(Pool=lambda: nullcontext(pool))
            patch.setattr(program, "multiprocessing", SimpleNamespace(get_context=lambda method: context))
            yield program


@pytest.fixture(scope="module")
def results(ablation):
    """The program that prints the results."""
    return importlib.import_module("ablation_results")


@pytest.fixture(scope="module")
def quick(ablation, tmp_path_factory) -> Path:
    """The directory of a quick run of one seed."""
    out = tmp_path_factory.mktemp("ablation") / "run"
    ablation.main(["--out", str(out), *QUICK])
    return out


@pytest.fixture(scope="module")
def drawn(ablation):
    """A few scenes, drawn in this process."""
    tiny = ablation.tiny_data

    def media(make, count):
        frames, labels, questions = zip(*map(make, range(count)), strict=True)
        return tiny.Media(np.stack(frames), np.stack(labels), list(questions))

    return {"images": media(tiny.make_image, 8), "clips": media(tiny.make_clip, 7)}


@pytest.fixture(scope="module")
def model(ablation, tiny_processor):
    return ablation.Tiny(ablation.tiny_model.make_config(tiny_processor), 0)


@pytest.fixture
def untrained(ablation, model, drawn, monkeypatch):
    """The towers of a seed before any step, and how each would be trained: (tower, batch of frames, steps)."""
    planned = []

    def align(title, model, parameters, heads, tower, batches, *, schedule, steps):
        planned.append((tower, next(batches)[0], steps))
        return parameters, heads

    monkeypatch.setattr(ablation.tiny_stages, "align", align)
    return ablation.train_towers(ablation.QUICK, 0, model, drawn), planned


def lines_of(out: Path, seed: int = 0) -> list[dict]:
    return [json.loads(line) for line in (out / "results" / f"{seed}.jsonl").read_text().splitlines()]


def test_every_condition_is_a_line_with_its_curve(quick):
    lines = lines_of(quick)
    assert [(line["towers"], line["data"]) for line in lines] == CONDITIONS
    for line in lines:
        assert line["seed"] == 0
        assert [point["step"] for point in line["curve"]] == [2, 4]
        for point in line["curve"]:
            assert [asked for _, asked in point["images"].values()] == [2] * 4
            assert [asked for _, asked in point["clips"].values()] == [2] * 7
        assert set(line["patches"]) == {"own", "image"}


def test_it_goes_on_with_what_is_left(ablation, quick, tmp_path, monkeypatch):
    """With one line lost, as if the run had been killed in that condition, that one is trained and no other."""
    lines = lines_of(quick)
    lost = lines[4]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line != lost))
    for name in ("towers", "run.json", "recipe.yaml", "lock"):
        (tmp_path / name).symlink_to(quick / name)
    monkeypatch.setattr(ablation, "train_towers", None)  # they are on the disk
    ablation.main(["--out", str(tmp_path), *QUICK])
    *before, again = lines_of(tmp_path)
    assert before == [line for line in lines if line != lost]
    assert {**again, "seconds": 0, "cpu_seconds": 0} == {**lost, "seconds": 0, "cpu_seconds": 0}


def test_with_nothing_left_nothing_is_drawn(ablation, quick, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "draw", None)
    ablation.main(["--out", str(quick), *QUICK])
    assert "| aligned | both |" in capsys.readouterr().out


def test_results_of_other_settings_are_refused(ablation, quick):
    with pytest.raises(ValueError, match=r"holds another run: .*steps was 4, now"):
        ablation.main(["--out", str(quick)])


def test_more_seeds_than_there_are_scenes_for(ablation, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--out", str(tmp_path), "--seeds", "11"])
    assert "expected 1 to 10, got 11" in capsys.readouterr().err


def test_video_towers_differ_in_where_they_start_alone(untrained):
    """From the image tower with its heads, or from neither; on the same frames for as many steps."""
    parts, planned = untrained
    names = [name for name in parts["image"] if name.startswith("image_tower")]
    assert names
    for name in names:
        in_video = name.replace("image_tower", "video_tower")
        np.testing.assert_array_equal(parts["aligned"][in_video], parts["image"][name])
    for name in ("embeddings.patch_embedding.weight", "encoder.layers.0.mlp.fc1.weight"):
        ours, theirs = parts["unaligned"][f"video_tower.{name}"], parts["image"][f"image_tower.{name}"]
        assert np.abs(ours - theirs).max() > 0.01
    weight = "patch.shape.weight"
    np.testing.assert_array_equal(parts["aligned"][weight], parts["image"][weight])
    assert np.abs(parts["unaligned"][weight] - parts["image"][weight]).max() > 0.01

    image, aligned, first, then = planned
    assert [tower for tower, _, _ in planned] == ["image_tower", "video_tower", "video_tower", "video_tower"]
    for one, other in ((image, first), (aligned, then)):
        np.testing.assert_array_equal(one[1], other[1])
        assert one[2] == other[2]


def test_conditions_start_alike_but_for_the_video_tower(ablation, model, untrained):
    parts, _ = untrained
    one, other = (ablation.starting_point(model, parts, towers) for towers in ("aligned", "unaligned"))
    assert one.keys() == other.keys()
    differing = {name for name in one if (np.asarray(one[name]) != np.asarray(other[name])).any()}
    assert differing
    assert all(name.startswith("video_tower.") for name in differing)


def test_both_has_the_batches_of_images_and_of_clips(ablation, model, tiny_processor, drawn, monkeypatch):
    taken: dict[str, list] = {}
    rates: dict[str, list[float]] = {}

    def train(title, loss, trained, batches, *, schedule, steps, after):
        taken[title] = [next(batches) for _ in range(steps)]
        rates[title] = [float(schedule(step)) for step in range(steps)]

    monkeypatch.setattr(ablation.tiny_stages, "train", train)
    parameters = named_parameters(model.state)
    for data, media in ablation.DATA.items():
        states = {name: drawn[name] for name in media}
        ablation.train_and_ask(data, ablation.QUICK, 0, model, parameters, tiny_processor, states, {})
    assert len(taken["both"]) == ablation.QUICK.steps
    for images, clips, both in zip(taken["images"], taken["clips"], taken["both"], strict=True):
        for alone, together in zip((*images, *clips), both, strict=True):
            np.testing.assert_array_equal(alone, together)
    assert rates["images"] == rates["clips"] == rates["both"]
    assert rates["both"][1:] == pytest.approx([ablation.QUICK.rate] * 3)


def test_hidden_states_stand_in_for_frames(ablation, model, tiny_processor, drawn):
    """The decoder's logits are the same for frames and for hidden states that the towers gave before."""
    parameters = ablation.tiny_model.scaled(named_parameters(model.state))
    logits = jax.jit(model.answer_logits)
    for media in drawn.values():
        states = ablation.through_tower(model, parameters, media)
        assert states.frames.shape == (*media.frames.shape[:2], 17, 64)
        ids = ablation.tiny_data.tokenize(tiny_processor, media, np.random.default_rng(0), 1).ids
        expected = logits(parameters, media.frames, ids)
        np.testing.assert_allclose(logits(parameters, states.frames, ids), expected, rtol=0, atol=SELF)


def test_heads_that_know_the_frames_read_them(ablation):
    """Hidden states that name the shape and colour of their patch, and heads that read them, or a mirrored kind."""
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 3, 45), np.float32)
    labels[:, :, :5] = rng.integers(1, 5, (2, 3, 5))  # shapes in five patches, nothing in the others
    labels[:, :, 16:21] = rng.integers(1, 7, (2, 3, 5))
    states = np.zeros((2, 3, 17, 12), np.float32)
    states[:, :, 1:, :5] = np.eye(5)[labels[:, :, :16].astype(int)]
    states[:, :, 1:, 5:] = np.eye(7)[labels[:, :, 16:32].astype(int)]
    # At two of the five patches the state says another colour than there is.
    states[:, :, 1:3, 5:] = np.roll(states[:, :, 1:3, 5:], 1, axis=-1)
    own = {
        "patch.shape.weight": np.eye(12)[:5],
        "patch.shape.bias": np.zeros(5),
        "patch.colour.weight": np.eye(12)[5:],
        "patch.colour.bias": np.zeros(7),
    }
    foreign = {**own, "patch.shape.weight": np.roll(np.eye(12)[:5], 1, axis=0)}
    clips = ablation.Media(states, labels, [])
    parts = {"image": foreign, "unaligned": own}
    assert ablation.read_by_heads(clips, parts, "unaligned") == {"own": pytest.approx(0.6), "image": 0.0}


def line(towers: str, data: str, seed: int, images: int, clips: int, before: int = 0) -> dict:
    """A line with `images` and `clips` of 10 answers right at the last point, and `before` of 10 at the one before."""
    points = [
        {"step": 50, "images": {"colour": [before, 10]}, "clips": {"change": [before, 10]}},
        {"step": 100, "images": {"colour": [images, 10]}, "clips": {"change": [clips, 10]}},
    ]
    reading = {"own": 0.9, "image": 0.9 if towers == "aligned" else 0.2}
    return {"towers": towers, "data": data, "seed": seed, "curve": points, "patches": reading}


def test_tables_of_given_results(ablation):
    lines = [
        line("aligned", "both", 0, 9, 8, before=8),
        line("aligned", "both", 1, 7, 8, before=8),
        line("unaligned", "both", 0, 5, 8),
        line("unaligned", "both", 1, 6, 9),
        line("aligned", "images", 1, 6, 2),
        line("aligned", "images", 2, 9, 4),
    ]
    rows = ablation.tables(lines).splitlines()
    # Means and sample deviations; brackets where the medium was not trained on; dashes where nothing is known.
    assert "| aligned | both | 80.0 ± 14.1 | 80.0 ± 0.0 | 2 |" in rows
    assert "| aligned | images | 75.0 ± 21.2 | (30.0 ± 14.1) | 2 |" in rows
    assert "| unaligned | clips | (–) | – | 0 |" in rows
    # Each seed with itself: 90 − 50 and 70 − 60; of "images" only seed 1 has its pair.
    assert "| aligned − unaligned, trained on both | images | +25.0 ± 21.2 | 2 of 2 |" in rows
    assert "| aligned − unaligned, trained on both | clips | -5.0 ± 7.1 | 0 of 2 |" in rows
    assert "| both − images alone, aligned | images | +10.0 | 1 of 1 |" in rows
    assert "| both − clips alone, aligned | clips | – | 0 of 0 |" in rows
    # The curve, and the last stretch of each seed: 80 to 90 and 80 to 70.
    assert "| towers | trained on | asked about | 50 | 100 | last change |" in rows
    assert "| aligned | both | images | 80.0 | 80.0 | +0.0 ± 14.1 |" in rows
    assert "| aligned | both | clips | – | – | – | – | – | – | 80.0 ± 0.0 |" in rows
    assert "| aligned | 90.0 ± 0.0 | 90.0 ± 0.0 | 3 |" in rows
    assert "| unaligned | 90.0 ± 0.0 | 20.0 ± 0.0 | 2 |" in rows


def test_tables_of_nothing(results, tmp_path, capsys):
    results.main([str(tmp_path)])
    assert capsys.readouterr().out == "no condition is finished yet\n"


def test_curves_are_drawn(results, tmp_path):
    lines = [line("aligned", "both", seed, 9, 8, before=seed) for seed in range(3)] + [
        line("unaligned", "clips", 0, 1, 2)
    ]
    for each in lines:
        results.append(results.results_of(tmp_path, each["seed"]), each)
    results.main([str(tmp_path), "--picture", str(tmp_path / "pictures" / "curves.svg")])
    picture = (tmp_path / "pictures" / "curves.svg").read_text()
    for text in (
        "Questions about images",
        "Questions about clips",
        "aligned towers, both media",
        "unaligned towers, this medium alone",
    ):
        assert f"<!-- {text} -->" in picture
    assert "unaligned towers, both media" not in picture  # nothing is known of it
