"""`VideoLlavaProcessor` with transformers' call, over the core's.

what the core has too ──▶ the core's processor
a call ──▶ arguments, media opened ┤
anything else ──────────▶ transformers' own, with its image processor on NumPy
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any, SupportsIndex

from transformers.models.video_llava.processing_video_llava import VideoLlavaProcessor as TransformersProcessor

from videollava_jax.config import SelectStrategy, require_whole_windows
from videollava_jax.face import loading
from videollava_jax.face.arguments import (
    ACCEPTED,
    FURTHER_TEXTS,
    REFUSED,
    in_order,
    joined,
    require_known,
    sort,
    template_variables,
)
from videollava_jax.face.call import OWN, Call, is_plain, media, rows
from videollava_jax.face.faults import named_faults
from videollava_jax.face.features import features
from videollava_jax.face.image_processor import VideoLlavaImageProcessor
from videollava_jax.face.video_processor import VideoLlavaVideoProcessor
from videollava_jax.media import FramePreprocessor, Preprocessor
from videollava_jax.processing.files import read_settings
from videollava_jax.processing.preset import Preset
from videollava_jax.processing.processor import VideoLlavaProcessor as CoreProcessor
from videollava_jax.processing.prompt import PromptTemplate
from videollava_jax.processing.room import require_room
from videollava_jax.processing.segments import MediaKind
from videollava_jax.processing.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, load_tokenizer

KEPT = ("video_metadata", "text_replacement_offsets", "video_pooling")
"""What a call returns that is no array."""


def _signature_of_call() -> inspect.Signature:
    """Transformers' signature without `audio`: libraries look for `images`, `text` and `videos` in it."""
    signature = inspect.signature(TransformersProcessor.__call__)
    return signature.replace(parameters=[p for name, p in signature.parameters.items() if name != "audio"])


