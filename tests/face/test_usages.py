"""Every usage of `usages/` and of test_model.py, as one test: what holds of each holds, and few are refused."""

from __future__ import annotations

import base64
import copy
import inspect
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.face import test_model
from tests.face.test_model import model, model_namespace  # noqa: F401  (fixtures)
from tests.face.usages import HOLDS, MISTAKES, REFUSED
from videollava_jax import (
    VideoLlavaConfig,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
    register,
)
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.config import ModelConfig, VisionConfig
from videollava_jax.face.config import from_model_config, to_model_config
from videollava_jax.media import read_video

JINJA = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'video' %}<video>{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}{% endfor %}{{ mark }}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %} ASSISTANT: {% generation %}{{ m.content[0].text }}"
    "{% endgeneration %}{% else %}{% for c in m.content %}{% if c.type == 'video' %}<video>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


class Tensor:
    """An array of another library, which NumPy converts."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


def same(one: Any, other: Any) -> bool:
    if not hasattr(one, "keys"):
        return np.array_equal(one, other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoConfig, AutoProcessor, CLIPVisionConfig, LlamaConfig

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, 40, 50, 3), np.uint8)
    clip, photo = str(MEDIA / "rising-triangle.mp4"), str(MEDIA / "three-triangles.png")
    files = tmp_path_factory.mktemp("frames")
    frame_files = [str(files / f"{i}.png") for i in range(3)]
    for frame, path in zip(frames, frame_files, strict=False):
        Image.fromarray(frame).save(path)

    def url(path: str, mime: str) -> str:
        return f"data:{mime};base64," + base64.b64encode(pathlib.Path(path).read_bytes()).decode()

    talk = user({"type": "video", "path": clip}, "What?")
    names = {
        "frames": frames,
        "picture": frames[0],
        "pil": Image.fromarray(frames[1]),
        "photo": photo,
        "clip": clip,
        "total": read_video(clip).total_frames,
        "frame_files": frame_files,
        "data_url": url(photo, "image/png"),
        "video_url": url(clip, "video/mp4"),
        "PROMPT": "USER: <video>\nWhat? ASSISTANT:",
        "ASK": "USER: <image>\nWhat? ASSISTANT:",
        "TALK": talk,
        "SEEN": user({"type": "image", "path": photo}, "a"),
        "ANSWERED": [*talk, {"role": "assistant", "content": [{"type": "text", "text": "A shape."}]}],
        "JINJA": JINJA,
        "MARKED": MARKED,
        "frozen": ModelConfig(variant="original", temporal_frames=4, vision_config=VisionConfig(hidden_act="gelu")),
    }
    classes = (VideoLlavaConfig, VideoLlavaImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor)
    things = (
        Image,
        copy,
        inspect,
        jax,
        np,
        os,
        pathlib,
        pytest,
        user,
        same,
        Tensor,
        to_model_config,
        from_model_config,
    )
    others = (AutoConfig, AutoProcessor, CLIPVisionConfig, LlamaConfig)
    named = {thing.__name__.rpartition(".")[2]: thing for thing in (*classes, *things, *others)}
    return {**named, **names, "np": np, "jnp": jnp, "TINY": str(TINY)}


def failures(cases: Sequence[tuple[str, str]], names_of: Callable[[], dict[str, Any]], raises: bool) -> list[str]:
    """Runs usages, each with names of its own; returns what is wrong with those that are not as they should be."""
    failed = []
    for code, expected in cases:
        names = names_of()
        try:
            exec(code, names)
            if raises:
                failed.append(f"{code}\n    was not refused")
            elif not eval(expected, names):
                failed.append(f"{code}\n    does not hold: {expected}; out is {names['out']!r:.200}")
        except Exception as error:
            if not (raises and isinstance(error, (ValueError, TypeError)) and expected in str(error)):
                failed.append(f"{code}\n    {type(error).__name__}: {str(error)[:300]}")
    return failed


@pytest.mark.filterwarnings("error")
def test_every_usage(
    namespace: dict[str, Any],
    model_namespace: dict[str, Any],  # noqa: F811
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that hold, all that are refused by name, and mistakes; the refused ones are few."""
    register()
    processor = VideoLlavaProcessor.from_pretrained(TINY)
    side = processor.tokenizer.padding_side
    directories = (str(tmp_path / str(number)) for number in itertools.count())

    def names_of_processor() -> dict[str, Any]:
        p = copy.copy(processor)
        p.image_processor, p.video_processor = copy.copy(p.image_processor), copy.copy(p.video_processor)
        processor.tokenizer.padding_side = side
        return {**namespace, "p": p, "tmp": next(directories)}

    def names_of_model() -> dict[str, Any]:
        return dict(model_namespace)

    failed = []
    for names_of, holds, refused, mistakes in (
        (names_of_processor, HOLDS, REFUSED, MISTAKES),
        (names_of_model, test_model.HOLDS, test_model.REFUSED, test_model.MISTAKES),
    ):
        failed += failures(holds, names_of, raises=False) + failures([*refused, *mistakes], names_of, raises=True)
    refusals = len(REFUSED) + len(test_model.REFUSED)
    usages = len(HOLDS) + len(test_model.HOLDS) + refusals
    with capsys.disabled():
        print(f" {usages} usages, {refusals} of them refused by name", end=" ")
    assert not failed, f"{len(failed)} usages:\n" + "\n".join(failed)
    assert usages >= 200
    assert refusals <= 10
