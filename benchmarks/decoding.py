"""Measures what reading 8 frames of a video costs: `read_video`, PyAV's plain way, decord and torchcodec.

    python benchmarks/decoding.py --theirs ENVIRONMENT/bin/python

The clips are drawn here: 480p to 4K, H.264, HEVC and VP9, a keyframe every five seconds. Long ones repeat the packets
of the first ten seconds, since only their number matters. Every reader takes the same frames of the same files in turn,
in a process of its own that has imported everything; the first round is not counted. decord and torchcodec
need an environment of their own (`pip install decord`, `pip install torch torchcodec` and FFmpeg's libraries); without
`--theirs` they are left out. The plain way is that of transformers' page: decode all frames, keep some.

The columns are seconds, and CPU seconds of all threads, of one video: medians, with the least and the most. The last
table has our other work on a video: resizing 8 frames to 224 × 224, and the digest that tells equal files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

FRAMES = 8
RATE = 24
GROUP = 5 * RATE
BASE_SECONDS = 10
SIZES = {"480p": (854, 480), "1080p": (1920, 1080), "4K": (3840, 2160)}
CODECS = {
    "h264": ("libx264", "mp4", {"preset": "ultrafast", "x264-params": "open-gop=0:scenecut=0:bframes=2"}),
    "hevc": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": "open-gop=0:scenecut=0:log-level=none"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}),
}
READERS = ("ours", "plain", "decord", "torchcodec", "torchcodec, whole index")

# ── clips ───────────────────────────────────────────────────────────────────────────────────────────────────


def write_base(path: Path, size: tuple[int, int], codec: str, options: dict[str, str]) -> None:
    """Encodes ten seconds of a moving test picture with noise."""
    import av
    import av.filter

    graph = av.filter.Graph()
    source = graph.add("testsrc2", f"size={size[0]}x{size[1]}:rate={RATE}:duration={BASE_SECONDS}")
    noise = graph.add("noise", "alls=6:allf=t")
    form = graph.add("format", "yuv420p")
    sink = graph.add("buffersink")
    for one, other in ((source, noise), (noise, form), (form, sink)):
        one.link_to(other)
    graph.configure()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = GROUP
        stream.codec_context.time_base = Fraction(1, RATE)
        for number in range(BASE_SECONDS * RATE):
            frame = sink.pull()
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            frame.pict_type = av.video.frame.PictureType.NONE  # the source calls every picture a keyframe
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def repeat(base: Path, path: Path, times: int) -> None:
    """Writes the packets of a clip several times, one after the other."""
    import av

    with av.open(str(base)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for turn in range(times):
            source.seek(0)
            for packet in source.demux(video=0):
                if packet.dts is None:
                    continue
                shift = round(turn * BASE_SECONDS / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                container.mux(packet)


def clips(directory: Path, wanted: argparse.Namespace) -> Iterator[tuple[str, str, int, Path]]:
    """Yields (size, codec, seconds, path) of every clip; files that a former run has left there are used again."""
    directory.mkdir(parents=True, exist_ok=True)
    for size in wanted.sizes:
        for name in wanted.codecs:
            codec, suffix, options = CODECS[name]
            base = directory / f"{size}-{name}-{BASE_SECONDS}.{suffix}"
            if not base.exists():
                print(f"drawing {base.name}", file=sys.stderr, flush=True)
                write_base(base.with_suffix(f".new.{suffix}"), SIZES[size], codec, options)
                base.with_suffix(f".new.{suffix}").rename(base)
            for seconds in wanted.seconds:
                path = directory / f"{size}-{name}-{seconds}.{suffix}"
                if not path.exists():
                    repeat(base, path, seconds // BASE_SECONDS)
                yield size, name, seconds, path


# ── readers ─────────────────────────────────────────────────────────────────────────────────────────────────


def indices(total: int) -> list[int]:
    """Returns the numbers of the frames that every reader takes."""
    return [int(number) for number in range(0, total, max(1, total // FRAMES))][:FRAMES]


def ours(path: str) -> Any:
    """Reads with this package."""
    from videollava_jax.media.frame_sampling import Uniform
    from videollava_jax.media.video import read_video

    return read_video(path, Uniform(FRAMES)).frames


def plain(path: str) -> Any:
    """Reads as the page of the model in transformers' documentation does."""
    import av
    import numpy as np

    with av.open(path) as container:
        total = container.streams.video[0].frames or round(float(container.duration / av.time_base) * RATE)
        wanted = indices(total)
        frames = []
        for number, frame in enumerate(container.decode(video=0)):
            if number > wanted[-1]:
                break
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


def decord(path: str) -> Any:
    """Reads as decord's README does."""
    from decord import VideoReader, cpu

    reader = VideoReader(path, ctx=cpu(0))
    return reader.get_batch(indices(len(reader))).asnumpy()


