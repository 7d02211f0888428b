"""A model from its parts: a Llama, LanguageBind's towers, a projector; and what does not fit together."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.small_models import ROWS, small_config
from tests.weights.adapters_helper import WHOLE_PROJECTOR, arrays, save_bin
from tests.weights.checkpoints import assert_same_bits, read_all, theirs, write_checkpoint
from tests.weights.parts import (
    Parts,
    authors_config,
    llama_config,
    write,
    write_llama,
    write_parts,
    write_projector,
    write_tower,
)
from videollava_jax.cli import main
from videollava_jax.weights import (
    WeightsError,
    assemble,
    convert_to_orbax,
    export,
    open_checkpoint,
    open_projector,
    open_towers,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Parts:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def towers(parts):
    return open_towers(parts.image_tower, parts.video_tower)


def whole(parts):
    """The arrays of the authors' checkpoint that these parts make, with the rows of media."""
    expected = dict(parts.parameters)
    for name in ("language_model.embed_tokens.weight", "lm_head.weight"):
        mean = expected[name].astype(np.float32).mean(0, keepdims=True).astype(expected[name].dtype)
        extra = parts.config.text_config.vocab_size - ROWS
        expected[name] = np.concatenate([expected[name], np.repeat(mean, extra, 0)])
    return expected


def test_the_parts_of_the_authors_model_make_their_model(torch, tmp_path, parts, towers):
    projector, settings = open_projector(write_projector(torch, tmp_path / "pre", parts.config, parts.projector))
    made = assemble(parts.llm, towers, projector, settings)
    assert (made.config.variant, made.layout) == ("original", "parts")
    assert made.inputs == {"image_aspect_ratio": "square"}
    assert_same_bits(arrays(made), whole(parts))
    export(made, tmp_path / "pku", "pku")
    assert_same_bits(read_all(tmp_path / "pku"), {theirs(n, "pku"): v for n, v in parts.parameters.items()})
    again = open_checkpoint(tmp_path / "pku")
    assert (again.config, again.inputs) == (made.config, made.inputs)


def test_a_projector_from_files_of_every_kind(torch, tmp_path, parts):
    written = write_projector(torch, tmp_path / "pre", parts.config, parts.projector)
    named = {theirs(name, "pku"): value for name, value in parts.projector.items()}
    (tmp_path / "mm_projector").mkdir()
    save_bin(torch, tmp_path / "mm_projector" / "checkpoint-24000.bin", named)
    save_file(named, tmp_path / "mm_projector" / "p.safetensors")
    for path in (
        written,
        written / "mm_projector.bin",
        tmp_path / "mm_projector" / "checkpoint-24000.bin",
        tmp_path / "mm_projector" / "p.safetensors",
    ):
        tensors, settings = open_projector(path)
        assert_same_bits({name: tensor.read() for name, tensor in tensors.items()}, parts.projector)
        assert bool(settings) == (path in (written, written / "mm_projector.bin"))


def test_a_new_projector_begins_as_torch_linear_does(torch, tmp_path, parts, towers):
    first, same, other = (arrays(assemble(parts.llm, towers, seed)) for seed in (7, 7, 8))
    for name in WHOLE_PROJECTOR:
        assert first[name].tobytes() == same[name].tobytes()
        assert not np.array_equal(first[name], other[name])
        inputs = 64 if "linear_1" in name else 16
        assert 0.8 * inputs**-0.5 < np.abs(first[name]).max() <= inputs**-0.5 or first[name].size < 20
    linear = torch.nn.Linear(64, 16)
    assert np.isclose(first[WHOLE_PROJECTOR[0]].std(), linear.weight.std().item(), rtol=0.1)
    assert len({first[name].ravel()[0] for name in WHOLE_PROJECTOR}) == 4  # no part is drawn as another one is


def test_a_video_tower_without_attention_over_time_makes_an_hf_model(tmp_path, capsys):
    parts = write_parts(tmp_path, "hf")
    assert main(["assemble", str(tmp_path / "hub"), "--llm", str(parts.llm), *parts.towers, "--new-projector", "0",
                 "--layout", "hub"]) == 0  # fmt: skip
    assert "parts to hub" in capsys.readouterr().out
    config = open_checkpoint(tmp_path / "hub").config
    assert config.variant == "hf"
    assert config.vision_config == parts.config.vision_config
    assert config.image_token_id == ROWS


