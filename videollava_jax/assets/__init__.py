"""The files that come with the package (`TINY`, `MEDIA`), and `world`: the drawn clips that the tiny model knows."""

from pathlib import Path

_HERE = Path(__file__).parent
TINY = _HERE / "tiny"
"""The tiny model's checkpoint, in transformers' layout."""
MEDIA = _HERE / "media"
"""The bundled image and clips."""
