"""Counts the pictures in a packet from its headers, without decoding: a packet is not always a frame.

Two fields may be two packets, a "packed" packet holds two pictures, and some packets hold none: parameter sets alone,
hidden reference frames. Each codec is a file with a counter; `COUNTERS` is the table.
"""

from __future__ import annotations

from collections.abc import Callable

from videollava_jax.media.pictures.av1 import Av1Counter
from videollava_jax.media.pictures.count import Broken, Count, Counter
from videollava_jax.media.pictures.h264 import H264Counter
from videollava_jax.media.pictures.hevc import HevcCounter
from videollava_jax.media.pictures.mpeg2 import Mpeg2Counter
from videollava_jax.media.pictures.mpeg4 import Mpeg4Counter
from videollava_jax.media.pictures.vpx import Vp8Counter, Vp9Counter

# By FFmpeg's names of codecs. A counter is made from the stream's extradata.
COUNTERS: dict[str, Callable[[bytes], Counter]] = {
    "h264": H264Counter,
    "hevc": HevcCounter,
    "mpeg1video": Mpeg2Counter,
    "mpeg2video": Mpeg2Counter,
    "mpeg4": Mpeg4Counter,
    "vp8": Vp8Counter,
    "vp9": Vp9Counter,
    "av1": Av1Counter,
    "libdav1d": Av1Counter,
    "libaom-av1": Av1Counter,
}

__all__ = ["COUNTERS", "Broken", "Count", "Counter"]
