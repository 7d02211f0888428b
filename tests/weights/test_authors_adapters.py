"""What the authors' scripts leave, onto what they started from: as PEFT merges it, and wrong bases refused by name."""

import json
import shutil

import numpy as np
import pytest

from tests.small_models import ROWS, array
from tests.weights.adapters_helper import WHOLE_PROJECTOR, arrays, draw, expected_merge, write_adapter
from tests.weights.checkpoints import assert_same_bits, write_checkpoint
from tests.weights.parts import (
    VICUNA,
    Parts,
    draw_lora,
    write_llama,
    write_lora,
    write_parts,
    write_projector,
)
from videollava_jax.cli import main
from videollava_jax.weights import (
    WeightsError,
    assemble,
    convert_to_orbax,
    open_adapter,
    open_checkpoint,
    open_towers,
)
from videollava_jax.weights.adapters import merge_adapter
from videollava_jax.weights.adapters.bases import trained_on

MEDIA_ROWS = ("language_model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Parts:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def lora(torch, tmp_path_factory, parts):
    """(directory, what was drawn) of the authors' LoRA."""
    drawn = draw_lora(parts.config, rank=4, alpha=8)
    return write_lora(torch, tmp_path_factory.mktemp("lora") / "videollava-7b-lora", parts.config, drawn), drawn


@pytest.fixture(scope="module")
def finished(tmp_path_factory, parts):
    """A finished Video-LLaVA of the authors'."""
    directory = tmp_path_factory.mktemp("finished") / "Video-LLaVA-7B"
    write_checkpoint(directory, parts.config, parts.parameters, "pku")
    return directory


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def towers_of(parts):
    return open_towers(parts.image_tower, parts.video_tower)


def first_rows(tensors):
    return {name: value[:ROWS] if name in MEDIA_ROWS else value for name, value in tensors.items()}


# ── merged ──


def test_lora_onto_the_language_model_and_towers(tmp_path, parts, lora):
    """`model_base` given and `lora` in the name: LoRA on the decoder, the projector of the training, the towers."""
    directory, drawn = lora
    assert convert(directory, tmp_path / "out", "--base", parts.llm, *parts.towers) == 0
    made = open_checkpoint(tmp_path / "out")
    assert made.config.variant == "original"
    assert made.inputs == {"image_aspect_ratio": "pad"}
    assert_same_bits(first_rows(arrays(made)), expected_merge(parts.parameters, drawn))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT reads transformers' old names
def test_the_merge_is_pefts(torch, peft, tmp_path):
    """On torch: transformers writes the Llama, PEFT the adapter, PEFT merges it; logits of text agree, too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    parts = write_parts(tmp_path / "parts")
    text = parts.config.text_config
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ROWS,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            rms_norm_eps=1e-5,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.normal_(1 if parameter.ndim == 1 else 0, 0.3)
    llama.save_pretrained(tmp_path / "vicuna-7b-v1.5")
    ends = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ends, lora_dropout=0.05, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(llama, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.3)
    tuned.save_pretrained(tmp_path / "lora")
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = VICUNA
    projector = draw(parts.config, [], WHOLE_PROJECTOR)
    write_lora(torch, tmp_path / "lora", parts.config, projector, **written)
    (tmp_path / "lora" / "adapter_model.bin").unlink()  # PEFT has written its own, in safetensors
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(written))
    assert convert(tmp_path / "lora", tmp_path / "out", "--base", tmp_path / "vicuna-7b-v1.5", *parts.towers) == 0

    base = LlamaForCausalLM.from_pretrained(tmp_path / "vicuna-7b-v1.5")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    got = first_rows(arrays(open_checkpoint(tmp_path / "out")))
    expected = {
        name.replace("model.", "language_model.", 1): array(tensor) for name, tensor in merged.state_dict().items()
    }
    before = first_rows(arrays(assemble(tmp_path / "vicuna-7b-v1.5", towers_of(parts), 0)))
    assert len(expected) == 21
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5, err_msg=name)
        assert (np.abs(before[name] - value).max() > 0.1) == ("_proj." in name)  # what LoRA has changed
    for name in WHOLE_PROJECTOR:
        np.testing.assert_array_equal(got[name], projector.whole[name])
    towers = {name: value for name, value in parts.parameters.items() if "_tower." in name}
    assert_same_bits({name: got[name] for name in towers}, towers)
    assert expected.keys() | towers.keys() | set(WHOLE_PROJECTOR) == got.keys()

    from videollava_jax import VideoLlavaForConditionalGeneration

    ids = np.random.default_rng(0).integers(3, ROWS, (2, 12))
    ours = np.asarray(VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "out")(input_ids=ids).logits)
    with torch.no_grad():
        theirs = array(merged(input_ids=torch.tensor(ids)).logits)
    assert np.abs(theirs).mean() > 0.3
    np.testing.assert_allclose(ours[..., :ROWS], theirs, rtol=0, atol=1e-4)


def test_a_projector_alone_onto_the_language_model_and_towers(torch, tmp_path, parts):
    """`model_base` given and no `lora` in the name."""
    pretrained = write_projector(torch, tmp_path / "videollava-7b-pretrain", parts.config, parts.projector)
    assert convert(pretrained, tmp_path / "out", "--base", parts.llm, *parts.towers) == 0
    made = open_checkpoint(tmp_path / "out")
    assert_same_bits(first_rows(arrays(made)), parts.parameters)
    assert made.inputs == {"image_aspect_ratio": "square"}
    arguments = ["--llm", parts.llm, *parts.towers, "--projector", pretrained / "mm_projector.bin"]
    assert main(["assemble", *map(str, [tmp_path / "out", *arguments])]) == 0  # finds that it is there already


def test_a_whole_checkpoint_needs_no_base(tmp_path, finished, parts):
    assert convert(finished, tmp_path / "out") == 0
    assert_same_bits(first_rows(arrays(open_checkpoint(tmp_path / "out"))), parts.parameters)


def test_settings_of_the_training_go_before_those_of_the_language_model(torch, tmp_path, parts):
    changes = {"rope_scaling": {"type": "linear", "factor": 4.0}, "mm_vision_select_layer": -1}
    changes |= {"mm_vision_select_feature": "cls_patch"}
    pretrained = write_projector(torch, tmp_path / "pre", parts.config, parts.projector, **changes)
    assert convert(pretrained, tmp_path / "out", "--base", parts.llm, *parts.towers) == 0
    config = open_checkpoint(tmp_path / "out").config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    assert config.text_config.rope_scaling.factor == 4.0


# ── refused ──


def test_the_base_has_to_be_given_and_is_named(tmp_path, parts, lora, capsys):
    directory, _ = lora
    assert convert(directory, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "an adapter, not a model: --base says which checkpoint it is merged into; it was trained on lmsys/" in said
    assert convert(directory, tmp_path / "out", "--base", parts.llm) == 1
    assert "--image-tower DIR (LanguageBind/LanguageBind_Image) --video-tower DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["pku", "orbax", "hub"])
def test_a_finished_model_under_an_adapter_of_the_language_model(tmp_path, parts, lora, finished, form, capsys):
    base = finished
    if form == "orbax":
        base = tmp_path / "vicuna-7b-v1.5"  # by its name alone it would be the right one
        convert_to_orbax(finished, base)
    if form == "hub":
        base = tmp_path / "Video-LLaVA-7B-hf"
        assert main(["export", str(finished), str(base), "--drop-temporal"]) == 0
    capsys.readouterr()
    for arguments in (
        ["convert", lora[0], tmp_path / "out", "--base", base],
        ["export", base, tmp_path / "out", "--adapter", lora[0], "--layout", "hub"],
    ):
        assert main([*map(str, arguments)]) == 1
        said = capsys.readouterr().err
        assert f"trained on a language model, {VICUNA} (base_model_name_or_path of adapter_config.json)" in said
        assert "is a finished Video-LLaVA" in said
        assert f"give --base {VICUNA} --image-tower LanguageBind_Image --video-tower" in said
        assert not (tmp_path / "out").exists()
    assert convert(lora[0], tmp_path / "out", "--base", base, "--trust-base") == 0


def test_a_projector_of_the_first_stage_under_a_finished_model(torch, tmp_path, parts, finished):
    for place, raw in (("named", None), ("bare", {})):
        pretrained = write_projector(torch, tmp_path / place, parts.config, parts.projector)
        if raw is not None:
            (pretrained / "config.json").unlink()
        with pytest.raises(WeightsError, match=r"trained on a language model, lmsys/vicuna-7b-v1.5.*finished Video"):
            convert_to_orbax(pretrained, tmp_path / "out", base=finished)


def test_another_language_model(tmp_path, parts, lora, capsys):
    other = write_llama(tmp_path / "llama-2-7b-chat", parts.config, parts.parameters, _name_or_path="meta/Llama-2-7b")
    assert convert(lora[0], tmp_path / "out", "--base", other, *parts.towers) == 1
    said = capsys.readouterr().err
    assert f"trained on {VICUNA}" in said
    assert "and the base is llama-2-7b-chat or meta/Llama-2-7b" in said
    assert f"give --base {VICUNA}; --trust-base merges all the same" in said
    assert convert(lora[0], tmp_path / "out", "--base", other, *parts.towers, "--trust-base") == 0


@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("vicuna-7b-v1.5", None),
        ("Vicuna_7B_v1.5", "x/other"),
        ("moved", "vicuna-7b-v1.5"),
        ("moved", "/home/me/vicuna-7b-v1.5/"),
        ("models--lmsys--vicuna-7b-v1.5/snapshots/0123456789", None),
    ],
)
def test_the_same_language_model_under_other_names(tmp_path, parts, lora, directory, said):
    base = write_llama(tmp_path / directory, parts.config, parts.parameters, _name_or_path=said)
    assert convert(lora[0], tmp_path / "out", "--base", base, *parts.towers) == 0


def test_a_renamed_language_model_that_nothing_names(tmp_path, parts, lora, capsys):
    base = write_llama(tmp_path / "base", parts.config, parts.parameters, _name_or_path=None)
    assert convert(lora[0], tmp_path / "out", "--base", base, *parts.towers) == 1
    assert "and the base is base" in capsys.readouterr().err
    assert convert(lora[0], tmp_path / "out", "--base", base, *parts.towers, "--trust-base") == 0


def test_a_language_model_under_an_adapter_of_a_finished_model(torch, tmp_path, parts, lora):
    for name, raw in (("videollava-7b", {}), ("Video-LLaVA-7B", {})):
        directory = tmp_path / name
        shutil.copytree(lora[0], directory)
        config = json.loads((directory / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps(config | raw | {"base_model_name_or_path": name}))
        with pytest.raises(WeightsError, match=rf"trained on a Video-LLaVA, {name} .*is a language model: give the"):
            convert_to_orbax(
                directory,
                tmp_path / "out",
                base=parts.llm,
                image_tower=parts.image_tower,
                video_tower=parts.video_tower,
            )


def test_transformers_names_are_those_of_a_video_llava(tmp_path, finished, parts):
    """Adapters over transformers' model go onto any form of it, whatever its directory is called."""
    drawn = draw(parts.config, integers=True)
    adapter = write_adapter(tmp_path / "a", drawn, "memory", base_model_name_or_path="LanguageBind/Video-LLaVA-7B-hf")
    convert_to_orbax(finished, tmp_path / "7b-orbax")
    convert_to_orbax(adapter, tmp_path / "out", base=tmp_path / "7b-orbax")
    assert trained_on(open_adapter(adapter)).kind == "a Video-LLaVA"
    said = json.loads((finished / "config.json").read_text()) | {"_name_or_path": "someone/video-llava-tuned"}
    shutil.copytree(finished, tmp_path / "tuned")
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=r"trained on LanguageBind/Video-LLaVA-7B-hf .*the base is someone/video"):
        merge_adapter(open_checkpoint(tmp_path / "tuned"), open_adapter(adapter))


