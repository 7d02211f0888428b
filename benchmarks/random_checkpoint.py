"""Writes a full-size random Video-LLaVA in the hub's layout: 7,366,279,168 parameters in bfloat16, 14.7 GB.

    python benchmarks/random_checkpoint.py out/7b
    python benchmarks/random_checkpoint.py out/7b --layers 2      # fewer layers, to try things

With it, conversion, memory and speed can be measured at full size without downloading weights. Matrices are drawn from
N(0, 0.02²), as transformers initialises them; norms are 1, biases 0; the seed is fixed.
"""

import argparse
import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from videollava_jax.config import ModelConfig
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import LAYOUTS
from videollava_jax.weights.writing import write_safetensors_directory

SHARD_BYTES = 5 * 10**9  # like the checkpoint on the hub
BLOCK = 2**22


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", type=int, default=32, help="of the decoder; default: %(default)s")
    arguments = parser.parse_args()
    config = ModelConfig()
    config = dataclasses.replace(
        config, text_config=dataclasses.replace(config.text_config, num_hidden_layers=arguments.layers)
    )
    arguments.target.mkdir(parents=True, exist_ok=True)

    # Each tensor is drawn while the previous one is being written.
    names = LAYOUTS["hub"]
    tensors = [
        tensor(names.from_ours(name), shape, arguments.target) for name, shape in parameter_shapes(config).items()
    ]
    size = sum(t.size for t in tensors)
    print(f"{size:,} parameters, {sum(t.nbytes for t in tensors) / 1e9:.1f} GB")
    write_safetensors_directory(arguments.target, tensors, drawn(tensors), max_shard_bytes=SHARD_BYTES)
    (arguments.target / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n")


def tensor(name: str, shape: tuple[int, ...], directory: Path) -> StoredTensor:
    """Returns a tensor that is drawn when it is read."""
    dtype = np.dtype(ml_dtypes.bfloat16)
    return StoredTensor(name, shape, dtype, directory, lambda: values(name, shape))


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws a tensor, bfloat16; the name is the seed."""
    if len(shape) == 1 and "class_embedding" not in name:
        return np.full(shape, 0 if name.endswith("bias") else 1, ml_dtypes.bfloat16)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    flat = np.empty(int(np.prod(shape)), ml_dtypes.bfloat16)
    for start in range(0, len(flat), BLOCK):
        part = flat[start : start + BLOCK]
        part[:] = 0.02 * rng.standard_normal(len(part), np.float32)
    return flat.reshape(shape)


def drawn(tensors: list[StoredTensor]) -> Iterator[np.ndarray]:
    """Draws the tensors one after the other, with a progress bar."""
    for stored in tqdm(tensors, unit="tensor"):
        yield stored.read()


if __name__ == "__main__":
    main()
