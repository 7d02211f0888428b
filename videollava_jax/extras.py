"""How optional packages are installed. The project is on no package index: its extras come from its source."""

from __future__ import annotations


def installs(extra: str) -> str:
    """Returns the command that installs an extra of pyproject.toml, as an error message ends with it."""
    return f"pip install -e '.[{extra}]', in this project's directory"