class VideoLlavaProcessor(CoreProcessor, TransformersProcessor):  # type: ignore[misc]
    """Prepares inputs for the model: transformers' `VideoLlavaProcessor` without torch, and this package's processor.

    Chats, the engine and jobs take it too. See docs/transformers.md for what differs from transformers.

    Args:
        image_processor: a `VideoLlavaImageProcessor`, one of transformers, or a `FramePreprocessor`; None for CLIP's.
        video_processor: likewise for the frames of videos; None for the same as images.
        tokenizer: a fast Hugging Face tokenizer.
        patch_size: patch size of the vision towers.
        vision_feature_select_strategy: "default" drops the class token of an image, "full" keeps it.
        image_token, video_token: the placeholders; others than `<image>` and `<video>` are refused.
        chat_template: Jinja; None for that of `template`.
        num_additional_image_tokens: tokens of a tower that are not patches: the class token.
        preset, template, max_positions, video_pooling, frame_window: as in `processing.processor.VideoLlavaProcessor`.

    Raises:
        ValueError: no tokenizer, or settings that do not fit.
    """

    text_kwargs = {"return_tensors": "np"}  # noqa: RUF012  (transformers reads these from the class)
    images_kwargs = {"return_tensors": "np"}  # noqa: RUF012
    videos_kwargs = {"return_tensors": "np"}  # noqa: RUF012

    def __init__(
        self,
        image_processor: Any = None,
        video_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        vision_feature_select_strategy: SelectStrategy = "default",
        image_token: str = IMAGE_TOKEN,
        video_token: str = VIDEO_TOKEN,
        chat_template: str | dict[str, str] | None = None,
        num_additional_image_tokens: int = 1,
        *,
        preset: str | Preset = "hf",
        template: str | PromptTemplate | None = None,
        max_positions: int | None = None,
        video_pooling: SupportsIndex = 1,
        frame_window: int = 1,
    ):
        if (image_token, video_token) != (IMAGE_TOKEN, VIDEO_TOKEN):
            raise ValueError(
                f"image_token, video_token: expected {IMAGE_TOKEN!r} and {VIDEO_TOKEN!r}, got {image_token!r} and "
                f"{video_token!r}"
            )
        self.image_processor = _sub_processor(VideoLlavaImageProcessor, image_processor)
        self.video_processor = _sub_processor(
            VideoLlavaVideoProcessor, image_processor if video_processor is None else video_processor
        )
        super().__init__(
            tokenizer=tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            num_additional_image_tokens=num_additional_image_tokens,
            preset=preset,
            template=template,
            max_positions=max_positions,
            video_pooling=video_pooling,
            frame_window=frame_window,
        )

    # ── loading and saving ──

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        preset: str | Preset | Mapping[str, Any] | None = None,
        template: str | PromptTemplate | None = None,
        **kwargs: Any,
    ) -> VideoLlavaProcessor:
        """Loads a processor from a directory in transformers' layout, or by a model's name on the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: a directory, or a name such as "LanguageBind/Video-LLaVA-7B-hf".
            preset: a preset, its name, or fields that change the directory's; None for the directory's own.
            template: the prompt template; None for that of the preset, with the directory's own `chat_template`.
            kwargs: of the hub (`revision`, `token`, `cache_dir`, `local_files_only`, `force_download`); of this class,
                the sub-processors and the tokenizer, in the place of what the files say (`do_resize`, `padding_side`,
                `pad_token`, …); `image_processor`, `video_processor` and `tokenizer` in the place of those that are
                saved; hints that ask for nothing (`use_fast`, `trust_remote_code`).

        Raises:
            TypeError: an unknown argument.
            ValueError: there is no such directory or model, or a file cannot be read.
        """
        asked = loading.sort(kwargs)
        path = loading.directory(pretrained_model_name_or_path, asked.hub)
        settings = {**read_settings(path, preset), **asked.own}
        image = settings.pop("image_processor")
        video = settings.pop("video_processor") or image
        tokenizer = asked.parts.get("tokenizer") or load_tokenizer(path)
        for name, value in asked.tokenizer.items():
            setattr(tokenizer, name, value)
        if asked.special_tokens:
            tokenizer.add_special_tokens(asked.special_tokens)
        if template is not None:
            settings |= {"template": template, "chat_template": asked.own.get("chat_template")}
        pictures = {**image, **asked.images}, {**video, **asked.images, **asked.videos}
        return cls(
            asked.parts.get("image_processor") or VideoLlavaImageProcessor(**loading.settings(pictures[0])),
            asked.parts.get("video_processor") or VideoLlavaVideoProcessor(**loading.settings(pictures[1])),
            tokenizer,
            **settings,
        )

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes the files that `from_pretrained` reads, here and in transformers; the model's may be there already.

        Args:
            save_directory: made where it is missing.
            push_to_hub: whether to upload them too; `push_to_hub()` is the same.
            kwargs: of `push_to_hub`: `repo_id`, `commit_message`, `token`, `private`, ….

        Returns:
            The path of `processor_config.json`, in a list, as transformers does.

        Raises:
            ValueError: a chat template with a name that is no file's name.
        """
        pictures = {"image": self.image_processor, "video": self.video_processor}
        self._write(save_directory, {kind: loading.plain_json(maker.to_dict()) for kind, maker in pictures.items()})  # type: ignore[misc]
        if push_to_hub:
            self.push_to_hub(**{"repo_id": os.path.basename(os.path.abspath(save_directory)), **kwargs})
        return [os.path.join(save_directory, "processor_config.json")]

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON has them, those of the image and the video processor among them."""
        settings = {name: getattr(self, name) for name in self._settings}
        settings["processor_class"] = type(self).__name__
        parts = {"image_processor": self.image_processor, "video_processor": self.video_processor}
        return {**settings, **{name: loading.plain_json(part.to_dict()) for name, part in parts.items()}}

    # ── what both parents have ──

    @property
    def preprocessors(self) -> Mapping[MediaKind, Preprocessor]:
        """How media become pixels in the core, by kind; from the sub-processors, as they are now.

        Raises:
            ValueError: settings that only this class's own call follows, such as `do_resize=False`.
        """
        image, video = (FramePreprocessor.from_json(loading.plain_json(p.to_dict())) for p in self._sub_processors)
        return {
            "image": self._preset.preprocessor("image", image),
            "video": self._preset.preprocessor("video", video),
        }

    @property
    def _sub_processors(self) -> tuple[Any, Any]:
        return self.image_processor, self.video_processor

    def _patches_per_side(self, kind: MediaKind) -> int:
        crop = (self.image_processor if kind == "image" else self.video_processor).crop_size
        return int(crop if isinstance(crop, int) else crop["height"]) // self.patch_size

    @property
    def _usual(self) -> bool:
        """Whether the sub-processors ask for what the core does."""
        try:
            return bool(self.preprocessors) and all(p.do_convert_rgb for p in self._sub_processors)
        except (ValueError, TypeError):
            return False

    # ── model inputs ──

    def __call__(self, *given: Any, **kwargs: Any) -> Any:
        """Turns prompts and media into model inputs.

        Args:
            given: images, text and videos, in this order (transformers 5) or text, images, videos (4.4x).
            kwargs: `images`, `text`, `videos` by name; transformers' arguments of text, images and videos, flat or in
                `text_kwargs`, `images_kwargs`, `videos_kwargs`, `common_kwargs`, `processor_kwargs`;
                `allow_remote_media` to fetch http and https URLs from public addresses; `frame_sampling`, `limits`,
                `reader`, `video_pooling` and `max_new_tokens` as in `processing.processor.VideoLlavaProcessor`.
                `return_tensors` is "np", "jax", "pt" where torch is installed, or None for lists.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` int64 [B, T], `pixel_values_images` float32
            [N, 3, S, S], `pixel_values_videos` float32 [V, F, 3, S, S], those that are asked for.

        Raises:
            TypeError: an argument that nobody has.
            ValueError: one that asks for what is not done, or a value that does not fit; a placeholder without its
                medium; a prompt that is too long.
        """
        kwargs = joined(kwargs)
        found = in_order(given, {name: kwargs.pop(name, None) for name in ("images", "text", "videos", "audio")})
        call = self._call({**kwargs, "audio": found.pop("audio")})
        text = list(found["text"]) if isinstance(found["text"], tuple) else found["text"]
        images, videos, metadata = call.opened(found["images"], found["videos"])
        if self._usual and not call.asks_for_more and all(map(is_plain, media(images, videos))):
            made = CoreProcessor.__call__(self, text, images, videos, **call.of_core)
        else:
            made = self._by_transformers(text, images, videos, call)
        if call.asked.sampling.get("return_metadata"):
            made["video_metadata"] = metadata
        return features(made, call.kind, keep=KEPT)

    __call__.__signature__ = _signature_of_call()  # type: ignore[attr-defined]

    def _call(self, kwargs: dict[str, Any]) -> Call:
        """Checks the arguments of a call, and sorts them."""
        require_known(kwargs, OWN)
        kwargs = {name: value for name, value in kwargs.items() if name not in ACCEPTED and name not in REFUSED}
        own = {name: kwargs.pop(name) for name in OWN if name in kwargs}
        with named_faults("arguments of the processor"):
            merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return Call(sort(merged, self), own, self.video_processor, self.frames)

    def _by_transformers(self, text: Any, images: Any, videos: Any, call: Call) -> Any:
        """The inputs by transformers' own call, whose tokenizer and image processor know all arguments."""
        if (pooling := call.own.get("video_pooling")) not in (None, 1) or self.video_pooling != 1:
            raise ValueError(
                f"video_pooling={pooling or self.video_pooling} goes with the usual arguments and uint8 pixels only; "
                f"got {call.described or 'pixels of another kind'}"
            )
        texts = [text] if isinstance(text, str) else text
        asked = call.asked
        of_text = {"padding": asked.padding, "truncation": asked.truncation, "max_length": asked.max_length}
        kind = {"return_tensors": "np" if call.kind else None}
        with named_faults("the processor"):
            made = TransformersProcessor.__call__(
                self,
                text=texts,
                images=call.read_images(rows(images, "image", texts, asked)) or None,
                videos=call.read_videos(rows(videos, "video", texts, asked)) or None,
                text_kwargs={**of_text, **_as_rows(asked.text, text), **kind},
                images_kwargs={**asked.images, **kind},
                videos_kwargs={**asked.videos, **kind},
                **asked.flags,
            )
        for i, frames in enumerate(made.get("pixel_values_videos", ())):
            require_whole_windows(f"video {i}", len(frames), self.frame_window)
        if self.max_positions is not None:
            longest = max((len(ids) for ids in made.get("input_ids", ())), default=0)
            require_room(longest, call.own.get("max_new_tokens", 0), self.max_positions)
        return made

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: Any = "auto",
        return_dict: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        sanitize_control_tokens: bool = False,
        *,
        template: str | PromptTemplate | None = None,
        **kwargs: Any,
    ) -> Any:
        """Writes conversations as prompts, or as model inputs, with transformers' arguments and defaults.

        A `chat_template` that is not this package's is rendered as transformers does, in jinja2's sandbox. With this
        package's template the text of a message is never special: `<video>` or `</s>` in it stay those characters.

        Args:
            conversation: messages, or a list of conversations; see `processing.prompt.parse_conversation`.
            chat_template: Jinja, or a name in `self.chat_template`; None for the processor's own.
            tools, documents: for a chat template that shows them.
            add_generation_prompt: whether to open the assistant's next turn.
            continue_final_message: whether to leave the last message open, for more of it.
            return_assistant_tokens_mask: whether to add `assistant_masks`, 1 on the assistant's tokens.
            tokenize: False for strings, True for model inputs.
            return_tensors: as in a call; "auto" is "np".
            return_dict: False for the token ids alone.
            load_audio_from_video: refused, as the model takes no sound.
            processor_kwargs: arguments of a call.
            sanitize_control_tokens: for other templates, whether text is kept from being special.
            template: one of this package's, instead of a chat template.
            kwargs: the chat template's own variables, and arguments of a call.

        Raises:
            TypeError: an unknown argument.
            ValueError: a conversation or an argument that cannot be used.
        """
        if load_audio_from_video:
            raise ValueError(f"load_audio_from_video: {REFUSED['audio']}")
        turns: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        foreign = None if template is not None else self._foreign_template(chat_template)
        if foreign is None:
            turns["template"] = template
            if tools or documents:
                warnings.warn("tools, documents: this package's chat template does not show them", stacklevel=2)
            if not tokenize:
                self._call(joined({**kwargs, "processor_kwargs": processor_kwargs}))
                return self.conversation_text(conversation, **turns)
        given = joined({**kwargs, "processor_kwargs": processor_kwargs})
        if return_tensors != "auto":
            given = joined({**given, "processor_kwargs": {"return_tensors": return_tensors}})
        if given.get("num_frames") is not None or given.get("fps") is not None:
            given.setdefault("do_sample_frames", True)
        variables = {} if foreign is None else {name: given.pop(name) for name in template_variables(foreign, given)}
        call = self._call(dict(given))
        conversation = call.opened_conversation(conversation) if tokenize else conversation
        if foreign is None and self._usual and not call.asks_for_more and call.is_plain(conversation):
            turns["return_assistant_tokens_mask"] = return_assistant_tokens_mask
            made = self.conversation_inputs(conversation, **turns, **call.of_core)
            inputs = features(made, call.kind, keep=KEPT)
            return inputs if return_dict else inputs["input_ids"]
        with named_faults("conversation"):
            made = TransformersProcessor.apply_chat_template(
                self,
                conversation,
                foreign or self.jinja(template),
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
                tokenize=tokenize,
                return_dict=return_dict,
                processor_kwargs=call.opened_kwargs(given),
                sanitize_control_tokens=sanitize_control_tokens,
                **variables,
            )
        return features(made, call.kind, keep=KEPT) if tokenize and return_dict else made

    def _foreign_template(self, chat_template: str | None) -> str | None:
        """The Jinja that a call asks for; None where it is this package's own."""
        jinja: str = self._resolve_chat_template(chat_template)
        return None if jinja == self.jinja() else jinja


def _as_rows(of_text: Mapping[str, Any], text: Any) -> dict[str, Any]:
    """Arguments of the tokenizer, with further texts (`text_pair`, …) in a list where the text is no list either."""
    if not isinstance(text, str):
        return dict(of_text)
    return {k: [v] if k in FURTHER_TEXTS and isinstance(v, str) else v for k, v in of_text.items()}


def _sub_processor(form: type[Any], given: Any) -> Any:
    """A sub-processor of our class with the settings of what was given."""
    if given is None or isinstance(given, form):
        return form() if given is None else given
    settings = given.to_json() if isinstance(given, FramePreprocessor) else getattr(given, "to_dict", dict)()
    if not settings:
        raise ValueError(f"expected a {form.__name__} or a FramePreprocessor, got a {type(given).__name__}")
    return form(**loading.settings(settings))
