"""Converts the authors' checkpoint (PKU-YuanGroup/Video-LLaVA) to an Orbax directory, temporal attention included.

    python convert/pku_to_orbax.py Video-LLaVA-7B 7b-original
    python convert/pku_to_orbax.py Video-LLaVA-7B 7b-original --tower-config LanguageBind_Video_merge/config.json

The public conversion to transformers drops the video tower's attention over time, 264 tensors; here they are kept,
and the model is of variant `original`. What the authors' config.json does not say about the towers is taken from the
weights' shapes (heads of 64), or from LanguageBind's own config.json. Their vocabulary has no rows for the tokens of
media and padding: they are filled with the mean row, and `videollava export --layout pku` drops them again.
"""

import argparse
from pathlib import Path

from videollava_jax.weights import convert_to_orbax, open_checkpoint, verify_checkpoint
from videollava_jax.weights.layouts import TEMPORAL


def main() -> None:
    """Shows what SOURCE is, converts it and reads TARGET back; the exit status is 1 if it differs."""
    arguments = parse_arguments()

    # 1. What is it? Everything is checked before anything is written.
    source = open_checkpoint(arguments.source, arguments.tower_config)
    temporal = [name for name in source.tensors if TEMPORAL in name]
    tower = source.config.vision_config
    print(f"layout {source.layout}: {len(source.tensors)} tensors, {len(temporal)} of them attention over time")
    print(f"towers: {tower.num_hidden_layers} layers of {tower.hidden_size}, {tower.num_attention_heads} heads")

    # 2. Stream it over, and read it back.
    convert_to_orbax(source, arguments.target)
    problems = verify_checkpoint(arguments.target)
    print("\n".join(problems) or "verified: every bit is as it was read")
    raise SystemExit(bool(problems))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="must not exist, or hold exactly this already")
    parser.add_argument("--tower-config", type=Path, help="LanguageBind's config.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
