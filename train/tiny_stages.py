"""How the tiny model is trained: the loop of every stage, the alignment of stage 1, the share of right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_data import Media, answer_start, tokenize
from tiny_model import Parameters, Tiny, cross_entropy
from tqdm import tqdm

from videollava_jax.processing.processor import VideoLlavaProcessor


def make_schedule(rate: float, steps: int) -> optax.Schedule:
    """Returns a schedule that warms up for 5% of the steps and falls along a cosine to 2% of the rate."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps, 0.02 * rate)


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns AdamW with gradients clipped at norm 1."""
    matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.02, mask=matrices))


def train(
    title: str,
    loss: Callable[..., jax.Array],
    trained: Parameters,
    batches: Iterator[tuple[np.ndarray, ...]],
    *,
    schedule: optax.Schedule,
    steps: int,
    after: Callable[[int, Parameters], None] | None = None,
) -> Parameters:
    """Takes `steps` steps on `loss(trained, *batch)`, with a progress bar; returns the trained parameters.

    `after`, if any, is called after each step with the number of steps done and the parameters.
    """
    optimizer = make_optimizer(schedule)
    state = optimizer.init(trained)

    @jax.jit
    def step(trained: Parameters, state: Any, *batch: jax.Array) -> tuple[Parameters, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(trained, *batch)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, value

    smooth = None
    for i, batch in zip(bar := tqdm(range(steps), title, unit="step"), batches, strict=False):
        trained, state, value = step(trained, state, *batch)
        smooth = float(value) if smooth is None else 0.98 * smooth + 0.02 * float(value)
        bar.set_postfix(loss=f"{smooth:.3f}")
        if after is not None:
            after(i + 1, trained)
    return trained


# ── stage 1 ─────────────────────────────────────────────────────────────────────────────────────────────────


def make_heads(rng: np.random.Generator, width: int) -> Parameters:
    """Draws the weights of the linear heads that read `frame_labels` from hidden states of a width."""
    sizes = {"patch.shape": 5, "patch.colour": 7}
    for where in ("class", "mean"):
        sizes |= {f"{where}.colours": 6, f"{where}.shapes": 4, f"{where}.number": 5, f"{where}.centre": 2}
    heads: Parameters = {}
    for name, size in sizes.items():
        heads[f"{name}.weight"] = jnp.asarray(rng.normal(0, width**-0.5, (size, width)), jnp.float32)
        heads[f"{name}.bias"] = jnp.zeros(size)
    return heads


def align_loss(hidden: jax.Array, labels: jax.Array, heads: Parameters) -> jax.Array:
    """Returns the loss of linear heads that read `frame_labels` from a tower's selected hidden state [B, 17, D]."""
    normed = jax.nn.standardize(hidden, axis=-1)

    def read(name: str, x: jax.Array) -> jax.Array:
        return x @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]

    patch_shape, patch_colour = labels[:, :16].astype(int), labels[:, 16:32].astype(int)
    colours, kinds, number, centre = labels[:, 32:38], labels[:, 38:42], labels[:, 42], labels[:, 43:]
    patches = normed[:, 1:]
    loss = cross_entropy(read("patch.shape", patches), patch_shape).mean()
    loss += cross_entropy(read("patch.colour", patches), patch_colour).mean()
    for where, x in (("class", normed[:, 0]), ("mean", patches.mean(1))):
        loss += optax.sigmoid_binary_cross_entropy(read(f"{where}.colours", x), colours).mean()
        loss += optax.sigmoid_binary_cross_entropy(read(f"{where}.shapes", x), kinds).mean()
        loss += 0.5 * cross_entropy(read(f"{where}.number", x), number.astype(int)).mean()
        loss += 2 * jnp.square(read(f"{where}.centre", x) - centre).mean()
    return loss


def align(
    title: str,
    tiny: Tiny,
    parameters: Parameters,
    heads: Parameters,
    tower: str,
    batches: Iterator[tuple[np.ndarray, ...]],
    *,
    schedule: optax.Schedule,
    steps: int,
) -> tuple[Parameters, Parameters]:
    """Trains a tower together with the heads that read it; returns all parameters, and the heads."""
    frozen = {name: value for name, value in parameters.items() if not name.startswith(tower)}

    def loss(trained: Parameters, x: jax.Array, y: jax.Array) -> jax.Array:
        model = {name: value for name, value in trained.items() if name.startswith(tower)}
        return align_loss(tiny.hidden(frozen | model, tower, x), y, trained)

    trained = {name: parameters[name] for name in parameters if name not in frozen} | heads
    trained = train(title, loss, trained, batches, schedule=schedule, steps=steps)
    heads = {name: trained.pop(name) for name in heads}
    return parameters | trained, heads


# ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────


def accuracy(tiny: Tiny, parameters: Parameters, processor: VideoLlavaProcessor, media: Media) -> dict[str, list[int]]:
    """Asks one question about each medium; returns [right, asked] by kind of question.

    An answer is right where greedy decoding gives exactly it. That is checked without decoding: the right answer is the
    model's input, and each of its tokens and `</s>` must be the most likely one at its position.
    """
    texts = tokenize(processor, media, np.random.default_rng(0), questions=1)
    counts: dict[str, list[int]] = {}
    for start in range(0, len(texts.ids), 100):
        chunk = slice(start, start + 100)
        said = np.asarray(tiny.predict(parameters, media.frames[chunk], texts.ids[chunk]))
        labels = texts.labels[chunk, answer_start(media.frames) :]
        right = ((said == labels) | (labels < 0)).all(1)
        for ok, asked in zip(right, media.questions[chunk], strict=True):
            count = counts.setdefault(asked[0].kind, [0, 0])
            count[0] += int(ok)
            count[1] += 1
    return counts
