"""`VideoLlavaProcessor`: text, conversations, images and videos to model inputs, as in transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from videollava_jax.config import SelectStrategy, checked_pooling, poolings, require_whole_windows
from videollava_jax.hub import Wanted, find_model
from videollava_jax.media import FramePreprocessor, MediaLimits, Uniform
from videollava_jax.processing.files import model_facts, saved_chat_template, write_json
from videollava_jax.processing.given_media import (
    describe,
    image_pixels,
    known_frames,
    media_of,
    require_sources,
    video_pixels,
    with_media,
)
from videollava_jax.processing.layout import Budget, Padding, lay_out, pad
from videollava_jax.processing.prompt import PromptTemplate, get_template, parse_conversation, render, to_string
from videollava_jax.processing.segments import Media, SegmentEncoder, Segments
from videollava_jax.processing.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, load_tokenizer, read_json

Conversation = Iterable[Mapping[str, Any]]

DEFAULT_LIMITS = MediaLimits()
DEFAULT_FRAME_SAMPLING = Uniform(num_frames=8)


@dataclass(frozen=True)
class _Options:
    """How a call wants its inputs; the arguments of that name."""

    padding: Padding
    truncation: bool | str | None
    max_length: int | None
    max_new_tokens: int
    frame_sampling: Any
    limits: MediaLimits
    return_tensors: str | None
    video_pooling: int


class VideoLlavaProcessor:
    """Prepares inputs for the model, with the call and the outputs of transformers' `VideoLlavaProcessor`.

    It needs neither torch nor torchvision. Where transformers would go wrong in silence it raises: a
    placeholder without its medium, a prompt longer than the model's positions, a medium cut by truncation.

    Args:
        image_processor: how an image becomes pixels; by default CLIP's at 224.
        video_processor: the same for the frames of a video; `image_processor` when None.
        tokenizer: a fast Hugging Face tokenizer (`load_tokenizer`).
        patch_size: patch size of the vision towers.
        vision_feature_select_strategy: "default" drops an image's class token, "full" keeps it. A video's
            frames keep theirs either way.
        chat_template: the Jinja template to save beside the tokenizer, for transformers. Never run here.
        num_additional_image_tokens: tokens of a tower beside its patches: the class token.
        template: how `apply_chat_template` writes prompts: a name in `prompt.TEMPLATES`, or one of your own.
        max_positions: positions that the decoder has; None for no check.
        video_pooling: side of the windows of patches whose features the model averages in each frame of a video,
            so that more frames fit its positions; 1 for none. Untrained: see docs/more_frames.md.
        frame_window: what a video's number of frames has to be a multiple of: the frames that an "original" video
            tower attends over, 1 for any number.
    """

    def __init__(
        self,
        image_processor: FramePreprocessor | None = None,
        video_processor: FramePreprocessor | None = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        vision_feature_select_strategy: SelectStrategy = "default",
        chat_template: str | None = None,
        num_additional_image_tokens: int = 1,
        *,
        template: str | PromptTemplate = "hf",
        max_positions: int | None = None,
        video_pooling: SupportsIndex = 1,
        frame_window: int = 1,
    ):
        if tokenizer is None:
            raise ValueError(
                "expected a tokenizer; videollava_jax.processing.tokenizer.load_tokenizer(directory) loads one"
            )
        if vision_feature_select_strategy not in ("default", "full"):
            raise ValueError(
                f"vision_feature_select_strategy: expected 'default' or 'full', got {vision_feature_select_strategy!r}"
            )
        self.image_processor = FramePreprocessor() if image_processor is None else image_processor
        self.video_processor = self.image_processor if video_processor is None else video_processor
        self.tokenizer = tokenizer
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.template = get_template(template)
        self.chat_template = self.template.to_jinja() if chat_template is None else chat_template
        self.max_positions = max_positions
        self.video_pooling = checked_pooling(video_pooling, self._side(self.video_processor))
        self.frame_window = frame_window
        self._encoder: SegmentEncoder | None = None

    # ── loading and saving ──

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        template: str | PromptTemplate | None = None,
        video_pooling: SupportsIndex | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> VideoLlavaProcessor:
        """Reads a directory as transformers lays it out, or a model of that name on the Hugging Face hub.

        Args:
            directory: a local directory, or a name such as "LanguageBind/Video-LLaVA-7B-hf".
            template: the prompt template; by default the one the directory was saved with, "hf" for converted
                checkpoints, and "vicuna_v1" for the authors' own.
            video_pooling: by default what the directory was saved with, 1 where that says nothing.
            revision, token: for the hub.

        Raises:
            ValueError: no such directory or model, a file that cannot be read, or token ids other than the
                model's configuration names.
        """
        path = find_model(directory, Wanted.SIDE_FILES, revision=revision, token=token)
        config = read_json(path / "config.json") or {}
        saved = read_json(path / "processor_config.json") or {}
        image = saved.get("image_processor") or read_json(path / "preprocessor_config.json")
        video = saved.get("video_processor") or read_json(path / "video_preprocessor_config.json")
        model = model_facts(config)
        image_processor = FramePreprocessor.from_json(image if image is not None else model.preprocessing)
        strategy = saved.get("vision_feature_select_strategy", model.strategy)
        return cls(
            image_processor=image_processor,
            video_processor=None if video is None else FramePreprocessor.from_json(video),
            tokenizer=load_tokenizer(path),
            patch_size=saved.get("patch_size", model.patch_size),
            vision_feature_select_strategy=strategy,
            chat_template=saved_chat_template(path, saved),
            num_additional_image_tokens=saved.get("num_additional_image_tokens", 1),
            template=saved.get("prompt_template", model.template) if template is None else template,
            max_positions=saved.get("max_positions") if model.max_positions is None else model.max_positions,
            video_pooling=saved.get("video_pooling", 1) if video_pooling is None else video_pooling,
            frame_window=model.frame_window if config else saved.get("frame_window", 1),
        )

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes what `from_pretrained` reads, here and in transformers."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(path)
        name = {"processor_class": type(self).__name__}
        write_json(
            path / "preprocessor_config.json",
            {**self.image_processor.to_json(), **name, "image_processor_type": "VideoLlavaImageProcessor"},
        )
        write_json(
            path / "video_preprocessor_config.json",
            {**self.video_processor.to_json(), **name, "video_processor_type": "VideoLlavaVideoProcessor"},
        )
        settings = {
            **name,
            "patch_size": self.patch_size,
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "num_additional_image_tokens": self.num_additional_image_tokens,
            "image_token": IMAGE_TOKEN,
            "video_token": VIDEO_TOKEN,
            "prompt_template": self.template.name,
        }
        if self.max_positions is not None:
            settings["max_positions"] = self.max_positions
        if self.video_pooling != 1:
            settings["video_pooling"] = self.video_pooling
        if self.frame_window != 1:
            settings["frame_window"] = self.frame_window
        write_json(path / "processor_config.json", settings)
        (path / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    # ── what transformers' processor has ──

    image_token = IMAGE_TOKEN
    video_token = VIDEO_TOKEN

    @property
    def image_token_id(self) -> int:
        return self.encoder.media_ids["image"]

    @property
    def video_token_id(self) -> int:
        return self.encoder.media_ids["video"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values_images", "pixel_values_videos"]

    def batch_decode(self, ids: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`: [B, T] token ids (any array, or lists) to strings."""
        decoded: list[str] = self.tokenizer.batch_decode(_as_lists(ids), **kwargs)
        return decoded

    def decode(self, ids: Any, **kwargs: Any) -> str:
        """The tokenizer's `decode`: [T] token ids to a string."""
        decoded: str = self.tokenizer.decode(_as_lists(ids), **kwargs)
        return decoded

    # ── tokens ──

    @property
    def encoder(self) -> SegmentEncoder:
        """Prompts to segments, with this processor's tokenizer as it is when first used."""
        if self._encoder is None or self._encoder.tokenizer is not self.tokenizer:
            self._encoder = SegmentEncoder(self.tokenizer)
        return self._encoder

    @property
    def tokens_per_image(self) -> int:
        """Decoder tokens of an image: 256 at 224 pixels in patches of 14. Counted as transformers counts."""
        dropped = self.vision_feature_select_strategy == "default"
        return self._patches(self.image_processor) + self.num_additional_image_tokens - dropped

    @property
    def tokens_per_frame(self) -> int:
        """Decoder tokens of a video's frame, with this processor's pooling: 257 at 224 pixels in patches of 14."""
        return self.pooled_tokens_per_frame(self.video_pooling)

    def pooled_tokens_per_frame(self, video_pooling: SupportsIndex) -> int:
        """The same with a pooling of the caller's: 65 with 2, 17 with 4, 5 with 8, 2 with 16."""
        side = self._side(self.video_processor)
        return (side // checked_pooling(video_pooling, side)) ** 2 + self.num_additional_image_tokens

    def _patches(self, preprocess: FramePreprocessor) -> int:
        return self._side(preprocess) ** 2

    def _side(self, preprocess: FramePreprocessor) -> int:
        return preprocess.crop_size // self.patch_size

    def encode(
        self,
        conversation: Conversation,
        *,
        template: str | PromptTemplate | None = None,
        add_generation_prompt: bool = True,
    ) -> Segments:
        """A conversation as segments (text ids │ media │ text ids), the media as they were given."""
        turns = parse_conversation(conversation)
        return self.encoder.encode(render(turns, template or self.template, add_generation_prompt))

    # ── media by themselves ──

    def read_medium(
        self, medium: Media, frame_sampling: Any = DEFAULT_FRAME_SAMPLING, limits: MediaLimits = DEFAULT_LIMITS
    ) -> npt.NDArray[np.uint8]:
        """The pixels of one medium as the towers see it, not yet normalised: uint8 [F, S, S, 3], F = 1 for an image.

        Raises:
            ValueError: a file that cannot be read, or a number of frames that the video tower does not take.
        """
        if medium.kind == "image":
            return image_pixels(medium.source, self.image_processor, limits)[None]
        pixels = video_pixels(medium.source, self.video_processor, frame_sampling, limits)
        self._require_whole_windows([medium], [len(pixels)])
        return pixels

    def medium_tokens(
        self, media: Sequence[Media], pixels: Sequence[npt.NDArray[np.uint8]], video_pooling: int
    ) -> list[int]:
        """Decoder tokens of each of these media."""
        frame = self.pooled_tokens_per_frame(video_pooling)
        return [
            self.tokens_per_image if medium.kind == "image" else len(array) * frame
            for medium, array in zip(media, pixels, strict=True)
        ]

    # ── model inputs ──

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        *,
        padding: Padding = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        max_new_tokens: int = 0,
        frame_sampling: Any = DEFAULT_FRAME_SAMPLING,
        limits: MediaLimits = DEFAULT_LIMITS,
        video_pooling: SupportsIndex | None = None,
        return_tensors: Literal["np"] | None = "np",
    ) -> Any:
        """Prompts and media to model inputs.

        Args:
            text: a prompt or a list of them, with `<image>` and `<video>` where media stand.
            images: paths, PIL images or uint8 arrays [H, W, 3]: one, a list in the order of the placeholders,
                or a list for each row.
            videos: the same with paths, uint8 arrays [F, H, W, 3], or lists of frames.
            padding: True or "longest" pads to the longest row, "max_length" to `max_length`; on the side that
                the tokenizer pads.
            truncation: True cuts rows to `max_length` tokens. A cut through a medium is an error.
            max_length: see the two above, in tokens.
            max_new_tokens: how many tokens will be generated: with the prompt they have to fit the model.
            frame_sampling: which frames to take from a video file; arrays and frames are taken whole.
            limits: what a media file may cost to open.
            video_pooling: when not the processor's own. The output carries it to the model.
            return_tensors: "np", or None for lists.

        Returns:
            transformers' `BatchFeature`: `input_ids` and `attention_mask` int64 [B, T]; with images,
            `pixel_values_images` float32 [N, 3, S, S]; with videos, `pixel_values_videos`
            float32 [V, F, 3, S, S], both in the order of the placeholders; with videos that are pooled,
            `video_pooling`, an int. Without text, pixels alone.

        Raises:
            ValueError: media and placeholders that differ in number, a prompt that is too long, a file that
                cannot be read, videos of different lengths in one array, a number of frames that the video tower
                cannot take.
        """
        if text is None:
            rows = [Segments(media_of(images, videos))]
        else:
            prompts = [text] if isinstance(text, str) else text
            if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
                raise ValueError(f"text: expected a string or a list of strings, got {describe(text)}")
            rows = with_media([self.encoder.encode_string(prompt) for prompt in prompts], images, videos)
        pooling = self._pooling(video_pooling)
        options = _Options(
            padding, truncation, max_length, max_new_tokens, frame_sampling, limits, return_tensors, pooling
        )
        return self._inputs(rows, options, with_text=text is not None)

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        template: str | PromptTemplate | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        num_frames: int | None = None,
        padding: Padding = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        max_new_tokens: int = 0,
        frame_sampling: Any = DEFAULT_FRAME_SAMPLING,
        limits: MediaLimits = DEFAULT_LIMITS,
        video_pooling: SupportsIndex | None = None,
        return_tensors: Literal["np"] | None = "np",
    ) -> Any:
        """Conversations (`prompt.parse_conversation`) to prompt strings, or to model inputs with their media.

        With `tokenize=True` text is only ever text: `<video>` or `</s>` in a message stays those characters.

        Args:
            conversation: one, or a list of them.
            template: the prompt template, when not the processor's own.
            add_generation_prompt: whether to open the assistant's next turn.
            tokenize: False for the string that transformers' template renders, True for model inputs.
            return_dict: False for the token ids alone.
            return_assistant_tokens_mask: adds `assistant_masks` int64 [B, T], 1 on what the assistant said
                (`</s>` included), for labels.
            num_frames: short for `frame_sampling=Uniform(num_frames)`.
            padding, truncation, max_length, max_new_tokens: as in a call.
            frame_sampling, limits, video_pooling, return_tensors: as in a call.

        Returns:
            A string (or a list of them), or what a call returns.
        """
        batched = isinstance(conversation, Sequence) and bool(conversation) and _is_conversation(conversation[0])
        conversations: Sequence[Any] = conversation if batched else [conversation]  # type: ignore[assignment]
        prompts = []
        for i, messages in enumerate(conversations):
            try:
                turns = parse_conversation(messages)
                prompts.append(render(turns, template or self.template, add_generation_prompt))
            except ValueError as error:
                raise ValueError(f"conversation {i}: {error}" if batched else str(error)) from None
        if not tokenize:
            strings = [to_string(prompt, self.tokenizer.eos_token) for prompt in prompts]
            return strings if batched else strings[0]
        rows = [self.encoder.encode(prompt) for prompt in prompts]
        require_sources(rows)
        if num_frames is not None:
            frame_sampling = Uniform(num_frames=num_frames)
        pooling = self._pooling(video_pooling)
        options = _Options(
            padding, truncation, max_length, max_new_tokens, frame_sampling, limits, return_tensors, pooling
        )
        inputs = self._inputs(rows, options, with_answers=return_assistant_tokens_mask)
        return inputs if return_dict else inputs["input_ids"]

    def _inputs(
        self, rows: list[Segments], options: _Options, with_text: bool = True, with_answers: bool = False
    ) -> Any:
        from transformers import BatchFeature

        if options.return_tensors not in ("np", None):
            raise ValueError(
                "return_tensors: expected 'np' (NumPy arrays, which JAX takes as they are) or None (lists), "
                f"got {options.return_tensors!r}"
            )
        media = [medium for row in rows for medium in row.media]
        frames = [known_frames(m.source, options.frame_sampling) if m.kind == "video" else 1 for m in media]
        ids, budget = self.encoder.media_ids, self._budget(options)
        self._require_whole_windows(media, frames)
        known = [count for count in frames if count is not None]
        if with_text and len(known) == len(frames):
            lay_out(rows, known, ids, budget)  # refuses a prompt that is too long before any pixel work
        pixels = self._pixels(media, options)
        self._require_whole_windows(media, [len(array) for array in pixels])
        data: dict[str, Any] = {}
        if with_text:
            data |= pad(
                lay_out(rows, [len(array) for array in pixels], ids, budget),
                self.tokenizer.pad_token_id,
                padding=options.padding,
                max_length=options.max_length,
                left=self.tokenizer.padding_side == "left",
                with_answers=with_answers,
                as_arrays=options.return_tensors is not None,
            )
        for kind, name in (("image", "pixel_values_images"), ("video", "pixel_values_videos")):
            chosen = [p for p, medium in zip(pixels, media, strict=True) if medium.kind == kind]
            if chosen:
                data[name] = self._normalized(kind, chosen, options)
        if "pixel_values_videos" in data and options.video_pooling != 1:
            data["video_pooling"] = options.video_pooling
        return BatchFeature(data)

    def _pooling(self, asked: SupportsIndex | None) -> int:
        return self.video_pooling if asked is None else checked_pooling(asked, self._side(self.video_processor))

    def _require_whole_windows(self, media: Sequence[Media], frames: Sequence[int | None]) -> None:
        """Refuses videos of known lengths that the video tower cannot take."""
        videos = [count for medium, count in zip(media, frames, strict=True) if medium.kind == "video"]
        for i, count in enumerate(videos):
            if count is not None:
                require_whole_windows(f"video {i}", count, self.frame_window)

    def _budget(self, options: _Options) -> Budget:
        tokenizer = self.tokenizer
        if options.truncation not in (True, False, None, "longest_first", "do_not_truncate"):
            raise ValueError(f"truncation: expected True or False, got {options.truncation!r}")
        limit = None
        if options.truncation in (True, "longest_first"):
            limit = tokenizer.model_max_length if options.max_length is None else options.max_length
        return Budget(
            tokens_per_image=self.tokens_per_image,
            tokens_per_frame=self.pooled_tokens_per_frame(options.video_pooling),
            pooled=tuple(
                (pooling, self.pooled_tokens_per_frame(pooling))
                for pooling in poolings(self._side(self.video_processor))
                if pooling > options.video_pooling
            ),
            frame_window=self.frame_window,
            max_positions=self.max_positions,
            max_new_tokens=options.max_new_tokens,
            truncate_to=limit,
            truncate_left=tokenizer.truncation_side == "left",
            affixes=self.encoder.affix_lengths,
        )

    def _pixels(self, media: Sequence[Media], options: _Options) -> list[npt.NDArray[np.uint8]]:
        """uint8 [F, S, S, 3] for every medium, F = 1 for an image. A medium given twice is read once."""
        read: dict[tuple[str, str], npt.NDArray[np.uint8]] = {}
        pixels = []
        for medium in media:
            is_file = isinstance(medium.source, (str, os.PathLike))
            key = (medium.kind, os.fspath(medium.source) if is_file else str(id(medium.source)))
            if key not in read:
                read[key] = self.read_medium(medium, options.frame_sampling, options.limits)
            pixels.append(read[key])
        return pixels

    def _normalized(self, kind: str, pixels: Sequence[npt.NDArray[np.uint8]], options: _Options) -> Any:
        """float32, channels first: [N, 3, S, S] of images, [V, F, 3, S, S] of videos; lists when so asked."""
        preprocess = self.image_processor if kind == "image" else self.video_processor
        arrays = [np.ascontiguousarray(preprocess.normalize(p).transpose(0, 3, 1, 2)) for p in pixels]
        if kind == "image":
            arrays = [array[0] for array in arrays]
        if options.return_tensors is None:
            return arrays
        if len({array.shape for array in arrays}) > 1:
            counts = ", ".join(str(len(array)) for array in arrays)
            raise ValueError(
                "videos: expected the same number of frames in all videos of a call, for they become one "
                f"array; got {counts}. Sample them alike, call once for each length, or take lists with "
                "return_tensors=None"
            )
        return np.stack(arrays)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _as_lists(ids: Any) -> Any:
    """Arrays of any library as lists of ints, which every tokenizer takes."""
    return np.asarray(ids).tolist() if hasattr(ids, "__array__") else ids
