"""What XLA is asked for beyond its defaults, by the platform that a program is compiled for."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

Options = Mapping[str, Mapping[str, float | str | bool]]
"""Options of XLA by platform: "tpu", "gpu" or "cpu"; or "single gpu", for programs on one device of it."""

UPDATE_IN_PLACE: Options = {"tpu": {"xla_tpu_msa_inefficient_use_to_copy_ratio": 1.0}}
"""Keeps in high-bandwidth memory what a loop updates in a small part. By default the TPU compiler fetches a whole tail
into on-chip memory, writes one position there and writes the whole tail back: more bytes than attention reads of it."""

RECORDED_LOOP: Options = {
    "single gpu": {
        # XLA's default, with loops and the branches in them: on its own it records the bodies of loops, and asks the
        # host before each step. Sessions have branches in their loops, for rows that draw.
        "xla_gpu_enable_command_buffer": (
            "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
        ),
        # The program is little but its loop: below this many commands nothing is recorded, not even the loop's body.
        "xla_gpu_graph_min_graph_size": 1,
    }
}
"""Records a loop with its condition in one CUDA graph, so that the GPU decides by itself when it ends. It needs a
driver of CUDA 12.3 or later; with an earlier one XLA leaves loops and branches out of graphs. Programs for several GPUs
keep XLA's default: collectives would have to be recorded too, and what NCCL asks of the host may not stand in such a
loop."""


class JitByPlatform:
    """A function compiled by `jax.jit` with the options of the platform on which its arguments are.

    Arguments may be abstract, with shardings over devices of a topology that is not here.
    """

    def __init__(self, function: Callable[..., Any], options: Options, placed: str, **jit: Any):
        """Takes the function; nothing is compiled yet.

        Args:
          options: for the platforms that need some.
          placed: the parameter whose first array says where the program runs.
          jit: arguments of `jax.jit`.
        """
        functools.update_wrapper(self, function)
        self._function, self._options, self._placed, self._jit = function, options, placed, jit
        self._position = list(inspect.signature(function).parameters).index(placed)
        self._compiled: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls the compiled function."""
        return self._for(arguments, named)(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """Lowers the function for these arguments, as `jax.jit` does."""
        return self._for(arguments, named).lower(*arguments, **named)

    def _cache_size(self) -> int:
        """Counts the programs that are compiled, as a function of `jax.jit` does."""
        return sum(compiled._cache_size() for compiled in self._compiled.values())

    def _for(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        placed = named[self._placed] if self._placed in named else arguments[self._position]
        device, count = _device_of(placed)
        platform = "" if device is None else device.platform
        where = f"single {platform}" if count == 1 else platform
        if where not in self._compiled:
            options = dict(self._options.get(platform, {})) | dict(self._options.get(where, {}))
            if options and (why := refusal(options, device)):
                warnings.warn(
                    f"the compiler for {platform} does not take {options}, and does without: {why}", stacklevel=2
                )
                options = {}
            self._compiled[where] = jax.jit(self._function, compiler_options=options or None, **self._jit)
        return self._compiled[where]


def refusal(options: Mapping[str, Any], device: Any) -> str | None:
    """Returns why the compiler of a device does not take options, which another version may not know; else None."""
    number = jax.ShapeDtypeStruct((), "float32", sharding=jax.sharding.SingleDeviceSharding(device))  # type: ignore[no-untyped-call]
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(options)).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        return str(error).strip().splitlines()[0][:200]
    return None


def _device_of(placed: Any) -> tuple[Any, int]:
    """Returns a device of the first array that has one, and how many it has; None within a function that is compiled.

    What is compiled within another function is a part of its program, whose options are the other's.
    """
    for leaf in jax.tree.leaves(placed):
        if isinstance(leaf, jax.core.Tracer):
            return None, 0
        if isinstance(sharding := getattr(leaf, "sharding", None), jax.sharding.Sharding):
            return next(iter(sharding.device_set)), len(sharding.device_set)
    return None, 0
