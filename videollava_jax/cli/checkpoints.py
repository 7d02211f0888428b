"""`videollava convert`, `export` and `verify`: checkpoints from one layout to another, and compared."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from videollava_jax.cli.common import DTYPES, begin_command, print_json
from videollava_jax.cli.errors import UsageError

if TYPE_CHECKING:
    from videollava_jax.weights import Conversion, Options


def add_convert(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `convert`."""
    begin_command(
        made,
        convert,
        "SOURCE is in any of transformers' layouts (as on the hub, as 5.x saves them, as in memory) or in\n"
        "the authors' own, temporal attention included; the names of its tensors say which. TARGET appears whole or\n"
        "not at all, with a SHA-256 for each tensor in its manifest.json.\n\n"
        "  videollava convert LanguageBind/Video-LLaVA-7B-hf 7b-orbax     fetched from the Hugging Face hub\n"
        "  videollava convert Video-LLaVA-7B-hf 7b-orbax --dtype bfloat16\n"
        "  videollava convert my-lora 7b-mine --base Video-LLaVA-7B-hf    an adapter, merged",
    )
    _add_conversion_arguments(made)
    made.add_argument(
        "--base",
        metavar="CHECKPOINT",
        help="SOURCE is an adapter (PEFT's, the authors' LoRA or mm_projector.bin): merge it into this checkpoint",
    )
    made.add_argument(
        "--int8",
        action="store_true",
        help="store the decoder's projections in int8, with a scale for each output channel",
    )
    made.add_argument(
        "--tower-config",
        type=Path,
        metavar="CONFIG_JSON",
        help="LanguageBind's config.json, for a checkpoint of the authors'; default: read off the weights' shapes",
    )


def convert(arguments: argparse.Namespace) -> None:
    """Converts SOURCE to an Orbax directory and prints what was written."""
    from videollava_jax.weights import convert_to_orbax

    started = time.perf_counter()
    done = convert_to_orbax(
        _find(arguments.source),
        arguments.target,
        _conversion_options(arguments),
        tower_config=arguments.tower_config,
        base=None if arguments.base is None else _find(arguments.base),
    )
    _report_conversion(arguments, done, time.perf_counter() - started)


