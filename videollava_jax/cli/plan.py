"""`videollava plan`: plans a job on chips that are not here."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from videollava_jax.cli.common import add_int8_arguments, argument_type, begin_command, pair, print_json
from videollava_jax.cli.errors import UsageError
from videollava_jax.generation.kinds import number, whole

_POSITIVE = argument_type(number(0, 1e6, above=True))


def add_plan(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `plan`."""
    count = argument_type(whole(1))
    begin_command(
        made,
        plan,
        "Compiles the engine's programs for TPUs or GPUs with their real compiler, which needs none of them. Prints\n"
        "memory, traffic, collectives, the largest batch, and the throughput if every program takes the least time\n"
        "that its operations and bytes allow. Takes minutes for the 7B model. Without the GPU compiler, which is in\n"
        "jax[cuda12], the throughput of GPUs is arithmetic alone.\n\n"
        "  videollava plan --topology v5e:2x4 --questions 25\n"
        "  videollava plan --topology h200 --job msvd --simulate --arithmetic\n"
        "  videollava plan --topology h100:8 --job caption --int8-weights\n"
        "  videollava plan --topology v5p:2x2x4 --train paper_finetune --mesh 8x2",
    )
    made.add_argument(
        "--topology", required=True, metavar="CHIPS", help="v5e:2x4, v6e:2x4, v5p:2x2x2, v5e:16x16, h100:8, h200, ..."
    )
    made.add_argument(
        "--train",
        metavar="RECIPE",
        help="plan a step of fine-tuning instead of a job: a recipe's name or YAML file, as `finetune --config`",
    )
    made.add_argument(
        "--job",
        type=_job,
        default=("qa", None),
        metavar="{qa,caption,msvd,activitynet,server:RATE}",
        help="msvd, activitynet: the shapes of these data sets; server: RATE requests a second; default: qa",
    )
    made.add_argument("--questions", type=count, metavar="N", help="about each video; default: 25, or the job's own")
    made.add_argument(
        "--question-tokens", type=count, default=50, metavar="N", help="of a question; default: %(default)s"
    )
    made.add_argument("--answer-tokens", type=count, metavar="N", help="of an answer; default: 10, for captions 256")
    made.add_argument("--frames", type=count, default=8, metavar="N", help="of each video; default: 8")
    made.add_argument("--pool", type=count, default=1, metavar="K", help="as `ask --pool`; default: none")
    made.add_argument(
        "--mesh", type=pair, metavar="DATAxTENSOR", help="default: the fewest chips per copy that leave room for caches"
    )
    made.add_argument(
        "--grid",
        type=pair,
        metavar="PREFIXESxROWS",
        help="default: both the grid that the engine chooses and the largest that fits",
    )
    made.add_argument(
        "--programs",
        nargs="+",
        choices=("encode", "prefill", "begin", "decode"),
        default=("encode", "prefill", "begin", "decode"),
        help="programs to compile; the throughput needs all four, which is the default",
    )
    made.add_argument(
        "--simulate",
        nargs="?",
        const="",
        metavar="FILE",
        help="run the engine's schedule on a simulated clock: over the lines of a file as `videollava batch` takes it, "
        "or over questions drawn for --job",
    )
    made.add_argument(
        "--readers", type=count, default=4, metavar="N", help="host cores that read media in a simulation; default: 4"
    )
    made.add_argument(
        "--media-seconds",
        type=_POSITIVE,
        metavar="S",
        help="of a host core for each video in a simulation; default: as measured for the job's kind of video",
    )
    made.add_argument(
        "--arithmetic", action="store_true", help="compile nothing: the throughput that no engine exceeds"
    )
    add_int8_arguments(made)
    made.add_argument("--model", help="a directory or a name on the hub, for its config.json; default: the 7B model")
    made.add_argument("--variant", choices=("original", "hf"), help="of the video tower; default: the model's, or hf")


def _job(given: str) -> tuple[str, float | None]:
    """Parses --job: its name, and the rate of a server."""
    name, colon, rate = given.partition(":")
    if name == "server" and colon:
        return name, _POSITIVE(rate)
    if colon or name not in ("qa", "caption", "msvd", "activitynet"):
        raise argparse.ArgumentTypeError(
            f"expected qa, caption, msvd, activitynet or server:RATE such as server:20, got {given!r}"
        )
    return name, None


