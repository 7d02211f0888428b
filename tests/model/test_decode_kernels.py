"""The kernels for decoding, through the engine's option: each one runs, and the answers are those without it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.engine.jobs import clip, question
from videollava_jax.engine import Engine
from videollava_jax.model.kernels import KERNELS, decode_tpu

CLIP = clip(0)
JOB = [question(text, text, videos=[CLIP], max_new_tokens=4) for text in ("what colour is it?", "which shape?")]


def answers(model: Any, processor: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    return {result.id: result.token_ids for result in Engine(model, processor, max_rows=2, **options).run(JOB)}


@pytest.mark.parametrize(
    ("kernel", "int8"), [("decode_tpu", True), ("decode_gpu", False), ("step_gpu", True), ("step_gpu", False)]
)
def test_the_engine_decodes_with_the_named_kernel(tiny_model, tiny_processor, monkeypatch, kernel, int8):
    expected = answers(tiny_model, tiny_processor, int8_cache=int8)
    module, calls = importlib.import_module(f"videollava_jax.model.kernels.{kernel}"), []
    function = "step" if kernel == "step_gpu" else "decode"
    decode = getattr(module, function)

    def counted(operands: Any, **options: Any) -> Any:
        calls.append(getattr(operands, "prefix", operands).keys.dtype)
        return decode(operands, **options)

    monkeypatch.setattr(module, function, counted)
    assert answers(tiny_model, tiny_processor, int8_cache=int8, decode_attention=kernel) == expected
    assert len(calls) >= tiny_model.model_config.text_config.num_hidden_layers  # once a layer, when the loop is traced
    assert {str(dtype) for dtype in calls} == {"int8" if int8 else "float32"}


def test_another_kernel_is_refused(tiny_model, tiny_processor):
    with pytest.raises(
        ValueError, match="decode_attention: expected decode_tpu, decode_gpu, step_gpu or None, got 'splash'"
    ):
        Engine(tiny_model, tiny_processor, decode_attention="splash")


def test_a_kernel_for_decoding_is_added_by_one_entry(tiny_model, tiny_processor, monkeypatch):
    monkeypatch.setitem(KERNELS, "made_up", decode_tpu.KERNEL)
    assert Engine(tiny_model, tiny_processor, decode_attention="made_up").options.decode_attention == "made_up"
    with pytest.raises(ValueError, match="expected decode_tpu, decode_gpu, made_up, step_gpu or None, got 'by_head'"):
        Engine(tiny_model, tiny_processor, decode_attention="by_head")
