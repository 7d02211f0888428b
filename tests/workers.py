"""How pytest-xdist hands tests to the worker processes of `make test`: whole modules, the longest first.

All tests of a module go to one worker, which then makes the module's fixtures once. What starts processes that take the
whole machine, or waits for them, carries the mark `xdist_group("processes")`: these modules go to one worker as well,
one after the other, so that none runs against the time limits of another.
"""

from __future__ import annotations

from typing import Any

import pytest

LONGEST = (
    "@processes",
    "tests/engine/test_engine.py",
    "tests/assets/test_tiny_model.py",
    "tests/faults/test_checkpoints.py",
    "tests/sharding/test_engine_meshes.py",
    "tests/training/test_gradients.py",
    "tests/planning/test_hlo_traffic.py",
    "tests/planning/test_plan.py",
    "tests/model/test_attention.py",
    "tests/weights/test_adapters.py",
    "tests/batch/test_media_job.py",
)
"""What takes longest, in this order: with the longest begun first the workers end at about the same time."""


def turn(item: pytest.Item) -> int:
    """Returns when a test's turn comes: its place in `LONGEST`, or behind all of these."""
    group = item.get_closest_marker("xdist_group")
    unit = f"@{group.args[0]}" if group else item.nodeid.split("::")[0]
    return LONGEST.index(unit) if unit in LONGEST else len(LONGEST)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Returns what assigns modules and groups to workers, for `--dist loadgroup`; None for other ways."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class Units(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # pytest-xdist writes "@" and the group behind a test's name; parameters in brackets may hold one too.
            return super()._split_scope(nodeid).split("::")[0]

    config.option.loadscopereorder = False  # by the number of tests
    return Units(config, log)