def test_the_command(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["assemble", "out", "--llm", str(parts.llm), *parts.towers, "--new-projector", "3"]
    assert main(arguments) == 0
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_there"]
    assert main(["verify", "out"]) == 0
    got = arrays(open_checkpoint("out"))
    assert_same_bits(got, whole(parts) | {name: got[name] for name in WHOLE_PROJECTOR})
    assert main([*arguments[:1], "hub", *arguments[2:], "--layout", "hub"]) == 1
    assert "--drop-temporal leaves it out" in capsys.readouterr().err
    assert main([*arguments[:1], "hub", *arguments[2:], "--layout", "hub", "--drop-temporal"]) == 0
    assert open_checkpoint("hub").config.variant == "hf"
    with pytest.raises(SystemExit):
        main([*arguments, "--projector", "p"])
    with pytest.raises(SystemExit):
        main([*arguments[:-1], "-1"])
    with pytest.raises(SystemExit):
        main([*arguments, "--drop-temporal"])


def test_parts_take_the_dtype_of_the_language_model_unless_one_is_asked_for(torch, tmp_path, parts, towers):
    """As the authors' loader casts them; with --dtype no part is rounded twice, or to float16 from bfloat16."""
    halves = {n: v.astype(np.float16) for n, v in parts.parameters.items()}
    llm = write_llama(tmp_path / "llm", parts.config, halves)
    projector = {name: value * np.float32(1.001) for name, value in parts.projector.items()}
    tensors, _ = open_projector(write_projector(torch, tmp_path / "pre", parts.config, projector))
    made = assemble(llm, towers, tensors)
    assert {tensor.dtype.name for tensor in made.tensors.values()} == {"float16"}
    kept = assemble(llm, towers, tensors, keep_dtypes=True)
    assert_same_bits({name: kept.tensors[name].read() for name in projector}, projector)
    import ml_dtypes

    save_file(
        {theirs(n, "pku"): v.astype(ml_dtypes.bfloat16) for n, v in projector.items()}, tmp_path / "bf16.safetensors"
    )
    tensors, _ = open_projector(tmp_path / "bf16.safetensors")
    kept = assemble(llm, towers, tensors, keep_dtypes=True)
    assert {kept.tensors[name].dtype.name for name in projector} == {"float32"}


def test_what_overflows_the_language_models_dtype_is_counted(torch, tmp_path, parts, towers):
    halves = {n: v.astype(np.float16) for n, v in parts.parameters.items()}
    llm = write_llama(tmp_path / "llm", parts.config, halves)
    projector = {name: value * np.float32(1e6) for name, value in parts.projector.items()}
    tensors, _ = open_projector(write_projector(torch, tmp_path / "pre", parts.config, projector))
    with pytest.raises(WeightsError, match=r"multi_modal_projector.linear_1.weight: 0 NaN, \d+ infinite"):
        convert_to_orbax(assemble(llm, towers, tensors), tmp_path / "out")


def test_the_towers_of_a_video_llava_are_taken(tmp_path, parts):
    write_checkpoint(tmp_path / "pku", parts.config, parts.parameters, "pku")
    convert_to_orbax(tmp_path / "pku", tmp_path / "orbax")
    for directory in (tmp_path / "pku", tmp_path / "orbax"):
        made = assemble(parts.llm, open_towers(directory, directory), 0)
        assert made.config.variant == "original"
        expected = {n: v for n, v in parts.parameters.items() if "_tower." in n}
        assert_same_bits({name: made.tensors[name].read() for name in expected}, expected)


# ── checkpoints that were saved without towers ──


@pytest.mark.parametrize("missing", [("image", "video"), ("video",)])
def test_towers_that_a_checkpoint_was_saved_without(tmp_path, parts, missing, capsys):
    held = {n: v for n, v in parts.parameters.items() if not n.startswith(tuple(f"{kind}_tower" for kind in missing))}
    bare = write(tmp_path / "bare", {theirs(n, "pku"): v for n, v in held.items()}, authors_config(parts.config))
    assert main(["convert", str(bare), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "saved without its vision towers" in said
    assert "LanguageBind/LanguageBind_Video_merge" in said
    assert ("--image-tower DIR" in said) == ("image" in missing)
    flags = [flag for kind in missing for flag in (f"--{kind}-tower", str(getattr(parts, f"{kind}_tower")))]
    assert main(["convert", str(bare), str(tmp_path / "out"), *flags]) == 0
    made = open_checkpoint(tmp_path / "out")
    assert_same_bits(arrays(made), whole(parts))
    assert made.inputs == {"image_aspect_ratio": "pad"}
    if "image" not in missing:
        assert main(["convert", str(bare), str(tmp_path / "other"), *parts.towers]) == 1
        assert "has a tower for images of its own: expected no --image-tower" in capsys.readouterr().err


def test_towers_for_a_checkpoint_that_has_its_own(tmp_path, parts, capsys):
    write_checkpoint(tmp_path / "pku", parts.config, parts.parameters, "pku")
    convert_to_orbax(tmp_path / "pku", tmp_path / "orbax")
    for source in ("pku", "orbax"):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "out"), *parts.towers]) == 1
        assert "has a tower for images of its own: expected no --image-tower" in capsys.readouterr().err


