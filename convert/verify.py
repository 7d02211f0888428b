"""Compares two checkpoints in any layouts, tensor by tensor, and on request what the two models say.

    python convert/verify.py Video-LLaVA-7B-hf 7b-orbax
    python convert/verify.py Video-LLaVA-7B-hf 7b-int8 --logits

With `--logits` both models are loaded, one after the other, and run on one fixed prompt with a fixed image and a
fixed clip; the difference of their logits is printed. `videollava verify` does the same.
"""

import argparse
from pathlib import Path

from videollava_jax.generation.comparing import compare_logits
from videollava_jax.weights import compare_checkpoints, open_checkpoint


def main() -> None:
    """Compares two checkpoints; the exit status is 1 if they differ."""
    arguments = parse_arguments()

    compared = compare_checkpoints(open_checkpoint(arguments.first), open_checkpoint(arguments.second))
    print(f"{compared.equal} tensors are equal to the bit, {len(compared.differences)} are not")
    for difference in compared.differences:
        print(f"  {difference.name}: {difference.what} {difference.detail}")

    if arguments.logits:
        print(compare_logits(arguments.first, arguments.second, dtype=arguments.dtype))
    raise SystemExit(bool(compared.differences))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--logits", action="store_true", help="compare the logits of the two models, too")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="to run both in, with --logits")
    return parser.parse_args()


if __name__ == "__main__":
    main()
