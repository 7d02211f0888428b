"""Hides torch from a process that has this folder on its PYTHONPATH, as on a machine without torch.

transformers imports torch wherever it is installed, which takes three seconds, and nothing in the package needs it.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
