"""The drawn world as a task: the tiny model's clips and images with their questions, in each task's published form.

It is the test data of every reader and scorer, and a task that the tiny model was trained for. A seed determines all of
it: `write` makes the same files wherever it runs.
"""

from pathlib import Path

from videollava_jax.evaluation.tasks import TASKS
from videollava_jax.evaluation.world import images, videos
from videollava_jax.evaluation.world.drawing import Writer

__all__ = ["write"]


def write(task: str, root: Path, media: int = 8, seed: int = 0) -> None:
    """Writes the drawn world as a task's data.

    Args:
      task: a name in `TASKS`.
      root: the directory; it is made.
      media: how many clips or images.
      seed: of the first one, from 0; clips and images that the tiny model has not seen.

    Raises:
      ValueError: the task is unknown, or files are there that would be overwritten.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if not 1 <= media <= 100_000 or not 0 <= seed <= 800_000:
        raise ValueError(f"expected 1 to 100000 clips or images and a seed from 0 to 800000, got {media} and {seed}")
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root}: expected an empty directory, or none, to write the drawn world into")
    clips = task in videos.WRITERS
    (videos if clips else images).WRITERS[task](Writer(root, clips, range(seed, seed + media)))
