"""Every code block of transformers' page of Video-LLaVA (`page.py`), with what its users change: where it imports from.

`return_tensors="pt"` becomes "np", the checkpoint's name the tiny model's; the hub and the network are stand-ins. Where
torch is not installed, its import is left out and `torch.float16` is "float16".
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import CLIPVisionConfig, LlamaConfig

import videollava_jax
from tests import small_models
from tests.face import page
from videollava_jax.assets import MEDIA, TINY

TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names that the page does not define; its blocks add theirs."""
    photo = open(MEDIA / "three-triangles.png", "rb")  # noqa: SIM115  (as requests leaves it)
    answer = SimpleNamespace(raw=photo)
    monkeypatch.setitem(sys.modules, "requests", SimpleNamespace(get=lambda url, stream: answer))
    yield {"hf_hub_download": lambda repo_id, filename, repo_type: str(MEDIA / "rising-triangle.mp4")}
    photo.close()


def imported(line: re.Match[str]) -> str:
    """An import from transformers, as one from this package where it has the name."""
    wanted = line[1].split(", ")
    ours = [name for name in wanted if hasattr(videollava_jax, name)]
    theirs = [name for name in wanted if name not in ours]
    sources = [("videollava_jax", ours), ("transformers", theirs)]
    return "\n".join(f"from {source} import {', '.join(names)}" for source, names in sources if names)


def changed(block: str) -> str:
    block = re.sub(r"^from transformers import (.*)$", imported, block, flags=re.MULTILINE)
    block = block.replace('"LanguageBind/Video-LLaVA-7B-hf"', repr(str(TINY)))
    block = block.replace('return_tensors="pt"', 'return_tensors="np"')
    return block if TORCH else block.replace("import torch\n", "").replace("torch.float16", '"float16"')


def run(block: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(changed(block), names)
    return names


def answers(names: dict[str, Any]) -> list[str]:
    new = names["out"][:, names["inputs"].input_ids.shape[1] :]
    return [text.strip() for text in names["processor"].batch_decode(new, skip_special_tokens=True)]


VIDEO = {
    "4.40": page.OF_4_40,
    "4.52": page.VIDEO_4,
    "4.57": page.VIDEO_4.replace("torch_dtype", "dtype"),
    "5.x": page.VIDEO_5,
}


@pytest.mark.parametrize("block", VIDEO.values(), ids=VIDEO)
def test_a_video(block: str, names: dict[str, Any]) -> None:
    inputs = run(block, names)["inputs"]
    assert inputs.pixel_values_videos.shape[:2] == (1, 8)
    assert (inputs.input_ids == names["processor"].video_token_id).sum() == 8 * names["processor"].tokens_per_frame
    out, prompt = names["out"], inputs.input_ids.shape[1]
    np.testing.assert_array_equal(out[:, :prompt], inputs.input_ids)
    assert prompt < out.shape[1] <= prompt + 60
    assert answers(names)[0], "the tiny model answers with a word"
    assert next(iter(names["model"].state_dict().values())).dtype == ("float16" if "dtype" in block else "float32")


def test_the_blocks_print_what_the_model_knows(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(page.OF_4_40.replace("Why is this funny?", "\\nWhich way does it move?"), names)
    (text,) = eval(capsys.readouterr().out)
    assert text.startswith("USER: ")
    assert text.endswith("Which way does it move? ASSISTANT: up")


@pytest.mark.parametrize("block", [page.MIXED_4, page.MIXED_5], ids=["4.5x", "5.x"])
def test_an_image_and_a_video(block: str, names: dict[str, Any]) -> None:
    """`max_length=50` counts the tokens of media since transformers 4.46, which raises too: see the parity tests."""
    run(page.VIDEO_5, names)
    names["clip"] = names["video"]  # a name that the page forgets to define
    with pytest.raises(ValueError, match="max_length: expected more than the"):
        run(block, names)
    inputs, processor = names["inputs"], names["processor"]
    assert inputs.pixel_values_images.shape[0] == inputs.pixel_values_videos.shape[0] == 1
    assert (inputs.input_ids == processor.image_token_id).sum() == processor.tokens_per_image
    longer = block.replace("max_length=50", f"max_length={50 + inputs.input_ids.shape[1]}")
    names["requests"].get(None, stream=True).raw.seek(0)
    assert run(longer, names)["generate_ids"].shape[1] > inputs.input_ids.shape[1]


@pytest.mark.parametrize("prompt", [page.TURNS_4, page.TURNS_5], ids=["4.5x", "5.x"])
def test_several_turns(prompt: str, names: dict[str, Any]) -> None:
    """The page says to change the prompt of its first block to this one."""
    before = next(line for line in page.VIDEO_5.splitlines() if line.startswith("prompt = "))
    run(page.VIDEO_5.replace(before, f"prompt = {prompt!r}"), names)
    assert (names["inputs"].input_ids == names["processor"].video_token_id).sum() == 8 * 17
    assert answers(names)[0]


@pytest.mark.skipif(not TORCH, reason="transformers' BitsAndBytesConfig needs torch")
@pytest.mark.parametrize("block", [page.QUANTIZED_4, page.QUANTIZED_5], ids=["4.5x", "5.x"])
def test_quantized_weights_are_refused_by_name(block: str, torch: Any) -> None:
    with pytest.raises(ValueError, match=r'quantization_config=BitsAndBytesConfig .* expected quantization="int8"'):
        run(block, {"torch": torch})  # a name that the page forgets to import


def test_flash_attention_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"attn_implementation='flash_attention_2' .* chosen by the device"):
        run(page.FLASH_4, {"torch": SimpleNamespace(float16="float16")})  # a name that the page forgets to import
    with pytest.raises(SyntaxError):  # two commas: this block runs nowhere
        run(page.FLASH_5, {})


def test_the_configuration(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of `VideoLlavaConfig`; its default sizes are those of 7B, here they are small."""
    small = small_models.hf_config().to_dict()
    monkeypatch.setattr("transformers.CLIPVisionConfig", partial(CLIPVisionConfig, **small["vision_config"]))
    monkeypatch.setattr("transformers.LlamaConfig", partial(LlamaConfig, **small["text_config"]))
    made = run(page.CONFIGURATION, names)
    assert made["configuration"].text_config.hidden_size == made["text_config"].hidden_size == 32


def test_the_tip_of_padding() -> None:
    processor = videollava_jax.VideoLlavaProcessor.from_pretrained(TINY)
    processor.tokenizer.padding_side = "left"
    inputs = processor(text=["Hello", "Hello there you"], padding=True)
    assert inputs.attention_mask[0, 0] == 0
