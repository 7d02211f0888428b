"""Names and paths to directories: from here, and from a hub that `tests.fake_hub` serves."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.compiling import ENVIRONMENT
from tests.fake_hub import fake_hub
from tests.training.data_sets import write_data
from videollava_jax import VideoLlavaProcessor
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli import main
from videollava_jax.hub import Wanted, find_model, local_path

ROOT = Path(__file__).parents[1]
NAME = "owner/tiny"
PICKLED = "owner/pickled"
ORBAX = "owner/orbax"
NO_WEIGHTS = "owner/no-weights"
LORA = "owner/lora"
WEIGHTS = f"{NAME}/model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories by their names on the hub: the tiny model with a .bin as well, and some that only look like one."""
    place = tmp_path_factory.mktemp("models")
    shutil.copytree(TINY, place / "tiny")
    (place / "tiny" / "pytorch_model.bin").write_bytes(b"what nobody asks for")
    for name, files in {
        PICKLED: ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "training_args.bin"],
        ORBAX: ["params/_CHECKPOINT_METADATA", "params/state/d/abc", "manifest.json", "model.msgpack"],
        NO_WEIGHTS: ["model.msgpack", "README.md"],
        LORA: ["adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin", "optimizer.bin"],
    }.items():
        for path in ["config.json", "tokenizer.model", *files]:
            (place / name / path).parent.mkdir(parents=True, exist_ok=True)
            (place / name / path).write_text(f'"{path}"')
    return {NAME: place / "tiny", **{name: place / name for name in (PICKLED, ORBAX, NO_WEIGHTS, LORA)}}


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """The hub, with an empty cache, for this process and for those that `run` starts."""
    with fake_hub(models, tmp_path / "cache") as hub:
        hub.use_here(monkeypatch)
        yield hub


def find(name, wanted=Wanted.WEIGHTS, **more):
    """(the directory that was found, the paths of the files in it)"""
    found = find_model(name, wanted, **more)
    return found, sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file())


# ── from the hub ────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_in_safetensors_are_fetched_and_no_bin(hub, monkeypatch):
    directory, files = find(NAME)
    assert {"config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja"} <= set(files)
    assert "pytorch_model.bin" not in files
    assert directory.is_absolute()
    assert directory.name == hub.commit(NAME)
    assert f"{NAME}/pytorch_model.bin" not in hub.sent
    once = list(hub.sent)
    hub.go_offline(monkeypatch)
    assert find(NAME) == (directory, files)
    assert hub.sent == once


def test_side_files_come_without_weights(hub, monkeypatch):
    _, files = find(NAME, Wanted.SIDE_FILES)
    assert "config.json" in files
    assert not [file for file in files if file.endswith((".safetensors", ".bin"))]
    hub.go_offline(monkeypatch)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set\), and the files that are wanted are not all in"):
        find(NAME)


def test_a_model_in_bin_alone_is_fetched(hub, monkeypatch):
    _, files = find(PICKLED)
    assert files == [
        "config.json",
        "pytorch_model-00001-of-00001.bin",
        "pytorch_model.bin.index.json",
        "tokenizer.model",
    ]
    hub.go_offline(monkeypatch)
    assert find(PICKLED)[1] == files


def test_an_orbax_directory_is_fetched(hub):
    _, files = find(ORBAX)
    assert files == [
        "config.json",
        "manifest.json",
        "params/_CHECKPOINT_METADATA",
        "params/state/d/abc",
        "tokenizer.model",
    ]


def test_an_adapter_is_fetched(hub):
    _, files = find(LORA)
    assert files == [
        "adapter_config.json",
        "adapter_model.bin",
        "config.json",
        "non_lora_trainables.bin",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        (
            NO_WEIGHTS,
            {},
            r"owner/no-weights: .* has no weights in this model: expected \*.safetensors",
        ),
        ("owner/nobody", {}, "owner/nobody: not a directory here, and the Hugging Face hub did not give it: it has no"),
        (NAME, {"revision": "v2"}, "the model has no revision 'v2'"),
    ],
)
def test_what_the_hub_does_not_have(hub, name, more, expected):
    with pytest.raises(ValueError, match=expected):
        find(name, **more)


def test_a_revision_is_asked_for(hub):
    directory, _ = find(NAME, Wanted.SIDE_FILES, revision=hub.commit(NAME))
    assert directory.name == hub.commit(NAME)


def test_a_private_model_needs_its_token(hub):
    hub.tokens[NAME] = "hf_secret"
    with pytest.raises(ValueError, match="has no model of this name; a private one needs a token"):
        find(NAME, Wanted.SIDE_FILES)
    assert "config.json" in find(NAME, Wanted.SIDE_FILES, token="hf_secret")[1]


