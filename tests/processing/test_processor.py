"""The processor against transformers (ids, pixels, files), and what it refuses that transformers passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.processing.llama_vocabulary import train_small_model
from videollava_jax.media import FramePreprocessor
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.tokenizer import load_tokenizer

SIDE = 28  # two patches of 14 a side: 4 tokens an image, 5 a frame
PREPROCESSING = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_model(tmp_path_factory.mktemp("vocabulary")).parent


@pytest.fixture(scope="module")
def processor(vocabulary: Path) -> VideoLlavaProcessor:
    return make(load_tokenizer(vocabulary))


@pytest.fixture
def private(vocabulary: Path) -> VideoLlavaProcessor:
    """A processor of the test's own, to change settings of."""
    return make(load_tokenizer(vocabulary))


def make(tokenizer: Any, **settings_: Any) -> VideoLlavaProcessor:
    return VideoLlavaProcessor(FramePreprocessor.from_json(PREPROCESSING), tokenizer=tokenizer, **settings_)


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def image(height: int = 40, width: int = 50, seed: int = 0) -> Any:
    return noise(height, width, 3, seed=seed)


def video(frames: int = 8, height: int = 40, width: int = 50, seed: int = 0) -> Any:
    return noise(frames, height, width, 3, seed=seed)


def hf_pixels(*images: Any) -> Any:
    """transformers' own image processor: float32 [N, 3, S, S]."""
    processing = pytest.importorskip("transformers.models.video_llava.image_processing_video_llava")
    reference = processing.VideoLlavaImageProcessor(**PREPROCESSING)
    return np.stack(reference(list(images), return_tensors=None, return_legacy_image_output=False)["pixel_values"])


