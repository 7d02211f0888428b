"""Checkpoints of a run, written by Orbax: parameters, moments, counts, and the position in the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from videollava_jax.training.update.step import TrainState
from videollava_jax.weights.orbax_errors import OrbaxErrors, ignore_closed_loops, ignore_logged_errors

STATE, NOTES = "state", "notes"
_NO_LIMIT = 10**8
"""Seconds: three years. The run's own watchdog ends a run that does nothing."""


class Checkpoints:
    """The checkpoints of a run, by step. They are written while training goes on, and appear whole or not at all.

    An old checkpoint is deleted only after a newer one is complete, so that there is always one to go on from.

    Args:
      directory: for the checkpoints and nothing else; made where it does not exist.
      keep: the number of latest checkpoints that stay.
    """

    def __init__(self, directory: Path, keep: int = 2):
        # Orbax measures its time limit by the wall clock, which may be set; where no other process is waited for,
        # there is none.
        limit = {"timeout_secs": _NO_LIMIT} if jax.process_count() == 1 else {}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            # Made by threads, a directory that cannot be made keeps the threads that write into it for five minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False, **limit),
        )
        self._directory = directory.absolute()
        ignore_closed_loops()
        ignore_logged_errors()
        with self._writing():
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def _writing(self) -> OrbaxErrors:
        return OrbaxErrors(self._directory, "write")

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
          WeightsError: this checkpoint or the previous one could not be written.
        """
        if step in self._manager.all_steps():
            return
        tree = ocp.args.StandardSave(_tree(state))
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**{STATE: tree, NOTES: ocp.args.JsonSave(dict(notes))}))

    def require_written(self) -> None:
        """Raises the error of a write in the background, if one has failed since the last call: a WeightsError."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written, and raises the error of a write that failed: a WeightsError."""
        with self._writing():
            self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Loads the state of a step, and its notes.

        Args:
          like: a state with the shapes, dtypes and shardings to load; arrays, or `ShapeDtypeStruct`s.

        Raises:
          WeightsError: Orbax cannot read it.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),  # type: ignore[no-untyped-call]
            _tree(like),
        )
        with OrbaxErrors(self._directory / str(step)):
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{STATE: ocp.args.StandardRestore(abstract), NOTES: ocp.args.JsonRestore()},
                ),
            )
        return TrainState(**found[STATE]), dict(found[NOTES])

    def close(self) -> None:
        """Waits until everything is written, and ends the writing threads."""
        with self._writing():
            self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
