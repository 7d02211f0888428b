"""The options of commands that change a checkpoint's preset."""

import argparse

import pytest

from videollava_jax.assets import MEDIA
from videollava_jax.cli import main
from videollava_jax.cli.common import _FIELDS, add_model_arguments, frame_sampling_of, open_processor
from videollava_jax.media import FloatPreprocessor, FramePreprocessor, Linspace, Uniform
from videollava_jax.processing.preset import CHOICES, PRESETS
from videollava_jax.processing.prompt import TEMPLATES

TINY_TEMPLATE = TEMPLATES["vicuna_v1_no_system"]


def opened(*options):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    arguments = parser.parse_args(options)
    processor = open_processor(arguments)[1]
    return processor, frame_sampling_of(arguments, processor)


def test_every_field_is_an_option():
    assert list(_FIELDS) == list(CHOICES)
    for field, values in CHOICES.items():
        flag = f"--{field.replace('_', '-')}"
        for value in values:
            flags = [flag if value else flag.replace("--", "--no-", 1)] if isinstance(value, bool) else [flag, value]
            assert opened(*flags)[0].preset == PRESETS["hf"].changed({"template": TINY_TEMPLATE, field: value})
    assert opened("--template", "llava_v0")[0].template.name == "llava_v0"


def test_a_preset_is_all_of_them_and_single_options_go_before_it():
    processor, rule = opened("--preset", "original", "--template", "llava_v1", "--frames", "16")
    expected = {"template": TEMPLATES["llava_v1"], "after_end": "anew"}  # the tokenizer does not say `legacy: false`
    assert processor.preset == PRESETS["original"].changed(expected)
    assert rule == Linspace(16)
    assert processor.preprocessors["image"] == FloatPreprocessor(size=56, crop_size=56)
    processor, rule = opened("--preset", "original", "--sampling", "uniform", "--resize", "pil", "--pad-to-square")
    assert rule == Uniform(8)
    assert processor.preprocessors["image"] == FramePreprocessor(size=56, crop_size=56, pad_to_square=True)
    assert not processor.preprocessors["video"].pad_to_square
    assert opened("--linspace")[1] == Linspace(8)


def test_verbose_prints_the_preset(capsys):
    question = "Which way does it move?"
    assert main(["ask", str(MEDIA / "rising-triangle.mp4"), question, "--verbose", "--resize", "torch"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "up\n"
    assert printed.err.splitlines() == [
        "preset         hf",
        "template       vicuna_v1_no_system",
        "media_order    first",
        "after_media    continued",
        "after_end      continued",
        "repeat_end     false",
        "sampling       uniform",
        "resize         torch",
        "pad_to_square  false",
    ]


def test_an_unknown_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["ask", "clip.mp4", "What?", "--resize", "cv2"])
    assert "--resize: invalid choice: 'cv2' (choose from" in capsys.readouterr().err.replace("argument ", "")