def torchcodec(path: str, mode: str = "approximate") -> Any:
    """Reads as torchcodec's documentation does; "approximate" trusts the header for the number of frames."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, seek_mode=mode, num_ffmpeg_threads=0)
    return decoder.get_frames_at(indices(len(decoder))).data.numpy()


FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "ours": ours,
    "plain": plain,
    "decord": decord,
    "torchcodec": torchcodec,
    "torchcodec, whole index": lambda path: torchcodec(path, "exact"),
}


def cost(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Runs a function; returns its seconds, its CPU seconds, and its result."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = run()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result


def serve(name: str) -> None:
    """Reads the paths of standard input, one a line, and prints the cost of each."""
    for line in sys.stdin:
        try:
            seconds, used, frames = cost(partial(FUNCTIONS[name], line.rstrip("\n")))
            said = {"seconds": seconds, "cpu": used, "shape": list(frames.shape)}
        except Exception as error:  # of another library, about one file: the others are still measured
            said = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(said), flush=True)


class Reader:
    """A reader in a process of its own."""

    def __init__(self, name: str, python: str):
        self.name = name
        self._process = subprocess.Popen(
            [python, __file__, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, path: Path) -> dict[str, Any]:
        """Returns the cost of reading a file, or the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "its process ended"}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


# ── the tables ──────────────────────────────────────────────────────────────────────────────────────────────


def spread(values: list[float]) -> str:
    """Returns the median of values, with the least and the most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else ""


def measured(found: dict[str, list[dict[str, Any]]], names: list[str]) -> str:
    """Returns the cells of a clip: each reader's seconds and CPU seconds, and ours to the plain way and the best."""
    cells = []
    for name in names:
        if errors := [one["error"] for one in found[name] if "error" in one]:
            cells += [errors[0].replace("|", " ").splitlines()[0][:40], ""]
        else:
            cells += [spread([one[key] for one in found[name]]) for key in ("seconds", "cpu")]
    for key in ("seconds", "cpu"):
        medians = {
            name: statistics.median([one[key] for one in found[name] if key in one])
            for name in names
            if any(key in one for one in found[name])
        }
        others = [value for name, value in medians.items() if name not in ("ours", "plain")]
        if "plain" in medians:
            cells.append(f"{medians['plain'] / medians['ours']:.1f}")
        if others:
            cells.append(f"{min(others) / medians['ours']:.1f}")
    return " | ".join(cells)


def compare(wanted: argparse.Namespace, paths: list[tuple[str, str, int, Path]]) -> None:
    """Prints a row for each clip."""
    names = [name for name in wanted.readers if name in ("ours", "plain") or wanted.theirs]
    readers = [Reader(name, sys.executable if name in ("ours", "plain") else wanted.theirs) for name in names]
    heads = [f"{name}, s | CPU s" for name in names]
    ratios = [
        f"{kind}: {of} to ours"
        for kind in ("seconds", "CPU")
        for of in (["plain"] if "plain" in names else []) + (["best other"] if len(names) > 2 else [])
    ]
    print(f"| clip | {' | '.join([*heads, *ratios])} |")
    print("|---" * (1 + 2 * len(names) + len(ratios)) + "|", flush=True)
    try:
        for size, codec, seconds, path in paths:
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for turn in range(wanted.rounds + 1):
                for reader in readers:
                    said = reader.read(path)
                    if turn or "error" in said:
                        found[reader.name].append(said)
            print(f"| {size} {codec}, {seconds} s | {measured(found, names)} |", flush=True)
    finally:
        for reader in readers:
            reader.close()


def other_work(wanted: argparse.Namespace, paths: list[tuple[str, str, int, Path]]) -> None:
    """Prints what resizing 8 frames and the digest of the file cost, in milliseconds of CPU."""
    from videollava_jax.media.preprocess import FramePreprocessor

    print("\n| clip | megabytes | resizing, CPU ms | digest, CPU ms |\n|---|---|---|---|")
    for size, codec, seconds, path in paths:
        if codec != wanted.codecs[0]:
            continue
        frames = ours(str(path))
        resizing = [1000 * cost(partial(FramePreprocessor(), frames))[1] for _ in range(wanted.rounds)]
        digest = [1000 * cost(partial(_digest, path))[1] for _ in range(wanted.rounds)]
        size_of = path.stat().st_size / 1e6
        print(f"| {size} {codec}, {seconds} s | {size_of:.1f} | {spread(resizing)} | {spread(digest)} |", flush=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--seconds", nargs="+", type=int, default=[10, 60, 600], help="multiples of 10; %(default)s")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted; %(default)s")
    parser.add_argument("--theirs", metavar="PYTHON", help="of an environment with decord and torchcodec")
    parser.add_argument("--clips", type=Path, help="a directory that keeps the clips; default: a temporary one")
    parser.add_argument("--serve", choices=READERS, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.serve:
        serve(wanted.serve)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        paths = list(clips(wanted.clips or Path(temporary), wanted))
        compare(wanted, paths)
        other_work(wanted, paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
