"""What a counter says of a packet, and the bits that headers are read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Count:
    """What a packet holds.

    Attributes:
      shown: how many frames begin in it that will be shown. The second field of a frame begins none.
      hidden: whether it holds a picture that is only a reference for others.
      only_b: whether its pictures are B pictures, which refer to frames on both sides.
      closed: whether it is a keyframe after which no picture refers to what was before it.
      upper: whether it is of a temporal layer above the first. It may need pictures to which no other of their own
        layer refers, and these are what a decoder leaves out on request.
      starts: whether decoding can begin with it, by its own header, for codecs that say so.
      recovery: how many frames after it are not complete yet, where the picture is refreshed bit by bit.
    """

    shown: int = 1
    hidden: bool = False
    only_b: bool = False
    closed: bool = False
    upper: bool = False
    starts: bool = False
    recovery: int = 0


class Broken(Exception):
    """The bytes of a packet contradict its codec's syntax; the message says how."""


class Counter(Protocol):
    """Counts the pictures of a stream's packets, given in the order in which they are stored."""

    def __call__(self, packet: bytes) -> Count:
        """Returns what the packet holds.

        Raises:
          Broken: it is not a packet of this codec.
        """


class Bits:
    """Reads a header bit by bit; reading past its end is an error.

    Args:
      data: bytes, with H.264's emulation prevention already removed.
    """

    def __init__(self, data: bytes):
        self._value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """Reads an unsigned number of `count` bits."""
        if count > self.left:
            raise Broken("a header ends too early")
        self.left -= count
        return self._value >> self.left & (1 << count) - 1

    def golomb(self) -> int:
        """Reads an unsigned Exp-Golomb number, ue(v) of H.264 and HEVC."""
        zeros = self.left - (self._value & (1 << self.left) - 1).bit_length()
        if zeros > 32:
            raise Broken("a header holds a number that is too large")
        return self.take(2 * zeros + 1) - 1

    def is_at_stop_bit(self) -> bool:
        """Returns whether only the stop bit, a 1 before zeros, is left."""
        return self.left > 0 and self._value & (1 << self.left) - 1 == 1 << self.left - 1

    def signed_golomb(self) -> int:
        """Reads a signed Exp-Golomb number, se(v) of H.264 and HEVC."""
        value = self.golomb()
        return (value + 1) // 2 if value & 1 else -(value // 2)
