"""`ModelInputs`: turns prompts and media into the model's inputs, plain arrays by name; transformers is not needed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, SupportsIndex

from videollava_jax.config import poolings
from videollava_jax.media import MediaLimits, Preprocessor
from videollava_jax.processing.given_media import known_frames, require_sources
from videollava_jax.processing.layout import Budget, Padding, lay_out, pad
from videollava_jax.processing.llama_tokenizer import LlamaTokenizer
from videollava_jax.processing.media_processor import DEFAULT_LIMITS, MediaProcessor, Reader
from videollava_jax.processing.preset import Preset, get_preset
from videollava_jax.processing.prompt import (
    PromptTemplate,
    Turn,
    get_template,
    parse_conversation,
    render,
    render_conversations,
)
from videollava_jax.processing.room import room_for_prompt
from videollava_jax.processing.segments import MediaKind, Piece, SegmentEncoder, Segments
from videollava_jax.processing.tokenizer import load_tokenizer

Conversation = Iterable[Mapping[str, Any]]

PIXELS: dict[MediaKind, str] = {"image": "pixel_values_images", "video": "pixel_values_videos"}


@dataclass(frozen=True)
class CallOptions:
    """The arguments of a call that say how its inputs are made, of prompts and of conversations.

    Attributes:
        padding: True or "longest" pads to the longest row, "max_length" to `max_length`, on the tokenizer's padding
            side.
        truncation: True cuts rows to `max_length` tokens. It is an error if that cuts a medium.
        max_length: tokens, for `padding` and `truncation`.
        max_new_tokens: how many tokens will be generated; they must fit into the model's positions too.
        frame_sampling: which frames to take from a video file: a rule, a number of frames by the preset's rule, or None
            for 8 of them; of arrays and lists all frames are taken.
        limits: of media files.
        reader: reads media files instead of this process, as an `IsolatedReader` does, which has limits of its own.
        video_pooling: None for the processor's own. The output passes it on to the model.
        return_tensors: "np", or None for lists.
    """

    padding: Padding = False
    truncation: bool | str | None = False
    max_length: int | None = None
    max_new_tokens: int = 0
    frame_sampling: Any = None
    limits: MediaLimits = DEFAULT_LIMITS
    reader: Reader | None = None
    video_pooling: SupportsIndex | None = None
    return_tensors: Literal["np"] | None = "np"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> CallOptions:
        """Returns the options that are given by name.

        Raises:
            TypeError: an unknown name; the message has the nearest known one.
        """
        known = [field.name for field in fields(cls)]
        for name in given.keys() - known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(
                f"unknown argument {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"known: {known}")
            )
        return cls(**given)


class ModelInputs(MediaProcessor):
    """Prepares prompts and media for the model.

    Args:
        image_processor, video_processor: how images and frames become pixels; see `MediaProcessor`.
        tokenizer: a fast Hugging Face tokenizer (`load_tokenizer`), or one of `read_llama_tokenizer`.
        preset: how conversations and media become ids and pixels: a name in `preset.PRESETS`, or one of your own.
        template: how conversations are written: a name in `prompt.TEMPLATES`, or a template of your own; None for the
            preset's.
        max_positions: positions of the decoder; None for no check.
        media: the other arguments of `MediaProcessor`.
    """

    def __init__(
        self,
        image_processor: Preprocessor | None,
        video_processor: Preprocessor | None,
        tokenizer: Any,
        *,
        preset: str | Preset = "hf",
        template: str | PromptTemplate | None = None,
        max_positions: int | None,
        **media: Any,
    ):
        super().__init__(image_processor, video_processor, preset=preset, **media)
        self._tokenizer = tokenizer
        self.template = get_template(get_preset(preset).template if template is None else template)
        self.max_positions = max_positions
        self._encoder: SegmentEncoder | None = None

    @property
    def preset(self) -> Preset:
        """How conversations and media become ids and pixels, with the template that this processor writes with."""
        return replace(self._preset, template=self.template)

    # ── tokens ──

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, loaded from the processor's directory when it is first asked for."""
        if isinstance(self._tokenizer, LlamaTokenizer):
            self._tokenizer = load_tokenizer(self._tokenizer.directory)
            if self._encoder is not None:
                self._encoder.tokenizer = self._tokenizer
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def light_tokenizer(self) -> Any:
        """The tokenizer with the methods of `LlamaTokenizer`, whichever is there already; transformers stays out."""
        return self._tokenizer

    @property
    def encoder(self) -> SegmentEncoder:
        """Turns prompts into segments. It copies the tokenizer at its first use, so later changes have no effect."""
        if self._encoder is None or self._encoder.tokenizer is not self._tokenizer:
            preset = self._preset
            self._encoder = SegmentEncoder(self._tokenizer, preset.after_media, preset.after_end)
        return self._encoder

    def write(
        self,
        turns: Sequence[Turn],
        template: str | PromptTemplate | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> tuple[Piece, ...]:
        """Writes checked turns as a prompt; what is raised is `prompt.render`'s.

        Args:
            turns: of one conversation.
            template: None for the processor's own.
            add_generation_prompt, continue_final_message: as in `prompt.render`.
        """
        return render(
            turns,
            template or self.template,
            add_generation_prompt,
            continue_final_message,
            media_order=self._preset.media_order,
            repeat_end=self._preset.repeat_end,
        )

    def jinja(self, template: str | PromptTemplate | None = None) -> str:
        """Returns in Jinja what `write` does, for transformers."""
        return get_template(template or self.template).to_jinja(self._preset.media_order, self._preset.repeat_end)

    def encode(
        self,
        conversation: Conversation,
        *,
        template: str | PromptTemplate | None = None,
        add_generation_prompt: bool = True,
        max_new_tokens: int = 0,
    ) -> Segments:
        """Encodes a conversation as segments (text ids │ media │ text ids), without reading its media.

        Raises:
            ValueError: a conversation that is malformed, or whose text is too long for the model's positions.
        """
        turns = parse_conversation(conversation)
        pieces = self.write(turns, template, add_generation_prompt)
        return self.encoder.encode(pieces, self._most_tokens(max_new_tokens))

    # ── model inputs ──

    def conversation_arrays(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        template: str | PromptTemplate | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        **asked: Any,
    ) -> dict[str, Any]:
        """Turns conversations (see `prompt.parse_conversation`) and their media into model inputs.

        The text of a message is never special: `<video>` or `</s>` in it stay those characters.

        Args:
            conversation: one, or a list of them.
            template: the prompt template; None for the processor's own.
            add_generation_prompt: whether to open the assistant's next turn.
            continue_final_message: whether to leave the last message, the assistant's, open for more of it.
            return_assistant_tokens_mask: whether to add `assistant_masks` int64 [B, T], which is 1 on the assistant's
                tokens (including `</s>`), for labels.
            asked: the fields of `CallOptions`.

        Returns:
            What a call of `VideoLlavaProcessor` returns, as a plain dictionary.

        Raises:
            ValueError: a conversation is malformed, or as in a call.
        """
        prompts, _ = render_conversations(
            conversation, lambda turns: self.write(turns, template, add_generation_prompt, continue_final_message)
        )
        options = CallOptions.of(asked)
        most = self._most_tokens(options.max_new_tokens, options.truncation)
        rows = [self.encoder.encode(prompt, most) for prompt in prompts]
        require_sources(rows)
        return self._inputs(rows, options, with_answers=return_assistant_tokens_mask)

    def _inputs(
        self, rows: list[Segments], options: CallOptions, with_text: bool = True, with_answers: bool = False
    ) -> dict[str, Any]:
        if options.return_tensors not in ("np", None):
            raise ValueError(
                "return_tensors: expected 'np' (NumPy arrays, which JAX accepts) or None (lists), "
                f"got {options.return_tensors!r}"
            )
        pooling = self._pooling_or_default(options.video_pooling)
        options = replace(options, frame_sampling=self.frames(options.frame_sampling))
        media = [medium for row in rows for medium in row.media]
        frames = [known_frames(m.source, options.frame_sampling) if m.kind == "video" else 1 for m in media]
        ids, budget = self.encoder.media_ids, self._budget(options, pooling)
        self._require_whole_windows(media, frames)
        known = [count for count in frames if count is not None]
        if with_text and len(known) == len(frames):
            lay_out(rows, known, ids, budget)  # refuses a prompt that is too long before any pixel work
        pixels = self._pixels(media, options.frame_sampling, options.limits, options.reader)
        self._require_whole_windows(media, [len(array) for array in pixels])
        data: dict[str, Any] = {}
        if with_text:
            data |= pad(
                lay_out(rows, [len(array) for array in pixels], ids, budget),
                self._tokenizer.pad_token_id,
                padding=options.padding,
                max_length=options.max_length,
                left=self._tokenizer.padding_side == "left",
                with_answers=with_answers,
                as_arrays=options.return_tensors is not None,
            )
        for kind, name in PIXELS.items():
            chosen = [p for p, medium in zip(pixels, media, strict=True) if medium.kind == kind]
            if chosen:
                data[name] = self._normalized(kind, chosen, as_arrays=options.return_tensors is not None)
        if "pixel_values_videos" in data and pooling != 1:
            data["video_pooling"] = pooling
        return data

    def _most_tokens(self, max_new_tokens: int, truncation: bool | str | None = False) -> int | None:
        """How many tokens a prompt may have; None for any number."""
        if self.max_positions is None or truncation in (True, "longest_first"):
            return None
        return room_for_prompt(self.max_positions, max_new_tokens)

    def _budget(self, options: CallOptions, pooling: int) -> Budget:
        tokenizer = self._tokenizer
        if options.truncation not in (True, False, None, "longest_first", "do_not_truncate"):
            raise ValueError(f"truncation: expected True or False, got {options.truncation!r}")
        limit = None
        if options.truncation in (True, "longest_first"):
            limit = tokenizer.model_max_length if options.max_length is None else options.max_length
        return Budget(
            tokens_per_image=self.tokens_per_image,
            tokens_per_frame=self.pooled_tokens_per_frame(pooling),
            pooled=tuple(
                (larger, self.pooled_tokens_per_frame(larger))
                for larger in poolings(self._patches_per_side("video"))
                if larger > pooling
            ),
            frame_window=self.frame_window,
            max_positions=self.max_positions,
            max_new_tokens=options.max_new_tokens,
            truncate_to=limit,
            truncate_left=tokenizer.truncation_side == "left",
            affixes=self.encoder.affix_lengths,
        )
