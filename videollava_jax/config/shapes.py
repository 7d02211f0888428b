"""The shape of a model: frozen dataclasses, read from and written to transformers' JSON. No mesh, dtype or policy."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

from videollava_jax.config.by_transformers import read_by_transformers
from videollava_jax.config.ranges import (
    ACTIVATION_NAMES,
    TEXT_RANGES,
    VISION_RANGES,
    RopeKind,
    checked_rope,
    require_choice,
    require_divisible,
    require_positive,
    require_ranges,
    require_rope_factor,
)
from videollava_jax.config.usual_json import read_usual
from videollava_jax.json_files import read_object

Variant = Literal["hf", "original"]
SelectStrategy = Literal["default", "full"]

# The keys that our config.json adds to transformers'.
OWN_KEYS = ("variant", "temporal_frames", "projector_layers")
PROJECTOR_LAYERS = 2
"""Of transformers' projector, and of the published models'."""
DEEPEST_PROJECTOR = 16


def poolings(side: int) -> tuple[int, ...]:
    """Returns every `video_pooling` that frames of side × side patches allow: 1, 2, 4, 8 and 16 for a side of 16."""
    return tuple(pooling for pooling in range(1, side + 1) if side % pooling == 0)


def checked_pooling(pooling: SupportsIndex, side: int) -> int:
    """Returns `video_pooling` as an int: the side of the windows of patches that are averaged, 1 for none.

    Raises:
        ValueError: not a whole number, or one whose windows do not tile side × side patches.
    """
    try:
        number = operator.index(pooling)
    except TypeError:
        number = 0
    if number not in poolings(side):
        raise ValueError(
            f"video_pooling: windows of {pooling!r} by {pooling!r} patches do not tile the {side} by {side} patches of "
            f"a frame: expected one of {', '.join(map(str, poolings(side)))}"
        )
    return number


def require_whole_windows(what: str, frames: int, window: int) -> None:
    """Refuses a number of frames that a video tower with attention over `window` frames cannot take.

    Raises:
        ValueError: not a multiple of `window`; the message says which counts are.
    """
    if frames % window:
        below = frames // window * window
        counts = f"{below} or {below + window}" if below else f"{window}"
        raise ValueError(
            f"{what}: this model's video tower attends over windows of {window} frames, so a video needs a multiple "
            f"of {window} frames, got {frames}: take {counts}"
        )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A CLIP vision transformer, as transformers' `CLIPVisionConfig` describes it. Defaults: ViT-L/14 at 224."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require_ranges("vision_config", self, VISION_RANGES)
        require_positive("vision_config", self, "layer_norm_eps")
        require_divisible("vision_config", "hidden_size", self.hidden_size, self.num_attention_heads)
        if self.image_size < self.patch_size:
            raise ValueError(f"vision_config: image_size {self.image_size} is below patch_size {self.patch_size}")
        require_choice("vision_config.hidden_act", self.hidden_act, ACTIVATION_NAMES)

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a frame: 16 for 224 pixels in patches of 14."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one frame, without the class token: 256 for 224 pixels in patches of 14."""
        return self.patches_per_side**2


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """The way in which the rotary embedding is stretched beyond the positions of the decoder's training.

    Attributes:
        kind: "linear" divides every position by `factor`; "dynamic" (NTK) raises the base of the frequencies, once a
            sequence is longer than `max_position_embeddings`.
        factor: from 1 to `LARGEST_ROPE_FACTOR`.

    Source: transformers' `_compute_linear_scaling_rope_parameters` and `_compute_dynamic_ntk_parameters`.
    """

    kind: RopeKind
    factor: float

    def __post_init__(self) -> None:
        require_choice("rope_scaling", self.kind, get_args(RopeKind))
        require_rope_factor(self.factor)
        object.__setattr__(self, "factor", float(self.factor))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A Llama decoder, as transformers' `LlamaConfig` describes it. Defaults: Vicuna-7B-v1.5."""

    vocab_size: int = 32064
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        require_ranges("text_config", self, TEXT_RANGES)
        require_positive("text_config", self, "rms_norm_eps", "rope_theta")
        require_divisible("text_config", "num_attention_heads", self.num_attention_heads, self.num_key_value_heads)
        if self.head_dim % 2:
            raise ValueError(f"text_config: rotary embedding needs an even head_dim, got {self.head_dim}")
        if self.is_dynamic and self.head_dim < 4:
            raise ValueError(f"text_config: dynamic rope_scaling needs a head_dim of at least 4, got {self.head_dim}")
        require_choice("text_config.hidden_act", self.hidden_act, ACTIVATION_NAMES)

    @property
    def is_dynamic(self) -> bool:
        """Whether the rotary embedding of a token depends on how many tokens it is computed together with."""
        return self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"

    @property
    def max_positions(self) -> int:
        """Positions of a prompt and its answer: `max_position_embeddings`, times the factor of `rope_scaling`."""
        factor = 1.0 if self.rope_scaling is None else self.rope_scaling.factor
        return int(self.max_position_embeddings * factor)

    @property
    def max_positions_in_parts(self) -> int:
        """The same where a prompt is computed in parts, after a prefix or a conversation that is kept.

        Dynamic scaling rotates the keys of each part for the length so far, and keys that are kept are not rotated
        again (transformers does not, either): beyond `max_position_embeddings` the answer would depend on the parts.
        """
        return self.max_position_embeddings if self.is_dynamic else self.max_positions

    @property
    def why_in_parts(self) -> str:
        """The end of a message about `max_positions_in_parts`: why there are no more."""
        if not self.is_dynamic:
            return ""
        return (
            f"; the rope_scaling of this model is dynamic: {self.max_positions} positions are there for prompts that "
            "are computed whole (`generate`), but beyond max_position_embeddings keys that are kept would need another "
            "rotation with every token"
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Video-LLaVA: two vision towers of one shape, a projector, a decoder.

    `variant` says which video tower the weights hold:

    - `"hf"`: spatial attention only, as the transformers port runs it;
    - `"original"`: every layer of the video tower attends over `temporal_frames` frames first, as the authors
      trained it (PKU-YuanGroup/Video-LLaVA with LanguageBind's video encoder).

    `vision_feature_layer` counts as transformers counts hidden states: 0 is the embeddings, `i` the output of
    layer `i`, negative numbers from the end; several are concatenated on the feature axis.

    `projector_layers` is how many linear layers the projector has, with an activation between two; 0 for none at all,
    where towers and decoder are of one width. Transformers has 2.
    """

    vision_config: VisionConfig = VisionConfig()
    text_config: TextConfig = TextConfig()
    variant: Variant = "hf"
    temporal_frames: int = 8
    image_token_id: int = 32000
    video_token_id: int = 32001
    projector_hidden_act: str = "gelu"
    projector_layers: int = PROJECTOR_LAYERS
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: SelectStrategy = "default"
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, get_args(Variant))
        require_choice("vision_feature_select_strategy", self.vision_feature_select_strategy, get_args(SelectStrategy))
        require_choice("projector_hidden_act", self.projector_hidden_act, ACTIVATION_NAMES)
        if type(self.temporal_frames) is not int or self.temporal_frames < 1:
            raise ValueError(
                f"temporal_frames: expected a whole number of at least 1, got {self.temporal_frames!r:.100}"
            )
        if type(self.projector_layers) is not int or not 0 <= self.projector_layers <= DEEPEST_PROJECTOR:
            raise ValueError(
                f"projector_layers: expected a whole number from 0 to {DEEPEST_PROJECTOR}, got "
                f"{self.projector_layers!r:.100}"
            )
        if self.vision_feature_layer == ():
            raise ValueError("vision_feature_layer: expected one hidden state or several, got none")
        depth = self.vision_config.num_hidden_layers
        for layer in self._feature_layer_tuple():
            if not -depth - 1 <= layer <= depth:
                raise ValueError(
                    f"vision_feature_layer {layer} is not one of the {depth + 1} hidden states of a tower of "
                    f"{depth} layers: expected {-depth - 1}..{depth}"
                )
        if self.projector_layers == 0 and self.feature_width != self.text_config.hidden_size:
            raise ValueError(
                f"projector_layers 0: expected features as wide as the decoder, {self.text_config.hidden_size}, got "
                f"{self.feature_width}"
            )
        if self.image_token_id == self.video_token_id:
            raise ValueError(f"image_token_id and video_token_id are both {self.image_token_id}: they must differ")

    def _feature_layer_tuple(self) -> tuple[int, ...]:
        layer = self.vision_feature_layer
        return (layer,) if isinstance(layer, int) else layer

    @property
    def text_vocab_size(self) -> int:
        """Ids of text, from 0: those of media, of padding and of rows that fill up the vocabulary come after them."""
        return min(self.image_token_id, self.video_token_id, self.text_config.vocab_size)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The selected hidden states as non-negative indices: 0 the embeddings, `i` the output of layer `i`."""
        count = self.vision_config.num_hidden_layers + 1
        return tuple(layer % count for layer in self._feature_layer_tuple())

    @property
    def feature_width(self) -> int:
        """Width of the features that the projector takes: of a tower's, times the hidden states that are selected."""
        return self.vision_config.hidden_size * len(self.feature_layers)

    @property
    def projector_widths(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each linear layer of the projector."""
        width = self.text_config.hidden_size
        return tuple((self.feature_width if layer == 0 else width, width) for layer in range(self.projector_layers))

    @property
    def tokens_per_image(self) -> int:
        """Decoder tokens of one image: 256 at 224 pixels, 257 when the strategy "full" keeps the class token."""
        return self.vision_config.num_patches + (self.vision_feature_select_strategy == "full")

    @property
    def tokens_per_frame(self) -> int:
        """Decoder tokens of one video frame: 257 at 224 pixels. Videos keep the class token, whatever the strategy."""
        return self.pooled_tokens_per_frame(1)

    def pooled_tokens_per_frame(self, pooling: int) -> int:
        """Returns the decoder tokens of one frame after pooling: 65 with 2, 17 with 4, 5 with 8, 2 with 16.

        The class token is kept and not pooled.

        Raises:
            ValueError: windows that do not tile a frame's patches.
        """
        side = self.vision_config.patches_per_side
        return (side // checked_pooling(pooling, side)) ** 2 + 1

    @property
    def frame_window(self) -> int:
        """The number that a video's frames must be a multiple of: `temporal_frames` of an "original" tower, or 1."""
        return self.temporal_frames if self.variant == "original" else 1

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends an answer."""
        eos = self.text_config.eos_token_id
        return () if eos is None else (eos,) if isinstance(eos, int) else eos

    @classmethod
    def from_hf(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Any) -> ModelConfig:
        """Reads a transformers configuration: a directory, a `config.json`, its dict, or a `ModelConfig`.

        Keys that the JSON leaves out take transformers' defaults. JSON with keys that `usual_json` does not know is
        read by transformers itself.

        Raises:
            ValueError: not a Video-LLaVA configuration, or one that asks for something this model does not do.
        """
        if isinstance(source, (str, os.PathLike)):
            source = _read_json(Path(source))
        usual = read_usual(source, OWN_KEYS) if isinstance(source, Mapping) else None
        values = dict(read_by_transformers(source, OWN_KEYS) if usual is None else usual)
        vision, text = values.pop("vision_config"), values.pop("text_config")
        return cls(
            vision_config=VisionConfig(**vision),
            text_config=TextConfig(
                **text
                | {
                    "eos_token_id": _hashable(text["eos_token_id"]),
                    "rope_scaling": read_rope_scaling(text["rope_scaling"]),
                }
            ),
            image_token_id=values.pop("image_token_index"),
            video_token_id=values.pop("video_token_index"),
            vision_feature_layer=_hashable(values.pop("vision_feature_layer")),
            **values,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns transformers' `config.json` as a dict; `from_hf` reads it back equal.

        An `original` model adds its `variant` and `temporal_frames`, which transformers does not know, and a projector
        of other than two layers its `projector_layers`.
        """
        text = dataclasses.asdict(self.text_config)
        theta, scaling = text.pop("rope_theta"), text.pop("rope_scaling")
        text["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
        if scaling is not None:
            text["rope_parameters"] |= {"rope_type": scaling["kind"], "factor": scaling["factor"]}
        text["eos_token_id"] = _as_json(self.text_config.eos_token_id)
        raw = {
            "architectures": ["VideoLlavaForConditionalGeneration"],
            "model_type": "video_llava",
            "vision_config": {"model_type": "clip_vision_model", **dataclasses.asdict(self.vision_config)},
            "text_config": {
                "model_type": "llama",
                **text,
                "tie_word_embeddings": self.tie_word_embeddings,
            },
            "image_token_index": self.image_token_id,
            "video_token_index": self.video_token_id,
            "image_seq_length": self.tokens_per_image,
            "video_seq_length": self.tokens_per_frame * self.temporal_frames,
            "projector_hidden_act": self.projector_hidden_act,
            "multimodal_projector_bias": self.multimodal_projector_bias,
            "vision_feature_layer": _as_json(self.vision_feature_layer),
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if self.variant != "hf" or self.temporal_frames != 8:
            raw |= {"variant": self.variant, "temporal_frames": self.temporal_frames}
        if self.projector_layers != PROJECTOR_LAYERS:
            raw["projector_layers"] = self.projector_layers
        return raw


def _as_json(value: int | tuple[int, ...] | None) -> int | list[int] | None:
    return list(value) if isinstance(value, tuple) else value


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_rope_scaling(rope: Mapping[str, Any] | None) -> RopeScaling | None:
    """Reads `rope_parameters`, or `rope_scaling` of older files; None for the plain rotary embedding.

    Raises:
        ValueError: a kind of scaling that this model does not have, or no factor.
    """
    scaling = checked_rope(rope)
    return None if scaling is None else RopeScaling(kind=scaling[0], factor=scaling[1])


def _read_json(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        return read_object(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected the config.json of a Video-LLaVA checkpoint") from None
