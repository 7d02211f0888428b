"""`videollava convert`, `export`, `assemble` and `verify`: checkpoints from one layout to another, and compared."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.cli.common import DTYPES, argument_type, begin_command, print_json
from videollava_jax.cli.errors import UsageError
from videollava_jax.generation.kinds import whole

if TYPE_CHECKING:
    from videollava_jax.weights import Conversion, Options
    from videollava_jax.weights.files import StoredTensor


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
        "  videollava convert my-lora 7b-mine --base Video-LLaVA-7B-hf    an adapter, merged\n\n"
        "What the authors' scripts train starts from a language model and two towers, and goes back onto them:\n\n"
        "  videollava convert videollava-7b-lora 7b-lora --base lmsys/vicuna-7b-v1.5 \\\n"
        "    --image-tower LanguageBind/LanguageBind_Image --video-tower LanguageBind/LanguageBind_Video_merge",
    )
    _add_conversion_arguments(made)
    made.add_argument(
        "--base",
        metavar="CHECKPOINT",
        help="SOURCE is an adapter (PEFT's, the authors' LoRA or mm_projector.bin): merge it into this checkpoint, the "
        "one that its adapter_config.json or config.json names",
    )
    _add_trust_base(made)
    made.add_argument(
        "--projector",
        metavar="FILE",
        help="mm_projector.bin, for an adapter onto a language model that was trained with a frozen projector",
    )
    _add_towers(made, required=False)
    _add_int8(made)


def convert(arguments: argparse.Namespace) -> None:
    """Converts SOURCE to an Orbax directory and prints what was written.

    Raises:
      UsageError: an option is for adapters, and there is no --base.
    """
    from videollava_jax.weights import convert_to_orbax

    if arguments.base is None and (arguments.projector is not None or arguments.trust_base):
        raise UsageError(f"{'--projector' if arguments.projector else '--trust-base'}: expected an adapter, and --base")
    started = time.perf_counter()
    done = convert_to_orbax(
        _find(arguments.source),
        arguments.target,
        _conversion_options(arguments),
        tower_config=arguments.tower_config,
        base=_find_if_given(arguments.base),
        image_tower=_find_if_given(arguments.image_tower),
        video_tower=_find_if_given(arguments.video_tower),
        projector=arguments.projector,
        trust_base=arguments.trust_base,
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
    _add_trust_base(made)
    _add_drop_temporal(made)


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
        for option in ("dtype", "allow_nonfinite", "drop_temporal", "adapter", "trust_base"):
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
        adapter=_find_if_given(arguments.adapter),
        trust_base=arguments.trust_base,
    )
    _report_conversion(arguments, done, time.perf_counter() - started)


def add_assemble(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `assemble`."""
    begin_command(
        made,
        assemble,
        "The parts are a Llama in transformers' layout, two vision towers as LanguageBind publishes them (or a\n"
        "Video-LLaVA, whose towers are taken), and a projector between them: one that was trained, with the\n"
        "config.json next to it, or a new one that has learnt nothing, for the first stage of training. Parts are\n"
        "cast to the language model's dtype. The model is of variant original if the video tower attends over time.\n\n"
        "  videollava assemble 7b-start --llm lmsys/vicuna-7b-v1.5 --image-tower LanguageBind/LanguageBind_Image \\\n"
        "    --video-tower LanguageBind/LanguageBind_Video_merge --new-projector 0\n"
        "  videollava finetune --config pretrain --model 7b-start --output runs/pretrain\n\n"
        "  videollava assemble 7b-stage1 --llm lmsys/vicuna-7b-v1.5 --image-tower LanguageBind/LanguageBind_Image \\\n"
        "    --video-tower LanguageBind/LanguageBind_Video_merge --projector videollava-7b-pretrain/mm_projector.bin",
    )
    _add_target(made)
    made.add_argument("--llm", required=True, metavar="MODEL", help="the language model: a directory, or a hub name")
    _add_towers(made, required=True)
    projector = made.add_mutually_exclusive_group(required=True)
    projector.add_argument(
        "--projector", metavar="FILE", help="mm_projector.bin or .safetensors, or a directory with one"
    )
    projector.add_argument(
        "--new-projector", type=argument_type(whole(0)), metavar="SEED", help="draw a new one from this seed"
    )
    made.add_argument(
        "--projector-type",
        metavar="NAME",
        help="of a new one, in the authors' words: mlp2x_gelu, which is the default, another mlpNx_gelu, or linear",
    )
    made.add_argument(
        "--layout",
        default="orbax",
        metavar="NAME",
        help="orbax, or of safetensors: pku the authors', hub, hf5 and memory transformers'; default: %(default)s",
    )
    _add_drop_temporal(made)
    _add_int8(made)


