"""Opens videos with FFmpeg so that it reads no other file, and so that every limit is checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import av

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.image import check_pixels, describe, not_read, open_image, reads_heic
from videollava_jax.media.other_formats import HEIC, is_heic, other_format
from videollava_jax.media.source import OpenSource
from videollava_jax.media.structure import Stated, read_index, read_structure

# FFmpeg goes by content, not by name, and some of its formats open other files (playlists, concat scripts, SDP).
# Only formats that contain their own frames are allowed, and sound formats, so that they get a clear error.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpeg,mpegts,mpegvideo,m4v,h263,"
    "h264,hevc,obu,av1,ivf,flv,live_flv,ogg,asf,yuv4mpegpipe,nut,mxf,dv,rm,mjpeg,mjpeg_2000,mp3,wav,flac,aac"
)
# Formats that are nothing but a codec's packets.
_WITHOUT_TIMES = {"h264", "hevc", "h263", "m4v", "mpegvideo", "mjpeg", "mjpeg_2000", "obu", "av1"}
# What such streams begin with, perhaps after zeros.
_RAW_STARTS = {"mjpeg": b"\xff\xd8"} | dict.fromkeys(("h264", "hevc", "m4v", "mpegvideo", "mpeg"), b"\1")
# The first bytes of text formats that name other files to play.
_SCRIPTS = (b"ffconcat", b"#EXTM3U", b"[playlist]", b"v=0", b"<MPD", b"<smil", b"<asx", b"[Reference]")
_STILL_BRANDS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftypmif1")
# Image sequences: they store their first frame twice, the first time as a still image before the track.
_SEQUENCE_BRANDS = (b"ftypavis", b"ftyphevc", b"ftyphevx", b"ftypmsf1")

# Titles and comments may be in any encoding. From PyAV 19 on that is never an error, and the argument is gone.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@dataclass(frozen=True)
class OpenVideo:
    """An open video.

    Attributes:
      container: PyAV's.
      stream: the video stream that is read; its decoder enforces `max_pixels`.
      stated: what the container says about the stream's frames; None for formats that say nothing.
    """

    container: Any
    stream: Any
    stated: Stated | None = None

    @property
    def rate(self) -> float | None:
        """Frames per second, as the file states them; None if it does not.

        FFmpeg invents 25 for raw streams, and a time base for them: there only the codec's own clock counts.
        """
        guessed = self.stream.average_rate or self.stream.guessed_rate
        rate = guessed if self.has_times else self.stream.codec_context.framerate
        return float(rate) if rate else None

    @property
    def has_times(self) -> bool:
        """Whether the file gives times of its frames; a raw stream does not."""
        return self.format not in _WITHOUT_TIMES

    @property
    def format(self) -> str:
        """FFmpeg's name of the container: mov for MP4 too, matroska for WebM too, avi, mpegts, h264."""
        return str(self.container.format.name.split(",")[0])


@contextmanager
def opened_video(source: OpenSource, limits: MediaLimits) -> Iterator[OpenVideo]:
    """Opens a video, with the stream that a player would show.

    Raises:
      MediaError: not a video in a known format, damaged, cut short, without video, or over the limits.
    """
    head = source.read(0, 4096)  # before FFmpeg has the file: two readers would move each other's position
    _refuse_scripts(source, head)
    _refuse_other_formats(source, head)
    structure = read_structure(source, limits)
    try:
        container = _open(source)
    except MediaError:
        raise
    except Exception as error:
        raise _refusal(source, limits, error) from None
    with container:
        if not head.lstrip(b"\0").startswith(_RAW_STARTS.get(container.format.name, b"")):
            # FFmpeg takes whatever contains a JPEG, or a few start codes, for a stream of them.
            raise MediaError(source.name, Cause.NOT_MEDIA, f"expected a video, got {describe(source)}")
        stream = _stream(source, container, limits, head[4:12])
        if container.format.name.startswith("mov") and structure.tracks is None:
            structure = read_index(source)
        yield OpenVideo(container, stream, structure.of(_videos(container).index(stream), stream.id))


@contextmanager
def reopened_video(source: OpenSource, limits: MediaLimits) -> Iterator[OpenVideo]:
    """Opens a video again from its start, without the checks that `opened_video` has already made."""
    head = source.read(0, 12)
    try:
        container = _open(source)
    except MediaError:
        raise
    except Exception as error:
        raise library_error(source.name, error, "opening it again failed") from None
    with container:
        yield OpenVideo(container, _stream(source, container, limits, head[4:12]))