def test_an_adapter_without_a_projector_onto_a_language_model(tmp_path, parts):
    """PEFT's adapter of a plain language model: no `llava` in its name."""
    drawn = draw(parts.config, integers=True)
    adapter = write_adapter(tmp_path / "a", drawn, "pku", base_model_name_or_path=VICUNA)
    with pytest.raises(WeightsError, match=r"an adapter without a projector .*--projector FILE gives the one"):
        convert_to_orbax(
            adapter,
            tmp_path / "out",
            base=parts.llm,
            image_tower=parts.image_tower,
            video_tower=parts.video_tower,
        )


def test_an_adapter_that_was_trained_with_a_frozen_projector(torch, tmp_path, parts, finished, lora, capsys):
    """--freeze_mm_mlp_adapter True: non_lora_trainables.bin is empty, and the projector is that of the first stage."""
    drawn = draw_lora(parts.config, rank=4, alpha=8)
    drawn.whole.clear()
    directory = write_lora(torch, tmp_path / "frozen", parts.config, drawn)
    config = json.loads((directory / "config.json").read_text())
    base = ["--base", parts.llm, *parts.towers]
    assert convert(directory, tmp_path / "out", *base) == 1
    assert "non_lora_trainables.bin is missing" in capsys.readouterr().err
    (directory / "config.json").write_text(json.dumps(config | {"freeze_mm_mlp_adapter": True}))
    assert convert(directory, tmp_path / "out", *base) == 1
    assert "--projector FILE gives the one that it was trained with" in capsys.readouterr().err
    pretrained = write_projector(torch, tmp_path / "pre", parts.config, parts.projector)
    assert convert(directory, tmp_path / "out", *base, "--projector", pretrained / "mm_projector.bin") == 0
    made = open_checkpoint(tmp_path / "out")
    assert_same_bits(first_rows(arrays(made)), expected_merge(parts.parameters, drawn))
    assert made.inputs == {"image_aspect_ratio": "pad"}  # of the adapter's training, not of the projector's
    assert convert(lora[0], tmp_path / "twice", *base, "--projector", pretrained / "mm_projector.bin") == 1
    assert "has a trained projector of its own: expected no --projector" in capsys.readouterr().err
    over = ["--base", finished, "--projector", pretrained, "--trust-base"]
    assert convert(lora[0], tmp_path / "twice", *over) == 1
    assert "--projector: expected a language model as the base" in capsys.readouterr().err
    for flags in (["--projector", pretrained], ["--trust-base"]):
        with pytest.raises(SystemExit):
            convert(finished, tmp_path / "twice", *flags)


def test_a_language_model_of_other_shapes(tmp_path, lora, capsys):
    wide = write_parts(tmp_path / "wide", text={"hidden_size": 32, "head_dim": 16})
    assert convert(lora[0], tmp_path / "out", "--base", wide.llm, *wide.towers) == 1
    assert "another language model than the one that was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ask", "chat", "batch"])
def test_an_adapter_is_no_model_to_ask(torch, tmp_path, parts, lora, command, capsys):
    """It has no tokenizer, either; the message is about what it is."""
    pretrained = write_projector(torch, tmp_path / "pre", parts.config, parts.projector)
    (tmp_path / "q.jsonl").write_text("")
    for model in (lora[0], pretrained):
        words = (
            [str(tmp_path / "q.jsonl"), str(tmp_path / "out.jsonl")]
            if command == "batch"
            else ["clip.mp4", "What happens?"]
        )
        assert main([command, "--model", str(model), *words]) == 1
        assert f"an adapter, not a model: merge it into one (`videollava convert {model.name} TARGET" in (
            capsys.readouterr().err
        )
        with pytest.raises(WeightsError, match="an adapter, not a model: merge it into one"):
            open_checkpoint(model)
