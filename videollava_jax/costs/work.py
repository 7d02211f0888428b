"""Counts the parameters, operations and bytes of the model, and the rates of whole jobs that no engine can exceed.

Operations are those of matrix products and attention; a multiplication and an addition are two. Norms, activations and
rotary embedding, far below a percent, are left out. Causal attention counts only pairs below the diagonal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from videollava_jax.config import ModelConfig, VisionConfig
from videollava_jax.costs.chips import Chip, Roofline, roofline

_BF16, _INT8, _SCALE = 2, 1, 4


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Parameters:
    """The numbers of parameters in the parts of the model, as in a checkpoint.

    Attributes:
      image_tower, video_tower, projector: of these.
      decoder: including its embedding, like `language_model` in a checkpoint.
      embedding: the embedding alone, which is part of `decoder`.
      head: 0 if it is tied to the embedding.
    """

    image_tower: int
    video_tower: int
    projector: int
    decoder: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        """All parameters of the model."""
        return self.image_tower + self.video_tower + self.projector + self.decoder + self.head


def parameters(config: ModelConfig) -> Parameters:
    """Counts the parameters of a model with this configuration."""
    text, vision = config.text_config, config.vision_config
    D = text.hidden_size
    embedding = text.vocab_size * D
    projection = _decoder_projections(config)
    biases = text.num_hidden_layers * (
        text.attention_bias * (_query_width(config) + 2 * _kv_width(config) + D)
        + text.mlp_bias * (2 * text.intermediate_size + D)
    )
    norms = (2 * text.num_hidden_layers + 1) * D
    bias = config.multimodal_projector_bias
    return Parameters(
        image_tower=_tower_parameters(vision, temporal_frames=0),
        video_tower=_tower_parameters(vision, config.temporal_frames if config.variant == "original" else 0),
        projector=sum(width * out + out * bias for width, out in config.projector_widths),
        decoder=projection + biases + norms + embedding,
        embedding=embedding,
        head=0 if config.tie_word_embeddings else embedding,
    )


def _tower_parameters(vision: VisionConfig, temporal_frames: int) -> int:
    D, M = vision.hidden_size, vision.intermediate_size
    norm = 2 * D
    attention = 4 * (D * D + D)
    layer = attention + 2 * norm + 2 * D * M + M + D
    if temporal_frames:
        layer += attention + norm + temporal_frames * D
    patches = vision.num_channels * vision.patch_size**2 * D
    positions = (vision.num_patches + 1) * D
    return patches + D + positions + norm + vision.num_hidden_layers * layer + norm


def _query_width(config: ModelConfig) -> int:
    return config.text_config.num_attention_heads * config.text_config.head_dim


def _kv_width(config: ModelConfig) -> int:
    return config.text_config.num_key_value_heads * config.text_config.head_dim


def _decoder_projections(config: ModelConfig) -> int:
    """Counts the weights of the decoder's projections, with which every token is multiplied, without the head."""
    text = config.text_config
    attention = 2 * text.hidden_size * (_query_width(config) + _kv_width(config))
    return text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)


def _head(config: ModelConfig) -> int:
    return config.text_config.vocab_size * config.text_config.hidden_size


# ── operations ──────────────────────────────────────────────────────────────────────────────────────────────


def tower_flops(config: ModelConfig, frames: int, *, video: bool) -> float:
    """Counts the operations of a tower on frames or images. Only the layers up to the last selected feature run."""
    vision = config.vision_config
    D, M, positions = vision.hidden_size, vision.intermediate_size, vision.num_patches + 1
    layer = 2 * (4 * D * D + 2 * D * M) * positions + 4 * positions**2 * D
    if video and config.variant == "original":
        layer += 2 * 4 * D * D * positions + 4 * config.temporal_frames * positions * D
    patches = 2 * vision.num_channels * vision.patch_size**2 * D * vision.num_patches
    return float(frames * (patches + max(config.feature_layers) * layer))


