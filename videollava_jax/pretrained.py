"""`VideoLlavaForConditionalGeneration`: the model as transformers' users call it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from videollava_jax import generate as compiled
from videollava_jax.config import VideoLlavaConfig
from videollava_jax.generate import ANSWER_BUCKET, PROMPT_BUCKET, DecodeState, bucket
from videollava_jax.model import abstract_model, named_parameters, with_parameters
from videollava_jax.sampling import Sampling
from videollava_jax.weights import load_checkpoint

STREAM_CHUNK = 8  # tokens between two looks at the answers, while streaming or watching for stop strings


@dataclass(frozen=True)
class VideoLlavaOutput:
    """What a forward pass returns, under transformers' names.

    Attributes:
      logits: [B, T, V].
      loss: float32 scalar, the mean cross-entropy of the next token over labels that are not -100; None without.
      image_hidden_states: [N, tokens_per_image, D], None without images.
      video_hidden_states: [V × F, tokens_per_frame, D], None without videos.
    """

    logits: jax.Array
    loss: jax.Array | None = None
    image_hidden_states: jax.Array | None = None
    video_hidden_states: jax.Array | None = None


@dataclass(frozen=True)
class _Features:
    image: jax.Array | None
    video: jax.Array | None


class VideoLlavaForConditionalGeneration:
    """Video-LLaVA with its weights, ready to run.

    Attributes:
      config: the shape of the model.
      generation_config: defaults of `generate`, from the checkpoint's generation_config.json.
    """

    def __init__(
        self,
        config: VideoLlavaConfig,
        parameters: dict[str, jax.Array],
        generation_config: dict[str, Any] | None = None,
    ):
        self.config = config
        self.generation_config = generation_config or {}
        self._graph, state = nnx.split(abstract_model(config))
        self._state = with_parameters(state, parameters)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, dtype: DTypeLike | None = None
    ) -> VideoLlavaForConditionalGeneration:
        """Loads a checkpoint.

        Args:
          path: a directory in transformers' layouts (hub, 5.x, in memory) or an Orbax directory of ours, or a hub
            name.
          dtype: of parameters and compute, such as "bfloat16"; None keeps the checkpoint's.

        Raises:
          ValueError: no such checkpoint, or tensors that do not fit its configuration (all are listed).
        """
        directory = _directory(path)
        config, parameters = load_checkpoint(directory, dtype)
        file = directory / "generation_config.json"
        return cls(config, parameters, json.loads(file.read_text()) if file.exists() else None)

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """Every parameter by its name."""
        return named_parameters(self._state)

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        pixel_values: ArrayLike | None = None,
    ) -> VideoLlavaOutput:
        """Logits of whole sequences, and their loss.

        Args:
          input_ids: int [B, T], a placeholder token for each feature vector of the media.
          attention_mask: int or bool [B, T], 0 on padding; None for no padding.
          pixel_values_images: float32 [N, 3, S, S] (`pixel_values` is its newer name).
          pixel_values_videos: float32 [V, F, 3, S, S].
          labels: int [B, T], -100 where nothing is learnt.
        """
        ids, mask = self._checked_text(input_ids, attention_mask)
        features = self._encode(ids, _either(pixel_values_images, pixel_values), pixel_values_videos)
        logits = compiled.forward(self._graph, self._state, ids, mask, features.image, features.video)
        loss = None
        if labels is not None:
            targets = jnp.asarray(labels)[:, 1:]
            log_probabilities = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32), axis=-1)
            picked = jnp.take_along_axis(log_probabilities, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
            learnt = targets != -100
            loss = -jnp.where(learnt, picked, 0).sum() / learnt.sum()
        video = features.video
        if video is not None:
            video = video.reshape(-1, self.config.tokens_per_frame, video.shape[-1])
        return VideoLlavaOutput(logits, loss, features.image, video)

    def generate(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        pixel_values: ArrayLike | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        num_return_sequences: int = 1,
        seed: int | Sequence[int] = 0,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        suppress_tokens: Sequence[int] = (),
        stop_strings: str | Sequence[str] = (),
        tokenizer: Any = None,
        on_tokens: Callable[[npt.NDArray[np.int64]], None] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Prompts and what follows them, as transformers returns it.

        Arguments have transformers' names, meanings and defaults (`generation_config.json` comes first). Beyond it:

        Args:
          seed: of the draws, one for all rows or one a row. A row's draws depend on its seed alone, so equal
            prompts with equal seeds get equal answers; `num_return_sequences` gives different ones.
          stop_strings: a row ends with the token that completes one of these; needs `tokenizer`.
          on_tokens: called with the new tokens [B, n] of every chunk of 8 steps, for streaming.

        Returns:
          int64 [B × num_return_sequences, T + new]; rows that ended early are padded.

        Raises:
          ValueError: arguments or media that do not fit together, or a prompt that with its answer is longer than
            the model's positions; before anything is computed.
          FloatingPointError: logits that are not finite, naming the rows.
        """
        ids, mask = self._checked_text(input_ids, attention_mask)
        defaults = self.generation_config
        B, T = ids.shape
        lengths = np.asarray(mask).sum(axis=1)
        if max_new_tokens is None:
            max_length = max_length or defaults.get("max_length")
            max_new_tokens = max_length - T if max_length is not None else defaults.get("max_new_tokens", 20)
        limit = self.config.text_config.max_position_embeddings
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens} (the prompt has {T} tokens)")
        if lengths.max() + max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {lengths.max()} tokens and an answer of up to {max_new_tokens} do not fit the model's "
                f"{limit} positions: shorten the prompt, take fewer frames, or lower max_new_tokens"
            )
        stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if stops and tokenizer is None:
            raise ValueError("stop_strings need tokenizer=, to turn tokens back into text")
        sampling = _sampling(
            B * num_return_sequences,
            num_return_sequences,
            seed,
            draw=_first(do_sample, defaults.get("do_sample"), False),
            temperature=_first(temperature, defaults.get("temperature"), 1.0),
            top_k=_first(top_k, defaults.get("top_k"), 50),
            top_p=_first(top_p, defaults.get("top_p"), 1.0),
            penalty=_first(repetition_penalty, defaults.get("repetition_penalty"), 1.0),
        )
        if num_return_sequences > 1 and not sampling.draw:
            raise ValueError("num_return_sequences above 1 needs do_sample=True: greedy answers would all be the same")
        eos = _first(eos_token_id, defaults.get("eos_token_id"), list(self.config.eos_token_ids))
        eos_ids = [eos] if isinstance(eos, int) else list(eos)
        pad = _first(pad_token_id, defaults.get("pad_token_id"), self.config.text_config.pad_token_id)
        pad = pad if pad is not None else (eos_ids[0] if eos_ids else 0)
        features = self._encode(ids, _either(pixel_values_images, pixel_values), pixel_values_videos)

        padding = bucket(T, PROMPT_BUCKET) - T
        ids_padded, mask_padded = np.pad(ids, ((0, 0), (padding, 0))), np.pad(mask, ((0, 0), (padding, 0)))
        room = bucket(max_new_tokens, ANSWER_BUCKET)
        logits, cache = compiled.prefill(
            self._graph,
            self._state,
            ids_padded,
            mask_padded,
            features.image,
            features.video,
            capacity=T + padding + room,
        )
        rows = B * num_return_sequences
        V = logits.shape[-1]
        seen = None
        if sampling.penalise:
            marks = np.zeros((B, V), bool)
            for row in range(B):
                marks[row, ids[row][np.asarray(mask[row], bool)]] = True
            seen = jnp.repeat(jnp.asarray(marks), num_return_sequences, axis=0)
        carry = DecodeState(
            cache=cache.repeat(num_return_sequences) if num_return_sequences > 1 else cache,
            logits_BV=jnp.repeat(logits, num_return_sequences, axis=0),
            tokens_BN=jnp.full((rows, room), pad, jnp.int32),
            done_B=jnp.zeros((rows,), bool),
            finite_B=jnp.ones((rows,), bool),
            seen_BV=seen,
            step=jnp.asarray(0, jnp.int32),
        )
        suppressed = np.zeros(V, bool)
        suppressed[list(suppress_tokens)] = True
        ends = np.full(rows, max_new_tokens)
        chunk = STREAM_CHUNK if stops or on_tokens else max_new_tokens
        shown = 0
        while shown < max_new_tokens:
            carry = compiled.decode(
                self._graph,
                self._state,
                carry,
                sampling,
                jnp.asarray(eos_ids, jnp.int32),
                jnp.asarray(suppressed),
                jnp.asarray(pad, jnp.int32),
                jnp.asarray(min(shown + chunk, max_new_tokens), jnp.int32),
            )
            written = int(carry.step)
            tokens = np.asarray(carry.tokens_BN)
            for row in range(rows) if stops else ():
                if ends[row] == max_new_tokens:
                    ends[row] = _end_at_stop(tokens[row, :written], shown, stops, tokenizer, max_new_tokens)
            done = np.asarray(carry.done_B) | (ends <= written)
            if on_tokens and written > shown:
                visible = np.where(np.arange(shown, written) < ends[:, None], tokens[:, shown:written], pad)
                on_tokens(visible.astype(np.int64))
            shown = written
            if done.all() or written == 0:
                break
        finite = np.asarray(carry.finite_B)
        if not finite.all():
            raise FloatingPointError(
                f"logits of rows {np.flatnonzero(~finite).tolist()} are not finite: the weights or pixels hold NaN or "
                "infinity, or overflow in this dtype"
            )
        answer = np.where(np.arange(shown) < ends[:, None], np.asarray(carry.tokens_BN)[:, :shown], pad)
        if stops and shown:
            answer = answer[:, : max(1, int(min(ends.max(), shown)))]
        return np.concatenate([np.repeat(ids, num_return_sequences, axis=0), answer], axis=1).astype(np.int64)

    def _checked_text(
        self, input_ids: ArrayLike, attention_mask: ArrayLike | None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
            raise ValueError(f"input_ids: expected integers [batch, tokens], got {ids.dtype} {list(ids.shape)}")
        V = self.config.text_config.vocab_size
        if ids.min() < 0 or ids.max() >= V:
            raise ValueError(f"input_ids: expected ids in 0..{V - 1}, got {ids.min()}..{ids.max()}")
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask: expected the shape of input_ids {list(ids.shape)}, got {list(mask.shape)}"
            )
        if not mask.any(axis=1).all():
            raise ValueError(f"attention_mask: row {int(np.argmin(mask.any(axis=1)))} holds no tokens")
        return ids.astype(np.int32), mask

    def _encode(self, ids: npt.NDArray[np.int32], images: ArrayLike | None, videos: ArrayLike | None) -> _Features:
        config = self.config
        side = config.vision_config.image_size
        encoded: list[jax.Array | None] = []
        for kind, pixels, token, rank in (
            ("images", images, config.image_token_id, 4),
            ("videos", videos, config.video_token_id, 5),
        ):
            placeholders = int((ids == token).sum())
            expected = 0
            shape: tuple[int, ...] = ()
            if pixels is not None:
                shape = np.shape(pixels)
                if len(shape) != rank or shape[-3:] != (config.vision_config.num_channels, side, side):
                    form = f"[{'N' if rank == 4 else 'V, F'}, {config.vision_config.num_channels}, {side}, {side}]"
                    raise ValueError(f"pixel_values_{kind}: expected {form}, got {list(shape)}")
                each = config.tokens_per_image if rank == 4 else shape[1] * config.tokens_per_frame
                expected = shape[0] * each
            if placeholders != expected:
                raise ValueError(
                    f"input_ids hold {placeholders} tokens for {kind}, the given {kind} make {expected} "
                    f"({list(shape) or 'none given'}): give the media of every placeholder, and no others"
                )
            run = compiled.encode_images if rank == 4 else compiled.encode_videos
            encoded.append(run(self._graph, self._state, jnp.asarray(pixels)) if expected else None)
        return _Features(*encoded)


