"""The same usages by transformers' own classes and by ours, number by number; transformers runs on torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videollava_jax import VideoLlavaConfig, VideoLlavaProcessor
from videollava_jax.assets import MEDIA, TINY

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), np.uint8)
PICTURE = FRAMES[0]
PROMPT, ASK = "USER: <video>\nWhat? ASSISTANT:", "USER: <image>\nWhat? ASSISTANT:"
TALK = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
ANSWERED = [*TALK, {"role": "assistant", "content": [{"type": "text", "text": "A shape."}]}]
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %} ASSISTANT: {% generation %}{{ m.content[0].text }}"
    "{% endgeneration %}{% else %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)

CALLS: list[dict[str, Any]] = [
    dict(text=ASK, images=PICTURE),
    dict(text=ASK, images=[[PICTURE]]),
    dict(text=ASK, images=Image.fromarray(PICTURE)),
    dict(text=ASK, images=PICTURE.transpose(2, 0, 1)),
    dict(text=ASK, images=PICTURE / 255.0, do_rescale=False),
    dict(text=ASK, images=PICTURE.astype(np.float32)),
    dict(text=ASK, images=PICTURE, do_resize=False, do_center_crop=False),
    dict(text=ASK, images=PICTURE, do_normalize=False, images_kwargs={"size": {"shortest_edge": 28}, "crop_size": 28}),
    dict(text=ASK, images=PICTURE, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5]),
    dict(text=PROMPT, videos=FRAMES),
    dict(text=PROMPT, videos=list(FRAMES)),
    dict(text=PROMPT, videos=FRAMES, do_sample_frames=True, num_frames=3),
    dict(text=["<image> a", "<video> b"], images=PICTURE, videos=FRAMES, padding=True),
    dict(text=["Hello", "Hello there"], padding=True, padding_side="left"),
    dict(text=["Hello", "Hello there"], padding=True, padding_side="right"),
    dict(text=["Hello", "Hello there"], text_kwargs={"padding": "max_length", "max_length": 12}),
    dict(text="Hello", add_special_tokens=False),
    dict(text="Hello", return_attention_mask=False),
    dict(text="Hello there you", truncation=True, max_length=3),
    dict(text="Hello", pad_to_multiple_of=8, padding=True),
    dict(text="Hello", return_offsets_mapping=True, return_length=True),
    dict(text=ASK, images=PICTURE, return_mm_token_type_ids=True),
    dict(images=[PICTURE, PICTURE]),
]
CHATS: list[dict[str, Any]] = [
    dict(),
    dict(add_generation_prompt=True),
    dict(tokenize=True),
    dict(tokenize=True, return_dict=True),
    dict(tokenize=True, return_dict=True, processor_kwargs={"do_normalize": False}),
    dict(conversation=ANSWERED),
    dict(conversation=ANSWERED, continue_final_message=True),
    dict(conversation=[TALK, TALK], tokenize=True, return_dict=True),
    dict(
        conversation=ANSWERED, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    ),
]


@pytest.fixture(scope="module")
def pair(torch: Any) -> tuple[Any, Any]:
    """transformers' processor, whose video processor needs torchvision and so is ours, and our processor."""
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
    from transformers.models.video_llava.processing_video_llava import VideoLlavaProcessor as TransformersProcessor

    class Theirs(TransformersProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            """Their list of video processors needs torchvision."""

    ours = VideoLlavaProcessor.from_pretrained(TINY)
    theirs = Theirs(
        VideoLlavaImageProcessor.from_pretrained(TINY),
        ours.video_processor,
        copy.deepcopy(ours.tokenizer),
        patch_size=ours.patch_size,
        chat_template=ours.chat_template,
    )
    return theirs, ours


def assert_same(theirs: Any, ours: Any) -> None:
    assert sorted(theirs.keys()) == sorted(ours.keys())
    for name in theirs:
        np.testing.assert_allclose(np.asarray(ours[name]), np.asarray(theirs[name]), rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: ",".join(call))
def test_calls(pair: tuple[Any, Any], call: dict[str, Any]) -> None:
    theirs, ours = pair
    assert_same(theirs(**call, return_tensors="pt"), ours(**call))


@pytest.mark.parametrize("call", CHATS, ids=lambda call: ",".join(call) or "defaults")
def test_chat_templates(pair: tuple[Any, Any], call: dict[str, Any]) -> None:
    theirs, ours = pair
    call = {"conversation": TALK, **call}
    want, got = (p.apply_chat_template(**copy.deepcopy(call)) for p in (theirs, ours))
    if isinstance(want, str):
        assert got == want
    elif hasattr(want, "keys"):
        assert_same(want, got)
    else:
        np.testing.assert_array_equal(got, np.asarray(want))


def test_frames_are_processed_as_transformers_processes_images(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    pixels = theirs.image_processor(list(FRAMES), return_tensors="np")["pixel_values_images"]
    np.testing.assert_allclose(ours(PROMPT, videos=FRAMES).pixel_values_videos[0], pixels, rtol=0, atol=1e-6)


def test_tensors_of_torch_go_in_and_come_out(torch: Any, pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    want = ours(text=PROMPT, videos=FRAMES)
    given = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
    got = ours(text=PROMPT, videos=given, return_tensors="pt").to("cpu", torch.float16)
    assert {name: str(value.dtype) for name, value in got.items()} == {
        "input_ids": "torch.int64",
        "attention_mask": "torch.int64",
        "pixel_values_videos": "torch.float16",
    }
    np.testing.assert_allclose(got.pixel_values_videos.float(), want.pixel_values_videos, rtol=0, atol=2e-3)
    half = want.to("cuda", torch.bfloat16)
    assert str(half.pixel_values_videos.dtype) == "bfloat16"
    np.testing.assert_array_equal(
        ours(text=ASK, images=torch.from_numpy(PICTURE)).input_ids, ours(ASK, PICTURE).input_ids
    )


def test_the_configuration_is_transformers_own(torch: Any) -> None:
    from transformers import VideoLlavaConfig as Theirs

    assert VideoLlavaConfig.from_pretrained(TINY).to_dict() == Theirs.from_pretrained(TINY).to_dict()
    assert VideoLlavaConfig().to_dict() == Theirs().to_dict()


def test_sampling_by_number_and_by_rate(torch: Any, pair: tuple[Any, Any]) -> None:
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    clip = MEDIA / "rising-triangle.mp4"
    for how in ({"num_frames": 5}, {"fps": 3}, {"fps": 2.5}):
        got = pair[1].video_processor(str(clip), do_sample_frames=True, return_metadata=True, **how)["video_metadata"][
            0
        ]
        said = VideoMetadata(total_num_frames=got.total_num_frames, fps=got.fps)
        np.testing.assert_array_equal(got.frames_indices, default_sample_indices_fn(said, **how))