def projector_flops(config: ModelConfig, tokens: int) -> float:
    """Counts the operations of the projector on `tokens` tokens."""
    return 2.0 * tokens * sum(width * out for width, out in config.projector_widths)


def encode_flops(config: ModelConfig, *, frames: int = 0, images: int = 0) -> float:
    """Counts the operations from pixels to decoder features, for `frames` frames of videos and for images."""
    features = frames * config.tokens_per_frame + images * config.tokens_per_image
    towers = tower_flops(config, frames, video=True) + tower_flops(config, images, video=False)
    return towers + projector_flops(config, features)


def decoder_flops(config: ModelConfig, tokens: int, prefix: int = 0, *, logits: int = 1) -> float:
    """Counts the operations of the decoder on `tokens` new tokens of one row, after `prefix` tokens in a cache.

    Args:
      config: the model.
      tokens: of a prompt, of a question, or 1 for a step of decoding.
      prefix: tokens before them; 0 for a prefill.
      logits: how many of the new tokens go through the head.
    """
    projections = 2.0 * tokens * _decoder_projections(config)
    seen = tokens * prefix + tokens * (tokens + 1) / 2
    attention = 4.0 * config.text_config.num_hidden_layers * _query_width(config) * seen
    return projections + attention + 2.0 * logits * _head(config)


def train_flops(
    config: ModelConfig,
    trained: Collection[str],
    lengths: Iterable[int],
    *,
    images: int = 0,
    frames: int = 0,
    adapters: int = 0,
) -> float:
    """Counts the necessary operations of a micro-batch, forward and backward, from which MFU is computed.

    The backward pass of a matrix product takes one product for the gradient of its inputs, if anything before it is
    trained, and one for the gradient of its weights, if these are trained; that of attention takes twice the forward
    pass. Not counted are padding, empty media slots, and recomputation to save memory. All tokens go through the head.

    Args:
      config: the model.
      trained: the trained groups of parameters, of `training.update.parameters.GROUPS`.
      lengths: tokens of each sequence; sequences in one row do not attend to each other.
      images: number of images.
      frames: frames of all videos together.
      adapters: parameters of the decoder's LoRA adapters, which are trained.
    """
    total = 0.0
    for length in lengths:
        products = 2.0 * length * (_decoder_projections(config) + _head(config))
        attention = decoder_flops(config, length, logits=length) - products
        total += products * (3 if "decoder" in trained else 2) + 3 * attention + 3 * 2.0 * length * adapters
    media = (
        ("image_tower", tower_flops(config, images, video=False), images * config.tokens_per_image),
        ("video_tower", tower_flops(config, frames, video=True), frames * config.tokens_per_frame),
    )
    for tower, encoded, tokens in media:
        every = projector_flops(config, tokens)
        later = 2.0 * tokens * sum(width * out for width, out in config.projector_widths[1:])
        total += encoded * (3 if tower in trained else 1)
        total += every * (2 if "projector" in trained else 1)
        # The tower needs the gradient of the projector's inputs; its layers need those between them.
        total += every if tower in trained else later if "projector" in trained else 0.0
    return total


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Storage:
    """The dtypes in which weights and caches are stored.

    Attributes:
      int8_weights: the decoder's projections in int8 with a float32 scale for each output channel, the rest bfloat16.
      int8_kv: keys and values in int8 with a float32 scale for each head and token.
    """

    int8_weights: bool = False
    int8_kv: bool = False


def weight_bytes(config: ModelConfig, storage: Storage = Storage()) -> int:
    """Returns the bytes of weights that a step of decoding reads: the decoder without its embedding, and the head."""
    counted = parameters(config)
    rest = counted.decoder - counted.embedding - _decoder_projections(config) + _head(config)
    return _projection_bytes(config, storage) + _BF16 * rest


