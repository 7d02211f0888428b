"""The processor's files: ours, transformers', the authors'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processing.inputs import PREPROCESSING, SIDE, ask, image, make, video
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.tokenizer import load_tokenizer

# ── files ──


@pytest.fixture
def checkpoint(tmp_path: Path, vocabulary: Path) -> Path:
    """A converted checkpoint in transformers' layout, without weights."""
    tokenizer = load_tokenizer(vocabulary)
    tokenizer.save_pretrained(tmp_path)
    size = len(tokenizer)
    config = {
        "model_type": "video_llava",
        "image_token_index": size - 3,
        "video_token_index": size - 2,
        "vision_config": {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 7},
        "text_config": {"model_type": "llama", "max_position_embeddings": 300, "vocab_size": size},
        "vision_feature_select_strategy": "full",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_the_files_leave_out_comes_from_the_models_configuration(checkpoint: Path) -> None:
    loaded = VideoLlavaProcessor.from_pretrained(checkpoint)
    assert loaded.patch_size == 7
    assert loaded.tokens_per_image == 17
    assert loaded.max_positions == 300
    assert loaded.template.name == "hf"
    assert VideoLlavaProcessor.from_pretrained(checkpoint, template="vicuna_v1").template.name == "vicuna_v1"


def test_the_layouts_of_transformers(checkpoint: Path) -> None:
    settings_ = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    small = {"size": {"shortest_edge": 14}, "crop_size": {"height": 14, "width": 14}}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    (checkpoint / "processor_config.json").write_text(json.dumps(settings_))
    loaded = VideoLlavaProcessor.from_pretrained(checkpoint)
    assert (loaded.tokens_per_image, loaded.tokens_per_frame) == (4, 5)
    (checkpoint / "video_preprocessor_config.json").write_text(json.dumps(small))
    loaded = VideoLlavaProcessor.from_pretrained(checkpoint)
    assert (loaded.tokens_per_image, loaded.tokens_per_frame) == (4, 2)
    composite = settings_ | {"image_processor": small, "video_processor": PREPROCESSING}
    (checkpoint / "processor_config.json").write_text(json.dumps(composite))
    loaded = VideoLlavaProcessor.from_pretrained(checkpoint)
    assert (loaded.tokens_per_image, loaded.tokens_per_frame) == (1, 5)
    assert loaded.chat_template == loaded.template.to_jinja()
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": "{{ old }}"}))
    assert VideoLlavaProcessor.from_pretrained(checkpoint).chat_template == "{{ old }}"
    (checkpoint / "chat_template.jinja").write_text("{{ new }}")
    assert VideoLlavaProcessor.from_pretrained(checkpoint).chat_template == "{{ new }}"


def test_the_authors_checkpoints(vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((vocabulary / "tokenizer.model").read_bytes())
    config = {"model_type": "llava", "mm_video_tower": "LanguageBind", "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = VideoLlavaProcessor.from_pretrained(tmp_path)
    assert loaded.template.name == "vicuna_v1"
    assert loaded.max_positions == 4096
    assert (loaded.tokens_per_image, loaded.tokens_per_frame) == (256, 257)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "linear", "factor": 4.0}}))
    assert VideoLlavaProcessor.from_pretrained(tmp_path).max_positions == 4 * 4096


def test_saved_and_loaded_again(processor: VideoLlavaProcessor, tmp_path: Path) -> None:
    own = make(processor.tokenizer, template="vicuna_v1", max_positions=400)
    own.save_pretrained(tmp_path / "new")
    again = VideoLlavaProcessor.from_pretrained(tmp_path / "new")
    assert again.preprocessors == own.preprocessors
    assert (again.template, again.max_positions, again.chat_template) == (
        own.template,
        own.max_positions,
        own.chat_template,
    )
    conversation = ask({"type": "video", "video": video()}, "What?")
    for name, want in own.conversation_inputs(conversation).items():
        np.testing.assert_array_equal(again.conversation_inputs(conversation)[name], want)


def test_transformers_reads_what_is_saved(processor: VideoLlavaProcessor, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from transformers import AutoTokenizer, VideoLlavaImageProcessor

    processor.save_pretrained(tmp_path)
    theirs = VideoLlavaImageProcessor.from_pretrained(tmp_path)
    pixels = theirs([image()], return_tensors=None, return_legacy_image_output=False)["pixel_values"]
    np.testing.assert_allclose(processor(images=image()).pixel_values_images[0], pixels[0], rtol=0, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    conversation = ask({"type": "video"}, "What is it?")
    prompt = tokenizer.apply_chat_template(
        conversation,
        chat_template=(tmp_path / "chat_template.jinja").read_text(),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert prompt == processor.conversation_text(conversation)
    assert tokenizer(prompt)["input_ids"] == processor.tokenizer(prompt)["input_ids"]


def test_neither_a_directory_nor_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        VideoLlavaProcessor.from_pretrained(tmp_path / "none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the Hugging Face hub did not give it"):
        VideoLlavaProcessor.from_pretrained("nobody/no-such-model-here")


def test_settings_that_make_no_sense(processor: VideoLlavaProcessor) -> None:
    with pytest.raises(ValueError, match="expected a tokenizer"):
        VideoLlavaProcessor()
    with pytest.raises(ValueError, match="expected 'default' or 'full', got 'cls'"):
        make(processor.tokenizer, vision_feature_select_strategy="cls")


def test_neither_torch_nor_jax_is_imported() -> None:
    code = "import sys, videollava_jax.processing.processor; from transformers import BatchFeature, LlamaTokenizer; "
    code += "print(sorted({'torch', 'jax', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
