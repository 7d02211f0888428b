"""What transformers' functions raise on bad input, as errors that name the argument."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError


@contextmanager
def named_faults(argument: str) -> Iterator[None]:
    """Raises a ValueError that names the argument where transformers, given the user's values, fails by type."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{argument}: transformers cannot use these values: {reason}") from error
