"""Whatever a line says, it becomes an answer or an error of its own, and the lines next to it are answered."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.faults.lines import IDS, ODD, Validating, run_job, with_ids

LINES = 2400


@pytest.fixture(scope="module")
def validating():
    return Validating()


@pytest.mark.parametrize("form", IDS)
def test_no_line_ends_a_job(tmp_path_factory, validating, form):
    place = tmp_path_factory.mktemp(form)

    @settings(
        max_examples=LINES // len(IDS) // ODD,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(with_ids(form))
    def check(odd):
        run_job(place, form, odd, validating)

    check()
