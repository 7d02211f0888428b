"""Options of XLA by platform: given where the compiler takes them, left out with a warning where it does not."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videollava_jax.compiler_options import JitByPlatform, refusal

KNOWN = {"xla_cpu_enable_fast_math": False}
UNKNOWN = {"xla_no_such_option": 1.0}


def added(count: int, state: dict[str, Any], *, twice: bool = False) -> Any:
    return state["x"] * (1 + twice) + count


def test_a_compiler_says_what_it_does_not_take():
    device = jax.devices()[0]
    assert refusal(KNOWN, device) is None
    assert "xla_no_such_option" in str(refusal(UNKNOWN, device))


def test_a_known_option_is_given_without_a_word(monkeypatch: pytest.MonkeyPatch):
    given = []
    jit = jax.jit

    def watched(function: Any, **options: Any) -> Any:
        given.append(options.get("compiler_options"))
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", watched)
    made = JitByPlatform(added, {"cpu": KNOWN, "tpu": UNKNOWN}, "state", static_argnums=0, static_argnames=("twice",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made(1, {"x": jnp.arange(3)}, twice=True)
    np.testing.assert_array_equal(found, [1, 3, 5])
    assert given == [KNOWN, KNOWN]  # once to ask whether the compiler takes it


def test_an_unknown_option_is_left_out_with_a_warning():
    made = JitByPlatform(added, {"cpu": UNKNOWN}, "state", static_argnums=0)
    with pytest.warns(UserWarning, match="does not take .*xla_no_such_option"):
        found = made(2, {"x": jnp.arange(3)})
    np.testing.assert_array_equal(found, [2, 3, 4])
    assert made._cache_size() == 1
    np.testing.assert_array_equal(made(2, state={"x": jnp.ones(3, int)}), [3, 3, 3])
    made(2, {"x": jnp.zeros(3, int)})
    assert len(made._compiled) == 1, "asked once"


def test_other_platforms_get_nothing_of_it():
    made = JitByPlatform(added, {"tpu": UNKNOWN}, "state", static_argnums=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        abstract = jax.ShapeDtypeStruct((3,), "int32", sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        assert made.lower(3, {"x": abstract}).compile() is not None


def test_within_another_function_the_options_are_the_others():
    made = JitByPlatform(added, {"cpu": KNOWN}, "state", static_argnums=0)
    np.testing.assert_array_equal(jax.jit(lambda x: made(1, {"x": x}))(jnp.arange(2)), [1, 2])


def test_options_of_a_single_device_are_not_those_of_a_mesh(monkeypatch: pytest.MonkeyPatch):
    given = []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **options: given.append(options.get("compiler_options")) or jit(f))
    made = JitByPlatform(lambda state: state["x"] + 1, {"single cpu": KNOWN}, "state")
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    np.testing.assert_array_equal(made({"x": jax.device_put(np.arange(4), spread)}), [1, 2, 3, 4])
    assert given == [None]
    np.testing.assert_array_equal(made({"x": jnp.arange(4)}), [1, 2, 3, 4])
    assert given == [None, KNOWN, KNOWN]  # once to ask whether the compiler takes it
