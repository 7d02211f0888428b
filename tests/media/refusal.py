"""What every refused file has in common."""

import pickle

import pytest

from videollava_jax.media import MediaError, MediaLimits


def check_error(error):
    """One line without memory addresses that begins with the file, and that worker processes can hand over."""
    message = str(error)
    assert "\n" not in message
    assert " at 0x" not in message
    assert message.startswith(f"{error.source}: ")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.source, copy.cause, str(copy)) == (MediaError, error.source, error.cause, message)


def refused(read, source, cause=None, **limits):
    """Asserts that a `MediaError` of this cause is raised, and returns it."""
    with pytest.raises(MediaError) as caught:
        read(source, limits=MediaLimits(**limits))
    assert cause in (None, caught.value.cause), caught.value
    check_error(caught.value)
    return caught.value