_OF_JOBS = {
    "--job": ("qa", None),
    "--questions": None,
    "--question-tokens": 50,
    "--answer-tokens": None,
    "--frames": 8,
    "--pool": 1,
    "--grid": None,
    "--int8-weights": False,
    "--int8-cache": False,
    "--arithmetic": False,
    "--simulate": None,
}
"""Options that a training step does not have, with their defaults."""


def plan(arguments: argparse.Namespace) -> None:
    """Prints the plan of a job, or of a training step."""
    from tqdm import tqdm

    from videollava_jax.config import ModelConfig, require_whole_windows
    from videollava_jax.costs.work import Job, Storage
    from videollava_jax.hub import Wanted, find_model

    if arguments.train is not None:
        _plan_training(arguments)
        return
    from videollava_jax.planning.plan import PROGRAMS, PlanRequest, make_plan
    from videollava_jax.planning.report import record, text
    from videollava_jax.planning.simulation import report as simulations
    from videollava_jax.planning.simulation.workload import shape_of

    name, rate = arguments.job
    caption = name == "caption"
    if caption and arguments.questions is not None:
        raise UsageError("--questions: expected --job qa; captions are asked for once a video")
    config = ModelConfig()
    if arguments.model is not None:
        config = ModelConfig.from_hf(find_model(arguments.model, Wanted.SIDE_FILES, bundled=True))
    if arguments.variant is not None:
        config = dataclasses.replace(config, variant=arguments.variant)
    require_whole_windows("--frames", arguments.frames, config.frame_window)
    job = Job(
        frames=arguments.frames,
        pooling=arguments.pool,
        questions=arguments.questions or shape_of(name).questions,
        question_tokens=arguments.question_tokens,
        answer_tokens=arguments.answer_tokens or (256 if caption else 10),
    )
    made = make_plan(
        PlanRequest(
            topology=arguments.topology,
            config=config,
            job=job,
            storage=Storage(int8_weights=arguments.int8_weights, int8_kv=arguments.int8_cache),
            mesh=arguments.mesh,
            grid=arguments.grid,
            arithmetic=arguments.arithmetic,
            programs=tuple(name for name in PROGRAMS if name in arguments.programs),
        ),
        lambda names: tqdm(names, "compiling", unit="program", disable=None),
    )
    simulation = None
    if arguments.simulate is not None or rate is not None:
        shape = shape_of(name, arguments.questions, arguments.media_seconds)
        file = Path(arguments.simulate) if arguments.simulate else None
        simulation = simulations.simulated(
            made, simulations.SimulationRequest(shape=shape, file=file, rate=rate, readers=arguments.readers)
        )
    if arguments.json:
        print_json(record(made) | ({} if simulation is None else {"simulated": simulations.record(simulation)}))
    else:
        print(text(made))
        if simulation is not None:
            print(f"\n{simulations.text(simulation)}")


def _plan_training(arguments: argparse.Namespace) -> None:
    """Prints the plan of a recipe's step."""
    from tqdm import tqdm

    from videollava_jax.config import ModelConfig
    from videollava_jax.hub import Wanted, find_model
    from videollava_jax.planning.training_plan import plan_training, record, text
    from videollava_jax.training.run.recipe import read_recipe

    for option, default in _OF_JOBS.items():
        if getattr(arguments, option.removeprefix("--").replace("-", "_")) != default:
            raise UsageError(f"{option}: no effect with --train; expected it in the recipe, if a recipe has it")
    # Neither is read, and many recipes leave them to the command line.
    unread = ["--model", "-", "--output", "-", "--data.train", "-"]
    recipe, _ = read_recipe(["--config", arguments.train, *unread], prog="videollava plan --train")
    config = ModelConfig(variant=recipe.data.preset or "hf")
    if arguments.model is not None:
        config = ModelConfig.from_hf(find_model(arguments.model, Wanted.SIDE_FILES, bundled=True))
    if arguments.variant is not None:
        config = dataclasses.replace(config, variant=arguments.variant)
    made = plan_training(
        arguments.topology,
        recipe,
        config,
        arguments.mesh,
        lambda names: tqdm(names, "compiling", unit="program", disable=None),
    )
    if arguments.json:
        print_json(record(made))
    else:
        print(text(made))
