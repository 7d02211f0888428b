"""What answers lmms-eval's requests: an engine in this process, or running servers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from videollava_jax.engine.request import Request, Result

KEY = "VIDEOLLAVA_API_KEY"


class Answers(Protocol):
    """An engine, or servers."""

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields one result for each request, in any order."""


@dataclass(frozen=True)
class Settings:
    """The model_args of `--model videollava_jax`.

    Attributes:
      pretrained: a directory, a model's name on the hub, or "tiny".
      base_url: of a running `videollava serve` that answers instead; several with a space between them.
      dtype: of weights and compute; None for the checkpoint's.
      mesh: devices to spread over, such as "1x8".
      int8: keep the decoder's projections in int8.
      preset: how prompts, frames and pixels are made, hf or original; None for the checkpoint's own.
      template: of prompts; None for the preset's.
      frames: of a video; None for 8.
      longest: the most tokens of an answer, whatever a task asks for.
      max_rows: questions answered at a time; None for what fits.
      max_failed: the share of requests that may fail: their answers are empty.
      seed: of drawn answers.
    """

    pretrained: str = "tiny"
    base_url: str | None = None
    dtype: str | None = None
    mesh: str | None = None
    int8: bool = False
    preset: str | None = None
    template: str | None = None
    frames: int | None = None
    longest: int = 1024
    max_rows: int | None = None
    max_failed: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        of_engine = ("dtype", "mesh", "int8", "preset", "template", "max_rows")
        if self.base_url and (named := [name for name in of_engine if getattr(self, name)]):
            raise ValueError(f"{named[0]}: a server has its own; start it with that, or leave base_url out")


def answers_of(settings: Settings) -> Any:
    """Makes what answers.

    Raises:
      ValueError: no such model or preset.
      OSError: no server answers.
    """
    if settings.base_url:
        from videollava_jax.batch.servers import ServerOptions, ServersRunner

        servers = ServersRunner(settings.base_url.split(), ServerOptions(key=os.environ.get(KEY) or None))
        servers.model()
        return servers
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.engine import Engine
    from videollava_jax.generation.loaded import LoadedModel
    from videollava_jax.hub import find_here
    from videollava_jax.model.sharding import make_mesh
    from videollava_jax.processing.processor import VideoLlavaProcessor

    path = find_here(settings.pretrained, bundled=True) or settings.pretrained
    changes = {"name": settings.preset, "template": settings.template}
    preset = {name: value for name, value in changes.items() if value is not None}
    processor = VideoLlavaProcessor.from_pretrained(path, preset=preset or None)
    mesh = None if settings.mesh is None else make_mesh(*map(int, settings.mesh.split("x")))
    model = LoadedModel.load(path, dtype=settings.dtype, mesh=mesh, quantization="int8" if settings.int8 else None)
    return Engine(model, processor, max_rows=settings.max_rows, reader=IsolatedReader(processor))
