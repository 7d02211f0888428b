"""Vocabularies for tests: a small one of Llama's kind, trained on the spot, and the real one, from npm."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protobuf

PACKAGE = "llama-tokenizer-js"  # MIT; carries Llama 2's 32,000 pieces
VERSION = "1.2.2"

# sentencepiece.ModelProto.SentencePiece.Type
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BPE = 2

_CORPUS = """
A chat between a curious user and an artificial intelligence assistant.
The assistant gives helpful,
detailed, and polite answers to the user's questions. USER: What is happening in this video?
ASSISTANT: A red ball
rolls over the table and falls down. USER: Why is it funny? ASSISTANT: The dog looks at the ball and
at the man.
Describe the image in one sentence, please. How many people are there? There are three people in the
picture.
<video> and <image> and </s> and <pad> can be typed by anyone;  two  spaces   or three; x < y > z;
0 1 2 3 4 5.
ein Satz mit Umlauten: äöüß; una frase en español; 日本 の 動画;
"""


def train_small_model(directory: Path, pieces: int = 600) -> Path:
    """Writes a `tokenizer.model` of Llama's kind (BPE, byte fallback, ids 0-2 unk, bos, eos)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS.strip().splitlines() * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    path = directory / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


class VocabularyUnavailable(Exception):
    """The package could not be fetched: no npm, or no registry within reach."""


def real_llama_model(cache: Path | None = None) -> Path:
    """Path of a SentencePiece model with Llama 2's pieces, in a cache folder outside the repository.

    Raises:
        VocabularyUnavailable: saying why.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "videollava_jax" / "llama2"
    path = cache / "tokenizer.model"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(sentencepiece_model(_pieces(_fetch_package(cache))))
        partial.replace(path)  # two test runs at once must not see half a file
    return path


def _fetch_package(cache: Path) -> str:
    """The source of the package's one module, by the ordinary client."""
    npm = shutil.which("npm")
    if npm is None:
        raise VocabularyUnavailable("npm is not installed")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(cache)]
    try:
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        raise VocabularyUnavailable("npm pack took more than 120 s") from None
    archive = cache / f"{PACKAGE}-{VERSION}.tgz"
    if done.returncode or not archive.is_file():
        raise VocabularyUnavailable(f"npm pack {PACKAGE}@{VERSION} ended with status {done.returncode}")
    with tarfile.open(archive) as tar:
        module = tar.extractfile(f"package/{PACKAGE.removesuffix('-js')}.js")
        assert module is not None
        return module.read().decode()


def _pieces(module: str) -> list[str]:
    """The 32,000 pieces, checked against the merges, which the package holds as pairs of piece numbers."""
    pieces = _constant(module, "llama_vocab_base64").decode().split("\n")
    packed = _constant(module, "llama_merges_binary")
    numbers = struct.unpack(f"<{len(packed) // 2}H", packed)
    known = set(pieces)
    merged = {pieces[a] + pieces[b] for a, b in zip(numbers[::2], numbers[1::2], strict=True)}
    if len(pieces) != 32000 or not merged <= known:
        raise ValueError(f"{PACKAGE} {VERSION}: expected 32,000 pieces and merges of them, got {len(pieces)}")
    return pieces


def _constant(module: str, name: str) -> bytes:
    match = re.search(rf'{name} = "([^"]+)"', module)
    if match is None:
        raise ValueError(f"{PACKAGE} {VERSION}: no constant {name}")
    return base64.b64decode(match[1])


def sentencepiece_model(pieces: list[str]) -> bytes:
    """Llama's model: specials, 256 bytes, then pieces in the order of their merges, which is their score."""
    model = protobuf.ModelProto()
    for i, piece in enumerate(pieces):
        entry = model.pieces.add()
        entry.piece = piece
        entry.type = _UNKNOWN if i == 0 else _CONTROL if i < 3 else _BYTE if i < 259 else _NORMAL
        entry.score = 0.0 if i < 259 else float(259 - i)
    trainer = model.trainer_spec
    trainer.model_type = _BPE
    trainer.byte_fallback = True
    trainer.vocab_size = len(pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return bytes(model.SerializeToString())
