"""`VideoLlavaForConditionalGeneration`: the loaded model under the names that transformers' users know."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.inputs import checked_text, require_positions
from videollava_jax.generation.kinds import parsed, whole
from videollava_jax.generation.loaded import GENERATION_CONFIG, LoadedModel
from videollava_jax.generation.options import KINDS
from videollava_jax.generation.text import OnTokens, Streamer, require_tokenizer, to_streamer
from videollava_jax.model.layers import Quantization
from videollava_jax.weights import Options, checkpoint_of, convert_to_orbax, export
from videollava_jax.weights.checkpoint import ORBAX
from videollava_jax.weights.manifest import Verify


@dataclass(frozen=True)
class VideoLlavaOutput:
    """The result of a forward pass, under transformers' names.

    Attributes:
      logits: [B, T, V].
      loss: float32 scalar, the mean cross-entropy of the next token over labels that are not -100; None without labels.
      image_hidden_states: [N, tokens_per_image, D], None without images.
      video_hidden_states: [V × F, tokens_per_frame, D], fewer tokens with pooling; None without videos.
    """

    logits: jax.Array
    loss: jax.Array | None = None
    image_hidden_states: jax.Array | None = None
    video_hidden_states: jax.Array | None = None


class VideoLlavaForConditionalGeneration(LoadedModel):
    """Video-LLaVA with its weights, under the names that transformers' users know."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        device_map: Literal["auto"] | None = None,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
        verify: Verify = "fast",
        revision: str | None = None,
        token: str | None = None,
    ) -> VideoLlavaForConditionalGeneration:
        """Loads a checkpoint, as `LoadedModel.load` does.

        Args:
          path: a directory or a model's name on the hub.
          dtype: of parameters and compute, such as "bfloat16"; None keeps the checkpoint's.
          device_map: "auto", as transformers' users write it, or None: both mean JAX's default device.
          mesh: devices to spread the model over (`make_mesh`).
          quantization: "int8" or "w8a8"; None for none. transformers' `quantization_config` is not read.
          verify: "full", "fast" or "off", how a directory with a manifest is checked against it.
          revision: a branch, tag or commit on the hub.
          token: for private models on the hub.

        Raises:
          ValueError: no such checkpoint, or tensors that do not fit its configuration (all are listed).
        """
        if device_map not in (None, "auto"):
            raise ValueError(
                f"device_map: expected 'auto' or None, got {device_map!r}; choose the platform with JAX_PLATFORMS"
            )
        return cls.load(
            path, dtype=dtype, mesh=mesh, quantization=quantization, verify=verify, revision=revision, token=token
        )

    def save_pretrained(self, directory: str | os.PathLike[str], *, layout: str | None = None) -> None:
        """Writes a checkpoint that `from_pretrained` reads, here and in transformers.

        `processor.save_pretrained` adds the processor's files.

        Args:
          directory: must not exist, or hold exactly this already.
          layout: "hub", "hf5", "memory" (transformers'), "pku" (the authors') or "orbax". None for "hub", or for
            "orbax" where the video tower has temporal attention, which transformers' layouts cannot hold. Int8 weights
            are written as floats.

        Raises:
          WeightsError: the layout cannot hold the model, values are not finite, or writing fails.
          ValueError: other processes hold shards of the model.
        """
        parameters = self.parameters
        if not all(value.is_fully_addressable for value in parameters.values()):
            raise ValueError("other processes hold shards of the model: load it in one process to save it")
        if layout is None:
            layout = ORBAX if self.config.variant == "original" else "hub"
        written = (json.dumps(self.generation_config, indent=2) + "\n").encode()
        options = Options(files={GENERATION_CONFIG: written} if self.generation_config else {})
        checkpoint = checkpoint_of(self.config, parameters)
        if layout == ORBAX:
            convert_to_orbax(checkpoint, Path(directory), options)
        else:
            export(checkpoint, Path(directory), layout, options)

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        pixel_values: ArrayLike | None = None,
        video_pooling: SupportsIndex = 1,
    ) -> VideoLlavaOutput:
        """Computes the logits of whole sequences, and their loss where labels are given.

        Args:
          input_ids: int [B, T], a placeholder token for each feature vector of the media.
          attention_mask: int or bool [B, T], 0 on padding; None for no padding.
          pixel_values_images: float32 [N, 3, S, S].
          pixel_values_videos: float32 [V, F, 3, S, S].
          labels: int [B, T], -100 where nothing is learnt.
          pixel_values: the newer name of `pixel_values_images`.
          video_pooling: side of the windows of patches whose features are averaged, 1 for none. The processor's output
            carries it. Checkpoints were trained with 1 (docs/more_frames.md).

        Raises:
          ValueError: text or media that do not fit together.
        """
        logits, features = self.forward(
            input_ids,
            attention_mask,
            _either(pixel_values_images, pixel_values),
            pixel_values_videos,
            video_pooling=video_pooling,
        )
        loss = None
        if labels is not None:
            targets = jnp.asarray(labels)[:, 1:]
            log_probabilities = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32), axis=-1)
            picked = jnp.take_along_axis(log_probabilities, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
            learnt = targets != -100
            loss = -jnp.where(learnt, picked, 0).sum() / learnt.sum()
        video = features.video
        if video is not None:
            frames = np.shape(pixel_values_videos)[1]  # type: ignore[arg-type]
            video = video.reshape(-1, video.shape[1] // frames, video.shape[-1])
        return VideoLlavaOutput(logits, loss, features.image, video)

    def generate(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        pixel_values: ArrayLike | None = None,
        video_pooling: SupportsIndex = 1,
        max_length: int | None = None,
        num_return_sequences: int = 1,
        seed: int | Sequence[int] = 0,
        tokenizer: Any = None,
        on_tokens: OnTokens | None = None,
        streamer: Streamer | None = None,
        **options: Any,
    ) -> npt.NDArray[np.int64]:
        """Generates answers and returns them after their prompts, as transformers does.

        Names and meanings of arguments are transformers'. A value that is left out is that of the checkpoint's
        generation_config.json, or else transformers' default.

        Args:
          input_ids, attention_mask: prompts padded on the left; these and the media are as in `__call__`.
          pixel_values_images, pixel_values_videos, pixel_values, video_pooling: likewise.
          max_length: of prompt and answer together, where `max_new_tokens` is left out.
          num_return_sequences: answers for each prompt; more than one with `do_sample` only.
          seed: of the draws, one for all rows or one for each. A row's draws depend on its seed alone, so equal
            prompts with equal seeds get equal answers; the answers of `num_return_sequences` differ.
          tokenizer: turns tokens back into text; needed with `stop_strings`.
          on_tokens: called with the new tokens int64 [B, n] of every chunk of 8 steps, for streaming.
          streamer: transformers' `TextStreamer` or one with its methods. It gets the prompts, and then each step's
            tokens, 8 steps at a time.
          options: the other fields of `GenerationOptions`: `max_new_tokens`, `do_sample`, `temperature`, ….

        Returns:
          int64 [B × num_return_sequences, T + new]; rows that ended early are padded.

        Raises:
          TypeError: an unknown option.
          ValueError: arguments or media that do not fit together, or a prompt and answer longer than the model's
            positions. It is raised before anything is computed.
          FloatingPointError: logits that are not finite, naming the rows.
        """
        ids, mask = checked_text(self.config, input_ids, attention_mask)
        B, T = ids.shape
        copies = parsed("num_return_sequences", whole(1), num_return_sequences)
        seeds = [parsed("seed", KINDS["seed"], row) for row in seed] if isinstance(seed, Iterable) else None
        answer = self._max_new_tokens(options.get("max_new_tokens"), max_length, T)
        chosen = self.resolve_options({**options, "max_new_tokens": answer, "seed": seed if seeds is None else None})
        require_tokenizer(chosen, tokenizer)
        require_positions(self.config, int(mask.sum(axis=1).max()), chosen.max_new_tokens)
        keys = row_keys(chosen.seed if seeds is None else seeds, B, copies)
        if copies > 1 and not chosen.do_sample:
            raise ValueError("num_return_sequences above 1 needs do_sample=True: greedy answers would all be the same")
        images = _either(pixel_values_images, pixel_values)
        if streamer is not None:
            streamer.put(np.repeat(ids, copies, axis=0).astype(np.int64))
        logits, cache = self.prefill(
            ids,
            mask,
            images,
            pixel_values_videos,
            video_pooling=video_pooling,
            capacity=answer_capacity(chosen.max_new_tokens),
        )
        if copies > 1:
            logits, cache = jnp.repeat(logits, copies, axis=0), cache.repeat(copies)
        prompts = [ids[row][mask[row]] for row in range(B) for _ in range(copies)]
        answers, _ = self.decode(
            logits,
            cache,
            keys,
            prompts,
            chosen,
            tokenizer=tokenizer,
            on_tokens=on_tokens if streamer is None else to_streamer(streamer, on_tokens),
        )
        if streamer is not None:
            streamer.end()
        return np.concatenate([np.repeat(ids, copies, axis=0), answers], axis=1).astype(np.int64)

    def _max_new_tokens(self, given: int | None, max_length: int | None, prompt: int) -> int | None:
        """The tokens that an answer is cut at, None where neither the caller nor the checkpoint says it.

        Args:
          given: `max_new_tokens` of the call, which comes before `max_length`.
          prompt: tokens of it.
        """
        if given is not None:
            return given
        if max_length is None and self.generation_config.get("max_new_tokens") is None:
            max_length = self.generation_config.get("max_length")
        if max_length is None:
            return None
        longest: int = parsed("max_length", whole(1), max_length)
        if longest <= prompt:
            raise ValueError(f"max_length: expected more than the {prompt} tokens of the prompt, got {longest}")
        return longest - prompt


def _either(images: ArrayLike | None, pixel_values: ArrayLike | None) -> ArrayLike | None:
    if images is not None and pixel_values is not None:
        raise ValueError("pixel_values and pixel_values_images are two names of one thing: give one of them")
    return images if images is not None else pixel_values
