"""Counts pictures in packets of MPEG-1 and MPEG-2 video (ISO/IEC 13818-2, section 6.2)."""

from __future__ import annotations

import re

from videollava_jax.media.pictures.count import Broken, Count

_CODE = re.compile(b"\0\0\1(.)", re.DOTALL)
_PICTURE, _USER_DATA, _SEQUENCE, _ERROR, _EXTENSION, _END, _GROUP = 0x00, 0xB2, 0xB3, 0xB4, 0xB5, 0xB7, 0xB8
_HEADERS = (_USER_DATA, _SEQUENCE, _ERROR, _EXTENSION, _END, _GROUP)
_SLICES = range(0x01, 0xB0)
_CODING_EXTENSION, _FRAME, _B = 8, 3, 3


class Mpeg2Counter:
    """See `Counter`. Two fields of opposite parity that follow each other are one frame."""

    def __init__(self, extradata: bytes):
        self._open_field: int | None = None

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        shown, seen, only_b, closed = 0, False, True, False
        kind = structure = None
        first = None
        for code in _CODE.finditer(packet):
            first = code.start() if first is None else first
            value, at = code[1][0], code.end()
            if value == _GROUP and len(packet) > at + 3:
                closed = bool(packet[at + 3] & 0x40)
            elif value == _PICTURE:
                if kind is not None:
                    shown += self._begins_frame(structure)
                kind, structure, seen = packet[at + 1] >> 3 & 7 if len(packet) > at + 1 else 0, _FRAME, True
                only_b &= kind == _B
            elif value == _EXTENSION and kind is not None and len(packet) > at + 2:
                structure = packet[at + 2] & 3 if packet[at] >> 4 == _CODING_EXTENSION else structure
            elif value in _SLICES and not seen:
                raise Broken("slices without a picture's header")
            elif value not in _HEADERS and value not in _SLICES:
                raise Broken(f"an unknown start code {value:#04x}")
        if first is None or packet[:first].strip(b"\0"):
            raise Broken("it does not begin with a start code")
        if kind is not None:
            shown += self._begins_frame(structure)
        return Count(shown, only_b=only_b, closed=closed)

    def _begins_frame(self, structure: int | None) -> bool:
        before, self._open_field = self._open_field, None
        if structure == _FRAME or structure is None:
            return True
        if before is not None and before != structure:
            return False
        self._open_field = structure
        return True
