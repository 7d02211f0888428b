"""`VideoLlavaProcessor`: turns text, conversations, images and videos into model inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from videollava_jax.config import SelectStrategy
from videollava_jax.hub import Wanted, find_model, local_path
from videollava_jax.media import FramePreprocessor, Preprocessor
from videollava_jax.processing.files import preset_settings, read_settings, write_settings
from videollava_jax.processing.given_media import describe, media_of, with_media
from videollava_jax.processing.llama_tokenizer import read_llama_tokenizer
from videollava_jax.processing.model_inputs import PIXELS, CallOptions, Conversation, ModelInputs
from videollava_jax.processing.preset import Preset
from videollava_jax.processing.prompt import PromptTemplate, render_conversations, to_string
from videollava_jax.processing.segments import MediaKind, Segments
from videollava_jax.processing.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, load_tokenizer

_SAVED = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "image_token", "video_token")


class VideoLlavaProcessor(ModelInputs):
    """Prepares inputs for the model, with the call and the outputs of transformers' `VideoLlavaProcessor`.

    It needs neither torch nor torchvision. It raises errors where transformers would silently compute nonsense: for a
    placeholder without its medium, a prompt longer than the model's positions, a medium cut by truncation.

    Args:
        image_processor: how an image becomes pixels; by default the preset's way with CLIP's settings at 224.
        video_processor: the same for the frames of a video; `image_processor` when None.
        tokenizer: a fast Hugging Face tokenizer (`load_tokenizer`).
        patch_size: patch size of the vision towers.
        vision_feature_select_strategy: "default" drops the class token of an image, "full" keeps it. The frames of a
            video keep theirs either way.
        chat_template: the Jinja template that is saved with the tokenizer, for transformers; or several, by name. They
            are never run here.
        num_additional_image_tokens: tokens of a tower that are not patches: the class token.
        preset: how conversations and media become ids and pixels: "hf" as transformers, "original" as the authors, or
            a `preset.Preset` of your own.
        template: how conversations are written as prompts: a name in `prompt.TEMPLATES`, or a template of your own;
            None for the preset's.
        max_positions: positions of the decoder; None for no check.
        video_pooling: side of the windows of patches whose features the model averages in each frame of a video, so
            that more frames fit into its positions; 1 for none. No model was trained so: see docs/more_frames.md.
        frame_window: a video's number of frames must be a multiple of this: the frames that the video tower of an
            "original" model attends over; 1 allows any number.
    """

    def __init__(
        self,
        image_processor: Preprocessor | None = None,
        video_processor: Preprocessor | None = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        vision_feature_select_strategy: SelectStrategy = "default",
        chat_template: str | Mapping[str, str] | None = None,
        num_additional_image_tokens: int = 1,
        *,
        preset: str | Preset = "hf",
        template: str | PromptTemplate | None = None,
        max_positions: int | None = None,
        video_pooling: SupportsIndex = 1,
        frame_window: int = 1,
    ):
        if tokenizer is None:
            raise ValueError(
                "expected a tokenizer; videollava_jax.processing.tokenizer.load_tokenizer(directory) loads one"
            )
        super().__init__(
            image_processor,
            video_processor,
            tokenizer,
            preset=preset,
            template=template,
            max_positions=max_positions,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            num_additional_image_tokens=num_additional_image_tokens,
            video_pooling=video_pooling,
            frame_window=frame_window,
        )
        self.chat_template = self.jinja() if chat_template is None else chat_template

    # ── loading and saving ──

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        preset: str | Preset | Mapping[str, Any] | None = None,
        template: str | PromptTemplate | None = None,
        video_pooling: SupportsIndex | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> VideoLlavaProcessor:
        """Loads a processor from a directory in transformers' layout, or by a model's name on the Hugging Face hub.

        Args:
            directory: a local directory, or a name such as "LanguageBind/Video-LLaVA-7B-hf".
            preset: a name in `preset.PRESETS` or a `Preset`; or fields with values, which change the directory's own,
                {"resize": "pil"}, or another, {"name": "hf", "resize": "torch"}. By default the one saved in the
                directory, else that of the model's variant: "hf" for checkpoints of transformers, "original" for the
                authors'.
            template: the prompt template; by default the preset's.
            video_pooling: by default the one saved in the directory, else 1.
            revision, token: for the hub.

        Raises:
            ValueError: there is no such directory or model, a file cannot be read, or the tokenizer's ids differ from
                those in the model's configuration.
        """
        path = find_model(directory, Wanted.SIDE_FILES, revision=revision, token=token)
        settings = read_settings(path, preset)
        image = settings["image_processor"]
        for kind, name in (("image", "image_processor"), ("video", "video_processor")):
            raw = image if settings[name] is None else settings[name]
            settings[name] = settings["preset"].preprocessor(kind, FramePreprocessor.from_json(raw))
        if template is not None:
            settings["template"] = template
        if video_pooling is not None:
            settings["video_pooling"] = video_pooling
        return cls(tokenizer=read_llama_tokenizer(path) or load_tokenizer(path), **settings)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the files that `from_pretrained` reads, both here and in transformers.

        Raises:
            ValueError: media become pixels in another way than the preset says, which the files cannot hold.
        """
        for kind, preprocess in self.preprocessors.items():
            if self._preset.preprocessor(kind, FramePreprocessor.from_json(preprocess.to_json())) != preprocess:
                raise ValueError(
                    f"{kind}s become pixels by {preprocess}, and the files hold a preset of resize="
                    f"{self._preset.resize!r}, pad_to_square={self._preset.pad_to_square}: expected one that says the "
                    "same, as preset=…"
                )
        self._write(save_directory, {kind: preprocess.to_json() for kind, preprocess in self.preprocessors.items()})

    def _write(self, directory: str | os.PathLike[str], preprocessing: Mapping[MediaKind, Mapping[str, Any]]) -> None:
        """Writes all files, with the given settings of pixels as in `preprocessor_config.json`."""
        path = local_path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(path)
        settings = {name: getattr(self, name) for name in self._settings}
        settings |= preset_settings(self.preset, self.frame_window)
        write_settings(path, type(self).__name__, preprocessing, settings=settings, chat_template=self.chat_template)

    @property
    def _settings(self) -> list[str]:
        """The names of the attributes that are saved: those of transformers, and ours where they are unusual."""
        ours = {"max_positions": None, "video_pooling": 1, "frame_window": 1}
        return [*_SAVED, *(name for name, usual in ours.items() if getattr(self, name) != usual)]

    # ── the attributes of transformers' processor ──

    image_token = IMAGE_TOKEN
    video_token = VIDEO_TOKEN

    @property
    def image_token_id(self) -> int:
        """The id of `<image>`."""
        return self.encoder.media_ids["image"]

    @property
    def video_token_id(self) -> int:
        """The id of `<video>`."""
        return self.encoder.media_ids["video"]

    @property
    def model_input_names(self) -> list[str]:
        """The names of the inputs that a call may return."""
        return ["input_ids", "attention_mask", *PIXELS.values()]

    def batch_decode(self, ids: Any, **kwargs: Any) -> list[str]:
        """Decodes token ids [B, T], an array of any library or lists, to strings (the tokenizer's `batch_decode`)."""
        decoded: list[str] = self.tokenizer.batch_decode(_as_lists(ids), **kwargs)
        return decoded

    def decode(self, ids: Any, **kwargs: Any) -> str:
        """Decodes token ids [T] to a string (the tokenizer's `decode`)."""
        decoded: str = self.tokenizer.decode(_as_lists(ids), **kwargs)
        return decoded

    # ── model inputs ──

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        **asked: Any,
    ) -> Any:
        """Turns prompts and media into model inputs.

        Args:
            text: a prompt or a list of prompts, with `<image>` and `<video>` in the places of media.
            images: paths, PIL images or uint8 arrays [H, W, 3]: one, a list in the order of the placeholders, or a
                list for each row.
            videos: likewise paths, uint8 arrays [F, H, W, 3], or lists of frames.
            asked: the fields of `model_inputs.CallOptions`.

        Returns:
            transformers' `BatchFeature` with `input_ids` and `attention_mask` int64 [B, T]. With images it has
            `pixel_values_images` float32 [N, 3, S, S]; with videos, `pixel_values_videos` float32 [V, F, 3, S, S];
            both in the order of the placeholders. With pooled videos it has `video_pooling`, an int. Without text it
            has only pixels.

        Raises:
            ValueError: the numbers of media and placeholders differ, a prompt is too long, a file cannot be read,
                videos of different lengths cannot become one array, or the video tower does not take a number of
                frames.
        """
        options = CallOptions.of(asked)
        if text is None:
            rows = [Segments(media_of(images, videos))]
        else:
            prompts = [text] if isinstance(text, str) else text
            if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
                raise ValueError(f"text: expected a string or a list of strings, got {describe(text)}")
            most = self._most_tokens(options.max_new_tokens, options.truncation)
            rows = with_media([self.encoder.encode_string(prompt, most) for prompt in prompts], images, videos)
        return _batch_feature(self._inputs(rows, options, with_text=text is not None))

    def conversation_text(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        template: str | PromptTemplate | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Any:
        """Writes conversations as prompt strings, as transformers' template renders them.

        Args, and what is raised: as in `conversation_inputs`.

        Returns:
            A string, or a list of strings for a list of conversations.
        """
        prompts, batched = render_conversations(
            conversation, lambda turns: self.write(turns, template, add_generation_prompt, continue_final_message)
        )
        strings = [to_string(prompt, self.light_tokenizer.eos_token) for prompt in prompts]
        return strings if batched else strings[0]

    def conversation_inputs(self, conversation: Conversation | Sequence[Conversation], **options: Any) -> Any:
        """Turns conversations and their media into model inputs; arguments and errors are `conversation_arrays`'.

        Returns:
            What a call returns.
        """
        return _batch_feature(self.conversation_arrays(conversation, **options))


def _batch_feature(inputs: dict[str, Any]) -> Any:
    from transformers import BatchFeature

    return BatchFeature(inputs)


def _as_lists(ids: Any) -> Any:
    """Converts arrays of any library to lists of ints, which every tokenizer takes."""
    return np.asarray(ids).tolist() if hasattr(ids, "__array__") else ids
