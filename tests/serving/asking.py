"""Bodies of chat completions about the bundled clips, in every form in which clients name media."""

import base64

from videollava_jax.assets import MEDIA

CLIP, OTHER, IMAGE = "rising-triangle.mp4", "circle-then-square.mp4", "three-triangles.png"


def data_url(name, mime=None):
    """A bundled file as a data: URL."""
    kind = mime or ("image/png" if name.endswith(".png") else "video/mp4")
    return f"data:{kind};base64,{base64.b64encode((MEDIA / name).read_bytes()).decode()}"


def part(url):
    """The part of a message for a medium."""
    kind = "image_url" if url.endswith(".png") or url.startswith("data:image") else "video_url"
    return {"type": kind, kind: {"url": url}}


def about(url, text):
    """Messages that ask one question about a medium, or about nothing."""
    media = [] if url is None else [part(url)]
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]
