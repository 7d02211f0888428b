"""What error messages tell to install is there."""

import re
import tomllib
from pathlib import Path

from videollava_jax.extras import installs

ROOT = Path(__file__).parents[1]


def test_the_extras_of_error_messages_are_pyproject_s():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "videollava_jax").rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r"\binstalls\(['\"](\w+)['\"]\)", text)}
    assert named == {"train", "tpu", "ray", "torch", "parquet", "zstd", "heic", "serve"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert named <= extras.keys()
    assert installs("ray").startswith("pip install -e '.[ray]'")
    assert not [text for text in sources if "videollava-jax[" in text]