def assemble(arguments: argparse.Namespace) -> None:
    """Joins the parts, writes TARGET and prints what was written.

    Raises:
      UsageError: an option does not go with the layout.
    """
    from videollava_jax.weights import convert_to_orbax, export
    from videollava_jax.weights.assembling import assemble, open_projector, open_towers

    orbax = arguments.layout == "orbax"
    if orbax and arguments.drop_temporal:
        raise UsageError("--drop-temporal: expected one of transformers' layouts (--layout hub, hf5 or memory)")
    if arguments.projector is not None and arguments.projector_type is not None:
        raise UsageError("--projector-type: expected --new-projector; a trained projector has its own")
    started = time.perf_counter()
    towers = open_towers(_find(arguments.image_tower), _find(arguments.video_tower), arguments.tower_config)
    projector: Mapping[str, StoredTensor] | int = arguments.new_projector
    settings: Mapping[str, Any] = {}
    if arguments.projector is not None:
        projector, settings = open_projector(arguments.projector)
    elif arguments.projector_type is not None:
        settings = {"mm_projector_type": arguments.projector_type}
    model = assemble(_find(arguments.llm), towers, projector, settings, keep_dtypes=arguments.dtype is not None)
    options = _conversion_options(arguments)
    if orbax:
        done = convert_to_orbax(model, arguments.target, options)
    else:
        drop = arguments.drop_temporal
        done = export(model, arguments.target, arguments.layout, options, drop_temporal=drop)
    arguments.source = arguments.llm
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


def _find_if_given(name: str | None) -> Path | None:
    return None if name is None else _find(name)


def _add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a directory, or a name on the Hugging Face hub")
    _add_target(parser)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="TARGET", help="must not exist, or hold exactly this already")
    parser.add_argument("--dtype", choices=DTYPES, help="of the tensors written; default: the source's")
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="let NaN and infinity pass, instead of counting them in an error"
    )


def _add_int8(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--int8",
        action="store_true",
        help="store the decoder's projections in int8, with a scale for each output channel",
    )


def _add_trust_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-base",
        action="store_true",
        help="merge although the adapter's files name another base: it is that model under another name",
    )


def _add_drop_temporal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drop-temporal",
        action="store_true",
        help="leave out the video tower's attention over time, which transformers cannot hold",
    )


def _add_towers(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds where the vision towers come from; without `required`, for models that lack them."""
    lacks = "" if required else ", for a base or a checkpoint without towers"
    for kind, published in (
        ("image", "LanguageBind/LanguageBind_Image"),
        ("video", "LanguageBind/LanguageBind_Video_merge"),
    ):
        parser.add_argument(
            f"--{kind}-tower",
            required=required,
            metavar="MODEL",
            help=f"the tower for {kind}s{lacks}: {published}, its directory, or a Video-LLaVA's",
        )
    parser.add_argument(
        "--tower-config",
        type=Path,
        metavar="CONFIG_JSON",
        help="LanguageBind's config.json, for towers without their own; default: read off the weights' shapes",
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
