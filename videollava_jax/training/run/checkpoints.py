"""What a run goes on from, kept by Orbax: parameters, moments, counts, and where it is in its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from videollava_jax.training.update.step import TrainState

STATE, NOTES = "state", "notes"


class Checkpoints:
    """The checkpoints of a run, by step. They are written while training goes on, and appear whole or not at all.

    An older one is deleted when the next is whole, so that from the first one on there is always one to go on from.

    Args:
      directory: of the checkpoints alone; made if it is not there.
      keep: how many stay, the latest ones.
    """

    def __init__(self, directory: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The last step that is whole; None for none."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: TrainState, notes: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint, and returns when the state may be changed again.

        Args:
          notes: what else a run goes on from, for JSON.

        Raises:
          OSError, ValueError: the last one was not written; as `require_written`.
        """
        if step in self._manager.all_steps():
            return
        tree = ocp.args.StandardSave(_tree(state))
        self._manager.save(step, args=ocp.args.Composite(**{STATE: tree, NOTES: ocp.args.JsonSave(dict(notes))}))

    def require_written(self) -> None:
        """Raises what has gone wrong in the background since the last call."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written, and raises what has gone wrong."""
        self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step, and its notes.

        Args:
          like: a state of the same shapes, where the new one is to be; arrays or abstract ones.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),  # type: ignore[no-untyped-call]
            _tree(like),
        )
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{STATE: ocp.args.StandardRestore(abstract), NOTES: ocp.args.JsonRestore()},
            ),
        )
        return TrainState(**found[STATE]), dict(found[NOTES])

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
