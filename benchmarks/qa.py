"""Measures questions about videos: the engine and transformers' `generate`, with the same weights, in the same run.

    python benchmarks/qa.py

A random model of about 150 M parameters answers 25 questions about each of 8 videos, then one about each. The engine
does the whole job in every round. transformers, which encodes and prefills a video again for every question, answers a
sample at each batch size; its best batch size counts. The tokens of the sample are compared. The first round of each
side compiles or warms up and is not counted.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers
from questions import processor_for_224_pixels, question_words, random_videos, reference, requests_of
from random_models import middle_shape
from sides import rate, spread

from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.engine import Engine, Request


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--questions", type=int, default=25, help="for each video")
    parser.add_argument("--question-tokens", type=int, default=30)
    parser.add_argument("--answer-tokens", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="transformers' batch sizes")
    parser.add_argument("--sample", type=int, default=8, help="questions that transformers answers in a round")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)

    with tempfile.TemporaryDirectory() as directory:
        theirs = random_model(Path(directory))
        ours = VideoLlavaForConditionalGeneration.from_pretrained(directory, dtype="float32")
    processor = processor_for_224_pixels()
    size = sum(p.numel() for p in theirs.parameters())
    print(
        f"{size / 1e6:.0f} M parameters, float32; jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {os.cpu_count()} cores"
    )
    rng = np.random.default_rng(0)
    videos = random_videos(rng, arguments.videos)
    words = question_words(processor, rng, arguments.questions, arguments.question_tokens)
    for count in (arguments.questions, 1):
        requests = requests_of(videos, words[:count], arguments.answer_tokens)
        compare(ours, theirs, processor, requests, arguments)


def compare(ours: Any, theirs: Any, processor: Any, requests: list[Request], arguments: argparse.Namespace) -> None:
    """Measures both sides on one job and prints their rates."""
    eos = ours.model_config.eos_token_ids
    engine = Engine(ours, processor, suppress_tokens=eos, on_sizes=lambda line: print(f"  {line}"))
    print(f"\n{len(requests)} questions about {arguments.videos} videos")
    answers = {result.id: result for result in engine.run(requests)}
    sample = requests[:: max(1, len(requests) // arguments.sample)][: arguments.sample]
    engine_rates = [rate(lambda: list(engine.run(requests)), len(requests)) for _ in range(arguments.rounds)]
    best: list[float] = []
    for batch in arguments.batches:
        if batch > len(sample):
            continue
        tokens: dict[str, list[int]] = {}
        run = lambda batch=batch, tokens=tokens: reference(theirs, processor, sample, batch, eos, tokens)  # noqa: E731
        reference(theirs, processor, sample[:batch], batch, eos, {})
        rates = [rate(run, len(sample)) for _ in range(arguments.rounds)]
        print(f"  transformers, batch {batch}: {spread(rates)} answers/s")
        best = max(best, rates, key=lambda r: statistics.median(r) if r else 0)
        same = sum(tuple(ids) == answers[name].token_ids for name, ids in tokens.items())
        print(f"    tokens equal for {same} of {len(tokens)} answers")
    print(f"  engine: {spread(engine_rates)} answers/s")
    print(f"  ratio of medians: {statistics.median(engine_rates) / statistics.median(best):.1f}")


def random_model(directory: Path) -> Any:
    """Makes and saves a random model of the middle size, with the bundled tokenizer's ids."""
    config = transformers.VideoLlavaConfig.from_dict(middle_shape()[0].to_hf())
    torch.manual_seed(0)
    model = transformers.VideoLlavaForConditionalGeneration(config).eval()
    model.lm_head.weight.mul_(8)  # so that the two most likely tokens are rarely nearly equal
    model.save_pretrained(directory)
    return model


if __name__ == "__main__":
    main()