# ── what does not fit ──


def test_towers_that_are_refused(tmp_path, parts):
    config, parameters = parts.config, parts.parameters
    with pytest.raises(WeightsError, match=r"--image-tower .*LB_Video_merge: this tower attends over time"):
        open_towers(parts.video_tower, parts.video_tower)
    with pytest.raises(WeightsError, match="a language model without vision towers: --video-tower DIR"):
        assemble(parts.llm, open_towers(parts.image_tower, None), 0)
    other = write_tower(tmp_path / "quick", config, parameters, "image", hidden_act="quick_gelu")
    with pytest.raises(WeightsError, match="of one shape, and have hidden_act 'quick_gelu' and 'gelu'"):
        assemble(parts.llm, open_towers(other, parts.video_tower), 0)
    with pytest.raises(WeightsError, match=r"expected a vision tower .*vicuna-7b-v1.5: a language model"):
        open_towers(parts.llm, None)
    tensors = load_file(parts.video_tower / "model.safetensors")
    name = "vision_model.encoder.base_model.model.layers.0.temporal_attn.q_proj.lora_A.default.weight"
    lora = write(tmp_path / "lora", tensors | {name: np.zeros((2, 64), np.float32)}, {"vision_config": {}})
    with pytest.raises(WeightsError, match=r"LoRA that is not merged .*expected LanguageBind/LanguageBind_Video_merge"):
        open_towers(None, lora)
    wide = write_tower(tmp_path / "wide", config, parameters, "image", num_attention_heads=3)
    with pytest.raises(WeightsError, match="hidden_size 64 does not divide into 3"):
        open_towers(wide, None)
    for said, words in (
        ("x", "config.json: vision_config: expected an object"),
        ([1], "config.json: vision_config: expected an object"),
        ({"hidden_size": "64"}, "config.json: vision_config.hidden_size: expected a whole number"),
        ({"hidden_act": "mish"}, "config.json: vision_config.hidden_act: expected one of"),
    ):
        (wide / "config.json").write_text(json.dumps({"vision_config": said}))
        with pytest.raises(WeightsError, match=words):
            open_towers(wide, parts.video_tower)
    deep = write_tower(tmp_path / "deep", config, parameters, "image", num_hidden_layers=3)
    with pytest.raises(WeightsError, match="num_hidden_layers 3 and 2"):
        assemble(parts.llm, open_towers(deep, parts.video_tower), 0)


def test_the_towers_own_configuration_says_its_heads(tmp_path):
    """As ViT-H: 80 values a head, where 64 would be taken for those of a tower without a configuration."""
    parts = write_parts(tmp_path, vision={"hidden_size": 160, "num_attention_heads": 2})
    made = assemble(parts.llm, open_towers(parts.image_tower, parts.video_tower), 0)
    assert made.config.vision_config.num_attention_heads == 2
    export(made, tmp_path / "pku", "pku")
    with pytest.raises(WeightsError, match=r"how many heads .* at a width of 160 .* \(ViT-H has 16 at 1280\): --tower"):
        open_checkpoint(tmp_path / "pku")
    with_config = open_checkpoint(tmp_path / "pku", parts.image_tower / "config.json")
    assert with_config.config == made.config


