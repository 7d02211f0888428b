"""Video-LLaVA in JAX as a model of lmms-eval: what its entry point `lmms_eval.models` names."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Returns what lmms-eval registers: the model `videollava_jax`, for chat messages and for `--force_simple`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="videollava_jax",
        chat_class_path="videollava_lmms_eval.models.Chat",
        simple_class_path="videollava_lmms_eval.models.Simple",
    )
