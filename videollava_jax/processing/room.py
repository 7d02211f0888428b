"""How many tokens a prompt may have: the model's positions, less those of its answer. No JAX."""

from __future__ import annotations


class TooLong(ValueError):
    """A prompt and its answer need more room than there is. Its `cause` is that of results."""

    cause = "too_long"


def room_for_prompt(positions: int, max_new_tokens: int) -> int:
    """Returns how many tokens a prompt may have, at least 1.

    Args:
        positions: of the model.
        max_new_tokens: the most tokens of the answer.

    Raises:
        TooLong: the answer leaves no position for a prompt.
    """
    if max_new_tokens >= positions:
        raise TooLong(
            f"max_new_tokens: expected at most {positions - 1}, as the model has {positions} positions for a prompt "
            f"and its answer; got {max_new_tokens}"
        )
    return positions - max_new_tokens


def require_room(prompt: int, max_new_tokens: int, positions: int, why: str = "") -> None:
    """Raises `TooLong` where a prompt and its answer, both in tokens, do not fit the model's positions.

    Args:
        why: added to the message: the reason for which the model has no more positions here.
    """
    if prompt > (room := room_for_prompt(positions, max_new_tokens)):
        raise TooLong(
            f"a prompt of {prompt} tokens and an answer of up to {max_new_tokens} do not fit the model's {positions} "
            f"positions: expected a prompt of at most {room} tokens. Shorten it, take fewer frames or pool them "
            f"(video_pooling), or lower max_new_tokens{why}"
        )