def test_language_models_that_are_refused(tmp_path, parts, towers):
    write_checkpoint(tmp_path / "pku", parts.config, parts.parameters, "pku")
    write_checkpoint(tmp_path / "hub", small_config(), {}, "hub")
    decoder = load_file(parts.llm / "model.safetensors")
    mpt = write(tmp_path / "mpt", decoder, {"model_type": "mpt"})
    odd = write(tmp_path / "odd", {"transformer.wte.weight": np.zeros((4, 4), np.float32)}, llama_config(parts.config))
    for directory, words in (
        (tmp_path / "pku", "a Video-LLaVA with towers or a projector of its own; expected a language model"),
        (mpt, "expected a Llama .*got model_type 'mpt'"),
        (odd, "expected a Llama .*transformer.wte.weight"),
        (parts.image_tower, "expected a Llama .*got model_type 'LanguageBindImage'"),
        (tmp_path / "nowhere", "no such directory"),
    ):
        with pytest.raises(WeightsError, match=words):
            assemble(directory, towers, 0)
    with pytest.raises(
        WeightsError, match="a language model, not Video-LLaVA: `videollava assemble TARGET --llm vicuna"
    ):
        open_checkpoint(parts.llm)


def test_projectors_that_are_refused(torch, tmp_path, parts, towers):
    with pytest.raises(WeightsError, match="no such file; expected a projector"):
        open_projector(tmp_path / "nowhere.bin")
    named = {theirs(name, "pku"): value for name, value in parts.projector.items()}
    more = named | {"model.embed_tokens.weight": np.zeros((2, 16), np.float32)}
    save_file(more, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match=r"and no others, found model.embed_tokens.weight"):
        open_projector(tmp_path / "more.safetensors")
    narrow = {name: value[..., :8] if value.ndim == 2 else value for name, value in named.items()}
    save_bin(torch, tmp_path / "narrow.bin", narrow)
    with pytest.raises(WeightsError, match=r"shape of model.mm_projector.0.weight: expected \(16, 64\), got \(16, 8\)"):
        assemble(parts.llm, towers, open_projector(tmp_path / "narrow.bin")[0])
    projector, settings = open_projector(
        write_projector(torch, tmp_path / "13b", parts.config, parts.projector, hidden_size=5120, rms_norm_eps=1e-6)
    )
    with pytest.raises(
        WeightsError, match=r"another language model .*hidden_size 5120 and 16; rms_norm_eps 1e-06 and 1e-05"
    ):
        assemble(parts.llm, towers, projector, settings)


def test_a_trained_projector_needs_a_video_tower_with_attention_over_time(torch, tmp_path, parts):
    """LanguageBind's image tower fits in every shape, and would make another model."""
    projector, settings = open_projector(write_projector(torch, tmp_path / "pre", parts.config, parts.projector))
    towers = open_towers(parts.image_tower, parts.image_tower)
    with pytest.raises(
        WeightsError, match=r"LB_Image: a tower without attention over time.*expected LanguageBind/Lang"
    ):
        assemble(parts.llm, towers, projector, settings)
    assert assemble(parts.llm, towers, projector).config.variant == "hf"  # nothing says how it was trained


def test_damage_to_a_tower_is_not_handed_on(tmp_path, parts):
    write_checkpoint(tmp_path / "pku", parts.config, parts.parameters, "pku")
    export(tmp_path / "pku", tmp_path / "again", "pku")
    file = tmp_path / "again" / "model.safetensors"
    held = bytearray(file.read_bytes())
    tensor = open_checkpoint(tmp_path / "again").tensors["video_tower.pre_layrnorm.weight"].read()
    place = held.find(tensor.tobytes())
    held[place] ^= 1
    file.write_bytes(held)
    open_towers(tmp_path / "again", None)
    with pytest.raises(WeightsError, match=r"video_tower.*pre_layrnorm.*SHA-256"):
        open_towers(None, tmp_path / "again")
