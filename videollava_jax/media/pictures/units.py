"""Splits packets of H.264 and HEVC into NAL units, and checks the units of packets that hold no picture."""

from __future__ import annotations

import re

from videollava_jax.media.pictures.count import Broken

_START = re.compile(b"\0\0\1")


def unescaped(unit: bytes) -> bytes:
    """Removes the emulation prevention bytes (ITU-T H.264, 7.3.1)."""
    return unit.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in unit else unit


def split(packet: bytes, length_size: int | None) -> list[bytes]:
    """Splits a packet into NAL units.

    Args:
      packet: the bytes of a packet.
      length_size: bytes of the length before each unit, as MP4 and Matroska store them; None for start codes.

    Raises:
      Broken: there is none, a length is 0 or reaches past the packet's end, or the packet does not begin with a start
        code.
    """
    if length_size is None:
        starts = [found.end() for found in _START.finditer(packet)]
        if not starts or packet[: starts[0] - 3].strip(b"\0"):
            raise Broken("it does not begin with a start code")
        ends = [start - 3 for start in starts[1:]] + [len(packet)]
        units = [packet[start:end] for start, end in zip(starts, ends, strict=True)]
        return [unit for unit in units if unit]
    units, at = [], 0
    while at < len(packet):
        end = at + length_size + int.from_bytes(packet[at : at + length_size], "big")
        if end == at + length_size and not packet[at:].strip(b"\0"):
            break  # padding
        if end > len(packet) or end == at + length_size:
            raise Broken("the lengths of its units do not add up")
        units.append(packet[at + length_size : end])
        at = end
    if not units:
        raise Broken("it holds nothing")
    return units


def check_sei(payload: bytes) -> None:
    """Checks that supplemental information is a chain of messages of the sizes that they say (H.264, 7.3.2.3.1)."""
    payload = unescaped(payload).rstrip(b"\0")
    at = 0
    while at < len(payload) - 1:
        for _ in range(2):  # type and size, each as bytes 255 and a last one
            value = 0
            while at < len(payload) and payload[at] == 255:
                value, at = value + 255, at + 1
            if at >= len(payload):
                raise Broken("supplemental information that ends too early")
            value, at = value + payload[at], at + 1
        at += value
    if at != len(payload) - 1 or payload[-1] != 0x80:
        raise Broken("supplemental information of another size than it says")


def check_filler(payload: bytes) -> None:
    """Checks that filler data is nothing else."""
    if payload.rstrip(b"\0").strip(b"\xff") != b"\x80":
        raise Broken("filler data that is something else")


def check_delimiter(payload: bytes) -> None:
    """Checks that a delimiter is nothing else: the kinds of its slices in three bits, and the stop bit."""
    if len(payload.rstrip(b"\0")) != 1 or payload[0] & 31 != 16:
        raise Broken("a delimiter that is something else")
