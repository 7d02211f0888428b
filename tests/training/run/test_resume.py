"""Runs that are interrupted at random steps end as undisturbed ones do; at length: `tests/faults/training.py`."""

from __future__ import annotations

from tests.faults.training import trial


def test_interrupted_runs_end_as_undisturbed_ones():
    interruptions, _, runs = trial(10, seed=0, mesh=(1, 1))
    assert not interruptions.violations + runs.violations
    assert interruptions.outcomes.total() == 10
    assert runs.outcomes["equal to the bit"] >= 1
