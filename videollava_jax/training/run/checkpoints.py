"""Checkpoints of a run, written by Orbax: parameters, moments, counts, and the position in the data."""

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

    An old checkpoint is deleted only after a newer one is complete, so that there is always one to go on from.

    Args:
      directory: for the checkpoints and nothing else; made where it does not exist.
      keep: the number of latest checkpoints that stay.
    """

    def __init__(self, directory: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the last complete checkpoint; None where there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: TrainState, notes: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint, and returns when the state may be changed again.

        Args:
          notes: everything else that a run needs to go on, for JSON.

        Raises:
          OSError, ValueError: the previous checkpoint could not be written.
        """
        if step in self._manager.all_steps():
            return
        tree = ocp.args.StandardSave(_tree(state))
        self._manager.save(step, args=ocp.args.Composite(**{STATE: tree, NOTES: ocp.args.JsonSave(dict(notes))}))

    def require_written(self) -> None:
        """Raises the error of a write in the background, if one has failed since the last call."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written, and raises the error of a write that failed."""
        self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Loads the state of a step, and its notes.

        Args:
          like: a state with the shapes, dtypes and shardings to load; arrays, or `ShapeDtypeStruct`s.
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
        """Waits until everything is written, and ends the writing threads."""
        self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
