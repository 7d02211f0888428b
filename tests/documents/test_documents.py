"""Everything that the documents tell a reader to type is typed, and prints what they show.

`pytest tests/documents -s` prints what became of each page; with `-m slow` what takes minutes is typed too.
"""

from collections import Counter

import pytest

from tests.documents.pages import pages
from tests.documents.typist import type_page

PAGES = pages()


@pytest.fixture(scope="module")
def totals():
    """Counts over all pages, printed at the end."""
    counted: Counter[str] = Counter()
    yield counted
    print(f"\nall pages: {_listed(counted)}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def check(page, report, totals):
    totals.update(report.counts)
    print(f"\n{page.name}: {_listed(report.counts)}; {sum(report.seconds.values()):.1f} s of CPU time")
    print(*(f"  {seconds:.1f} s  line {line}" for line, seconds in report.seconds.items() if seconds > 1), sep="\n")
    print(*(f"  not run: {what}" for what in report.not_run), sep="\n")
    assert not report.faults, "\n\n".join(["", *report.faults])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_works_as_typed(page, place, totals):
    check(page, type_page(page, place), totals)


SLOW = [page for page in PAGES if any(item.marks.slow for item in page.items)]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=lambda page: page.name)
def test_a_page_works_as_typed_with_what_takes_long(page, place, totals):
    check(page, type_page(page, place, slow=True), totals)
