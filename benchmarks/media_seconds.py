"""Seconds of a host core to read 8 frames of a video as the engine's threads do, for clips like those of data sets.

python -m benchmarks.media_seconds        the figures of `planning.simulation.workload.SHAPES`
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from benchmarks.questions import processor_for_224_pixels
from videollava_jax.processing.segments import Media


@dataclass(frozen=True)
class Clip:
    """A clip like those of a data set, in H.264.

    Attributes:
      width, height: pixels.
      seconds, fps: of it.
      keyframes: seconds from one to the next.
    """

    width: int
    height: int
    seconds: int
    fps: int
    keyframes: int


CLIPS = {
    "msvd": Clip(480, 360, 10, 25, 5),
    "activitynet": Clip(1280, 720, 40, 30, 5),
}
"""Usual sizes of both data sets' clips, and keyframes as YouTube has them. ActivityNet's last two minutes, which costs
no more, as each frame is decoded from the keyframe before it."""


def write(clip: Clip, file: Path) -> None:
    """Writes a clip with moving edges and some noise, which costs about as much to decode as a filmed one."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (8, clip.height, clip.width, 3), dtype=np.uint8)
    x, y = np.meshgrid(np.arange(clip.width), np.arange(clip.height))
    with av.open(str(file), "w") as container:
        options = {"preset": "veryfast", "g": str(clip.keyframes * clip.fps), "crf": "25"}
        stream = container.add_stream("libx264", rate=clip.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        for n in range(clip.seconds * clip.fps):
            base = (((x + 3 * n) // 40 + (y + n) // 40) % 2 * 180).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(base[..., None] + noise[n % 8], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def measured(file: Path, repeats: int) -> list[float]:
    """Returns the processor's seconds, of all threads, of each reading."""
    processor = processor_for_224_pixels()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        processor.read(Media("video", str(file)), None)
        found.append(time.process_time() - begun)
    return found


def main(repeats: int) -> None:
    """Prints the seconds of each kind of clip."""
    with tempfile.TemporaryDirectory() as directory:
        for name, clip in CLIPS.items():
            file = Path(directory) / f"{name}.mp4"
            write(clip, file)
            seconds = sorted(measured(file, repeats))
            print(
                f"{name}: {clip.width} × {clip.height}, {clip.seconds} s at {clip.fps} a second, "
                f"{file.stat().st_size / 2**20:.1f} MiB: {seconds[len(seconds) // 2]:.3f} s of a core "
                f"({seconds[0]:.3f} to {seconds[-1]:.3f}, {repeats} times)"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    main(parser.parse_args().repeats)
