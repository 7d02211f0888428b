"""The parts of `make faults`: what is tried, and where.

A part is a function of a module in this folder:

    def part(seed: int, scale: float) -> list[Tally]:
        '''Tries `1000 * scale` of …; returns a row for each kind.'''

It draws everything from the seed, tries more or fewer inputs by the scale (1 is what `make faults` takes, 0.05 what a
test takes), counts each outcome with `Tally.add`, and leaves no process and no file behind. It runs in a process of
its own, so it may set limits and variables. Its row of the table here is a `Part` in `PARTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from tests.faults.tables import Tally


def function_of(module: str, function: str) -> Callable[[int, float], list[Tally]]:
    """Imports a part's function from a module of this folder."""
    found: Callable[[int, float], list[Tally]] = getattr(import_module(f"tests.faults.{module}"), function)
    return found


@dataclass(frozen=True)
class Part:
    """A part of `make faults`.

    Attributes:
      name: for `--only`, and the first column of the table.
      tries: what it does, in a few words for the table.
      module: of `tests.faults`.
      function: of the module.
      minutes: after which it hangs, at scale 1; three times what it takes on a quiet machine.
    """

    name: str
    tries: str
    module: str
    function: str = "part"
    minutes: float = 10

    def load(self) -> Callable[[int, float], list[Tally]]:
        """Imports the part's function."""
        return function_of(self.module, self.function)


PARTS = (
    Part("media", "changed media files, read in process", "media"),
    Part("attacks", "files that would take minutes or gigabytes, on every path", "attacks", minutes=20),
    Part("media-job", "a job about good and hostile media, in worker processes", "media_job"),
    Part("flips", "one bit flipped in what `convert` and `export` wrote", "flips"),
    Part("checkpoints", "changed headers, indexes and configurations of checkpoints", "fuzzing"),
    Part("conversions", "conversions killed at any step, and two at once", "interruptions"),
    Part("disks", "conversions onto full disks and into closed places", "disks"),
    Part("io", "every write, sync, rename of a job or a checkpoint failing in its turn", "failing_io", minutes=20),
    Part("configs", "configurations with odd values", "configs"),
    Part("lines", "lines of jobs that may say anything", "lines"),
    Part("prompts", "conversations that may say anything", "prompts"),
    Part("workers", "replies of a worker that was taken over", "workers"),
    Part("downloads", "hosts that answer anything", "downloads"),
    Part("jobs", "batch jobs killed at any moment", "batch"),
    Part("server", "dropped connections, odd bodies", "serving"),
    Part("processes", "each process of each kind of run killed, stopped, stopped for 5 s", "signals", minutes=40),
    Part("training", "fine-tuning killed and stopped at any step", "training", minutes=20),
)
