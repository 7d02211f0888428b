"""The example of transformers' documentation, run with its imports, model path and `return_tensors` changed."""

import re

import numpy as np

from videollava_jax.assets import MEDIA, TINY

# The documented example, line for line. What a user changes is done below, and nothing else.
EXAMPLE = """
import av
import torch
import numpy as np
import requests
from PIL import Image
from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor

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


def changed(example):
    imports = re.compile(r"^(import|from) .*\n", re.MULTILINE)
    example = imports.sub("", example)
    example = example.replace('"LanguageBind/Video-LLaVA-7B-hf"', repr(str(TINY)))
    return example.replace('return_tensors="pt"', 'return_tensors="np"')


IMPORTS = """
import av
import numpy as np
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
"""


def hf_hub_download(repo_id, filename, repo_type):
    """In the place of the hub's: tests fetch nothing."""
    return str(MEDIA / "rising-triangle.mp4")


def test_the_documented_example_runs(capsys):
    names = {"hf_hub_download": hf_hub_download}
    exec(IMPORTS + changed(EXAMPLE), names)
    (text,) = eval(capsys.readouterr().out)
    assert text.startswith("USER: ")
    assert "Why is this funny? ASSISTANT:" in text
    out, inputs = names["out"], names["inputs"]
    prompt = inputs["input_ids"].shape[1]
    np.testing.assert_array_equal(out[:, :prompt], inputs["input_ids"])
    assert prompt < out.shape[1] <= prompt + 40


def test_the_same_example_answers_what_the_model_knows(capsys):
    exec(
        IMPORTS + changed(EXAMPLE).replace("Why is this funny?", "\\nWhich way does it move?"),
        {"hf_hub_download": hf_hub_download},
    )
    (text,) = eval(capsys.readouterr().out)
    assert text.split()[-1] == "up"
