"""Converts a Video-LLaVA checkpoint in one of transformers' layouts to an Orbax directory, tensor by tensor.

    python convert/hf_to_orbax.py Video-LLaVA-7B-hf 7b-orbax
    python convert/hf_to_orbax.py Video-LLaVA-7B-hf 7b-int8 --int8

The source is a directory with config.json and *.safetensors (or pytorch_model*.bin, which needs torch) in any of
transformers' layouts: as on the hub, as 5.x saves them, or as in memory; the tensors' names say which. Peak
memory is a few groups of 256 MB, whatever the size of the checkpoint. `videollava convert` does the same.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

from videollava_jax.weights import Options, convert_to_orbax, verify_checkpoint


def main() -> None:
    """Converts SOURCE and reads TARGET back; the exit status is 1 if it differs."""
    arguments = parse_arguments()

    # 1. Open, check every name, shape and dtype against config.json, and stream into TARGET.
    dtype = None if arguments.dtype is None else jnp.dtype(arguments.dtype)
    done = convert_to_orbax(arguments.source, arguments.target, Options(dtype=dtype, int8=arguments.int8))
    print(f"{done.source.layout} to orbax: {len(done.tensors)} tensors, {done.size:,} parameters")

    # 2. Read back what was written: every tensor still has the hash that it had when it was read.
    if not arguments.no_verify:
        problems = verify_checkpoint(arguments.target)
        print("\n".join(problems) or "verified: every bit is as it was read")
        raise SystemExit(bool(problems))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="must not exist, or hold exactly this already")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the source's")
    parser.add_argument("--int8", action="store_true", help="the decoder's projections in int8")
    parser.add_argument("--no-verify", action="store_true", help="do not read the target back")
    return parser.parse_args()


if __name__ == "__main__":
    main()