def _directory(path: str | os.PathLike[str]) -> Path:
    directory = Path(path)
    if directory.is_dir():
        return directory
    name = os.fspath(path)
    if directory.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        raise ValueError(f"{name}: expected a checkpoint directory or a hub name such as owner/model, found neither")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))


def _either(images: ArrayLike | None, pixel_values: ArrayLike | None) -> ArrayLike | None:
    if images is not None and pixel_values is not None:
        raise ValueError("pixel_values and pixel_values_images are two names of one thing: give one of them")
    return images if images is not None else pixel_values


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _sampling(
    rows: int,
    copies: int,
    seed: int | Sequence[int],
    *,
    draw: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    penalty: float,
) -> Sampling:
    for name, value, good in (
        ("temperature", temperature, temperature > 0),
        ("top_k", top_k, top_k >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
        ("repetition_penalty", penalty, penalty > 0),
    ):
        if not good:
            raise ValueError(f"{name}: {value} is out of range (for greedy answers, do_sample=False)")
    seeds = [seed] * (rows // copies) if isinstance(seed, int) else list(seed)
    if len(seeds) != rows // copies:
        raise ValueError(f"seed: expected one number or one for each of {rows // copies} rows, got {len(seeds)}")
    keys = jnp.stack([jax.random.fold_in(jax.random.key(s), copy) for s in seeds for copy in range(copies)])
    return Sampling(
        keys_B=keys,
        temperature=jnp.asarray(temperature, jnp.float32),
        top_k=jnp.asarray(top_k, jnp.int32),
        top_p=jnp.asarray(top_p, jnp.float32),
        repetition_penalty=jnp.asarray(penalty, jnp.float32),
        draw=bool(draw),
        penalise=penalty != 1.0,
    )


def _end_at_stop(
    tokens: npt.NDArray[np.int32], checked: int, stops: tuple[str, ...], tokenizer: Any, otherwise: int
) -> int:
    """How many tokens it takes to complete a stop string, or `otherwise`; the first `checked` hold none."""
    if not any(stop in tokenizer.decode(tokens.tolist()) for stop in stops):
        return otherwise
    for count in range(checked + 1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count].tolist())
        if any(stop in text for stop in stops):
            return count
    return otherwise
