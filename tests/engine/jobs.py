"""Jobs for the engine's tests: clips, questions, and what `generate` answers."""

import numpy as np

from videollava_jax.engine import Request

QUESTIONS = (
    "what colour is it?",
    "which shape?",
    "where does it go, and what is there then, when all has come to an end?",
    "how many?",
    "is it left or right of the other one?",
)


def clip(seed, frames=8):
    return np.random.default_rng(seed).integers(0, 256, (frames, 56, 56, 3), dtype=np.uint8)


def question(name, text, *, videos=(), images=(), **options):
    """A request in the template of the tiny model."""
    media = "<image>" * len(images) + "<video>" * len(videos)
    prompt = f"USER: {media}\n{text} ASSISTANT:" if media else f"USER: {text} ASSISTANT:"
    return Request(id=name, prompt=prompt, videos=list(videos), images=list(images), **options)


def mixed_job():
    """Questions about clips, about an image, about both together, and about nothing."""
    clips, picture = [clip(seed) for seed in range(3)], clip(9)[0]
    job = [
        question(f"{v}-{q}", text, videos=[video], max_new_tokens=4 + 3 * q)
        for q, text in enumerate(QUESTIONS)
        for v, video in enumerate(clips)
        if (v + q) % 3 != 2
    ]
    job += [question(f"i-{q}", text, images=[picture], max_new_tokens=6) for q, text in enumerate(QUESTIONS[:3])]
    job.append(question("both", QUESTIONS[0], images=[picture], videos=[clips[0]], max_new_tokens=5))
    job.append(question("text", "say something", max_new_tokens=7))
    return job


def padded(inputs, unit=64):
    """Pads prompts on the left to a multiple of `unit` tokens, in place: few lengths make few programs."""
    length = inputs["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):
        inputs[name] = np.pad(inputs[name], ((0, 0), (-length % unit, 0)))


def generated(model, processor, request):
    """What `generate` answers to one request: the tokens up to its end, as the engine gives them."""
    media = {name: list(value) for name, value in (("images", request.images), ("videos", request.videos)) if value}
    inputs = processor(text=request.prompt, **media)
    padded(inputs)
    out = model.generate(
        **inputs, max_new_tokens=request.max_new_tokens, seed=request.seed, tokenizer=processor.tokenizer,
        **request.options,
    )  # fmt: skip
    return tuple(out[0, inputs["input_ids"].shape[1] :].tolist())