def add_export(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `export`."""
    begin_command(
        made,
        export,
        "SOURCE is what `videollava convert` wrote, or a checkpoint in any other known layout. An adapter is\n"
        "written as an adapter again, for PEFT.\n\n"
        "  videollava export 7b-orbax 7b-hf\n"
        "  videollava export 7b-orbax 7b-pku --layout pku\n"
        "  videollava export 7b-orbax 7b-mine --adapter my-lora",
    )
    _add_conversion_arguments(made)
    made.add_argument(
        "--layout",
        default="hub",
        metavar="NAME",
        help="of names: hub as on the hub, hf5 as transformers 5 saves, memory as it holds them, pku the authors'; "
        "default: %(default)s",
    )
    made.set_defaults(int8=False)
    made.add_argument("--adapter", metavar="ADAPTER", help="merge this adapter into SOURCE on the way")
    made.add_argument(
        "--drop-temporal",
        action="store_true",
        help="leave out the video tower's attention over time, which transformers cannot hold",
    )


def export(arguments: argparse.Namespace) -> None:
    """Writes SOURCE as safetensors and prints what was written.

    Raises:
      ValueError: SOURCE is an adapter, and an option that does not apply to adapters is given.
    """
    from videollava_jax.weights import export
    from videollava_jax.weights.adapters import is_adapter, open_adapter, write_peft

    started = time.perf_counter()
    source = _find(arguments.source)
    if is_adapter(source):  # kept apart: an adapter again, for PEFT
        for option in ("dtype", "allow_nonfinite", "drop_temporal", "adapter"):
            if getattr(arguments, option):
                flag = "--" + option.replace("_", "-")
                raise ValueError(f"{arguments.source}: an adapter is written unchanged: {flag} does not apply to it")
        adapter = open_adapter(source)
        written = write_peft(adapter, arguments.target, arguments.layout)
        summary = {"source": str(arguments.source), "target": str(arguments.target), "tensors": len(written)}
        if arguments.json:
            print_json({**summary, "from": adapter.layout, "to": arguments.layout})
        else:
            print(f"adapter of {len(written)} tensors, {adapter.layout} to {arguments.layout}\n{arguments.target}")
        return
    done = export(
        source,
        arguments.target,
        arguments.layout,
        _conversion_options(arguments),
        drop_temporal=arguments.drop_temporal,
        adapter=None if arguments.adapter is None else _find(arguments.adapter),
    )
    _report_conversion(arguments, done, time.perf_counter() - started)


def add_verify(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `verify`."""
    begin_command(
        made,
        verify,
        "With one argument, the files and tensors are hashed and compared with manifest.json. With two, the\n"
        "tensors of two checkpoints in any layouts are compared, bit by bit, and what differs is listed.\n\n"
        "  videollava verify 7b-orbax\n"
        "  videollava verify 7b-orbax Video-LLaVA-7B-hf --logits",
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT")
    made.add_argument("other", nargs="?", metavar="OTHER")
    made.add_argument(
        "--fast", action="store_true", help="with one: files, names, shapes and dtypes, no tensor is read"
    )
    made.add_argument("--logits", action="store_true", help="with two: run both on a fixed prompt, too")
    made.add_argument("--dtype", choices=DTYPES, help="to run both in, with --logits; default: each in its own")


def verify(arguments: argparse.Namespace) -> None:
    """Compares CHECKPOINT with its manifest, or with OTHER.

    Raises:
      WeightsError: they differ, or cannot be opened.
      UsageError: an option does not go with the number of checkpoints.
    """
    from videollava_jax.weights import WeightsError, compare_checkpoints, open_checkpoint, verify_checkpoint

    if arguments.other is None and (arguments.logits or arguments.dtype):
        raise UsageError("--logits and --dtype: expected two checkpoints to compare, got one")
    if arguments.other is not None and arguments.fast:
        raise UsageError("--fast: expected one checkpoint, got two")
    if arguments.dtype and not arguments.logits:
        raise UsageError("--dtype: expected --logits, the only thing that it applies to")
    checkpoint = _find(arguments.checkpoint)
    if arguments.other is None:
        problems = verify_checkpoint(checkpoint, "fast" if arguments.fast else "full")
        if arguments.json:
            print_json({"checkpoint": str(arguments.checkpoint), "problems": problems})
        if problems:
            raise WeightsError(f"{arguments.checkpoint} differs from its manifest:\n  " + "\n  ".join(problems))
        if not arguments.json:
            print(f"{arguments.checkpoint} is what its manifest says")
        return
    other = _find(arguments.other)
    compared = compare_checkpoints(open_checkpoint(checkpoint), open_checkpoint(other))
    lines = [f"{d.name}: {d.what}{f' ({d.detail})' if d.detail else ''}" for d in compared.differences]
    record = {"equal": compared.equal, "differences": [dataclasses.asdict(d) for d in compared.differences]}
    said = [f"{compared.equal} tensors are equal to the bit, {len(lines)} are not"]
    if arguments.logits:
        from videollava_jax.generation.comparing import compare_logits

        apart = compare_logits(checkpoint, other, dtype=arguments.dtype)
        record["logits"] = dataclasses.asdict(apart)
        said.append(str(apart))
    if arguments.json:
        print_json(record)
    else:
        print("\n".join(said))
    if lines:
        raise WeightsError(f"{arguments.checkpoint} and {arguments.other} differ:\n  " + "\n  ".join(lines))


def _find(name: str) -> Path:
    """Returns the directory of a checkpoint or an adapter, fetched if it is a name on the hub."""
    from videollava_jax.hub import Wanted, find_model

    return find_model(name, Wanted.WEIGHTS)


def _add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a directory, or a name on the Hugging Face hub")
    parser.add_argument("target", type=Path, metavar="TARGET", help="must not exist, or hold exactly this already")
    parser.add_argument("--dtype", choices=DTYPES, help="of the tensors written; default: the source's")
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="let NaN and infinity pass, instead of counting them in an error"
    )


def _conversion_options(arguments: argparse.Namespace) -> Options:
    import jax.numpy as jnp

    from videollava_jax.weights import Options

    dtype = None if arguments.dtype is None else jnp.dtype(arguments.dtype)
    return Options(dtype=dtype, int8=arguments.int8, allow_nonfinite=arguments.allow_nonfinite)


def _report_conversion(arguments: argparse.Namespace, done: Conversion, seconds: float) -> None:
    summary = {
        "source": str(arguments.source),
        "target": str(arguments.target),
        "from": done.source.layout,
        "to": done.layout,
        "variant": done.source.config.variant,
        "tensors": len(done.tensors),
        "parameters": done.size,
        "bytes": done.nbytes,
        "already_there": done.already_there,
        "seconds": round(seconds, 3),
    }
    if arguments.json:
        print_json(summary)
        return
    what = "nothing to do: the target holds it already" if done.already_there else f"{seconds:.1f} s"
    print(
        f"{len(done.tensors)} tensors, {done.size:,} parameters, {done.nbytes / 1e9:.3f} GB, "
        f"{done.source.layout} to {done.layout}: {what}\n{arguments.target}"
    )
