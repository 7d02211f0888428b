"""What the processor refuses, with its messages; transformers accepts much of it silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processing.inputs import SIDE, expanded, image, make, noise, video
from videollava_jax.processing.processor import VideoLlavaProcessor

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
    with pytest.raises(ValueError, match="row 0 is too long"):  # the file is not even opened
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
