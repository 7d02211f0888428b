"""`videollava finetune` and `train-export`: runs that go on, that are refused, and what comes out of them."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import signal
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.reference import assert_close
from tests.tolerances import MODEL
from tests.training.conftest import ROOT, program
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.assets import TINY
from videollava_jax.cli import main as videollava
from videollava_jax.costs.chips import CHIPS
from videollava_jax.extras import installs
from videollava_jax.generation.kinds import number
from videollava_jax.training.run import loop, speed
from videollava_jax.training.run.checkpoints import Checkpoints
from videollava_jax.training.run.export import export_run
from videollava_jax.training.run.metrics import read_metrics
from videollava_jax.training.run.named_recipes import RECIPES
from videollava_jax.training.run.recipe import read_recipe
from videollava_jax.training.update.options import RANGES
from videollava_jax.weights import open_checkpoint

LORA = ("--rates.lora", "1e-2", "--rates.projector", "1e-3", "--lora.rank", "4", "--lora.dropout", "0.1")
FULL = ("--rates.projector", "1e-3", "--rates.decoder", "1e-3")


@pytest.fixture(scope="module")
def lora_run(fine_tune, data, tmp_path_factory):
    """A finished run of LoRA, with evaluation."""
    output = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "chip_of", lambda kind: CHIPS["l4"])  # a CPU has no peak to compare with
        assert fine_tune(output, *LORA, "--data.held_out", str(data)) == 0
    return output


def export(*arguments: object) -> None:
    assert videollava(["train-export", *map(str, arguments)]) == 0


def prompt(model, rng):
    """A clip's prompt for models in memory: ids, and pixels as transformers takes them."""
    config = model.model_config
    clip = [config.video_token_id] * config.tokens_per_frame * 8
    ids = np.array([[1, 5, 6, *clip, 20, 21, 22, 23]])
    return ids, rng.standard_normal((1, 8, 3, 56, 56)).astype(np.float32)


def torch_logits(torch, model, ids, pixels):
    """Returns the logits of a model of transformers or PEFT for a clip's prompt."""
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}
        return model(**given, pixel_values_videos=torch.tensor(pixels)).logits.numpy()


def test_metrics_and_what_the_directory_holds(lora_run):
    lines = read_metrics(lora_run)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(len(line["samples"]) == 6 and line["tokens"] > 0 and 0 < line["padding"] < 1 for line in steps)
    assert all(np.isfinite([line["loss"], line["gradient_norm"], line["tokens_per_second"]]).all() for line in steps)
    assert all(0 < line["mfu"] < 1 for line in steps)
    assert [line["learning_rate_lora"] == 10 * line["learning_rate_projector"] for line in steps] == [True] * 3
    assert [line["learning_rate_lora"] for line in steps] == pytest.approx([0, 1e-2, 5e-3])  # a cosine after one step
    assert 0 <= lines[-1]["held_out_exact"] <= 1
    assert {path.name for path in lora_run.iterdir()} >= {"recipe.yaml", "run.json", "checkpoints", "tensorboard"}
    # Every sample has come once before one comes again.
    consumed = [sample for line in steps for sample in line["samples"]]
    assert len(set(consumed[:12])) == 12
    assert set(consumed) == set(range(13))


