"""Writes small videos of every kind with av, and decodes all their frames in order for comparison."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

BITEXACT = {"fflags": "+bitexact"}
"""Options of a container for writing: without random numbers, dates and versions in the file."""


def picture(i, size):
    """Draws frame `i`, uint8 [H, W, 3]: coloured blocks that drift, and a bar that moves in every frame."""
    width, height = size
    blocks = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    drifted = np.roll(blocks, (i // 3, i // 2), (0, 1))[:height, :width].copy()
    left = 3 * i % (width - 8)
    drifted[height // 4 : height // 2, left : left + 8] = 255, 5 * i % 256, 0
    return drifted


def write(
    path,
    codec,
    pix_fmt="yuv420p",
    *,
    frames=60,
    size=(64, 48),
    gop=12,
    rate=10,
    options=None,
    container_options=None,
    time=None,
):
    """Writes a video; `time(i)` gives frame i's time in hundredths of a second, for a variable frame rate."""
    if codec not in av.codecs_available:
        pytest.skip(f"this build of av cannot encode with {codec}")
    with av.open(str(path), "w", options=BITEXACT | (container_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = gop
        if time:
            stream.codec_context.time_base = Fraction(1, 100)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, size), format="rgb24")
            if time:
                frame.pts, frame.time_base = time(i), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def x264(**parameters):
    """Returns options of libx264 without keyframes at cuts, so that groups have the length that is asked for."""
    parameters = {"scenecut": 0, "threads": 1} | parameters
    return {"x264-params": ":".join(f"{name.replace('_', '-')}={value}" for name, value in parameters.items())}


OPEN_GOP = x264(open_gop=1, bframes=3, b_adapt=0)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
QUIET_X265 = "log-level=none:pools=1:scenecut=0"

KINDS = {
    "h264_b_frames.mp4": dict(codec="libx264", options=x264(bframes=3)),
    "h264_pyramid.mp4": dict(codec="libx264", options=x264(bframes=7, b_adapt=0, b_pyramid="normal"), gop=24),
    "h264_long_gop.mp4": dict(codec="libx264", gop=1000, options=x264()),
    "h264_gop_60.mp4": dict(codec="libx264", gop=60, frames=150, options=x264()),
    "h264_intra.mp4": dict(codec="libx264", gop=1),
    "h264_open_gop.mp4": dict(codec="libx264", options=OPEN_GOP, frames=90),
    "h264_open_gop.mkv": dict(codec="libx264", options=OPEN_GOP),
    "h264_intra_refresh.mkv": dict(codec="libx264", options=x264(intra_refresh=1, bframes=0), gop=20),
    "h264_interlaced.mp4": dict(codec="libx264", options=x264(tff=1, bframes=2)),
    "h264.mkv": dict(codec="libx264"),
    "h264.mov": dict(codec="libx264"),
    "h264.ts": dict(codec="libx264"),
    "h264.flv": dict(codec="libx264"),
    "h264.avi": dict(codec="libx264", options={"bf": "0"}),
    "h264_odd_444.mp4": dict(codec="libx264", pix_fmt="yuv444p", size=(63, 47)),
    "h264_10_bit.mkv": dict(codec="libx264", pix_fmt="yuv420p10le"),
    "h264_variable_rate.mp4": dict(codec="libx264", time=lambda i: i * 7 + i * i // 3),
    "h264_variable_rate.mkv": dict(codec="libx264", time=lambda i: i * 7 + i * i // 3),
    "fragmented.mp4": dict(codec="libx264", container_options=FRAGMENTS, options=x264()),
    "faststart.mp4": dict(codec="libx264", container_options={"movflags": "faststart"}, options=x264()),
    "single.mp4": dict(codec="libx264", frames=1),
    "three.mp4": dict(codec="libx264", frames=3),
    "hevc_open_gop.mp4": dict(codec="libx265", frames=40, options={"x265-params": f"{QUIET_X265}:open-gop=1"}),
    "hevc_layers.mp4": dict(
        codec="libx265",
        frames=40,
        gop=40,
        options={"x265-params": f"{QUIET_X265}:temporal-layers=3:bframes=3:b-adapt=0:scenecut=0"},
    ),
    "av1.mp4": dict(codec="libsvtav1", frames=24, options={"preset": "12", "svtav1-params": "lp=1"}),
    "vp8.webm": dict(codec="libvpx", frames=60, gop=30, options={"auto-alt-ref": "1", "lag-in-frames": "20"}),
    "vp9.webm": dict(codec="libvpx-vp9", frames=30),
    "vp9_alpha.webm": dict(codec="libvpx-vp9", pix_fmt="yuva420p", frames=20),
    "mpeg4.avi": dict(codec="mpeg4"),
    "mpeg4_b_frames.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "mpeg4_b_frames.mp4": dict(codec="mpeg4", options={"bf": "2"}),
    "mpeg2.mpg": dict(codec="mpeg2video", rate=25, options={"bf": "2"}),
    "mpeg2.mkv": dict(codec="mpeg2video", rate=25, options={"bf": "2"}),
    "wmv2.wmv": dict(codec="wmv2"),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "animation.gif": dict(codec="gif", pix_fmt="rgb8", frames=20),
    "animation.apng": dict(codec="apng", pix_fmt="rgb24", frames=20),
    "ffv1.mkv": dict(codec="ffv1"),
    "prores.mov": dict(codec="prores_ks", pix_fmt="yuv422p10le"),
    "raw.h264": dict(codec="libx264"),
}


def decoded(source, stream=0):
    """Decodes every frame of a video with av, in order from the first packet on."""
    with av.open(str(source) if not isinstance(source, bytes) else io.BytesIO(source)) as container:
        video = container.streams.video[stream]
        for packet in container.demux(video):
            if packet.size:  # an empty one (a repeated frame of Theora's) is an error to a decoder
                yield from packet.decode()
        yield from video.codec_context.decode(None)


def in_order(source, stream=0):
    """Returns the frames of `decoded` as uint8 [H, W, 3]."""
    return [frame.to_ndarray(format="rgb24") for frame in decoded(source, stream)]


def box(content, kind):
    """Finds where the content of the first box of a kind begins in an MP4."""
    return content.index(kind) + len(kind)


def edited(content, cut, length):
    """Shows of an MP4 what begins `cut` ticks (10,240 a second) after the start, for `length` thousandths of a second.

    The length stands in the edit list and in the header of the track. None keeps all to the end.
    """
    content = bytearray(content)
    entry = box(content, b"elst") + 8
    duration, start = struct.unpack_from(">Ii", content, entry)
    length = duration - cut * 1000 // 10240 if length is None else length
    struct.pack_into(">Ii", content, entry, length, start + cut)
    struct.pack_into(">I", content, box(content, b"tkhd") + 20, length)
    return bytes(content)


def without_first(source, target, first):
    """Copies a video from its packet numbered `first` on, as recorders and `ffmpeg -c copy` write it."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=BITEXACT) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in [packet for packet in read.demux(video=0) if packet.size][first:]:
            packet.stream = stream
            written.mux(packet)
    return target


def with_sound(path, frames=12):
    """Writes a video with a track of sound, interleaved."""
    with av.open(str(path), "w", options=BITEXACT) as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("mp2", rate=16000, layout="mono")
        for i in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i, (64, 48)), format="rgb24")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts = 16000, 1600 * i
            container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path
