"""Broken checkpoints: one error that names the file and the tensor, status 1, and no output, not even a part of one."""

import asyncio
import contextlib
import errno
import json
import os
import pickle
import struct
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.faults.bases import INDEX
from tests.faults.children import command, run
from tests.faults.edits import FILE, NORM, change, change_header, change_json
from tests.faults.fuzzing import message_problem
from tests.small_models import ROWS, random_parameters, small_config
from tests.weights.checkpoints import read_all, write_checkpoint
from videollava_jax.weights import (
    WeightsError,
    convert_to_orbax,
    export,
    load_checkpoint,
    open_checkpoint,
    verify_checkpoint,
)
from videollava_jax.weights.orbax_errors import ignore_logged_errors


def cut_short(directory):
    os.truncate(directory / FILE, os.path.getsize(directory / FILE) - 7)
    return [FILE, "not a whole safetensors file"]


def wrong_header_length(directory):
    raw = (directory / FILE).read_bytes()
    (directory / FILE).write_bytes(struct.pack("<Q", 2**62) + raw[8:])
    return [FILE, "not a whole safetensors file"]


def shape_of_the_header_only(directory):
    change_header(directory, lambda header: header[NORM].update(shape=[17]))
    return [FILE, "not a whole safetensors file"]


def tensor_twice_in_the_header(directory):
    raw = (directory / FILE).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entry = json.dumps({NORM: json.loads(raw[8 : 8 + length])[NORM]})[1:-1]
    text = raw[8 : 8 + length].replace(b"{", b"{" + entry.encode() + b",", 1)
    (directory / FILE).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return [FILE, NORM, "twice"]


def missing_tensors(directory):
    change(directory, lambda tensors: (tensors.pop(NORM), tensors.pop("language_model.lm_head.weight")))
    return ["missing: language_model.norm.weight", "missing: lm_head.weight"]


def unknown_tensor(directory):
    change(directory, lambda tensors: tensors.update({"language_model.model.more": np.zeros(3, np.float32)}))
    return ["unknown: language_model.model.more"]


def tensor_of_no_layout(directory):
    change(directory, lambda tensors: tensors.update({"more": np.zeros(3, np.float32)}))
    return ["none of the layouts", "more"]


def name_that_commands_a_terminal(directory):
    name = "language_model.model.\x1b[2Jmore\nvideollava: all is well" + "x" * 10_000
    change(directory, lambda tensors: tensors.update({name: np.zeros(3, np.float32)}))
    return [r"unknown: language_model.model.\x1b[2Jmore"]


def wrong_shape(directory):
    change(directory, lambda tensors: tensors.update({NORM: np.zeros(17, np.float32)}))
    return [FILE, f"shape of {NORM}: expected (16,), got (17,)"]


def unexpected_dtype(directory):
    change(directory, lambda tensors: tensors.update({NORM: np.zeros(16, np.int32)}))
    return [f"dtype of {NORM}", "int32"]


def dtype_that_is_not_known(directory):
    change_header(directory, lambda header: header[NORM].update(dtype="U32"))
    return [FILE, NORM, "U32"]


def both_halves(directory):
    def changed(tensors):
        for i, name in enumerate(tensors):
            tensors[name] = tensors[name].astype(np.float16 if i else ml_dtypes.bfloat16)

    change(directory, changed)
    return ["float16 and bfloat16 in one checkpoint"]


def last_value_is_infinite(directory):
    def changed(tensors):
        tensors["video_tower.vision_model.pre_layrnorm.weight"][-1] = np.inf

    change(directory, changed)
    return ["video_tower.pre_layrnorm.weight: 0 NaN, 1 infinite"]


def tensor_in_two_files(directory):
    save_file({NORM: read_all(directory)[NORM]}, directory / "more.safetensors")
    return [NORM, "is in two files", "more.safetensors"]


def no_weights(directory):
    (directory / FILE).unlink()
    return ["expected *.safetensors or pytorch_model*.bin, found config.json"]


def no_config(directory):
    (directory / "config.json").unlink()
    return ["config.json: no such file"]


def config_of_another_model(directory):
    change_json(directory / "config.json", lambda raw: raw.update(model_type="llava"))
    return ["config.json", "'video_llava'", "'llava'"]


def config_of_a_million_layers(directory):
    change_json(directory / "config.json", lambda raw: raw["text_config"].update(num_hidden_layers=10**6))
    return ["config.json", "num_hidden_layers: expected a whole number from 1 to 1024, got 1000000"]


def config_of_a_thousand_layers(directory):
    change_json(directory / "config.json", lambda raw: raw["text_config"].update(num_hidden_layers=1000))
    return ["config.json", "1002 layers"]


def config_of_wrong_types(directory):
    change_json(directory / "config.json", lambda raw: raw["text_config"].update(hidden_size="large"))
    return ["config.json", "hidden_size", "'large'"]


