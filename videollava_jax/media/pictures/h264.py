"""Counts pictures in packets of H.264 (ITU-T H.264, sections 7.3 and 7.4)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from videollava_jax.media.pictures import units
from videollava_jax.media.pictures.count import Bits, Broken, Count

_SLICE, _PARTITION, _IDR = 1, 2, 5
_SEI, _SPS, _PPS, _DELIMITER, _END_OF_SEQUENCE, _END_OF_STREAM, _FILLER = 6, 7, 8, 9, 10, 11, 12
_PICTURES = (_SLICE, _PARTITION, _IDR)
_CHROMA_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_PROFILES = _CHROMA_PROFILES | {66, 77, 88}
_B = (1, 6)
# A slice header begins with three numbers and a frame number: it is read from these many bytes.
_HEADER = 24


@dataclass(frozen=True)
class _Sequence:
    """What a sequence parameter set says about slice headers."""

    frame_number_bits: int
    separate_planes: bool
    fields: bool


@dataclass(frozen=True)
class _Slice:
    """The beginning of a slice header; `parity` is None for a frame, 0 and 1 for the top and bottom field."""

    first: bool
    is_b: bool
    idr: bool
    number: int = 0
    parity: int | None = None


@dataclass
class H264Counter:
    """See `Counter`. Two fields that follow each other with one frame number and opposite parities are one frame."""

    extradata: bytes
    _length_size: int | None = None
    _sequences: dict[int, _Sequence] = field(default_factory=dict)
    _pictures: dict[int, int] = field(default_factory=dict)  # of picture parameter sets: their sequence's id
    _open_field: _Slice | None = None

    def __post_init__(self) -> None:
        extradata = self.extradata
        if extradata[:1] == b"\1" and len(extradata) > 6:
            self._length_size = (extradata[4] & 3) + 1
            sets = self._in_avcc(extradata)
        else:
            sets = [unit for unit in extradata.split(b"\0\0\1") if unit]
        for unit in sets:
            self._learn(unit)

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        found = units.split(packet, self._length_size)
        shown, slices = 0, list[_Slice]()
        for unit in found:
            kind = unit[0] & 31
            if unit[0] & 0x80:
                raise Broken("a unit with an impossible first byte")
            if kind in (_SPS, _PPS):
                self._learn(unit)
            if kind in _PICTURES:
                header = self._slice(unit)
                if header.first or not slices:
                    shown += self._begins_frame(header)
                slices.append(header)
        if not slices:
            for unit in found:
                self._check_without_picture(unit)
            return Count(shown=0)
        only_b, closed = all(header.is_b for header in slices), slices[0].idr
        recovery = 0 if closed else _recovery_frames(found)
        return Count(shown, only_b=only_b, closed=closed, starts=closed, recovery=recovery)

    def _begins_frame(self, header: _Slice) -> bool:
        before, self._open_field = self._open_field, None
        if header.parity is None:
            return True
        if before and before.parity != header.parity and before.number == header.number:
            return False
        self._open_field = header
        return True

    def _slice(self, unit: bytes) -> _Slice:
        bits = Bits(units.unescaped(unit[1:_HEADER]))
        first, kind = bits.golomb() == 0, bits.golomb()
        if kind > 9:
            raise Broken("a slice of an unknown type")
        idr = unit[0] & 31 == _IDR
        if not any(sequence.fields or sequence.separate_planes for sequence in self._sequences.values()):
            return _Slice(first, kind in _B, idr)
        sequence = self._sequences.get(self._pictures.get(bits.golomb(), -1))
        if sequence is None:
            return _Slice(first, kind in _B, idr)  # of a parameter set that has not come: the decoder will say so
        if sequence.separate_planes:
            first &= bits.take(2) == 0
        number = bits.take(sequence.frame_number_bits)
        parity = bits.take(1) if sequence.fields and bits.take(1) else None
        return _Slice(first, kind in _B, idr, number, parity)

    def _learn(self, unit: bytes) -> None:
        kind = unit[0] & 31
        try:
            bits = Bits(units.unescaped(unit[1:200]))
            if kind == _SPS:
                number, sequence = _sequence(bits)
                self._sequences[number] = sequence
            elif kind == _PPS:
                number = bits.golomb()
                self._pictures[number] = bits.golomb()
        except Broken:
            return  # the decoder judges it

    def _in_avcc(self, extradata: bytes) -> list[bytes]:
        """Returns the parameter sets in an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1)."""
        found, at = [], 6
        for count in (extradata[5] & 31, None):
            if count is None:
                if at >= len(extradata):
                    break
                count, at = extradata[at], at + 1
            for _ in range(count):
                size = int.from_bytes(extradata[at : at + 2], "big")
                found.append(extradata[at + 2 : at + 2 + size])
                at += 2 + size
        return [unit for unit in found if unit]

    def _check_without_picture(self, unit: bytes) -> None:
        """Checks a unit of a packet that holds no picture: parameter sets, delimiters, messages, filler, ends."""
        kind, payload = unit[0] & 31, unit[1:]
        if kind == _SEI:
            units.check_sei(payload)
        elif kind == _FILLER:
            units.check_filler(payload)
        elif kind == _SPS:
            _sequence(Bits(units.unescaped(payload)))
        elif kind == _PPS:
            _check_picture_parameters(units.unescaped(payload), self._sequences)
        elif kind == _DELIMITER:
            units.check_delimiter(payload)
        elif kind not in (_END_OF_SEQUENCE, _END_OF_STREAM) or payload.strip(b"\0"):
            raise Broken("it holds no picture")


def _recovery_frames(found: list[bytes]) -> int:
    """Returns how many frames a packet's recovery point (D.1.8) says until the picture is complete; 0 without one."""
    for unit in found:
        payload = units.unescaped(unit[1:64])
        if unit[0] & 31 == _SEI and payload[:1] == b"\6" and len(payload) > 3:
            return Bits(payload[2:]).golomb()
    return 0


