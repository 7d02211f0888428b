"""The compilation cache is on by default, where the user says, or off."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from videollava_jax import compilation_cache
compilation_cache.enable()
jax.jit(lambda x: x * 3 + 1)(2.0)
print(jax.config.jax_compilation_cache_dir)
"""


def run(tmp_path, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_programs_are_kept_in_the_users_cache(tmp_path):
    directory = tmp_path / "videollava_jax" / "compiled"
    assert run(tmp_path) == str(directory)
    assert list(directory.iterdir())


@pytest.mark.parametrize("elsewhere", ["there", ""])
def test_another_directory_or_none(tmp_path, elsewhere):
    named = str(tmp_path / elsewhere) if elsewhere else ""
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=named) == named
    assert not (tmp_path / "videollava_jax").exists()


def test_a_directory_that_cannot_be_made_is_left_alone(tmp_path):
    (tmp_path / "videollava_jax").write_text("a file")
    assert run(tmp_path) == "None"
