"""The processor's call against transformers': ids, pixels, media in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.processing.inputs import SIDE, expanded, hf_pixels, image, make, video
from videollava_jax.media import FrameFiles, Indices
from videollava_jax.processing.processor import VideoLlavaProcessor

# ── the call, as transformers has it ──


def test_the_documented_example(processor: VideoLlavaProcessor) -> None:
    prompt = "USER: <video>Why is this funny? ASSISTANT:"
    inputs = processor(text=prompt, videos=video(), return_tensors="np")
    assert dict(inputs).keys() == {"input_ids", "attention_mask", "pixel_values_videos"}
    assert inputs.input_ids.dtype == inputs["attention_mask"].dtype == np.int64
    assert inputs.input_ids.tolist() == [processor.tokenizer(expanded(prompt))["input_ids"]]
    assert inputs.attention_mask.all()
    assert inputs.pixel_values_videos.shape == (1, 8, 3, SIDE, SIDE)
    assert inputs.pixel_values_videos.dtype == np.float32
    text = processor.batch_decode(inputs.input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    assert text == ["USER: Why is this funny? ASSISTANT:"]
    assert processor.decode(inputs.input_ids[0], skip_special_tokens=True) == text[0]
    assert set(inputs) <= set(processor.model_input_names)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(["<video>", "<image>", "</s>", "<pad>", " ", "\n", "USER: ", "ASSISTANT:", "  "]),
            st.text(st.characters(codec="utf-8"), max_size=8),
        ),
        max_size=8,
    )
)
def test_a_string_gets_the_ids_of_its_expansion(processor: VideoLlavaProcessor, words: list[str]) -> None:
    prompt = "".join(words)
    images, videos = [image()] * prompt.count("<image>"), [video(2)] * prompt.count("<video>")
    inputs = processor(prompt, images, videos, return_tensors=None)
    assert inputs["input_ids"] == [processor.tokenizer(expanded(prompt, frames=2))["input_ids"]]


@pytest.mark.parametrize(("height", "width"), [(40, 50), (50, 33), (28, 28), (20, 90), (61, 29)])
def test_pixels_are_those_of_transformers(processor: VideoLlavaProcessor, height: int, width: int) -> None:
    still, clip = image(height, width), video(3, height, width)
    inputs = processor("<image> <video>", still, clip)
    np.testing.assert_allclose(inputs.pixel_values_images, hf_pixels(still), rtol=0, atol=1e-6)
    np.testing.assert_allclose(inputs.pixel_values_videos[0], hf_pixels(*clip), rtol=0, atol=1e-6)


def test_pil_images_of_any_mode(processor: VideoLlavaProcessor) -> None:
    picture = Image.fromarray(image())
    for mode in ("RGB", "L", "RGBA", "P"):
        converted = picture.convert(mode)
        got = processor("<image>", converted).pixel_values_images
        np.testing.assert_allclose(got, hf_pixels(converted), rtol=0, atol=1e-6)


def test_a_mixed_batch_is_padded_left(processor: VideoLlavaProcessor) -> None:
    prompts = [
        "USER: hi ASSISTANT:",
        "USER: <video>\nwhat? <image> ASSISTANT:",
        "USER: <image>\nwho? ASSISTANT:",
    ]
    stills = [image(seed=1), image(seed=2)]
    inputs = processor(text=prompts, images=stills, videos=[video()], padding=True)
    rows = [processor.tokenizer(expanded(prompt))["input_ids"] for prompt in prompts]
    width = max(map(len, rows))
    assert inputs.input_ids.shape == inputs.attention_mask.shape == (3, width)
    for got, mask, row in zip(inputs.input_ids, inputs.attention_mask, rows, strict=True):
        assert got[-len(row) :].tolist() == row
        assert set(got[: -len(row)]) <= {processor.tokenizer.pad_token_id}
        assert mask.tolist() == [0] * (width - len(row)) + [1] * len(row)
    np.testing.assert_allclose(inputs.pixel_values_images, hf_pixels(*stills), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options", [{"padding": True}, {"padding": "longest"}, {"padding": "max_length", "max_length": 40}]
)
def test_padding_is_the_tokenizers(private: VideoLlavaProcessor, side: str, options: dict[str, Any]) -> None:
    private.tokenizer.padding_side = side
    prompts = ["USER: a long question, is it? ASSISTANT:", "USER: hi ASSISTANT:"]
    want = private.tokenizer(prompts, return_tensors="np", **options)
    got = private(prompts, **options)
    np.testing.assert_array_equal(got.input_ids, want["input_ids"])
    np.testing.assert_array_equal(got.attention_mask, want["attention_mask"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("length", [3, 5, 12, 400])
def test_truncation_is_the_tokenizers(private: VideoLlavaProcessor, side: str, add_eos: bool, length: int) -> None:
    private.tokenizer.truncation_side = side
    private.tokenizer.add_eos_token = add_eos
    prompt = "USER: a long question, is it not? ASSISTANT:"
    want = private.tokenizer(prompt, truncation=True, max_length=length)["input_ids"]
    assert private(prompt, truncation=True, max_length=length).input_ids[0].tolist() == want


def test_lists_instead_of_arrays(processor: VideoLlavaProcessor) -> None:
    prompts = ["<video>a", "<video> a longer one"]
    inputs = processor(prompts, videos=[video(2), video(3)], return_tensors=None)
    assert inputs["input_ids"] == [
        processor.tokenizer(expanded(prompt, frames))["input_ids"]
        for prompt, frames in zip(prompts, (2, 3), strict=True)
    ]
    assert [len(mask) for mask in inputs["attention_mask"]] == [len(ids) for ids in inputs["input_ids"]]
    assert [clip.shape for clip in inputs["pixel_values_videos"]] == [(2, 3, SIDE, SIDE), (3, 3, SIDE, SIDE)]


def test_pixels_alone(processor: VideoLlavaProcessor) -> None:
    inputs = processor(images=[image(), image()], videos=video(2))
    assert inputs.keys() == {"pixel_values_images", "pixel_values_videos"}
    assert inputs.pixel_values_images.shape == (2, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="expected text, images or videos; got none"):
        processor()


@pytest.mark.parametrize(("strategy", "additional", "tokens"), [("default", 1, 4), ("full", 1, 5), ("full", 0, 4)])
def test_tokens_are_counted_as_transformers_counts(
    private: VideoLlavaProcessor, strategy: Any, additional: int, tokens: int
) -> None:
    own = make(private.tokenizer, vision_feature_select_strategy=strategy, num_additional_image_tokens=additional)
    ids = own("<image><video>", image(), video(2)).input_ids[0].tolist()
    assert ids.count(own.image_token_id) == own.tokens_per_image == tokens
    assert ids.count(own.video_token_id) == 2 * own.tokens_per_frame == 2 * (4 + additional)


def test_the_real_models_tokens(private: VideoLlavaProcessor) -> None:
    full = VideoLlavaProcessor(tokenizer=private.tokenizer)
    assert full.tokens_per_image == 256
    assert 8 * full.tokens_per_frame == 2056


# ── media in every form ──


def test_every_form_of_images(processor: VideoLlavaProcessor, tmp_path: Path) -> None:
    a, b = image(seed=1), image(seed=2)
    path = tmp_path / "a.png"
    Image.fromarray(a).save(path)
    want = hf_pixels(a, b)
    prompts = ["<image> one", "none", "<image> two"]
    for given_images in ([a, b], np.stack([a, b]), [Image.fromarray(a), b], [path, b], [str(path), b]):
        got = processor(prompts, given_images, padding=True).pixel_values_images
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    for nested in ([[a], [], [b]], [[path], None, (b,)]):
        got = processor(prompts, nested, padding=True).pixel_values_images
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    single = processor("<image>", a).pixel_values_images
    np.testing.assert_allclose(single, want[:1], rtol=0, atol=1e-6)


def test_every_form_of_videos(processor: VideoLlavaProcessor) -> None:
    a, b = video(2, seed=1), video(2, seed=2)
    want = np.stack([hf_pixels(*a), hf_pixels(*b)])
    prompts = ["<video> one", "none", "<video> two"]
    frames = [Image.fromarray(frame) for frame in a]
    for videos in (
        [a, b],
        np.stack([a, b]),
        [list(a), list(b)],
        [frames, b],
        [[a], [], [b]],
        [[frames], None, [b]],
    ):
        got = processor(prompts, videos=videos, padding=True).pixel_values_videos
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    for one in (a, list(a), frames, [a], [[a]]):
        got = processor("<video>", videos=one).pixel_values_videos
        np.testing.assert_allclose(got, want[:1], rtol=0, atol=1e-6)


def test_frames_of_different_sizes(processor: VideoLlavaProcessor) -> None:
    frames = [image(40, 50), image(50, 40)]
    got = processor("<video>", videos=frames).pixel_values_videos
    np.testing.assert_allclose(got[0], hf_pixels(*frames), rtol=0, atol=1e-6)


def test_frame_files_are_one_video(processor: VideoLlavaProcessor, tmp_path: Path) -> None:
    frames, paths = video(5), [str(tmp_path / f"{i}.png") for i in range(5)]
    for frame, path in zip(frames, paths, strict=True):
        Image.fromarray(frame).save(path)
    files, every_second = FrameFiles(paths, fps=2), Indices((0, 2, 4))
    want = hf_pixels(*frames[[0, 2, 4]])[None]
    for given_videos in (files, [files], [[files]]):
        got = processor("<video>", videos=given_videos, frame_sampling=every_second).pixel_values_videos
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    asked = [{"role": "user", "content": [{"type": "video", "video": paths}, {"type": "text", "text": "What?"}]}]
    got = processor.conversation_inputs(asked, frame_sampling=every_second)
    np.testing.assert_allclose(got.pixel_values_videos, want, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="frames of one video are given as FrameFiles"):
        processor(["<video>"], videos=[paths])


def test_a_video_file_is_sampled(processor: VideoLlavaProcessor, clip: Path) -> None:
    inputs = processor(["<video> a", "<video> a"], videos=[clip, str(clip)])
    assert inputs.pixel_values_videos.shape == (2, 8, 3, SIDE, SIDE)
    greys = inputs.pixel_values_videos[0].mean((1, 2, 3))
    want = [
        float(processor.preprocessors["video"].normalize(np.full((1, 1, 1, 3), 10 + 28 * i, np.uint8)).mean())
        for i in range(8)
    ]
    np.testing.assert_allclose(greys, want, atol=0.1)  # every second frame, as the documentation samples


def test_an_unknown_argument_is_named_with_the_nearest_known_one(processor: VideoLlavaProcessor) -> None:
    for call in (processor, processor.conversation_inputs):
        with pytest.raises(TypeError, match="unknown argument 'max_new_token': did you mean 'max_new_tokens'"):
            call("a" if call is processor else [{"role": "user", "content": "a"}], max_new_token=3)
