"""The arguments of a model's `from_pretrained` in transformers: what loads it, and hints that ask for nothing here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from videollava_jax.config import ModelConfig

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_OWN = ("mesh", "quantization", "verify")
_HINTS = (
    *("device_map", "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict", "offload_buffers"),
    *("use_safetensors", "trust_remote_code", "code_revision", "resume_download", "weights_only", "_fast_init"),
    *("tp_plan", "tp_size", "device_mesh", "use_cache", "_from_auto", "_from_pipeline", "use_auth_token"),
)
"""They say where and how torch loads. JAX places the model by `mesh=`, or on its default device (JAX_PLATFORMS)."""
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": ((), 'expected quantization="int8", or "w8a8" for devices that multiply int8 faster'),
    "load_in_8bit": ((False,), 'expected quantization="int8"'),
    "load_in_4bit": ((False,), 'expected quantization="int8": there are no weights of 4 bits'),
    "attn_implementation": (
        ("eager", "sdpa"),
        "leave it out: the kernel of attention is chosen by the device (docs/architecture.md)",
    ),
    "subfolder": (("",), "give the directory itself as the model's path"),
    "variant": ((), "give a directory with the files of that variant"),
    "proxies": (({},), "set HTTPS_PROXY in the environment, which the hub's client reads"),
    "state_dict": ((), "expected a directory; VideoLlavaForConditionalGeneration(config, parameters) takes arrays"),
    "adapter_kwargs": (({},), "merge the adapter first: videollava convert ADAPTER OUT --base MODEL"),
    "ignore_mismatched_sizes": ((False,), "shapes that do not fit are an error that lists them"),
    "from_tf": ((False,), "expected safetensors, .bin files or an Orbax directory"),
    "from_flax": ((False,), "expected safetensors, .bin files or an Orbax directory"),
}
"""Values that ask for nothing, and what to do instead of others."""


def sort(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `LoadedModel.load` that transformers' arguments mean.

    Raises:
      TypeError: an unknown argument.
      ValueError: one that asks for what is not done.
    """
    known = (*_HUB, *_OWN, *_HINTS, *_REFUSED, "dtype", "torch_dtype", "config", "output_loading_info")
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(
                f"from_pretrained: unknown argument {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
            )
        if name in _REFUSED and value is not None and value not in _REFUSED[name][0]:
            raise ValueError(f"{name}={_short(value)} is not supported: {_REFUSED[name][1]}")
    found = {name: given[name] for name in (*_HUB, *_OWN) if given.get(name) is not None}
    dtypes = {name: given[name] for name in ("dtype", "torch_dtype") if given.get(name) is not None}
    if len(dtypes) > 1:
        raise ValueError("dtype and torch_dtype are two names of one thing: give one of them")
    return {**found, "dtype": dtype_of(next(iter(dtypes.values()), None))}


def configuration(given: Any) -> Any:
    """Returns transformers' configuration object of what was given as `config`: that object, a dictionary, or a path.

    Raises:
      ValueError: none of these.
    """
    from videollava_jax.face.config import VideoLlavaConfig  # transformers loads slowly

    if isinstance(given, (str, os.PathLike)):
        return VideoLlavaConfig.from_pretrained(given)
    if isinstance(given, Mapping):
        return VideoLlavaConfig.from_dict(dict(given))
    if getattr(given, "model_type", None) != "video_llava":
        raise ValueError(f"config: expected a VideoLlavaConfig, got a {type(given).__name__}")
    return given


def core_config(given: Any) -> ModelConfig:
    """Returns the core's configuration of transformers' object, of a dictionary, or of the core's own.

    Raises:
      ValueError: none of these, or one that asks for what this model does not do.
    """
    if isinstance(given, ModelConfig):
        return given
    if not isinstance(given, Mapping) and getattr(given, "model_type", None) != "video_llava":
        raise ValueError(f"config: expected a VideoLlavaConfig, got a {type(given).__name__}")
    return ModelConfig.from_hf(given)


def dtype_of(value: Any) -> Any:
    """Returns a dtype that JAX takes; None for the checkpoint's.

    Args:
      value: None or "auto"; a name, also as torch's; a dtype of NumPy, JAX or torch.

    Raises:
      ValueError: no dtype of floating point.
    """
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    name = str(value)
    found = name.removeprefix("torch.") if name.startswith("torch.") else value
    try:
        floating = jnp.issubdtype(jnp.dtype(found), jnp.floating)
    except (TypeError, ValueError):
        floating = False
    if not floating:
        raise ValueError(f"dtype: expected a dtype of floating point such as 'bfloat16', got {_short(value)}")
    return found


def _short(value: Any) -> str:
    """A value in a message: plain ones as they are written, objects by their class."""
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
