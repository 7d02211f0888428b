"""Twenty steps of the authors' training code, as recorded, and what they were run on: parts of a model, mixed samples.

`steps.json` has by recipe the numbers of the samples in their order, the loss and the learning rates of each step, and
four numbers of each trained tensor after the last step, by our names. PKU-YuanGroup/Video-LLaVA at 984e65b gave them:
its `train()`, with transformers 4.31.0, peft 0.4.0, accelerate 0.21.0, torchvision 0.15.2 and decord 0.6.0, on torch
2.14.1 and a CPU. As in its scripts/v1_5, except for these:

    the parts and samples of this module; 2 samples on a device, 4 in a step; adapters of rank 8
    the projector of this module in stage 1 too
    `--max_grad_norm 0` instead of DeepSpeed, which clips nothing where its configuration names no norm
    float32, and no flips of videos, no dropout of adapters
    our order of samples and our first values of the adapters, instead of draws of torch
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests import authors
from tests.processing.llama_vocabulary import sentencepiece_model
from tests.weights.parts import Parts, without_media_rows, write_llama, write_tower
from videollava_jax.assets import MEDIA
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.model.video_llava import parameter_shapes

STEPS, BATCH, GROUP, RANK = 20, 4, 2, 8
IMAGES = (authors.WIDE, authors.TALL, MEDIA / "three-triangles.png")
CLIPS = (authors.CLIP, MEDIA / "circle-then-square.mp4", MEDIA / "rising-triangle.mp4")
WORDS = [
    "the", "red", "ball", "rolls", "past", "a", "blue", "box", "while", "two", "people", "talk", "about", "rain",
    "and", "football", "on", "a", "green", "hill",
]  # fmt: skip


def _pieces() -> list[str]:
    """A small vocabulary that splits `USER` into `US` and `ER` at any place, as Llama's does.

    Otherwise the authors' count of rounds fails at the second turn, and their code masks the whole sample.
    """
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    found = [chr(code) for code in range(33, 127)] + ["▁", "US", "ER", "▁US"]
    for word in WORDS:
        starts = [word[: i + 1] for i in range(1, len(word))]
        found += [piece for piece in (*starts, f"▁{word}") if piece not in found]
    return specials + found


PIECES = _pieces()
CONFIG = ModelConfig(
    vision_config=VisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1, image_size=224,
        hidden_act="gelu",
    ),
    text_config=TextConfig(
        vocab_size=len(PIECES) + 64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, pad_token_id=len(PIECES) + 2,
    ),
    variant="original",
    image_token_id=len(PIECES),
    video_token_id=len(PIECES) + 1,
)  # fmt: skip


def recorded() -> dict[str, dict[str, Any]]:
    """What `steps.json` holds, by the name of the recipe."""
    found: dict[str, dict[str, Any]] = json.loads((authors.HERE / "steps.json").read_text(encoding="utf-8"))
    return found


def write_parts(place: Path) -> Parts:
    """Writes a Llama, LanguageBind's two towers and a projector; every part matters, and logits are apart."""
    # Not `standard_normal`: NumPy keeps the bits of a generator the same in all versions, but not what it draws.
    bits = np.random.Philox(key=np.array([18, 0], np.uint64))
    drawn = {}
    for name, shape in parameter_shapes(CONFIG).items():
        uniform = (bits.random_raw(int(np.prod(shape))) >> np.uint64(11)) * 2.0**-52 - 1  # from -1 to 1
        std = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
        if name == "language_model.embed_tokens.weight":
            std = 1.0
        offset = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
        drawn[name] = (offset + 3**0.5 * std * uniform).astype(np.float32).reshape(shape)
    parameters = without_media_rows(CONFIG, drawn)
    parts = Parts(
        CONFIG, parameters, place / "vicuna", place / "LanguageBind_Image", place / "LanguageBind_Video_merge"
    )
    write_llama(parts.llm, CONFIG, parameters)
    (parts.llm / "tokenizer.model").write_bytes(sentencepiece_model(PIECES))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    (parts.llm / "tokenizer_config.json").write_text(json.dumps(settings))
    for kind, directory in (("image", parts.image_tower), ("video", parts.video_tower)):
        write_tower(directory, CONFIG, parameters, kind)
    return parts


def write_samples(place: Path) -> Path:
    """Writes samples in LLaVA's format with their media: of text, images, videos, and several media; returns the file.

    Those of `labels.json` are among them, with texts of every kind.
    """
    place.mkdir()
    for file in (*IMAGES, *CLIPS):
        shutil.copy(file, place)
    images, clips = [file.name for file in IMAGES], [file.name for file in CLIPS]
    entries: list[dict[str, Any]] = []
    for i, sample in enumerate(sample for sample in authors.samples() if sample["version"] == "v1"):
        entry = dict(sample["sample"])
        named = {"image": images, "video": clips}
        entries.append({**entry, **{kind: files[i % 3] for kind, files in named.items() if kind in entry}})
    for i in range(STEPS * BATCH - len(entries)):
        image, clip = images[i % 3], clips[(i // 3) % 3]
        media: dict[str, Any] = [
            {}, {"image": image}, {"video": clip}, {}, {"image": [image, images[(i + 1) % 3]]}, {"image": image}, {},
            {"video": clip, "image": image},
        ][i % 8]  # fmt: skip
        marker = "<video>" * ("video" in media)
        marker += "<image>" * (len(media["image"]) if isinstance(media.get("image"), list) else "image" in media)
        turns = []
        for turn in range(1 + i % 3):
            question, answer = _words(3 * i + turn, 4 + i % 9), _words(5 * i + turn, 2 + (7 * i + turn) % 23)
            turns.append(
                {"from": "human", "value": f"{marker}\n{question}?" if marker and not turn else f"{question}?"}
            )
            turns.append({"from": "gpt", "value": f"{answer}."})
        entries.append({**media, "conversations": turns})
    (place / "samples.json").write_text(json.dumps(entries))
    return place / "samples.json"


def places(size: int) -> list[int]:
    """The four places of a tensor of `size` numbers at which its values are recorded."""
    return [i * (size - 1) // 3 for i in range(4)]


def _words(first: int, count: int) -> str:
    return " ".join(WORDS[(first + 7 * i + i * i) % len(WORDS)] for i in range(count))


def arguments(name: str, directory: Path) -> list[str]:
    """The arguments of `videollava finetune` for a recipe; a directory has the model `start` and the data."""
    given = {
        "--model": "start",
        "--data.train": "data/samples.json",
        "--data.image_root": "data",
        "--data.video_root": "data",
        "--output": f"runs/{name}",
        "--data.batch": BATCH,
        "--data.loss_samples": GROUP,
        "--data.images_per_row": 2,
        "--data.workers": 0,
        "--compute.dtype": "float32",
        "--compute.data": 1,
        "--compute.remat": "none",
    }
    if name == "lora":
        given |= {"--lora.rank": RANK, "--lora.alpha": 2 * RANK, "--lora.dropout": 0}
    paths = {"--model", "--data.train", "--data.image_root", "--data.video_root", "--output"}
    values = {key: directory / str(value) if key in paths else value for key, value in given.items()}
    return ["--as", "paper", "--config", name, *(str(word) for pair in values.items() for word in pair)]