def _sequence(bits: Bits) -> tuple[int, _Sequence]:
    """Reads a sequence parameter set up to its size (7.3.2.1.1); returns its number too."""
    profile, reserved = bits.take(8), bits.take(8)
    level = bits.take(8)
    number = bits.golomb()
    if profile not in _PROFILES or reserved & 3 or not 9 <= level <= 62 or number > 31:
        raise Broken("an impossible sequence parameter set")
    separate = False
    if profile in _CHROMA_PROFILES:
        chroma = bits.golomb()
        separate = bool(chroma == 3 and bits.take(1))
        if chroma > 3 or bits.golomb() > 6 or bits.golomb() > 6:
            raise Broken("an impossible sequence parameter set")
        bits.take(1)
        if bits.take(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    frame_number_bits = bits.golomb() + 4
    order = bits.golomb()
    if frame_number_bits > 16 or order > 2:
        raise Broken("an impossible sequence parameter set")
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1), bits.golomb(), bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb(), bits.take(1), bits.golomb(), bits.golomb()
    return number, _Sequence(frame_number_bits, separate, fields=not bits.take(1))


def _check_picture_parameters(payload: bytes, sequences: Container[int]) -> None:
    """Checks that a picture parameter set (7.3.2.2) is one, to its last bit; lists of scalings are not looked into."""
    bits = Bits(payload.rstrip(b"\0"))
    if bits.golomb() > 255 or bits.golomb() not in sequences:
        raise Broken("a picture parameter set of no sequence")
    bits.take(2)
    if bits.golomb() or bits.golomb() > 31 or bits.golomb() > 31 or bits.take(3) & 3 == 3:
        raise Broken("an impossible picture parameter set")
    if not all(low <= bits.signed_golomb() <= 25 for low in (-62, -26, -12)):
        raise Broken("an impossible picture parameter set")
    bits.take(3)
    if not bits.is_at_stop_bit():
        bits.take(1)
        if bits.take(1):
            return
        bits.signed_golomb()
        if not bits.is_at_stop_bit():
            raise Broken("an impossible picture parameter set")


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last