def library_error(source: str, error: BaseException, doing: str) -> MediaError:
    """Makes the error to raise when FFmpeg fails. FFmpeg's own text is left out."""
    if isinstance(error, MemoryError | av.error.MemoryError):
        return MediaError(source, Cause.TOO_LARGE, f"too little memory: {doing}")
    if isinstance(error, av.error.InvalidDataError):
        return MediaError(source, Cause.DECODE_FAILED, f"the video is damaged: {doing}")
    return MediaError(source, Cause.DECODE_FAILED, f"{doing} ({type(error).__name__})")


def still_image(source: OpenSource) -> MediaError:
    """Makes the error to raise for a still image where a video is expected."""
    return MediaError(source.name, Cause.NOT_MEDIA, "expected a video, got a still image; it is read by read_image")


def _open(source: OpenSource) -> Any:
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "none",
        # While FFmpeg opens a file it decodes the first frames to find their format. In formats that do not announce
        # their streams (FLV, MPEG program streams) those decoders would not know our limits, so none is allowed.
        "codec_whitelist": "none",
    }
    return av.open(source.rewound(), options=options, io_open=_open_nothing, **_METADATA)


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a video may not open other files")


def _refuse_other_formats(source: OpenSource, head: bytes) -> None:
    other = other_format(source)
    if other is None and is_heic(head) and not reads_heic():
        other = HEIC
    if other is not None:
        raise not_read(source, other, "a video")
    if head[4:12] in _STILL_BRANDS:
        raise still_image(source)


def _refuse_scripts(source: OpenSource, head: bytes) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<?xml"):
        text = text[text.find(b"?>") + 2 :].lstrip()
    found = next((script for script in _SCRIPTS if text.startswith(script)), None)
    if found is not None:
        raise MediaError(
            source.name,
            Cause.FORBIDDEN_FORMAT,
            f"expected a video, got a playlist or script that names other files ({found.decode()}); give those files",
        )


def _refusal(source: OpenSource, limits: MediaLimits, error: Exception) -> MediaError:
    """Makes the error to raise for a file that FFmpeg could not open."""
    if isinstance(error, MemoryError | av.error.MemoryError):
        return library_error(source.name, error, "opening it")
    head = source.read(0, 12)
    if head[4:8] == b"ftyp" or head.startswith((b"\x1a\x45\xdf\xa3", b"RIFF", b"GIF8")):
        return MediaError(source.name, Cause.DECODE_FAILED, f"its header is damaged ({type(error).__name__})")
    if _is_image(source, limits):
        return still_image(source)
    if isinstance(error, av.error.ArgumentError):
        # FFmpeg knows the format, but FORMATS does not list it.
        message = f"this format is not allowed; got {describe(source)}; convert it"
        return MediaError(source.name, Cause.FORBIDDEN_FORMAT, message)
    return MediaError(source.name, Cause.NOT_MEDIA, f"expected a video, got {describe(source)}")


def _is_image(source: OpenSource, limits: MediaLimits) -> bool:
    try:
        open_image(source, limits)
    except MediaError as error:
        return error.cause != Cause.NOT_MEDIA  # a damaged or too large image is still an image
    return True


def _videos(container: Any) -> list[Any]:
    """Returns the video streams, without cover pictures."""
    covers = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & covers]


def _stream(source: OpenSource, container: Any, limits: MediaLimits, brand: bytes) -> Any:
    streams = _videos(container)
    if not streams:
        kinds = ", ".join(sorted({f"{stream.type}" for stream in container.streams})) or "nothing"
        note = " (a cover picture)" if container.streams.video else ""
        raise MediaError(source.name, Cause.NO_VIDEO_STREAM, f"expected a video stream, got {kinds}{note}")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if brand in _SEQUENCE_BRANDS:
        stream = max(streams, key=lambda stream: stream.frames)
    context = stream.codec_context
    if context is None:
        raise MediaError(source.name, Cause.DECODE_FAILED, "no decoder for the video's codec")
    check_pixels(source.name, "frames", context.width, context.height, limits)
    # The header can lie, so the decoder checks each frame too, before it allocates memory.
    context.options = {"max_pixels": str(limits.max_pixels)}
    return stream
