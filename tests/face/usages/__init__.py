"""Usages of transformers' configuration and processors: code, and what holds of `out` after it.

The names in the code are those of `namespace` in test_usages.py.
"""

from tests.face.usages.arguments import ARGUMENTS
from tests.face.usages.calls import CALLS
from tests.face.usages.chat import CHAT
from tests.face.usages.configuration import CONFIG
from tests.face.usages.errors import MISTAKES, REFUSED
from tests.face.usages.loading import LOADING
from tests.face.usages.pictures import IMAGES, VIDEOS

HOLDS = [*CONFIG, *IMAGES, *VIDEOS, *LOADING, *CALLS, *ARGUMENTS, *CHAT]

__all__ = ["HOLDS", "MISTAKES", "REFUSED"]
