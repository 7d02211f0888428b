"""Counts pictures in packets of HEVC (ITU-T H.265, sections 7.3 and 8.1.3)."""

from __future__ import annotations

from videollava_jax.media.pictures import units
from videollava_jax.media.pictures.count import Broken, Count

_RASL = (8, 9)  # leading pictures that refer to frames before the keyframe that they follow
_BLA = (16, 17, 18)  # a keyframe after a splice: its RASL pictures are never shown
_IDR, _CRA = (19, 20), 21
_PICTURES, _RESERVED = range(32), (*range(10, 16), *range(22, 32))
_VIDEO_SET, _SEQUENCE_SET, _PICTURE_SET, _DELIMITER, _ENDS, _FILLER, _MESSAGES = 32, 33, 34, 35, (36, 37), 38, (39, 40)


class HevcCounter:
    """See `Counter`. Fields are frames of their own. Layers above the first are not decoded."""

    def __init__(self, extradata: bytes):
        record = len(extradata) > 22 and not extradata.startswith((b"\0\0\1", b"\0\0\0\1"))
        self._length_size = (extradata[21] & 3) + 1 if record else None
        self._sequence_begins = True
        self._drops_rasl = False
        self._sets = extradata

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        shown, pictures, upper, starts = 0, 0, False, False
        found = units.split(packet, self._length_size)
        for unit in found:
            if len(unit) < 2 or unit[0] & 0x80 or not unit[1] & 7:
                raise Broken("a unit with an impossible header")
            kind = unit[0] >> 1 & 63
            if kind in _ENDS:
                self._sequence_begins = True
            if kind not in _PICTURES or unit[0] & 1 or unit[1] >> 3:
                continue
            if kind in _RESERVED or len(unit) < 3:
                raise Broken("a slice of an unknown type")
            first = unit[2] & 0x80
            if not first and not pictures:
                raise Broken("its first slice is missing")
            pictures += 1
            upper |= unit[1] & 7 > 1
            if not first:
                continue
            if kind in (*_BLA, *_IDR, _CRA):
                starts = True
                self._drops_rasl = kind in _BLA or (kind == _CRA and self._sequence_begins)
                self._sequence_begins = False
            shown += not (kind in _RASL and self._drops_rasl)
        if not pictures:
            for unit in found:
                self._check_without_picture(unit)
        return Count(shown, closed=True, upper=upper, starts=starts)  # which pictures are dropped is known

    def _check_without_picture(self, unit: bytes) -> None:
        """Checks a unit of a packet that holds no picture: parameter sets, delimiters, messages, filler, ends."""
        kind, payload = unit[0] >> 1 & 63, unit[2:]
        if kind in _MESSAGES:
            units.check_sei(payload)
        elif kind == _FILLER:
            units.check_filler(payload)
        elif kind == _VIDEO_SET:
            if payload[2:4] != b"\xff\xff":  # so the standard has it
                raise Broken("an impossible video parameter set")
        elif kind == _SEQUENCE_SET:
            if len(payload) < 2 or payload[1] >> 6 or not 1 <= payload[1] & 31 <= 11:
                raise Broken("a sequence parameter set of no profile")
        elif kind == _PICTURE_SET:
            if len(self._sets) > 23 and unit not in self._sets:
                raise Broken("a picture parameter set that no picture has")
        elif kind == _DELIMITER:
            units.check_delimiter(payload)
        elif kind not in _ENDS or payload.strip(b"\0"):
            raise Broken("it holds no picture")
