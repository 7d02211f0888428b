"""Counts pictures in packets of VP8 and VP9, whose encoders hide reference frames among them."""

from __future__ import annotations

from videollava_jax.media.pictures.count import Broken, Count


class Vp8Counter:
    """See `Counter`. RFC 6386, 9.1: bit 4 of the frame tag is show_frame."""

    def __init__(self, extradata: bytes):
        pass

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        if not packet[0] & 1 and packet[3:6] != b"\x9d\x01\x2a":
            raise Broken("a keyframe without its start code")
        shown = bool(packet[0] & 0x10)
        return Count(int(shown), hidden=not shown)


class Vp9Counter:
    """See `Counter`. VP9 bitstream specification, 6.2: marker 10, profile, show_existing_frame, type, show_frame."""

    def __init__(self, extradata: bytes):
        pass

    def __call__(self, packet: bytes) -> Count:
        """See `Counter.__call__`."""
        if packet[0] >> 6 != 0b10:
            raise Broken("it does not begin with a frame's marker")
        if _is_superframe(packet):
            return Count()
        reserved = (packet[0] & 0x30) == 0x30  # profile 3 has one bit more, which is 0
        if reserved and packet[0] & 0x08:
            raise Broken("a frame of no profile")
        bits = packet[0] << 1 if reserved else packet[0]
        shown = bool(bits & 0x08) or bool(bits & 0x02)
        return Count(int(shown), hidden=not shown)


def _is_superframe(data: bytes) -> bool:
    """Returns whether a VP9 packet holds several frames: hidden ones, then one that is shown.

    By annex B of the bitstream specification such a packet ends with an index between two equal bytes: the marker
    110, the width of a size minus one (2 bits), and the number of frames minus one (3 bits).
    """
    marker = data[-1]
    length = 2 + ((marker >> 3 & 3) + 1) * ((marker & 7) + 1)
    return marker & 0xE0 == 0xC0 and len(data) >= length and data[-length] == marker