def stored_bytes(config: ModelConfig, storage: Storage = Storage()) -> int:
    """Returns the bytes that all weights take in memory, including towers and embedding."""
    rest = parameters(config).total - _decoder_projections(config)
    return _projection_bytes(config, storage) + _BF16 * rest


def _projection_bytes(config: ModelConfig, storage: Storage) -> int:
    if not storage.int8_weights:
        return _BF16 * _decoder_projections(config)
    text = config.text_config
    outputs = _query_width(config) + 2 * _kv_width(config) + 2 * text.hidden_size + 2 * text.intermediate_size
    return _INT8 * _decoder_projections(config) + _SCALE * text.num_hidden_layers * outputs


def kv_bytes(config: ModelConfig, tokens: int = 1, storage: Storage = Storage()) -> int:
    """Returns the bytes of the KV cache of `tokens` tokens; for the 7B model 512 KiB each, 264 KiB in int8."""
    text = config.text_config
    a_head = text.head_dim * _INT8 + _SCALE if storage.int8_kv else text.head_dim * _BF16
    return 2 * text.num_hidden_layers * text.num_key_value_heads * a_head * tokens


def decode_step(
    config: ModelConfig,
    chip: Chip,
    chips: int = 1,
    *,
    prefixes: int,
    rows: int,
    prefix: int,
    tail: float,
    storage: Storage = Storage(),
) -> Roofline:
    """Returns the least time of one step of decoding.

    Args:
      config: the model.
      chip: the kind of chip.
      chips: how many chips the model is split over.
      prefixes: prefixes in the cache; each is read once for all its rows.
      rows: rows of the batch, all prefixes together.
      prefix: tokens of each prefix.
      tail: tokens of each row after its prefix.
      storage: dtypes of weights and caches.
    """
    flops = rows * decoder_flops(config, 1, round(prefix + tail))
    cached = kv_bytes(config, prefix * prefixes, storage) + kv_bytes(config, 1, storage) * tail * rows
    return roofline(
        flops,
        weight_bytes(config, storage) + cached,
        chip,
        chips,
        sent_bytes=all_reduced_bytes(config, rows, chips),
    )


def all_reduced_bytes(config: ModelConfig, tokens: int, chips: int) -> float:
    """Returns the bytes that each chip of a split decoder sends for `tokens` tokens: two all-reduces a layer."""
    text = config.text_config
    once = _BF16 * tokens * text.hidden_size * 2 * (chips - 1) / chips
    return 2 * text.num_hidden_layers * once


