"""How pytest-xdist hands tests to the worker processes of `make test`: whole modules, the longest first.

All tests of a module go to one worker, which then makes the module's fixtures once. So do the modules of a group, one
after the other. (The groups stand here and not in marks: pytest-xdist 3.8 cannot pass those on from pytest 9.2.)
"""

from __future__ import annotations

from typing import Any

import pytest

PAIRS = ("tests/training/run/test_processes.py", "tests/sharding/test_processes.py")
"""They start two processes that wait for each other: one pair at a time has the time that it allows itself."""
CLUSTERS = ("tests/batch/test_ray.py", "tests/batch/test_large_jobs.py")
"""They start clusters of processes, and mostly wait for them."""
DOWNLOADS = ("tests/media/test_real_files.py", "tests/test_real_files_answered.py")
"""They fetch the same packages."""
SERVERS = (
    "tests/serving/test_chat.py",
    "tests/serving/test_hosts.py",
    "tests/serving/test_jobs.py",
    "tests/serving/test_same_answers.py",
)
"""They share a server, whose programs are compiled once."""
PAGES = ("tests/serving/page/test_asking.py", "tests/serving/page/test_faults.py")
"""They share a server and a browser."""
GROUPS = (PAIRS, CLUSTERS, DOWNLOADS, SERVERS, PAGES)

LONGEST = (
    PAIRS[0],
    "tests/engine/test_engine.py",
    "tests/engine/test_session_requests.py",
    CLUSTERS[0],
    "tests/training/run/test_resume.py",
    "tests/training/run/test_held_out_task.py",
    "tests/documents/test_documents.py",
    "tests/training/test_gradients.py",
    "tests/training/run/test_authors_steps.py",
    "tests/assets/test_tiny_model.py",
    "tests/evaluation/test_command.py",
    PAGES[0],
    "tests/planning/test_plan.py",
    "tests/model/test_attention.py",
    "tests/sharding/test_engine_meshes.py",
    "tests/faults/test_checkpoints.py",
    "tests/parity/test_as_the_authors.py",
    "tests/parity/test_ladder.py",
    "tests/batch/test_media_job.py",
    "tests/assets/test_world.py",
    "tests/model/test_kernel_choice.py",
    "tests/planning/test_hlo_compiled.py",
    "tests/generation/test_chat.py",
)
"""What takes longest, in this order: with the longest begun first the workers end at about the same time."""


def unit(nodeid: str) -> str:
    """Returns what goes to one worker with this test: its file, or the first file of its group."""
    file = nodeid.split("::")[0]
    return next((group[0] for group in GROUPS if file in group), file)


def turn(item: pytest.Item) -> int:
    """Returns when a test's turn comes: its place in `LONGEST`, or behind all of these."""
    return LONGEST.index(unit(item.nodeid)) if unit(item.nodeid) in LONGEST else len(LONGEST)


def number(cores: int) -> int:
    """Returns how many workers `--numprocesses auto` means: with more than cores, waits could exceed their limits."""
    return min(max(cores, 1), 8)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Returns what assigns modules and groups to workers, for `--dist loadfile`; None for other ways."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    config.option.loadscopereorder = False  # by the number of tests
    return Units(config, log)
