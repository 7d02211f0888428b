"""Makes a model, or an adapter, of what a run of `train/finetune.py` has learnt.

    python train/export.py runs/mine mine-hf                  the model with it, as transformers loads it
    python train/export.py runs/mine mine-hf --layout orbax   the same, as a directory of ours
    python train/export.py runs/mine mine-lora --adapter      what was trained alone, for PEFT

One machine without an accelerator does. The model that the run began with is needed for the first two; where it has
moved, `--model` says where to.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from videollava_jax.processing.prompt import get_template
from videollava_jax.processing.tokenizer import read_json
from videollava_jax.training.run.base_model import model_directory
from videollava_jax.training.run.export import learnt
from videollava_jax.training.run.run_directory import recipe_of
from videollava_jax.weights import Options, convert_to_orbax, export
from videollava_jax.weights.adapters import write_peft

PROCESSOR = "processor_config.json"


def main() -> None:
    arguments = parse_arguments()
    recipe = recipe_of(arguments.run)
    found = learnt(arguments.run, recipe, arguments.step)
    if arguments.adapter:
        layout = arguments.layout or "memory"
        written = write_peft(found, arguments.target, layout)
        print(f"an adapter of {len(written)} tensors, with the names of layout {layout}: {arguments.target}")
        return
    base = model_directory(arguments.model or recipe.model)
    options = Options(files=prompt_files(base, recipe.data.template))
    if arguments.layout == "orbax":
        done = convert_to_orbax(found, arguments.target, options, base=base)
    else:
        done = export(base, arguments.target, arguments.layout or "hub", options, adapter=found)
    told = f"{len(done.tensors)} tensors in layout {done.layout}"
    print(f"{base} with what {arguments.run} has learnt, {told}: {arguments.target}")


def prompt_files(base: Path, template: str | None) -> dict[str, bytes]:
    """What tells a processor to write prompts as the run did, here and in transformers; nothing for the model's own."""
    if template is None:
        return {}
    settings = {**(read_json(base / PROCESSOR) or {}), "prompt_template": template}
    jinja = get_template(template).to_jinja()
    return {PROCESSOR: json.dumps(settings, indent=2).encode() + b"\n", "chat_template.jinja": jinja.encode()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("target", type=Path, help="must not exist")
    parser.add_argument("--adapter", action="store_true", help="what was trained alone, for PEFT")
    parser.add_argument(
        "--layout",
        choices=("hub", "hf5", "memory", "memory4", "pku", "orbax"),
        help="names of the tensors (hub for a model, memory for an adapter: what transformers 5 calls them)",
    )
    parser.add_argument("--step", type=int, help="of the checkpoint (the last one)")
    parser.add_argument("--model", help="where the model lies that the run began with (where its recipe says)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"export: {error}")
