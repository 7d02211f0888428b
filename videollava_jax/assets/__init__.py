"""The files that come with the package (`TINY`, `MEDIA`), and `world`: the drawn clips that the tiny model knows."""

from importlib.resources import files
from pathlib import Path

_HERE = Path(str(files("videollava_jax"))) / "assets"
TINY = _HERE / "tiny"
"""The tiny model's checkpoint, in transformers' layout."""
MEDIA = _HERE / "media"
"""The bundled image and clips."""
