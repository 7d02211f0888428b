"""The structure of a module as a static argument of compiled functions, hashed once.

Every call of a compiled function hashes its static arguments, and flax hashes a `GraphDef` node by node: 0.8 ms for the
tiny model, as long as a few steps of its decoder take, and more the more layers there are.
"""

from __future__ import annotations

from typing import Any

from flax import nnx


class HashedGraph(nnx.GraphDef):  # type: ignore[type-arg]
    """A `GraphDef` that remembers its hash; equal to one of flax's own that has the same nodes."""

    __slots__ = ("_hash",)
    _hash: int

    @classmethod
    def of(cls, graph: Any) -> HashedGraph:
        """Returns the same structure, hashed."""
        made = cls(nodes=graph.nodes, attributes=graph.attributes, num_leaves=graph.num_leaves)
        object.__setattr__(made, "_hash", hash(graph))
        return made

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, nnx.GraphDef):
            return NotImplemented
        same = (self.nodes, self.attributes, self.num_leaves) == (other.nodes, other.attributes, other.num_leaves)
        return bool(same)
