"""What answers the questions of a job: an engine here, engines on a Ray cluster, or running servers."""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from videollava_jax.cli.common import (
    FRAMES,
    KEY,
    frame_sampling_of,
    make_engine,
    open_processor,
    worker_limits,
)
from videollava_jax.cli.errors import UsageError
from videollava_jax.generation.options import SHARED, from_arguments
from videollava_jax.processing.preset import CHOICES
from videollava_jax.processing.prompt import get_template

if TYPE_CHECKING:
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.batch.ray.cluster import RayRunner
    from videollava_jax.batch.runner import Runner
    from videollava_jax.engine import Engine
    from videollava_jax.processing.preset import Preset
    from videollava_jax.processing.processor import VideoLlavaProcessor


class Part(Protocol):
    """What is stopped by a signal and closed at the end."""

    def stop(self) -> None:
        """Ends what it does, from a signal handler."""

    def close(self) -> None:
        """Frees what it holds."""


@dataclass
class Answering:
    """One way to answer.

    Attributes:
      model: its name, for records.
      facts: the part of the job's identity that is about the model: its content or revision, and how it computes.
      frame_sampling: which frames of videos are taken; None for the default of what answers.
    """

    model: str
    facts: Mapping[str, str]
    frame_sampling: Any
    make: Callable[[list[Part]], Runner]
    parts: list[Part] = field(default_factory=list)

    def runner(self) -> Runner:
        """Makes what answers; called once, if there is something to answer."""
        return self.make(self.parts)

    def stop(self) -> None:
        """Ends what is read and asked now. A signal handler may call it."""
        for part in self.parts:
            part.stop()

    def close(self) -> None:
        """Ends the processes and connections."""
        for part in self.parts:
            part.close()


def choose_answering(arguments: argparse.Namespace, sources: list[Path], output: Path) -> Answering:
    """Returns what answers, by the flags of `batch`.

    Raises:
      ValueError: flags that do not go together, or a number of frames that the model does not take.
      OSError: no server answers.
    """
    if not arguments.ray and (arguments.replicas or arguments.replica_resources or arguments.ray_block):
        raise ValueError(
            "--replicas, --replica-resources and --ray-block say how a Ray cluster is used: expected --ray"
        )
    if arguments.server:
        return _servers(arguments)
    if arguments.at_once is not None:
        raise UsageError("--at-once says how servers are asked: expected --server")
    from videollava_jax.config import require_whole_windows

    path, processor = open_processor(arguments)
    if arguments.fps is None:
        frames = (arguments.frames or FRAMES) if arguments.indices is None else len(arguments.indices)
        require_whole_windows("--frames", frames, processor.frame_window)

    def make(parts: list[Part]) -> Runner:
        if arguments.ray:
            parts.append(runner := _ray_runner(arguments, path, sources, output))
            return runner
        from videollava_jax.batch.media.isolation import IsolatedReader

        parts.append(reader := IsolatedReader(processor, worker_limits(arguments)))
        return _engine(arguments, path, processor, reader)

    return Answering(
        str(arguments.model),
        _facts(arguments, path, processor.preset),
        frame_sampling_of(arguments, processor),
        make,
    )


def _servers(arguments: argparse.Namespace) -> Answering:
    """Answers through servers, which have the model and its settings."""
    from videollava_jax.batch.servers import ServerOptions, ServersRunner

    if arguments.ray:
        raise UsageError("--ray and --server: expected one of them")
    options = {} if arguments.at_once is None else {"at_once": arguments.at_once}
    runner = ServersRunner(arguments.server, ServerOptions(key=os.environ.get(KEY) or None, **options))
    model = runner.model()
    from videollava_jax.media import Fps, FrameSampling, Uniform

    of_engine = ("max_rows", "memory", "int8_weights", "int8_cache", "mesh", "dtype", "preset", "template", "pool")
    for name in (*of_engine, *CHOICES, *SHARED, "linspace", "indices"):
        if getattr(arguments, name, None) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')}: a server has its own: start it with this flag")
    if arguments.model not in ("tiny", model):
        raise UsageError(f"--model: the servers have {model!r}: start them with another model, or leave it out")
    frames: FrameSampling | None = None if arguments.frames is None else Uniform(arguments.frames)
    if arguments.fps is not None:
        frames = Fps(arguments.fps, max_frames=arguments.frames or FRAMES)

    def make(parts: list[Part]) -> Runner:
        parts.append(runner)
        return runner

    return Answering(model, {"model": f"{model} of servers"}, frames, make)


def _facts(arguments: argparse.Namespace, path: str | Path, preset: Preset) -> dict[str, str]:
    """The part of the job's identity that is about the model: its content or revision, and how it computes."""
    from videollava_jax.hub import Wanted, find_model
    from videollava_jax.weights.fingerprint import model_fingerprint

    if isinstance(path, Path):
        model = model_fingerprint(path)
    else:
        model = {"model": f"{path} at {find_model(path, Wanted.SIDE_FILES).name}"}
    return {
        **model,
        "template": get_template(preset.template).name,
        **{name: str(value) for name, value in preset.to_json().items() if name != "name"},
        "dtype": arguments.dtype or "the checkpoint's",
        "int8 weights": str(arguments.int8_weights),
        "int8 cache": str(arguments.int8_cache),
        **{name: str(value) for name, value in _shared_options(arguments).items()},
    }


def _shared_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of generation that hold for the engine and not for a line."""
    return {name: value for name, value in from_arguments(arguments).items() if name in SHARED}


def _engine(
    arguments: argparse.Namespace, path: str | Path, processor: VideoLlavaProcessor, reader: IsolatedReader
) -> Engine:
    return make_engine(arguments, path, processor, reader, **_shared_options(arguments))


def _ray_runner(arguments: argparse.Namespace, path: str | Path, sources: list[Path], output: Path) -> RayRunner:
    from videollava_jax.batch.job_files import Paths
    from videollava_jax.batch.lines import read_lines, recognise
    from videollava_jax.batch.ray.cluster import RayOptions, RayRunner
    from videollava_jax.hub import BUNDLED

    options: dict[str, Any] = {"replicas": arguments.replicas, "resources": arguments.replica_resources or {}}
    if arguments.mesh is not None:
        options["devices"] = math.prod(arguments.mesh)
    if arguments.ray_block is not None:
        options["block"] = arguments.ray_block
    there = argparse.Namespace(**{**vars(arguments), "run": None})
    if isinstance(path, Path) and there.model != BUNDLED:
        there.model = path  # absolute: replicas have another working directory
    lines = sum(1 for _ in read_lines(sources, arguments.format or recognise(sources)))
    replica = functools.partial(_replica_engine, there)
    return RayRunner(replica, RayOptions(**options), spool=Paths(output).media, lines=lines)


def _replica_engine(arguments: argparse.Namespace) -> Engine:
    """Makes the engine of a replica."""
    from videollava_jax.batch.media.isolation import IsolatedReader

    path, processor = open_processor(arguments)
    return _engine(arguments, path, processor, IsolatedReader(processor, worker_limits(arguments)))