# ── limits of whole jobs ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that asks the same questions about each of many videos.

    Attributes:
      frames: frames of a video.
      pooling: `video_pooling` of the frames, 1 for none.
      prompt_tokens: tokens of text that all questions about a video share, without the video's own tokens.
      questions: questions about each video.
      question_tokens, answer_tokens: tokens of each; a caption is a question with a long answer.
    """

    frames: int = 8
    pooling: int = 1
    prompt_tokens: int = 0
    questions: int = 1
    question_tokens: int = 50
    answer_tokens: int = 10

    def __post_init__(self) -> None:
        for name in ("frames", "questions", "question_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Job.{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def held_tokens(self) -> float:
        """Tokens of a question and its answer so far, on average while it is written."""
        return self.question_tokens + self.answer_tokens / 2

    def prefix_tokens(self, config: ModelConfig) -> int:
        """Returns the number of tokens that all questions about a video share."""
        return self.prompt_tokens + self.frames * config.pooled_tokens_per_frame(self.pooling)


@dataclass(frozen=True)
class Limit:
    """The throughput that a job cannot exceed.

    Attributes:
      videos_per_second, answers_per_second, tokens_per_second: of all chips together; only tokens of answers count.
      tensor: chips that share one copy of the weights.
      rows: rows in the batch of each copy, as many as its memory allows.
      phases: the least seconds of each phase (encode, prefill, begin, decode) for such a batch on one copy.
    """

    videos_per_second: float
    answers_per_second: float
    tokens_per_second: float
    tensor: int
    rows: int
    phases: Mapping[str, float]


def best_possible(
    job: Job,
    config: ModelConfig,
    chip: Chip,
    chips: int = 1,
    *,
    storage: Storage = Storage(),
    tensor: int | None = None,
) -> Limit:
    """Returns the throughput that no engine exceeds: every phase takes its roofline's time, without gaps.

    Each video is encoded and prefilled once, and all its questions begin from its cache. Their answers are decoded
    together with those of as many videos as fit into memory next to the weights. Products run in bfloat16, even with
    int8 storage.

    Args:
      job: the work.
      config: the model.
      chip: the kind of chip.
      chips: how many.
      storage: dtypes of weights and caches.
      tensor: chips that share a copy of the weights; None takes the number with the highest throughput, among those
        that divide the chips and the key-value heads.

    Raises:
      ValueError: the weights and one video do not fit, or `tensor` does not divide `chips`.
    """
    if chips < 1 or (tensor is not None and (tensor < 1 or chips % tensor)):
        raise ValueError(f"best_possible: {chips} chips do not divide into copies of {tensor} chips")
    heads = config.text_config.num_key_value_heads
    candidates = [t for t in range(1, chips + 1) if not (chips % t or heads % t)] if tensor is None else [tensor]
    limits = [limit for t in candidates if (limit := _limit(job, config, chip, chips, t, storage)) is not None]
    if not limits:
        needed = stored_bytes(config, storage) + _video_bytes(job, config, storage)
        raise ValueError(
            f"the weights and one video take {needed / 1e9:.1f} GB, more than {max(candidates)} × {chip.name} of "
            f"{chip.hbm_bytes / 1e9:.1f} GB hold: take more chips, int8 storage or fewer frames"
        )
    return max(limits, key=lambda limit: limit.videos_per_second)


def _video_bytes(job: Job, config: ModelConfig, storage: Storage) -> int:
    """Returns the bytes of the KV cache of one video with all its questions and answers."""
    tokens = job.prefix_tokens(config) + job.questions * (job.question_tokens + job.answer_tokens)
    return kv_bytes(config, tokens, storage)


def _limit(job: Job, config: ModelConfig, chip: Chip, chips: int, tensor: int, storage: Storage) -> Limit | None:
    """Returns the limit with each copy of the weights on `tensor` chips; None if not even one video fits."""
    free = chip.hbm_bytes * tensor - stored_bytes(config, storage)
    videos = int(free // _video_bytes(job, config, storage))
    if videos < 1:
        return None
    rows, prefix = videos * job.questions, job.prefix_tokens(config)
    weights = weight_bytes(config, storage)

    def decoder(flops: float, tokens: int) -> float:
        """Returns the least seconds for tokens that run through the decoder while its weights are read once."""
        sent = all_reduced_bytes(config, tokens, tensor)
        return roofline(flops, weights, chip, tensor, sent_bytes=sent).seconds

    step = decode_step(
        config,
        chip,
        tensor,
        prefixes=videos,
        rows=rows,
        prefix=prefix,
        tail=job.held_tokens,
        storage=storage,
    )
    phases = {
        "encode": roofline(videos * encode_flops(config, frames=job.frames), 0, chip, tensor).seconds,
        "prefill": decoder(videos * decoder_flops(config, prefix, logits=0), videos * prefix),
        "begin": decoder(rows * decoder_flops(config, job.question_tokens, prefix), rows * job.question_tokens),
        # An answer's first token comes from the logits of the question.
        "decode": (job.answer_tokens - 1) * step.seconds,
    }
    rate = videos / sum(phases.values()) * (chips // tensor)
    return Limit(
        videos_per_second=rate,
        answers_per_second=rate * job.questions,
        tokens_per_second=rate * job.questions * job.answer_tokens,
        tensor=tensor,
        rows=rows,
        phases=phases,
    )