def nested_config(directory):
    (directory / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    return ["config.json", "not valid JSON"]


@pytest.mark.parametrize(
    "fault",
    [
        cut_short,
        wrong_header_length,
        shape_of_the_header_only,
        tensor_twice_in_the_header,
        missing_tensors,
        unknown_tensor,
        tensor_of_no_layout,
        name_that_commands_a_terminal,
        wrong_shape,
        unexpected_dtype,
        dtype_that_is_not_known,
        both_halves,
        last_value_is_infinite,
        tensor_in_two_files,
        no_weights,
        no_config,
        config_of_another_model,
        config_of_a_million_layers,
        config_of_a_thousand_layers,
        config_of_wrong_types,
        nested_config,
    ],
    ids=lambda fault: fault.__name__.replace("_", "-"),
)
def test_a_fault_is_told(tmp_path, fault):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    words = fault(tmp_path / "a")
    assert_refused(tmp_path, words)


def assert_refused(place: Path, words: list[str]) -> None:
    status, said = command("convert", str(place / "a"), str(place / "out"))
    assert status == 1
    assert said.startswith("videollava: ")
    assert message_problem(said.rstrip("\n"), place / "a") == ""
    for word in words:
        assert word in said
    assert sorted(path.name for path in place.iterdir() if path.name != "elsewhere") == ["a"]


# ── indexes ─────────────────────────────────────────────────────────────────────────────────────────────────


def index_names(name):
    def fault(directory):
        change_json(directory / INDEX, lambda raw: raw["weight_map"].update({NORM: name(directory)}))
        return [INDEX]

    return fault


def index_lacks_a_tensor(directory):
    change_json(directory / INDEX, lambda raw: raw["weight_map"].pop(NORM))
    return [INDEX, f"the index lacks {NORM}"]


def index_names_one_too_many(directory):
    file = "model-00001-of-00002.safetensors"
    change_json(directory / INDEX, lambda raw: raw["weight_map"].update(more=file, another=file))
    return [INDEX, f"{file} lacks another", f"{file} lacks more"]


def files_are_missing(directory):
    for path in directory.glob("*.safetensors"):
        path.unlink()
    return ["model-00001-of-00002.safetensors is not there", "model-00002-of-00002.safetensors is not there"]


def link_out(directory):
    file = directory / "model-00001-of-00002.safetensors"
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    file.rename(elsewhere / file.name)
    file.symlink_to(elsewhere / file.name)
    return [INDEX, f"{file} lies outside"]


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (index_names(lambda directory: "../a/model-00001-of-00002.safetensors"), "lies outside"),
        (index_names(lambda directory: "../../../../../../etc/passwd"), "lies outside"),
        (index_names(lambda directory: "/etc/passwd"), "lies outside"),
        (index_names(lambda directory: "sub/model-00001-of-00002.safetensors"), "lies outside"),
        (index_names(lambda directory: "a\0b"), "null byte"),
        (index_names(lambda directory: "\ud800"), "surrogates"),
        (index_names(lambda directory: "x" * 300), "File name too long"),
        (index_names(lambda directory: "nothing"), "is not there"),
        (index_names(lambda directory: 7), "weight_map"),
        (index_names(lambda directory: ["model-00001-of-00002.safetensors"]), "weight_map"),
        (index_lacks_a_tensor, ""),
        (index_names_one_too_many, ""),
        (files_are_missing, ""),
        (link_out, ""),
    ],
)
def test_an_index_that_lies_is_told(tmp_path, fault, word):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub", shards=2)
    assert_refused(tmp_path, [*fault(tmp_path / "a"), word])


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    config = small_config()
    parameters = random_parameters(config, 0)
    repository = tmp_path / "models--LanguageBind--Video-LLaVA-7B-hf"
    write_checkpoint(repository / "blobs", config, parameters, "hub", shards=2)
    snapshot = repository / "snapshots" / "4cf9d8cfc76a54f46a4cb43be5368b46b7f0c736"
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted((repository / "blobs").iterdir())):
        blob = path.rename(path.with_name(f"{i:040x}"))
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    assert len(open_checkpoint(snapshot).tensors) == len(parameters)


# ── what is no file, or no path ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [FILE, "config.json", "pytorch_model.bin", INDEX])
def test_pipes_are_not_waited_for(tmp_path, name):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    if name == "pytorch_model.bin":
        (tmp_path / "a" / FILE).unlink()
    (tmp_path / "a" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "a" / name)
    status, said = run(command, "convert", str(tmp_path / "a"), str(tmp_path / "b"), seconds=30)
    assert status == 1
    assert name in said


