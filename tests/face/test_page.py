"""The blocks of transformers' page of Video-LLaVA, of 4.5x and of 5.x.

The blocks are quoted line for line. Their imports become this package's, `return_tensors="pt"` becomes "np", the model's
name the tiny model's. One line is left out: `generate(max_length=50)` for a prompt that is longer.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import videollava_jax
from videollava_jax.assets import MEDIA, TINY

READ_VIDEO = """
def read_video_pyav(container, indices):
    frames = []
    container.seek(0)
    start_index = indices[0]
    end_index = indices[-1]
    for i, frame in enumerate(container.decode(video=0)):
        if i > end_index:
            break
        if i >= start_index and i in indices:
            frames.append(frame)
    return np.stack([x.to_ndarray(format="rgb24") for x in frames])
"""

SINGLE_4 = (
    READ_VIDEO
    + """
model = VideoLlavaForConditionalGeneration.from_pretrained("LanguageBind/Video-LLaVA-7B-hf", device_map="auto")
processor = VideoLlavaProcessor.from_pretrained("LanguageBind/Video-LLaVA-7B-hf")

video_path = hf_hub_download(repo_id="raushan-testing-hf/videos-test", filename="sample_demo_1.mp4", repo_type="dataset")

container = av.open(video_path)
total_frames = container.streams.video[0].frames
indices = np.arange(0, total_frames, total_frames / 8).astype(int)
video = read_video_pyav(container, indices)

prompt = "USER: <video>Why is this funny? ASSISTANT:"
inputs = processor(text=prompt, videos=video, return_tensors="pt")

out = model.generate(**inputs, max_new_tokens=40)
print(processor.batch_decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=True))
"""
)

SINGLE_5 = (
    READ_VIDEO
    + """
# Load the model in half-precision
model = VideoLlavaForConditionalGeneration.from_pretrained("LanguageBind/Video-LLaVA-7B-hf", device_map="auto")
processor = VideoLlavaProcessor.from_pretrained("LanguageBind/Video-LLaVA-7B-hf")

# Load the video as an np.arrau, sampling uniformly 8 frames
video_path = hf_hub_download(repo_id="raushan-testing-hf/videos-test", filename="sample_demo_1.mp4", repo_type="dataset")
container = av.open(video_path)
total_frames = container.streams.video[0].frames
indices = np.arange(0, total_frames, total_frames / 8).astype(int)
video = read_video_pyav(container, indices)

# For better results, we recommend to prompt the model in the following format
prompt = "USER: <video>\\nWhy is this funny? ASSISTANT:"
inputs = processor(text=prompt, videos=video, return_tensors="pt").to(model.device)

out = model.generate(**inputs, max_new_tokens=60)
processor.batch_decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=True)
"""
)

MIXED_5 = """
# Generate from image and video mixed inputs
# Load and image and write a new prompt
url = "http://images.cocodataset.org/val2017/000000039769.jpg"
image = Image.open(requests.get(url, stream=True).raw)
prompt = "USER: <image>\\nHow many cats are there in the image? ASSISTANT: There are two cats. USER: <video>\\nWhy is this video funny? ASSISTANT:"

inputs = processor(text=prompt, images=image, videos=clip, padding=True, return_tensors="pt").to(model.device)

# Generate
generate_ids = model.generate(**inputs, max_length=50)
processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
"""

TURNS = "USER: <video>What do you see in this video? ASSISTANT: A baby reading a book. USER: Why is the it funny? ASSISTANT:"

CONFIGURATION = """
# Initializing a CLIP-vision config
vision_config = CLIPVisionConfig()

# Initializing a Llama config
text_config = LlamaConfig()

# Initializing a VideoLlava video_llava-1.5-7b style configuration
configuration = VideoLlavaConfig(vision_config, text_config)
"""

_TOO_SHORT = re.compile(r"^generate_ids = model\.generate\(.*max_length=50\)\n", re.MULTILINE)


@pytest.fixture
def names() -> dict[str, Any]:
    import av
    from transformers import CLIPVisionConfig, LlamaConfig

    photo = open(MEDIA / "three-triangles.png", "rb")  # noqa: SIM115  (as requests leaves it)
    yield {
        "av": av,
        "np": np,
        "Image": Image,
        "CLIPVisionConfig": CLIPVisionConfig,
        "LlamaConfig": LlamaConfig,
        "VideoLlavaConfig": videollava_jax.VideoLlavaConfig,
        "VideoLlavaProcessor": videollava_jax.VideoLlavaProcessor,
        "hf_hub_download": lambda repo_id, filename, repo_type: str(MEDIA / "rising-triangle.mp4"),
        "requests": SimpleNamespace(get=lambda url, stream: SimpleNamespace(raw=photo)),
        "VideoLlavaForConditionalGeneration": videollava_jax.VideoLlavaForConditionalGeneration,
        "generate_ids": [[1]],
    }
    photo.close()


def run(block: str, names: dict[str, Any]) -> dict[str, Any]:
    block = _TOO_SHORT.sub("", block).replace('"LanguageBind/Video-LLaVA-7B-hf"', repr(str(TINY)))
    exec(block.replace('return_tensors="pt"', 'return_tensors="np"'), names)
    return names


@pytest.mark.parametrize("block", [SINGLE_4, SINGLE_5], ids=["4.5x", "5.x"])
def test_a_video(block: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    inputs = run(block, names)["inputs"]
    tokens = 8 * names["processor"].tokens_per_frame
    assert inputs.pixel_values_videos.shape[:2] == (1, 8)
    assert (inputs.input_ids == names["processor"].video_token_id).sum() == tokens
    answer = names["processor"].decode(names["out"][0][inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert answer.strip(), "the tiny model answers with a word"


def test_an_image_and_a_video(names: dict[str, Any]) -> None:
    run(SINGLE_5, names)
    names["clip"] = names["video"]  # a name that the page forgets to define
    inputs = run(MIXED_5, names)["inputs"]
    processor = names["processor"]
    assert inputs.pixel_values_images.shape[0] == inputs.pixel_values_videos.shape[0] == 1
    assert (inputs.input_ids == processor.image_token_id).sum() == processor.tokens_per_image


def test_several_turns(names: dict[str, Any]) -> None:
    run(SINGLE_5, names)
    inputs = names["processor"](text=TURNS, videos=names["video"], return_tensors="np")
    assert (inputs.input_ids == names["processor"].video_token_id).sum() == 8 * names["processor"].tokens_per_frame


def test_the_configuration(names: dict[str, Any]) -> None:
    made = run(CONFIGURATION, names)["configuration"]
    assert made.text_config is names["text_config"] or made.text_config.to_dict() == names["text_config"].to_dict()


def test_the_tip_of_padding(names: dict[str, Any]) -> None:
    processor = videollava_jax.VideoLlavaProcessor.from_pretrained(TINY)
    processor.tokenizer.padding_side = "left"
    inputs = processor(text=["Hello", "Hello there you"], padding=True)
    assert inputs.attention_mask[0, 0] == 0
