"""The test of the documents can fail: what is wrong on a page is found, and named with its line."""

import textwrap
import time
from pathlib import Path

import pytest

from tests.documents.pages import is_command, read_page
from tests.documents.typist import _compare, type_page


def typed(text, place):
    return type_page(read_page("README.md", textwrap.dedent(text)), place)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```\nls\n```", "line 1: the block is 'of no language'"),
        ("```bash\nfalse\n```", "`false` ends with status 1"),
        ("```bash\nfor i in 1 2; do\n```", "bash cannot parse it"),
        ("```bash\nls | grep nothing-here\n```", "ends with status 1"),
        ("```console\n$ echo up\ndown\n```", "but printed is\n    up"),
        ("```python\nprint(…)\nx = \n```", "SyntaxError"),
        ("```python\nnobody_knows\n```", "NameError"),
        ('```json\n{"a": 1}\n```', "a block of data is a file"),
        ('<!-- file: nowhere.json -->\n```json\n{"a": 1}\n```', "does not name nowhere.json"),
        ("```yaml\na: 1\n```", "a manifest is not run"),
        ("```text\n$ ls\n```", "nothing to type"),
        ("```bash\npip install 'videollava-jax[ray]'\n```", "published nowhere"),
        ("```bash\npip install -e '.[rays]'\n```", "no extra {'rays'}"),
        ("Type `make no-such-thing`.", "No rule to make target"),
        ("<!-- not run: a GPU -->\n```bash\nvideollava ask --no-such-flag a.mp4 b\n```", "--no-such-flag"),
        ("<!-- not run: a GPU -->\n```bash\nvideollava finetune --no_such 1\n```", "no_such"),
        ("<!-- not run: a GPU -->\n```bash\npython train/tiny.py --oud x\n```", "does not know --oud"),
        ("<!-- not run: a GPU -->\n```bash\nsrun videollava ask --no-such a.mp4 b | cat\n```", "--no-such"),
        ("`videollava batch … --rays`", "does not know --rays"),
        ("`python train/nothing.py`", "there is no train/nothing.py"),
        ("`python -m tests.nothing`", "there is no module tests.nothing"),
        ("`python -m pytest tests/nothing`", "there is no tests/nothing"),
        ("<!-- given: 70b -->\n`make test`", "nothing stands in for the given 70b"),
        ("<!-- nor run: a GPU -->\n```bash\ntrue\n```", "no such mark: nor_run"),
        ("<!-- slow: minutes -->\nNo block.", "the mark before it belongs to no block"),
        ("No command. <!-- slow: minutes -->", "a mark in a sentence stands behind a command"),
    ],
)
def test_what_is_wrong_on_a_page_is_named(text, fault, place):
    (found,) = typed(text, place).faults
    assert fault in found


def test_what_is_right_is_counted(place):
    report = typed(
        """\
        <!-- file: said.py -->
        ```python
        print("said")
        ```
        This is `said.py`; `make test` and `cat said.py` <!-- not run: no time --> are
        commands, `videollava ask` is a name.
        ```console
        $ python said.py          # prints
        said
        $ A=said; echo $A > out && cat o*
        s…
        ```
        ```bash
        export NAME=said
        python $NAME.py
        ```
        ```text
        a ──▶ b
        ```
        <!-- slow: hours -->
        ```bash
        videollava ask clip.mp4 \\
            "Why?"
        ```
        """,
        place,
    )
    assert not report.faults
    assert report.counts == {"ran": 3, "parsed": 3, "marked": 1, "drawing": 1}


@pytest.mark.parametrize(
    ("code", "command"),
    [("videollava ask", True), ("RAY_ADDRESS=a videollava batch", True), ("python", False), ("--model x", False)],
)
def test_commands_in_sentences(code, command):
    assert is_command(code) == command


@pytest.mark.parametrize(("shown", "matches"), [(["a", "…"], True), (["a…", "b", "c"], True), (["a", "b"], False)])
def test_outputs(shown, matches):
    if matches:
        _compare(shown, "a\nb\nc\n")
    else:
        with pytest.raises(Exception, match="but printed is"):
            _compare(shown, "a\nb\nc\n")


def test_marks_of_a_page():
    page = read_page(
        "a.md", "<!-- given: a b -->\n\nRun `make test`.\n\n<!-- slow: x -->\n<!-- needs: y -->\n```bash\nls\n```\n"
    )
    assert (page.given, page.faults) == (("a", "b"), ())
    assert [(i.line, i.language, i.marks.slow, i.marks.needs) for i in page.items] == [
        (3, "inline", "", ""),
        (7, "bash", "x", "y"),
    ]


def test_what_is_left_in_the_background_is_killed_by_its_number_or_at_the_end(place):
    text = """\
        ```bash
        sleep 600 > a 2>&1 &
        sleep 601 > b 2>&1 &
        kill %2
        pgrep -f "^sleep 60[0]" > left
        ! pgrep -f "^sleep 60[1]"
        ```
        """
    assert not typed(text, place).faults
    left, ends = Path(f"/proc/{(place / 'left').read_text().strip()}/cmdline"), time.monotonic() + 30
    while left.exists() and left.read_bytes():  # an ended process that nobody has waited for has no command line
        assert time.monotonic() < ends
        time.sleep(0.05)
