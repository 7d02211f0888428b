"""`VideoLlavaForConditionalGeneration`: the loaded model under the names that transformers' users know."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from videollava_jax.config import ModelConfig
from videollava_jax.face import forward_arguments
from videollava_jax.face.arrays import Device, from_torch
from videollava_jax.face.base_model import OfAWhole, VideoLlavaModel
from videollava_jax.face.cache import DynamicCache
from videollava_jax.face.model_loading import core_config
from videollava_jax.face.named_parts import head_of
from videollava_jax.face.output import VideoLlavaOutput
from videollava_jax.face.parts import Part
from videollava_jax.face.pretrained import PreTrained, one_of
from videollava_jax.face.saving import save_into, shard_bytes
from videollava_jax.face.starting import FromCache, FromEmbeddings
from videollava_jax.generation.asked import Criterion
from videollava_jax.generation.call_options import as_json, fields_of, generation_config_of
from videollava_jax.generation.generate import Prompts, Start, generate
from videollava_jax.generation.loaded import GENERATION_CONFIG
from videollava_jax.generation.output import GenerateOutput, transition_scores
from videollava_jax.generation.processors import ScoreFunction
from videollava_jax.generation.text import OnTokens, Streamer
from videollava_jax.hub import local_path
from videollava_jax.model.layers import Quantization
from videollava_jax.model.video_llava import VideoLlava, named_parameters
from videollava_jax.weights import Options, checkpoint_of, convert_to_orbax, export
from videollava_jax.weights.checkpoint import ORBAX


class VideoLlavaForConditionalGeneration(PreTrained):
    """Video-LLaVA with its weights, under the names that transformers' users know."""

    _generation_config: Any = None  # transformers' object, from the first time that it is asked for

    def __init__(
        self,
        config: ModelConfig | Any,
        parameters: dict[str, jax.Array] | None = None,
        generation_config: dict[str, Any] | None = None,
        *,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
        seed: int = 0,
    ):
        """Makes a model of parameters, or one with random weights.

        Args:
          config: transformers' `VideoLlavaConfig`, ours, or the core's.
          parameters: by name; None draws them in float32, each as its layer is initialised in Flax.
          generation_config: as generation_config.json holds it.
          mesh: that the parameters are on; None for one device.
          quantization: of the projections; None for what the parameters show.
          seed: of random weights.

        Raises:
          ValueError: the configuration asks for something that this model does not do.
        """
        model_config = core_config(config)
        if parameters is None:
            drawn = VideoLlava(model_config, dtype=jnp.float32, rngs=nnx.Rngs(params=seed))
            parameters = named_parameters(nnx.state(drawn))
        super().__init__(model_config, parameters, generation_config, mesh=mesh, quantization=quantization)
        self._keep(config)

    @property
    def model(self) -> VideoLlavaModel:
        """The model without its head, with the same parameters."""
        return OfAWhole(self)

    base_model = model

    @property
    def hf_device_map(self) -> dict[str, Device]:
        """The device of the model as accelerate's map from parts to devices: one entry for the whole."""
        return {"": self.device}

    @property
    def lm_head(self) -> Part:
        """The head; called with hidden states [..., D]."""
        return head_of(self)

    def compute_transition_scores(
        self,
        sequences: ArrayLike,
        scores: Sequence[ArrayLike],
        beam_indices: ArrayLike | None = None,
        normalize_logits: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Returns the scores of the chosen tokens, as transformers' method of this name does.

        Args:
          sequences, scores, beam_indices: of a `GenerateOutput`.
          normalize_logits: whether to take the log-softmax of the scores first.

        Returns:
          float32 [rows, n], 0 behind the end of a beam.

        Raises:
          ValueError: scores that are not those of the sequences.
        """
        return transition_scores(sequences, scores, beam_indices, normalize_logits)

    def can_generate(self) -> bool:
        """Returns True."""
        return True

    @property
    def generation_config(self) -> Any:
        """The checkpoint's options, transformers' `GenerationConfig`. Its fields can be set, and hold from then on."""
        if self._generation_config is None:
            self._generation_config = generation_config_of(super().generation_defaults, self.model_config)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._generation_config = generation_config_of(fields_of(value), self.model_config)

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The options of the checkpoint's generation_config.json, or of `generation_config` once that was asked for."""
        if self._generation_config is None:
            return super().generation_defaults
        return fields_of(self._generation_config)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        layout: str | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **upload: Any,
    ) -> None:
        """Writes a checkpoint that `from_pretrained` reads, here and in transformers.

        `processor.save_pretrained` adds the processor's files, before or afterwards. Keys of `config` that are none of
        the model's are kept, but for the layout "pku".

        Args:
          save_directory: does not exist, is empty, has the processor's files, or holds exactly this already.
          layout: "hub", "hf5", "memory" (transformers'), "pku" (the authors') or "orbax". None for "hub", or for
            "orbax" where the video tower has temporal attention, which transformers' layouts cannot hold. Int8 weights
            are written as floats.
          max_shard_size: of a file, "5GB" or bytes; None for the default. Orbax has its own.
          safe_serialization: True; .bin files are not written.
          push_to_hub: whether to upload the directory too; `push_to_hub()` is the same.
          upload: arguments of `push_to_hub`.

        Raises:
          WeightsError: the layout cannot hold the model, values are not finite, or writing fails.
          ValueError: other processes hold shards of the model, or an argument asks for what is not done.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization: expected True: weights are written as safetensors or Orbax")
        parameters = self.parameters
        if not all(value.is_fully_addressable for value in parameters.values()):
            raise ValueError("other processes hold shards of the model: load it in one process to save it")
        most = shard_bytes(max_shard_size)
        if layout is None:
            layout = ORBAX if self.model_config.variant == "original" else "hub"
        generation = self.generation_defaults
        written = (json.dumps(as_json(generation), indent=2) + "\n").encode()
        options = Options(files={GENERATION_CONFIG: written} if generation else {})
        checkpoint = checkpoint_of(self.model_config, parameters)
        if layout != "pku":  # whose config.json is Llama's
            from videollava_jax.face.config import further_keys  # transformers loads slowly

            checkpoint = dataclasses.replace(checkpoint, inputs=further_keys(self.config, self.model_config))

        def write(target: Path) -> object:
            if layout == ORBAX:
                return convert_to_orbax(checkpoint, target, options)
            return export(checkpoint, target, layout, options, max_shard_bytes=most)

        save_into(save_directory, write)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": local_path(save_directory).name, **upload})

    def push_to_hub(self, repo_id: str, *, commit_message: str | None = None, **repository: Any) -> str:
        """Uploads the model to the Hugging Face hub; returns the address of the commit.

        Args:
          repo_id: "owner/name"; made if it does not exist.
          commit_message: of the upload.
          repository: `token`, `private` and `revision`.

        Raises:
          huggingface_hub.errors.HfHubHTTPError: the hub refuses it.
        """
        from huggingface_hub import HfApi

        revision = repository.pop("revision", None)
        hub = HfApi(token=repository.pop("token", None))
        repo = hub.create_repo(repo_id, exist_ok=True, **repository).repo_id
        with tempfile.TemporaryDirectory() as place:
            self.save_pretrained(Path(place) / "model")
            message = commit_message or "Upload the model"
            return str(
                hub.upload_folder(
                    repo_id=repo, folder_path=Path(place) / "model", commit_message=message, revision=revision
                )
            )

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        pixel_values: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | ArrayLike = 0,
        video_pooling: SupportsIndex | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Computes the logits of whole sequences or of what follows a cache, and their loss where labels are given.

        Args:
          input_ids: int [B, T], a placeholder token for each feature vector of the media.
          attention_mask: int or bool [B, S + T], 0 on padding, of the S tokens in the cache and the new ones; None for
            no padding among the new ones.
          pixel_values_images: float32 [N, 3, S, S].
          pixel_values_videos: float32 [V, F, 3, S, S].
          labels: int [B, T], -100 where nothing is learnt.
          pixel_values: the newer name of `pixel_values_images`.
          inputs_embeds: float [B, T, D], in place of input_ids. Media go where an embedding is that of a placeholder.
          position_ids: int [B, T] or [1, T], rotary positions; None for S, S + 1, …, padding counted.
          past_key_values: of an earlier call, continued in place by this one; `cache` is its newer name.
          use_cache: whether the result has `past_key_values`; None for what `config.use_cache` says, mostly True.
          output_hidden_states, output_attentions: whether those of every layer are wanted; None for what `config` says.
          logits_to_keep: how many last positions have logits in the result, or int [n] which; 0 for all.
          video_pooling: side of the windows of patches whose features are averaged; None or 1 for none. The
            processor's output carries it. Checkpoints were trained with 1 (docs/more_frames.md).
          return_dict: False for a tuple of what is not None.
          others: `vision_feature_layer` and `vision_feature_select_strategy` in place of those of `config`, and
            transformers' further arguments, as far as they ask for nothing.

        Returns:
          A `VideoLlavaOutput`.

        Raises:
          TypeError: an unknown argument.
          ValueError: text, media or a cache that do not fit together, or an argument that asks for what is not done.
        """
        named: dict[str, Any] = {
            "pixel_values": pixel_values,
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
        }
        named |= {"past_key_values": past_key_values, "use_cache": use_cache, "video_pooling": video_pooling}
        named |= {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        found = self._pass(
            *(input_ids, attention_mask, pixel_values_images, pixel_values_videos),
            logits_to_keep if labels is None else 0,  # the loss is that of all tokens
            {**named, **others},
        )
        logits, loss = found.out, None
        if labels is not None:
            loss = _loss(logits, from_torch(labels))
            logits = logits[:, np.asarray(forward_arguments.kept(logits_to_keep, logits.shape[1]))]
        output = VideoLlavaOutput(
            loss, logits, found.past, found.hidden_states, found.attentions, found.image, found.video
        )
        return self._as_asked(output, return_dict)

    forward = __call__

    def generate(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        inputs: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        past_key_values: DynamicCache | None = None,
        cache: DynamicCache | None = None,
        pixel_values: ArrayLike | None = None,
        video_pooling: SupportsIndex | None = None,
        generation_config: Any = None,
        seed: int | Sequence[int] | None = None,
        tokenizer: Any = None,
        logits_processor: ScoreFunction | Sequence[ScoreFunction] | None = None,
        stopping_criteria: Criterion | Sequence[Criterion] | None = None,
        on_tokens: OnTokens | None = None,
        streamer: Streamer | None = None,
        **options: Any,
    ) -> npt.NDArray[np.int64] | GenerateOutput:
        """Generates answers and returns them after their prompts, as transformers does.

        Names and meanings of arguments are transformers'. A value that is left out is that of `generation_config`, of
        the checkpoint's generation_config.json, or else transformers' default.

        Args:
          input_ids: int [B, T], prompts padded on the left.
          attention_mask: int or bool [B, T], 0 on padding. None infers it as transformers does: the padding token is
            padding, where it does not end answers too.
          pixel_values_images, pixel_values_videos, pixel_values, video_pooling: as in `__call__`.
          inputs: transformers' other name of `input_ids`.
          inputs_embeds: float [B, T, D], in place of input_ids; media go where an embedding is that of a placeholder.
          past_key_values: a cache of the first tokens of input_ids, of earlier calls. It gets the others and the
            answers, as far as they were fed back; of several answers to a prompt it gets none. Pixels are those of
            placeholders that it does not hold. `cache` is its newer name.
          generation_config: transformers' `GenerationConfig`, or a dictionary of options.
          seed: of the draws, one for all rows or one for each. A row's draws depend on its seed alone, so equal
            prompts with equal seeds get equal answers; the answers of `num_return_sequences` differ.
          tokenizer: turns tokens back into text; needed with `stop_strings`.
          logits_processor: a function of JAX arrays or a list of such: `(input_ids, scores) -> scores`, input_ids int32
            [B, S] with a row's tokens so far on the right and padding before them, scores float32 [B, V]. They are
            compiled into the decode loop; a new function object compiles it again.
          stopping_criteria: a function or a list of such: `(input_ids, scores) -> bool`, or bool [B], with input_ids
            int64 [B, T + n]. They are called on the host, once for each step, after every chunk of 8 steps. Those of
            transformers get torch tensors.
          on_tokens: called with the new tokens int64 [B, n] of every chunk of 8 steps, for streaming.
          streamer: transformers' `TextStreamer` or one with its methods. It gets the prompts, and then each step's
            tokens, 8 steps at a time.
          options: the fields of transformers' `GenerationConfig`; docs/generate.md says what happens to each.

        Returns:
          int64 [B × num_return_sequences, T + new]; rows that ended early are padded. Without the prompts for
          inputs_embeds alone. With `return_dict_in_generate=True` a `GenerateOutput`.

        Raises:
          TypeError: an unknown argument.
          ValueError: arguments or media that do not fit together, an option that asks for what is not done, or a prompt
            and answer longer than the model's positions. It is raised before anything is computed.
          FloatingPointError: logits that are not finite, naming the rows.
        """
        ids = from_torch(one_of(input_ids=input_ids, inputs=inputs))
        attention_mask, inputs_embeds = from_torch(attention_mask), from_torch(inputs_embeds)
        past = one_of(past_key_values=past_key_values, cache=cache)
        images = from_torch(one_of(pixel_values_images=pixel_values_images, pixel_values=pixel_values))
        videos = from_torch(pixel_values_videos)
        video_pooling = 1 if video_pooling is None else video_pooling
        media = images, videos, video_pooling
        start: Start | None = None
        said = ids is not None
        if inputs_embeds is not None:
            start = FromEmbeddings.of(self, inputs_embeds, past, ids, *media)
            ids = start.ids if ids is None else ids
        elif past is not None and ids is not None:
            start = FromCache(self, past, ids, *media)
        if ids is None:
            raise ValueError("input_ids: expected the tokens of prompts, got none")
        prompts = Prompts(ids, attention_mask, images, videos, video_pooling, start, said)
        found = generate(
            self,
            prompts,
            options,
            generation_config=generation_config,
            seed=seed,
            tokenizer=tokenizer,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            on_tokens=on_tokens,
            streamer=streamer,
        )
        return dataclasses.replace(found, past_key_values=past) if isinstance(found, GenerateOutput) else found


def _loss(logits: jax.Array, labels: ArrayLike) -> jax.Array:
    """The mean cross-entropy of the next token over labels that are not -100."""
    targets, (B, T, V) = np.asarray(labels), logits.shape
    if targets.shape != (B, T) or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"labels: expected integers [{B}, {T}], got {targets.dtype} {list(targets.shape)}")
    learnt = targets[:, 1:] != -100
    if ((targets < 0) & (targets != -100)).any() or targets.max() >= V:
        raise ValueError(f"labels: expected ids in 0..{V - 1}, or -100, got {targets.min()}..{targets.max()}")
    log_probabilities = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32), axis=-1)
    wanted = np.maximum(targets[:, 1:], 0)[..., None]
    picked = jnp.take_along_axis(log_probabilities, jnp.asarray(wanted), axis=-1)[..., 0]
    loss: jax.Array = -jnp.where(learnt, picked, 0).sum() / learnt.sum()
    return loss
