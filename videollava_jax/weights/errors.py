"""The one error of checkpoints: which file or tensor, what was expected, what came, what to do."""

LINE = 1000


class WeightsError(ValueError):
    """A checkpoint that cannot be read, converted or trusted. Nothing was written, or what was is gone again.

    Messages quote names from files that nobody vouches for: what cannot be printed is escaped, so that it does not
    command a terminal, and a line of more than `LINE` characters loses its middle.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(map(_printable, message.split("\n"))))


def cause(error: BaseException) -> str:
    """An error of a library's on one line; theirs may be long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _printable(line: str) -> str:
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= LINE else f"{line[: LINE // 2]} … {line[3 - LINE // 2 :]}"