def test_merged_it_loads_in_transformers_with_the_same_logits(torch, lora_run, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(lora_run, tmp_path / "merged")
    ours = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    theirs = transformers.VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    ids, pixels = prompt(ours, np.random.default_rng(0))
    expected = torch_logits(torch, theirs, ids, pixels)
    got = np.asarray(ours(ids, pixel_values_videos=pixels).logits)
    assert_close(got, expected, MODEL)
    before = VideoLlavaForConditionalGeneration.from_pretrained(TINY)(ids, pixel_values_videos=pixels).logits
    assert np.abs(np.asarray(before) - got).max() > 100 * MODEL  # it has learnt something


def test_as_an_adapter_peft_gives_the_merged_model(torch, lora_run, tmp_path):
    peft = pytest.importorskip("peft", reason="the comparison with live PEFT needs peft (extra `test`, Python 3.11)")
    transformers = pytest.importorskip("transformers")
    export(lora_run, tmp_path / "adapter", "--adapter")
    export(lora_run, tmp_path / "merged")
    base = transformers.VideoLlavaForConditionalGeneration.from_pretrained(TINY).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers' own names
        adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    merged = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    ids, pixels = prompt(merged, np.random.default_rng(1))
    expected = torch_logits(torch, adapted, ids, pixels)
    assert_close(merged(ids, pixel_values_videos=pixels).logits, expected, MODEL)


def test_a_full_run_out_to_orbax(fine_tune, tmp_path):
    assert fine_tune(tmp_path / "run", *FULL) == 0
    export(tmp_path / "run", tmp_path / "model", "--layout", "orbax")
    before, after = open_checkpoint(TINY).tensors, open_checkpoint(tmp_path / "model").tensors
    changed = {name for name in before if not np.array_equal(before[name].read(), after[name].read())}
    assert changed == {name for name in before if not name.startswith(("image_tower", "video_tower"))}
    # Of another step, and of none.
    with pytest.raises(ValueError, match="expected a checkpoint of step 2, found 3"):
        export_run(tmp_path / "run", tmp_path / "other", step=2)
    with pytest.raises(ValueError, match="expected the directory of a run"):
        export_run(tmp_path, tmp_path / "other")


SMALL = (
    *("--data.steps", "1", "--data.batch", "6", "--data.rows", "2", "--data.row_tokens", "400"),
    *("--data.videos_per_row", "2", "--data.images_per_row", "2", "--data.workers", "0"),
    *("--compute.data", "1", "--compute.dtype", "float32"),
)


def test_paths_may_be_relative_begin_at_home_and_end_in_a_slash(data, tmp_path, monkeypatch, capsys):
    home, here, elsewhere = (tmp_path / name for name in ("home", "here", "elsewhere"))
    shutil.copytree(TINY, home / "model")
    (here / "lists").mkdir(parents=True)
    elsewhere.mkdir()
    shutil.copy(data, here / "lists" / "data.json")
    (here / "media").symlink_to(data.parent)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    given = ["--model", "~/model/", "--output", "runs/mine/", "--data.train", "lists/data.json"]
    given += ["--data.media_root", "media/", "--data.features", "~/features/", *FULL, *SMALL]
    assert videollava(["finetune", *given]) == 0
    assert (here / "runs" / "mine" / "checkpoints" / "1").is_dir()
    assert (home / "features").is_dir()
    monkeypatch.chdir(elsewhere)
    assert program("finetune").main(["--config", "../here/runs/mine/recipe.yaml"]) == 0
    assert "from step 1 of 1" in capsys.readouterr().err
    for target, *options in (["model/"], ["orbax/", "--layout", "orbax"], ["~/adapter", "--adapter"]):
        export("../here/runs/mine/", target, *options)
    export("../here/runs/mine", "again", "--model", "../home/model/", "--layout", "orbax")
    one, other = (open_checkpoint(elsewhere / name).tensors for name in ("orbax", "again"))
    assert all(np.array_equal(one[name].read(), other[name].read()) for name in {*one, *other})
    assert (elsewhere / "model" / "model.safetensors").exists()
    assert (home / "adapter" / "adapter_config.json").exists()


def test_stage_2_begins_with_the_model_of_stage_1(fine_tune, tmp_path, monkeypatch):
    """As docs/training.md has it: the projector, exported, then projector and decoder on what was exported."""
    monkeypatch.chdir(tmp_path)
    assert fine_tune(Path("runs/pretrain"), "--rates.projector", "1e-3") == 0
    export("runs/pretrain", "pretrained", "--layout", "orbax")
    # The first step of a run has rate 0: the result of a single step is the model that it began with.
    assert fine_tune(Path("runs/finetune"), *FULL, "--model", "pretrained", steps=1) == 0
    export("runs/finetune", "model")
    before, one, two = (open_checkpoint(path).tensors for path in (TINY, tmp_path / "pretrained", tmp_path / "model"))
    changed = {name for name in before if not np.array_equal(before[name].read(), one[name].read())}
    assert changed == {name for name in before if name.startswith("multi_modal_projector")}
    assert all(np.array_equal(one[name].read(), two[name].read()) for name in before)


def test_the_program_export_is_the_command(lora_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export.py", str(lora_run), str(tmp_path / "adapter"), "--adapter"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train" / "export.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"in layout memory: {tmp_path / 'adapter'}" in capsys.readouterr().out


def test_the_command_ends_with_the_status_of_the_run(data, lora_run, tmp_path, monkeypatch, capsys):
    given = ["--model", "tiny", "--data.train", str(data), *LORA, *SMALL]
    assert videollava(["finetune", *given, "--output", str(lora_run)]) == 1
    assert "videollava: " in (said := capsys.readouterr().err)
    assert "holds another run" in said
    monkeypatch.setattr(loop, "fine_tune", lambda *_: 128 + signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        videollava(["finetune", *given, "--output", str(tmp_path / "run")])
    assert ended.value.code == 128 + signal.SIGTERM
    with pytest.raises(SystemExit) as ended:
        videollava(["finetune", *given, "--data.epoch=2"])
    assert ended.value.code == 2
    assert "usage: videollava finetune" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        videollava(["finetune", *given, "--config", "lorra"])
    assert ended.value.code == 2
    assert (
        "expected a YAML file, or one of finetune, lora, paper_finetune, paper_lora, paper_pretrain"
        in capsys.readouterr().err
    )


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jsonargparse" else found(name))
    assert videollava(["finetune", "--config", "lora"]) == 1
    said = capsys.readouterr().err
    assert said == f"videollava: fine-tuning needs jsonargparse, not installed here: {installs('train')}\n"


def test_the_runs_template_is_the_models(fine_tune, tmp_path):
    assert fine_tune(tmp_path / "run", *FULL, "--data.template", "vicuna_v1", steps=1) == 0
    export(tmp_path / "run", tmp_path / "model")
    assert VideoLlavaProcessor.from_pretrained(TINY).template.name != "vicuna_v1"
    assert VideoLlavaProcessor.from_pretrained(tmp_path / "model").template.name == "vicuna_v1"


def test_a_run_as_the_authors_learns_their_ids_and_pixels_and_its_model_is_asked_so(fine_tune, tmp_path):
    asked = ("--data.preset", "original", "--data.image_aspect_ratio", "pad", "--data.sampling", "uniform")
    assert fine_tune(tmp_path / "run", *FULL, *asked, "--data.version", "v1", steps=1) == 0
    export(tmp_path / "run", tmp_path / "model")
    changes = {"name": "original", "pad_to_square": True, "sampling": "uniform"}
    expected = VideoLlavaProcessor.from_pretrained(TINY, preset=changes)
    got = VideoLlavaProcessor.from_pretrained(tmp_path / "model")
    assert got.preset == expected.preset != VideoLlavaProcessor.from_pretrained(TINY).preset
    assert got.preprocessors == expected.preprocessors
    assert got.chat_template == expected.chat_template
    question = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert got.conversation_text(question) == expected.conversation_text(question)


def test_a_finished_run_has_nothing_to_do(fine_tune, lora_run, data):
    lines = (lora_run / "metrics.jsonl").read_text().splitlines()
    assert fine_tune(lora_run, *LORA, "--data.held_out", str(data)) == 0
    assert (lora_run / "metrics.jsonl").read_text().splitlines() == lines


def test_another_run_in_the_same_directory_is_refused(fine_tune, lora_run):
    with pytest.raises(ValueError, match=r"holds another run: lora.rank was 4, now 8.*recipe.yaml"):
        fine_tune(lora_run, *LORA, "--lora.rank", "8")
    with pytest.raises(ValueError, match=r"data was .*, now"):
        fine_tune(lora_run, *LORA, "--data.frames", "4")


def test_a_directory_that_is_no_runs_is_refused(fine_tune, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not empty and no run's"):
        fine_tune(tmp_path, *FULL)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_media_that_cannot_be_read_are_named_and_too_many_end_the_run(data, tmp_path, capfd):
    samples = json.loads(data.read_text())
    for sample in samples:
        for key in ("image", "video"):
            if key in sample:
                sample[key] = str(data.parent / sample[key])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    samples[0]["video"] = str(tmp_path / "broken.mp4")
    (tmp_path / "data.json").write_text(json.dumps(samples))
    main = program("finetune").main
    arguments = [
        *("--model", "tiny", "--output", str(tmp_path / "run"), "--data.train", str(tmp_path / "data.json"), *FULL),
        *("--data.batch", "13", "--data.rows", "2", "--data.row_tokens", "400", "--data.videos_per_row", "2"),
        *("--data.images_per_row", "2", "--data.workers", "0", "--compute.data", "1", "--compute.dtype", "float32"),
    ]
    assert main([*arguments, "--data.steps", "1"]) == 0
    assert "left out: sample 0 (s0)" in capfd.readouterr().err
    assert read_metrics(tmp_path / "run")[0]["left_out"] == 1


def test_gradients_that_are_not_finite_end_the_run_with_its_samples(fine_tune, tmp_path, monkeypatch):
    for group in ("projector", "decoder"):  # no rate that a recipe takes does this to the tiny model at once
        monkeypatch.setitem(RANGES, f"rates.{group}", number(0.0, 1e30))
    with pytest.raises(FloatingPointError, match=r"step \d: gradients that are not finite.*samples \["):
        fine_tune(tmp_path / "run", "--rates.projector", "1e30", "--rates.decoder", "1e30", "--optimizer.warmup", "0")
    # Some are allowed if the recipe says so: what came before them stays.
    status = fine_tune(tmp_path / "other", "--rates.projector", "1e30", "--optimizer.warmup", "0", "--max_skipped", "3")
    assert status == 0


def test_a_save_that_fails_fails_the_run(fine_tune, tmp_path, monkeypatch):
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "require_written", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fine_tune(tmp_path / "run", *FULL)


def test_recipes_are_read_and_wrong_ones_refused(capsys):
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert len(recipes) >= 6
    assert {file.resolve() for file in (ROOT / "train" / "recipes").glob("*.yaml")} == set(recipes)
    for file in recipes:
        more = ["--output", "x", "--data.train", "x.json"]
        recipe, text = read_recipe(["--config", str(file), *more])
        assert read_recipe(["--config", str(file), *more, "--seed", "3"])[0].seed == 3
        assert recipe.data.files == [str(Path("x.json").absolute())]
        assert read_recipe([f"--config={file.stem}", *more]) == (recipe, text)
        assert "learning" not in text
    tiny = ["--model", "tiny", "--output", "x", "--data.train", "x.json"]
    wrong = {
        "--data.epoch=2": "epoch",
        "--rates.lora=1e-4": "lora and rates.lora",
        "--compute.int8=true;--rates.decoder=1e-3": "int8 weights are not trained",
        "--data.batch=0": "data.batch: expected a whole number from 1 to 2147483647, got 0",
        "--keeping.keep=0": "keeping.keep",
        "--rates.projector=-1": "rates.projector: expected a number above 0, at most 1, or null, got -1.0",
        "--data.sampling=random": "data.sampling",
        "--data.image_aspect_ratio=anyres": "data.image_aspect_ratio",
        "--data.version=v1;--data.template=hf": "data.template: no effect with data.version",
    }
    for argument, message in wrong.items():
        with pytest.raises(SystemExit):
            read_recipe([*tiny, "--rates.projector", "1e-3", *argument.split(";")])
        assert message in capsys.readouterr().err


def test_pku_hyper_parameters():
    """Of the authors' scripts: facts that a recipe must not lose."""
    read = {name: read_recipe(["--config", name])[0] for name in ("pretrain", "finetune", "lora", "qlora")}
    assert (read["pretrain"].rates.projector, read["pretrain"].data.batch) == (1e-3, 256)
    assert (read["finetune"].rates.decoder, read["finetune"].rates.projector, read["finetune"].data.batch) == (
        2e-5,
        2e-5,
        128,
    )
    for name in ("lora", "qlora"):
        recipe = read[name]
        assert recipe.lora is not None
        assert (recipe.rates.lora, recipe.rates.projector, recipe.rates.decoder) == (2e-4, 2e-5, None)
        assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout, len(recipe.lora.targets)) == (
            128,
            256,
            0.05,
            7,
        )
    assert read["qlora"].compute.int8
    for recipe in read.values():
        assert (recipe.optimizer.warmup, recipe.optimizer.schedule, recipe.optimizer.weight_decay) == (
            0.03,
            "cosine",
            0,
        )
        assert (recipe.compute.dtype, recipe.data.row_tokens, recipe.data.epochs) == ("bfloat16", 3072, 1)
        assert recipe.rates.image_tower is recipe.rates.video_tower is None


def test_int8_below_lora(fine_tune, tmp_path):
    assert fine_tune(tmp_path / "run", *LORA, "--compute.int8", "true", steps=1) == 0
    (line,) = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert np.isfinite(line["loss"])
    assert jnp.isfinite(line["gradient_norm"])
    assert line["gradient_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tiny", "tiny_lora"])
def test_the_readmes_example_answers_with_sentences(recipe, tmp_path):
    """Minutes: a kind of question and answer that the bundled model was never trained on, 95% right on unseen clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["shapes_data.py", str(tmp_path / "data")])
        program("shapes_data").main()
    arguments = ["--config", recipe, "--output", str(tmp_path / "run"), "--compute.data", "1"]
    arguments += ["--data.train", str(tmp_path / "data" / "train.json")]
    assert program("finetune").main([*arguments, "--data.held_out", str(tmp_path / "data" / "held_out.json")]) == 0
    assert read_metrics(tmp_path / "run")[-1]["held_out_exact"] >= 0.95


def test_a_run_whose_loss_is_a_mean_of_means(fine_tune, data, tmp_path):
    """The first step's loss is that of the groups' means; with one group it is the mean over all targets."""

    def first_loss(name, *more):
        assert fine_tune(tmp_path / name, *FULL, *more, steps=1) == 0
        return read_metrics(tmp_path / name)[0]["loss"]

    by_token = first_loss("tokens")
    assert first_loss("one", "--data.loss_samples", "6") == pytest.approx(by_token, rel=1e-5)
    assert first_loss("each", "--data.loss_samples", "1") != pytest.approx(by_token, rel=0.05)
