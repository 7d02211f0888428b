"""Counts pictures in packets of AV1, which are temporal units (AV1 bitstream specification, sections 5.3 and 5.9)."""

from __future__ import annotations

from videollava_jax.media.pictures.count import Broken, Count

_SEQUENCE, _DELIMITER, _HEADER, _METADATA, _FRAME, _PADDING = 1, 2, 3, 5, 6, 15
_KNOWN = (*range(1, 9), 15)


class Av1Counter:
    """See `Counter`. Of several spatial layers one is shown."""

    def __init__(self, extradata: bytes):
        self._reduced = False  # a still picture's short headers
        self._sets = extradata
        if len(extradata) > 4 and extradata[0] == 0x81:
            extradata = extradata[4:]
        try:
            self._units(extradata)
        except Broken:
            return  # the decoder judges it

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        shown, hidden, layers, others = self._units(packet)
        if not shown and not hidden:
            for kind, content in others:
                self._check_without_picture(kind, content)
        if shown > 1 and not layers:
            raise Broken("it shows several frames")
        return Count(min(shown, 1), hidden=bool(hidden and not shown))

    def _check_without_picture(self, kind: int, content: bytes) -> None:
        """Checks a unit of a packet that holds no frame: a delimiter, padding, metadata, the sequence's header."""
        known = kind == _SEQUENCE and len(content) > 4 and (content in self._sets or len(self._sets) < 8)
        empty = kind == _DELIMITER and not content
        # Types of metadata: brightness, mastering display, scalability, subtitles, time code.
        described = kind == _METADATA and content[:1] in (b"\1", b"\2", b"\3", b"\4", b"\5")
        if not (known or empty or described or kind == _PADDING):
            raise Broken("it holds no picture")

    def _units(self, data: bytes) -> tuple[int, int, bool, list[tuple[int, bytes]]]:
        """Returns how many frames are shown and hidden, whether there are spatial layers, and all other units."""
        shown = hidden = at = 0
        layers, others = False, []
        while at < len(data):
            head, at = data[at], at + 1
            kind = head >> 3 & 15
            if head & 0x81 or kind not in _KNOWN:
                raise Broken("a unit with an impossible header")
            if head & 4:
                layers |= at < len(data) and bool(data[at] >> 3 & 3)
                at += 1
            end = len(data)
            if head & 2:
                size, at = _leb128(data, at)
                end = at + size
            if end > len(data):
                raise Broken("the lengths of its units do not add up")
            content = data[at : at + 1]
            if kind not in (_HEADER, _FRAME):
                others.append((kind, data[at:end]))
            if kind == _SEQUENCE and content:
                self._reduced = bool(content[0] & 0x08)
            elif kind in (_HEADER, _FRAME):
                if not content:
                    raise Broken("a frame without content")
                # show_existing_frame, frame_type in two bits, show_frame
                show = self._reduced or bool(content[0] & 0x80) or bool(content[0] & 0x10)
                shown, hidden = shown + show, hidden + (not show)
            at = end
        return shown, hidden, layers, others


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << 7 * i
        if not data[at + i] & 0x80:
            return value, at + i + 1
    raise Broken("a length that does not end")
