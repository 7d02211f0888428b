"""WeightsError, the one error about checkpoints: which file or tensor, what was expected, what came, what to do."""

LINE = 1000


class WeightsError(ValueError):
    """A checkpoint that cannot be read, converted or trusted. No output is left behind.

    Messages quote names from untrusted files: characters that cannot be printed are escaped, so that they do not
    control the terminal, and lines of more than `LINE` characters are shortened in the middle.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(map(_printable, message.split("\n"))))


def cause(error: BaseException) -> str:
    """Returns a library's error on one line of at most 160 characters after its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _printable(line: str) -> str:
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= LINE else f"{line[: LINE // 2]} … {line[3 - LINE // 2 :]}"
