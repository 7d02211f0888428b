"""Writes an Orbax directory as safetensors that transformers loads.

    python convert/orbax_to_hf.py 7b-orbax 7b-hf
    python convert/orbax_to_hf.py 7b-original 7b-hf --drop-temporal

Names are the hub's unless `--layout` says otherwise; files of up to 5 GB with an index. A model of variant
`original` has attention over time in its video tower, which transformers cannot hold: it is refused without
`--drop-temporal`. `videollava export` does the same, and `--layout pku` writes the authors' names.
"""

import argparse
from pathlib import Path

from videollava_jax.weights import LAYOUTS, compare_checkpoints, export, open_checkpoint


def main() -> None:
    """Writes TARGET and compares it with SOURCE."""
    arguments = parse_arguments()
    done = export(arguments.source, arguments.target, arguments.layout, drop_temporal=arguments.drop_temporal)
    print(f"orbax to {done.layout}: {len(done.tensors)} tensors, {done.size:,} parameters")

    # Both are read once more and compared: they may differ in what was dropped, and in nothing else.
    compared = compare_checkpoints(open_checkpoint(arguments.source), open_checkpoint(arguments.target))
    print(f"{compared.equal} tensors are equal to the bit")
    for difference in compared.differences:
        print(f"  {difference.name}: {difference.what} {difference.detail}")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="must not exist, or hold exactly this already")
    parser.add_argument("--layout", choices=[name for name in LAYOUTS if name != "pku"], default="hub")
    parser.add_argument("--drop-temporal", action="store_true", help="leave out the video tower's attention over time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
