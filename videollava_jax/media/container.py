"""Opening a video with FFmpeg such that nothing but the file itself is read, and no limit is passed unseen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import av

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.image import check_pixels, describe, open_image
from videollava_jax.media.mp4 import check_index
from videollava_jax.media.source import OpenSource
from videollava_jax.media.structure import check_whole

# FFmpeg goes by content, not by name, and some of its formats open other files (playlists, concat scripts, SDP).
# Only formats that hold their own pictures are let in; sound formats are, for the sake of a clear error.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpeg,mpegts,mpegvideo,m4v,h263,"
    "h264,hevc,obu,av1,ivf,flv,live_flv,ogg,asf,yuv4mpegpipe,nut,mxf,dv,rm,mjpeg,mjpeg_2000,mp3,wav,flac,aac"
)
# How the text files begin that name other files to play.
_SCRIPTS = (b"ffconcat", b"#EXTM3U", b"[playlist]", b"v=0", b"<MPD", b"<smil", b"<asx", b"[Reference]")
_STILL_BRANDS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
# Image sequences, which hold their first picture a second time, as a still image before the track.
_SEQUENCE_BRANDS = (b"ftypavis", b"ftyphevc", b"ftyphevx", b"ftypmsf1")

# Titles and comments may be in any encoding. From PyAV 19 on that is never an error, and there is no such argument.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened_video(source: OpenSource, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; the decoder is not open yet and bound to `max_pixels`.

    Raises:
      MediaError: not a video in a known format, damaged, cut short, without video, or over the limits.
    """
    head = source.read(0, 4096)  # before FFmpeg has the file: two readers would move it under each other
    _refuse_scripts(source, head)
    if head[4:12] in _STILL_BRANDS:
        raise still_image(source)
    check_whole(source)
    check_index(source, limits)
    try:
        container = _open(source)
    except Exception as error:
        raise _refusal(source, limits, error) from None
    with container:
        yield container, _stream(source, container, limits, head[4:12])


@contextmanager
def reopened_video(source: OpenSource, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """From the start again, what `opened_video` has let pass before."""
    head = source.read(0, 12)
    try:
        container = _open(source)
    except Exception as error:
        raise library_error(source, error, "opening it again failed") from None
    with container:
        yield container, _stream(source, container, limits, head[4:12])


def library_error(source: OpenSource, error: BaseException, doing: str) -> MediaError:
    """What to raise for an error of FFmpeg's, without its text."""
    if isinstance(error, MemoryError | av.error.MemoryError):
        return MediaError(source.name, Cause.TOO_LARGE, f"too little memory: {doing}")
    if isinstance(error, av.error.InvalidDataError):
        return MediaError(source.name, Cause.DECODE_FAILED, f"the video is damaged: {doing}")
    return MediaError(source.name, Cause.DECODE_FAILED, f"{doing} ({type(error).__name__})")


def still_image(source: OpenSource) -> MediaError:
    """What to raise for a still image where a video is expected."""
    return MediaError(source.name, Cause.NOT_MEDIA, "expected a video, got a still image; it is read by read_image")


def _open(source: OpenSource) -> Any:
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "none",
        # While it opens a file FFmpeg decodes the first pictures, to learn of their format. In formats that announce
        # no streams (FLV, MPEG program streams) no limit of ours would bind those decoders; so none is let in.
        "codec_whitelist": "none",
    }
    return av.open(source.rewound(), options=options, io_open=_open_nothing, **_METADATA)


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a video may not open other files")


def _refuse_scripts(source: OpenSource, head: bytes) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<?xml"):
        text = text[text.find(b"?>") + 2 :].lstrip()
    if text.startswith(_SCRIPTS):
        raise MediaError(
            source.name,
            Cause.FORBIDDEN_FORMAT,
            f"expected a video, got a playlist or script that names other files ({text[:12]!r}); give those files",
        )


def _refusal(source: OpenSource, limits: MediaLimits, error: Exception) -> MediaError:
    """What to raise for a file that could not be opened."""
    if isinstance(error, MemoryError | av.error.MemoryError):
        return library_error(source, error, "opening it")
    head = source.read(0, 12)
    if head[4:8] == b"ftyp" or head.startswith((b"\x1a\x45\xdf\xa3", b"RIFF", b"GIF8")):
        return MediaError(source.name, Cause.DECODE_FAILED, f"its header is damaged ({type(error).__name__})")
    if _is_image(source, limits):
        return still_image(source)
    if isinstance(error, av.error.ArgumentError):
        # FFmpeg knows the format, and it is not among ours.
        message = f"not a format that is let in; got {describe(source)}; convert it"
        return MediaError(source.name, Cause.FORBIDDEN_FORMAT, message)
    return MediaError(source.name, Cause.NOT_MEDIA, f"expected a video, got {describe(source)}")


def _is_image(source: OpenSource, limits: MediaLimits) -> bool:
    try:
        open_image(source, limits)
    except MediaError as error:
        return error.cause != Cause.NOT_MEDIA  # a damaged or too large image is one
    return True


def _stream(source: OpenSource, container: Any, limits: MediaLimits, brand: bytes) -> Any:
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        kinds = ", ".join(sorted({f"{stream.type}" for stream in container.streams})) or "nothing"
        note = " (a cover picture)" if container.streams.video else ""
        raise MediaError(source.name, Cause.NO_VIDEO_STREAM, f"expected a video stream, got {kinds}{note}")
    stream = max(streams, key=lambda stream: stream.frames) if brand in _SEQUENCE_BRANDS else streams[0]
    context = stream.codec_context
    if context is None:
        raise MediaError(source.name, Cause.DECODE_FAILED, "no decoder for the video's codec")
    check_pixels(source.name, "frames", context.width, context.height, limits)
    # The header can lie: the decoder checks each picture too, before it allocates.
    context.options = {"max_pixels": str(limits.max_pixels)}
    return stream