@pytest.mark.parametrize("name", ["none", "x" * 300, "a\0b", "\ud800", "file/below", "circle", "circle/below"])
@pytest.mark.parametrize("read", [open_checkpoint, load_checkpoint, verify_checkpoint])
def test_paths_that_cannot_be(tmp_path, read, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(WeightsError):
        read(tmp_path / name)


def test_a_link_in_the_place_of_the_unfinished_output_is_not_followed(tmp_path):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / ".b.partial").symlink_to("mine")
    with pytest.raises(WeightsError, match="b: cannot be made here"):
        convert_to_orbax(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


# ── the authors' ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change_of", "words"),
    [
        ({"vocab_size": ROWS - 1}, "shape of lm_head.weight"),
        ({"vocab_size": 10**6}, "shape of lm_head.weight"),
        ({"vocab_size": 10**9}, "vocab_size: expected a whole number from 1 to 16777216"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_size": None}, "TypeError"),
        ({"mm_vision_select_layer": []}, "config.json"),
        ({"mm_projector_type": "linear"}, "unknown: model.mm_projector.2.weight"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type 'resampler'"),
    ],
)
def test_the_authors_configuration_has_to_fit(tmp_path, change_of, words):
    config = small_config("original")
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "pku")
    change_json(tmp_path / "a" / "config.json", lambda raw: raw.update(change_of))
    with pytest.raises(WeightsError, match=words):
        open_checkpoint(tmp_path / "a")


def test_rows_behind_those_of_media_are_not_lost_in_silence(tmp_path):
    config = small_config("original", text={"vocab_size": 128})
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    with pytest.raises(WeightsError, match="expected 64 rows in all, got 128"):
        export(tmp_path / "a", tmp_path / "b", "pku")


class _Harm:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_torch_files_that_are_more_than_tensors_are_refused(tmp_path, torch):
    config = small_config("original")
    expected = write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "pku")
    (tmp_path / "a" / FILE).unlink()
    file = tmp_path / "a" / "pytorch_model.bin"
    tensors = {name: torch.from_numpy(value.copy()) for name, value in expected.items()}
    torch.save(tensors, file)
    open_checkpoint(tmp_path / "a")
    norm = "model.norm.weight"
    for odd, words in (
        ({norm: torch.ones(1).expand(16)}, None),  # repeated, but sixteen values
        ({norm: torch.ones(16).to_sparse()}, f"tensor {norm}: torch.sparse_coo"),
        ({norm: torch.ones(16, device="meta")}, f"tensor {norm}: torch.strided on meta"),
        ({norm: torch.ones(16, dtype=torch.complex64)}, f"tensor {norm}: dtype torch.complex64"),
        ({norm: [1.0]}, f"got a list for '{norm}'"),
        ({7: torch.ones(16)}, "got a Tensor for 7"),
    ):
        torch.save(tensors | odd, file)
        if words is None:
            assert open_checkpoint(tmp_path / "a").tensors["language_model.norm.weight"].read().tolist() == [1.0] * 16
            continue
        with pytest.raises(WeightsError, match=words):
            open_checkpoint(tmp_path / "a")
    for raw in (pickle.dumps(_Harm(tmp_path / "harm")), b"", file.read_bytes()[:-100]):
        file.write_bytes(raw)
        with pytest.raises(WeightsError, match="torch's safe loader refuses it"):
            open_checkpoint(tmp_path / "a")
    assert not (tmp_path / "harm").exists()


# ── a writer that is interrupted ────────────────────────────────────────────────────────────────────────────


def test_what_an_interrupted_writer_still_makes_is_not_in_the_way(tmp_path, monkeypatch, caplog):
    """TensorStore's threads may outlive the attempt that a signal ends; the next one begins when they are done."""
    from videollava_jax.weights import orbax

    config, real, attempts, late = small_config(), orbax.write_orbax, [], []
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")

    def make_again(place):
        time.sleep(0.3)
        (place / "params.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
        (place / "params.orbax-checkpoint-tmp" / "stale").write_text("half")

    def write(directory, *rest):
        attempts.append(directory)
        if len(attempts) == 1:
            late.append(threading.Thread(target=make_again, args=(directory,)))
            late[0].start()
            raise WeightsError(f"{directory}: {os.strerror(errno.EINTR)}")
        assert not late[0].is_alive()
        real(directory, *rest)

    monkeypatch.setattr(orbax, "write_orbax", write)
    convert_to_orbax(tmp_path / "a", tmp_path / "b")
    late[0].join()
    assert len(attempts) == 2
    assert verify_checkpoint(tmp_path / "b") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def two_errors():
    """Lets a second task fail while its loop ends, as a second directory does that cannot be made."""

    async def late():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError("the second") from None

    async def both():
        asyncio.ensure_future(late())  # noqa: RUF006
        await asyncio.sleep(0)
        raise OSError("the first")

    ignore_logged_errors()
    with contextlib.suppress(OSError):
        asyncio.run(both())
    return Path("/proc/self/fd/2").read_text()


def test_the_second_error_of_threads_is_not_logged():
    assert run(two_errors) == ""