def expanded(prompt: str, frames: int = 8) -> str:
    return prompt.replace("<video>", "<video>" * (frames * 5)).replace("<image>", "<image>" * 4)


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


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of 16 frames, each of one grey: 10, 24, 38 …"""
    import av

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 + 14 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_video_file_is_sampled(processor: VideoLlavaProcessor, clip: Path) -> None:
    inputs = processor(["<video> a", "<video> a"], videos=[clip, str(clip)])
    assert inputs.pixel_values_videos.shape == (2, 8, 3, SIDE, SIDE)
    greys = inputs.pixel_values_videos[0].mean((1, 2, 3))
    want = [
        float(processor.video_processor.normalize(np.full((1, 1, 1, 3), 10 + 28 * i, np.uint8)).mean())
        for i in range(8)
    ]
    np.testing.assert_allclose(greys, want, atol=0.1)  # every second frame, as the documentation samples


# ── what is refused ──


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        ("<video> a", {}, r"the text has 1 <video> \(row 0: 1\), and 0 videos were given"),
        ("a", {"videos": video()}, r"the text has 0 <video> \(none in any row\), and 1 videos were given"),
        ("a", {"images": image()}, "and 1 images were given; expected as many images as placeholders"),
        (
            ["<image>", "b", "<image><image>"],
            {"images": [image()] * 2},
            r"3 <image> \(row 0: 1, row 2: 2\), and 2",
        ),
        (
            ["<image>", "b"],
            {"images": [[], [image()]]},
            r"row 0 of the text has 1 <image>, and images\[0\] holds 0",
        ),
        (
            "<image>",
            {"images": [[image(), image()]]},
            r"row 0 of the text has 1 <image>, and images\[0\] holds 2",
        ),
        (
            ["<video>", "b"],
            {"videos": [[video()]]},
            "expected a list for each of the 2 rows of the text, got 1",
        ),
        ("<image>", {"images": 3}, "images: expected a path, a PIL image or a uint8 array .* got a int"),
        ("<image>", {"images": [3]}, r"images\[0\]: expected a path, .*; got a int"),
        ("<image>", {"images": [[3]]}, r"images\[0\]: expected a path, .*; got a int"),
        ("<video>", {"videos": image()}, r"videos: expected .*; got an array of uint8 \[40, 50, 3\]"),
        (
            "<video>",
            {"videos": video().astype(np.float32)},
            r"video: expected uint8 \[F, H, W, 3\], .* 0 to 255",
        ),
        ("<video>", {"videos": noise(8, 3, 40, 50)}, "video: expected uint8 .* channels come last"),
        ("<video>", {"videos": video(0)}, "at least one frame"),
        (
            "<image>",
            {"images": noise(3, 40, 50)},
            r"image: expected uint8 \[H, W, 3\], .* channels come last",
        ),
        (3, {}, "text: expected a string or a list of strings, got a int"),
        ([["a"]], {}, "text: expected a string or a list of strings, got a list"),
    ],
)
def test_media_that_do_not_fit_the_text(
    processor: VideoLlavaProcessor, text: Any, media: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text, padding=True, **media)


def test_a_file_that_is_not_there(processor: VideoLlavaProcessor, tmp_path: Path) -> None:
    for media in ({"images": tmp_path / "no.png"}, {"videos": tmp_path / "no.mp4"}):
        with pytest.raises(ValueError, match=r"no\.(png|mp4)"):
            processor("<image>" if "images" in media else "<video>", **media)


def test_tensors_of_other_libraries(processor: VideoLlavaProcessor) -> None:
    for name in ("pt", "jax", "tf"):
        with pytest.raises(ValueError, match=rf"return_tensors: expected 'np' .* got '{name}'"):
            processor("a", return_tensors=name)  # type: ignore[arg-type]


def test_rows_of_different_lengths_need_padding(processor: VideoLlavaProcessor) -> None:
    with pytest.raises(ValueError, match=r"rows of \d+, \d+ tokens: pass padding=True"):
        processor(["a", "a b c d"])
    with pytest.raises(ValueError, match="padding: expected True, False, 'longest' or 'max_length', got 'most'"):
        processor("a", padding="most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected max_length too"):
        processor("a", padding="max_length")


def test_videos_of_different_lengths_do_not_make_an_array(processor: VideoLlavaProcessor) -> None:
    with pytest.raises(ValueError, match=r"same number of frames .* got 2, 3\. Sample them alike"):
        processor("<video><video>", videos=[video(2), video(3)])


def test_a_prompt_too_long_for_the_model(private: VideoLlavaProcessor, clip: Path) -> None:
    own = make(private.tokenizer, max_positions=64)
    text = len(own.tokenizer("<video>a<image>")["input_ids"]) - 2
    assert own("<video>a<image>", image(), video(10)).input_ids.shape[1] == text + 54
    message = (
        rf"row 1 is too long: {text + 79} tokens \(text {text}, video 0 75 = 15 frames of 5, image 0 4\); "
        r"the model has 64 positions and 8 of them are for new tokens: expected at most 56\. "
        rf"Take fewer frames: {(56 - text - 4) // 5} fit, or pool each frame to 2 tokens "
        r"\(video_pooling=2, untrained\)$"
    )
    with pytest.raises(ValueError, match=message):
        own(["b", "<video>a<image>"], image(), video(15), max_new_tokens=8, padding=True)
    with pytest.raises(ValueError, match=r"the model has 64 positions\. Take fewer frames: 6 fit in each video"):
        own("<video><video>", videos=[video(7), video(7)])
    with pytest.raises(ValueError, match="Shorten the text"):
        own("a " * 80)
    with pytest.raises(ValueError, match="Not one frame fits with the rest: shorten the text"):
        own("<video>" + "a " * 80, videos=video(1))


def test_too_long_is_said_before_any_pixel_work(private: VideoLlavaProcessor) -> None:
    class Untouched:
        crop_size = SIDE

        def __call__(self, frames: Any) -> Any:
            raise AssertionError("pixels were touched")

    own = VideoLlavaProcessor(Untouched(), tokenizer=private.tokenizer, max_positions=30)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row 0 is too long"):
        own("<video>", videos=video(8))
    with pytest.raises(ValueError, match="row 0 is too long"):  # not even looked for
        own("<video>", videos="missing.mp4")


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_never_cuts_a_medium(private: VideoLlavaProcessor, side: str) -> None:
    private.tokenizer.truncation_side = side
    prompt = "one two three <video> four five six"
    whole = private(prompt, videos=video(2)).input_ids[0].tolist()
    first, last = whole.index(private.video_token_id), len(whole) - whole[::-1].index(private.video_token_id)
    shortest = len(whole) - (first - 1) if side == "left" else last
    for length in range(2, len(whole) + 2):
        if length >= shortest:
            got = private(prompt, videos=video(2), truncation=True, max_length=length).input_ids[0].tolist()
            want = private.tokenizer(expanded(prompt, 2), truncation=True, max_length=length)["input_ids"]
            assert got == want
        else:
            with pytest.raises(ValueError, match=r"row 0: truncation to max_length=\d+ would cut a medium"):
                private(prompt, videos=video(2), truncation=True, max_length=length)
    with pytest.raises(ValueError, match="truncation: expected True or False, got 'only_second'"):
        private("a", truncation="only_second")


# ── conversations ──


def ask(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def test_a_conversation_is_the_string_it_renders_to(processor: VideoLlavaProcessor) -> None:
    still, movie = image(), video()
    conversation = ask({"type": "video", "video": movie}, {"type": "image", "image": still}, "What is it?")
    prompt = processor.apply_chat_template(conversation)
    assert prompt == "USER: <image>\n<video>\nWhat is it? ASSISTANT:"
    got = processor.apply_chat_template(conversation, tokenize=True)
    want = processor(prompt, still, movie)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    ids = processor.apply_chat_template(conversation, tokenize=True, return_dict=False)
    np.testing.assert_array_equal(ids, want.input_ids)


def test_conversations_in_a_batch(processor: VideoLlavaProcessor) -> None:
    one, two = ask({"type": "image", "image": image()}, "Who?"), ask("And who else is there?")
    strings = processor.apply_chat_template([one, two])
    assert strings == ["USER: <image>\nWho? ASSISTANT:", "USER: And who else is there? ASSISTANT:"]
    got = processor.apply_chat_template([one, two], tokenize=True, padding=True)
    np.testing.assert_array_equal(got.input_ids, processor(strings, image(), padding=True).input_ids)
    with pytest.raises(ValueError, match="conversation 1: message 0: expected role"):
        processor.apply_chat_template([one, [{"role": "gpt", "content": "x"}]])


def test_files_in_a_conversation(processor: VideoLlavaProcessor, clip: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(image()).save(picture)
    conversation = ask({"type": "video", "path": str(clip)}, {"type": "image", "url": str(picture)}, "What?")
    inputs = processor.apply_chat_template(conversation, tokenize=True, num_frames=4)
    assert inputs.pixel_values_videos.shape == (1, 4, 3, SIDE, SIDE)
    np.testing.assert_allclose(inputs.pixel_values_images, hf_pixels(image()), rtol=0, atol=1e-6)
    for part, message in (
        ({"type": "video"}, "conversation 0: a part of type 'video' has no source"),
        ({"type": "image", "image": 3}, "conversation 0: expected a path, .* as image, got a int"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.apply_chat_template(ask(part, "x"), tokenize=True)


def test_placeholders_typed_by_a_user_stay_text(processor: VideoLlavaProcessor) -> None:
    conversation = ask({"type": "image", "image": image()}, "Is <image> or <video> or </s> a tag?")
    ids = processor.apply_chat_template(conversation, tokenize=True).input_ids[0].tolist()
    assert ids.count(processor.image_token_id) == 4
    assert ids.count(processor.video_token_id) == ids.count(2) == 0
    assert "Is <image> or <video> or </s> a tag?" in processor.decode(ids)


def test_assistant_masks_mark_the_answers(processor: VideoLlavaProcessor) -> None:
    conversation = [
        *ask({"type": "video", "video": video(2)}, "What?"),
        {"role": "assistant", "content": "A red ball."},
        *ask("Why?"),
        {"role": "assistant", "content": "The dog."},
    ]
    inputs = processor.apply_chat_template(
        [conversation, [*ask("x"), {"role": "assistant", "content": "y"}]],
        template="vicuna_v1",
        add_generation_prompt=False,
        tokenize=True,
        return_assistant_tokens_mask=True,
        padding=True,
    )
    said = [
        processor.decode(ids[mask == 1]) for ids, mask in zip(inputs.input_ids, inputs.assistant_masks, strict=True)
    ]
    assert said == ["A red ball.</s> The dog.</s>", "y</s>"]
    assert inputs.assistant_masks.shape == inputs.input_ids.shape
    assert (inputs.assistant_masks <= inputs.attention_mask).all()


# ── files ──


@pytest.fixture
def checkpoint(tmp_path: Path, vocabulary: Path) -> Path:
    """A converted checkpoint without weights, as transformers lays it out."""
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


def test_saved_and_loaded_again(processor: VideoLlavaProcessor, tmp_path: Path) -> None:
    own = make(processor.tokenizer, template="vicuna_v1", max_positions=400)
    own.save_pretrained(tmp_path / "new")
    again = VideoLlavaProcessor.from_pretrained(tmp_path / "new")
    assert again.image_processor == own.image_processor
    assert again.video_processor == own.video_processor
    assert (again.template, again.max_positions, again.chat_template) == (
        own.template,
        own.max_positions,
        own.chat_template,
    )
    conversation = ask({"type": "video", "video": video()}, "What?")
    for name, want in own.apply_chat_template(conversation, tokenize=True).items():
        np.testing.assert_array_equal(again.apply_chat_template(conversation, tokenize=True)[name], want)


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
    assert prompt == processor.apply_chat_template(conversation)
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