def test_a_gated_model_says_so(hub):
    hub.gated.add(NAME)
    with pytest.raises(ValueError, match="it is gated: accept its terms on its page"):
        find(NAME)


def test_a_directory_comes_before_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir(parents=True)
    (tmp_path / NAME / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find(NAME) == (tmp_path / NAME, ["config.json"])
    assert hub.sent == []


def test_a_processor_fetches_no_weights(hub, tiny_processor):
    assert VideoLlavaProcessor.from_pretrained(NAME).template.name == tiny_processor.template.name
    assert f"{NAME}/tokenizer.model" in hub.sent
    assert WEIGHTS not in hub.sent


def test_ask_fetches_the_weights(hub, capsys):
    assert main(["ask", str(MEDIA / "rising-triangle.mp4"), "Which way does it move?", "--model", NAME]) == 0
    assert "up" in capsys.readouterr().out
    assert hub.sent.count(WEIGHTS) == 1


def test_convert_and_verify_fetch_the_weights(hub, capsys, tmp_path):
    assert main(["convert", NAME, str(tmp_path / "orbax")]) == 0
    assert main(["verify", str(tmp_path / "orbax"), NAME]) == 0
    assert "0 are not" in capsys.readouterr().out
    assert hub.sent.count(WEIGHTS) == 1


def test_fine_tuning_fetches_the_weights_and_so_does_its_export(hub, tmp_path, monkeypatch):
    """Weights were never fetched here: the processor's patterns leave them out."""
    data = write_data(tmp_path / "data", 13)
    arguments = [
        *(ROOT / "train" / "finetune.py", "--model", NAME, "--output", tmp_path / "run", "--data.train", data),
        *("--data.steps", "1", "--data.batch", "6", "--data.rows", "2", "--data.row_tokens", "400"),
        *("--data.videos_per_row", "2", "--data.images_per_row", "2", "--data.workers", "0", "--compute.data", "1"),
        *("--compute.dtype", "float32", "--rates.projector", "1e-3"),
    ]
    environment = hub.process_environment(JAX_PLATFORMS="cpu", **ENVIRONMENT)
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert hub.sent.count(WEIGHTS) == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    shutil.rmtree(tmp_path / "cache")
    program = ROOT / "train" / "export.py"
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path / "run"), str(tmp_path / "model")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 0
    assert hub.sent.count(WEIGHTS) == 2
    assert (tmp_path / "model" / "model.safetensors").is_file()


# ── from here ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a model in it, which is the home directory too."""
    (tmp_path / "my model").mkdir()
    save_file({"x": np.zeros(1)}, tmp_path / "my model" / "model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "my model", target_is_directory=True)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["my model", "./my model", "my model/", "~/my model", "below/../my model", "link"])
def test_paths_become_absolute(here, name):
    found = find_model(name, Wanted.WEIGHTS)
    assert found.is_absolute()
    assert ".." not in found.parts
    assert found.samefile(here / "my model")
    assert find_model(Path(name), Wanted.SIDE_FILES) == found


def test_the_parent_of_a_link_is_its_targets(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    (here / "jump").symlink_to(elsewhere / "deep", target_is_directory=True)
    assert local_path("jump/../x") == elsewhere / "x"


def test_tiny_is_the_bundled_model_where_commands_ask(here):
    assert find_model("tiny", Wanted.WEIGHTS, bundled=True) == TINY
    with pytest.raises(ValueError, match="tiny: no such directory"):
        find_model("tiny", Wanted.WEIGHTS)
    shutil.copytree(here / "my model", here / "tiny")
    assert find_model("tiny", Wanted.WEIGHTS) == here / "tiny"
    assert find_model("./tiny", Wanted.WEIGHTS, bundled=True) == here / "tiny"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("below", "below: expected a directory with a model's files, found an empty directory"),
        ("my model/model.safetensors", "expected a model's directory, found a file; give the directory that it lies"),
        ("nothing", "nothing: no such directory; expected one, or a model's name on the Hugging Face hub such as"),
        ("./owner/name", "./owner/name: no such directory"),
        ("/owner/name", "/owner/name: no such directory"),
        ("a/b/c", "a/b/c: no such directory"),
        (Path("owner/name"), "owner/name: no such directory"),
        ("~/nothing", "~/nothing: no such directory"),
        ("", "expected a path or a model's name, got an empty string"),
    ],
)
def test_what_is_no_model_is_named(here, name, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        find_model(name, Wanted.WEIGHTS)


def test_nothing_is_asked_of_the_hub_when_a_path_is_wrong(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("nothing", "./owner/name", "below"):
        with pytest.raises(ValueError, match="expected"):
            find_model(name, Wanted.WEIGHTS)
    assert os.getcwd() == str(here)
