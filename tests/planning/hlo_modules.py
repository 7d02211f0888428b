"""Texts of XLA modules for tests: written here, and kept from the TPU compiler."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).parent / "hlo_examples"


def example(name: str) -> str:
    return (EXAMPLES / f"{name}.txt").read_text()


def module(body: str, *, alias: str = "", computations: str = "") -> str:
    """Returns a module whose entry has these lines."""
    return f"HloModule m, is_scheduled=true{alias}\n\n{computations}\nENTRY %main {{\n{body}\n}}\n"
