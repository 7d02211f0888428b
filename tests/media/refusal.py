"""Checks that hold for the error of every refused file."""

import pickle

import pytest

from videollava_jax.media import MediaError, MediaLimits


def check_error(error):
    """Checks an error: one line that begins with the file's name, no memory addresses, and it can be pickled."""
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
