"""Changes to the headers, indexes and configurations of small checkpoints, each made from a seed and a number.

A change that can be detected has to end in a WeightsError; one without meaning (a space, a note) in the same tensors.
A case is made again from `(seed, number)` alone.
"""

from __future__ import annotations

import random

from tests.faults.bases import INDEX, ORBAX, SWAP, Base, Case, Maker
from tests.faults.mutated_json import (
    config_bytes,
    config_values,
    config_whole,
    index_bytes,
    index_entries,
    index_whole,
    orbax_bytes,
    orbax_json,
    orbax_whole,
)
from tests.faults.mutated_tensors import (
    equal_sizes,
    file_size,
    header_bytes,
    header_entry,
    header_length,
    header_metadata,
    header_whole,
)


def make_case(bases: dict[str, Base], seed: int, number: int) -> Case:
    """Makes the mutation of a seed and a number."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    maker, _ = KINDS[kind]
    if kind.startswith(ORBAX):
        base = bases[ORBAX]
    else:
        fit = [base for base in bases.values() if not kind.startswith("index") or INDEX in base.files]
        base = rng.choice([base for base in fit if base.name != ORBAX])
    while True:
        note, files = maker(rng, base)
        if any(files[name] != base.files.get(name) for name in files):
            return Case(kind, base.name, note, files)


# How each kind is made, and its weight in the draw.
KINDS: dict[str, tuple[Maker, int]] = {
    "header, bytes": (header_bytes, 24),
    "header, length": (header_length, 6),
    "header, entries": (header_entry, 24),
    "header, whole": (header_whole, 6),
    "header, metadata": (header_metadata, 4),
    "file, size": (file_size, 6),
    "index, entries": (index_entries, 8),
    "index, bytes": (index_bytes, 6),
    "index, whole": (index_whole, 4),
    "config, values": (config_values, 6),
    "config, bytes": (config_bytes, 3),
    "config, whole": (config_whole, 1),
    f"{ORBAX}, bytes": (orbax_bytes, 1),
    f"{ORBAX}, whole": (orbax_whole, 1),
    f"{ORBAX}, JSON": (orbax_json, 1),
    SWAP: (equal_sizes, 2),
}
