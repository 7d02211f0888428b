"""What a command says when it goes wrong: a line and a status; faults of our own ask to be reported."""

import io
import os
import sys

import pytest

from videollava_jax.cli import errors as cli_errors
from videollava_jax.cli import main
from videollava_jax.cli.errors import DEBUG, FAULT, report


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a.mp4: expected a video, got a poem"), "a.mp4: expected a video, got a poem"),
        (PermissionError(13, "Permission denied", "out/a.png"), "out/a.png: permission denied"),
        (OSError(28, "No space left on device", b"b.png"), "b.png: no space left on device"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (OSError("a file system that is full"), "a file system that is full"),
        (MemoryError(), "not enough memory: take fewer frames, smaller media or a smaller model"),
        (ImportError("ray is not installed: pip install"), "ray is not installed: pip install"),
        (RuntimeError("RESOURCE_EXHAUSTED: 5G\nof 4G"), "the device is out of memory: take fewer frames (--frames), "),
        (RuntimeError("Unable to initialize backend 'tpu': none"), "JAX cannot use the device that JAX_PLATFORMS or "),
        (RuntimeError("Unknown backend fpga"), "JAX cannot use the device that JAX_PLATFORMS or "),
    ],
)
def test_what_happens_is_one_line(error, said, capsys):
    assert report(error, ["ask"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"videollava: {said}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("no"), RuntimeError("odd"), AttributeError("a\nb")])
def test_a_fault_of_ours_says_where_to_report_it_and_has_another_status(error, capsys, monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    assert report(error, ["ask", "a b.mp4", "Q"]) == FAULT
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for part in ("Please report it", type(error).__name__, DEBUG, "videollava ask 'a b.mp4' Q"):
        assert part in printed
    monkeypatch.setenv(DEBUG, "1")
    try:
        raise error
    except type(error):
        report(error, [])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("urls", "where"),
    [(["Paper, https://a"], ""), (["Repository, https://b", "Issues, https://c"], " at https://c")],
)
def test_where_to_report_is_what_the_package_says(monkeypatch, urls, where):
    class Metadata:
        def get_all(self, name):
            return urls

    monkeypatch.setattr("importlib.metadata.metadata", lambda name: Metadata())
    assert cli_errors._where() == where


def test_a_fault_inside_a_command_has_no_traceback(monkeypatch, capsys):
    monkeypatch.delenv(DEBUG, raising=False)
    monkeypatch.setattr("videollava_jax.cli.ask.from_arguments", lambda arguments: {}["x"])
    assert main(["ask", "a.mp4", "Q"]) == FAULT
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_ctrl_c_and_a_closed_pipe_say_nothing(monkeypatch, capfd, error):
    def end(arguments):
        raise error

    monkeypatch.setattr("videollava_jax.cli.ask.from_arguments", end)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)  # the tests' own output stays
    assert main(["ask", "a.mp4", "Q"]) == (130 if error is KeyboardInterrupt else 1)
    assert capfd.readouterr() == ("", "")


def test_help_into_a_closed_pipe(monkeypatch):
    """As `videollava --help | head -0`: what is written when the command ends is still ours."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(open(writer, "wb"), write_through=False) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["--help"]) == 1
        monkeypatch.undo()


def test_text_that_the_output_cannot_hold_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, "ascii"))
    assert main(["verify", "kein-Ort-für\udcff"]) == 1
    sys.stderr.flush()
    assert rb"kein-Ort-f\xfcr\udcff: no such directory" in raw.getvalue()
