"""Chips, rooflines and the counts of the model's work, against figures that were measured or derived independently."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests.training.rows import UNCHANGED
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.costs.chips import CHIPS, Roofline, roofline, topology
from videollava_jax.costs.work import (
    Job,
    Storage,
    all_reduced_bytes,
    best_possible,
    decode_step,
    decoder_flops,
    encode_flops,
    kv_bytes,
    parameters,
    projector_flops,
    stored_bytes,
    tower_flops,
    train_flops,
    weight_bytes,
)
from videollava_jax.model.video_llava import VideoLlava
from videollava_jax.training.update.model import Batch, TrainingModel
from videollava_jax.training.update.options import GROUPS, Lora, Rates, is_lora

MODEL = ModelConfig()
ORIGINAL = ModelConfig(variant="original")
H200 = CHIPS["h200-measured"]
INT8 = Storage(int8_weights=True, int8_kv=True)
MIB, TERA = 2**20, 1e12
VIDEO, QUESTION = 2056, 50
"""Tokens of eight frames, and of the question in the stated limits."""


# ── chips ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "chip", "chips"),
    [
        ("v5e:2x4", "v5e", 8),
        ("v5p:4x4x4", "v5p", 64),
        ("V6E:16x16", "v6e", 256),
        ("h100:8", "h100", 8),
        ("l4", "l4", 1),
    ],
)
def test_topologies_are_read(name: str, chip: str, chips: int):
    assert topology(name) == (CHIPS[chip], chips)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x4", "no figures for a chip 'v9': expected one of v4, v5e"),
        ("", "no figures for a chip ''"),
        ("v5e:", "expected sizes such as v5e:2x4, got ''"),
        ("v5e:2x0", "expected sizes such as v5e:2x4, got '2x0'"),
        ("h100:two", "expected sizes such as h100:8, got 'two'"),
    ],
)
def test_other_topologies_are_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        topology(name)


def test_chips_agree_with_jax():
    """Our figures agree with JAX's table of TPUs, by core, which is private and may be elsewhere in other versions."""
    try:
        from jax._src.pallas.mosaic import tpu_info

        versions = {"v4": "TPU_V4", "v5e": "TPU_V5E", "v5p": "TPU_V5P", "v6e": "TPU_V6E", "v7x": "TPU_7X"}
        known = {n: tpu_info._get_tpu_info_impl(tpu_info.ChipVersion[v], 1) for n, v in versions.items()}
    except (ImportError, AttributeError, KeyError, TypeError):
        pytest.skip("this version of JAX keeps its table of TPUs elsewhere")
    for name, info in known.items():
        chip, cores = CHIPS[name], 1 if name in ("v5e", "v6e") else 2
        assert info.hbm_capacity_bytes * cores == pytest.approx(chip.hbm_bytes, rel=0.02)
        assert info.bf16_ops_per_second * cores == pytest.approx(chip.bf16_flops, rel=0.01)
        assert info.vmem_capacity_bytes * cores == chip.vmem_bytes
        # v5p: 2460 GB/s there, 2765 in the documentation of the cloud.
        assert info.mem_bw_bytes_per_second * cores == pytest.approx(chip.hbm_bytes_per_second, rel=0.12)


def test_a_roofline_is_its_slowest_resource():
    chip = dataclasses.replace(H200, bf16_flops=100.0, hbm_bytes_per_second=10.0, interconnect_bytes_per_second=1.0)
    assert roofline(1000, 50, chip) == Roofline(10.0, 5.0, 0.0)
    assert (roofline(1000, 50, chip).seconds, roofline(1000, 50, chip).bound) == (10.0, "compute")
    assert (roofline(1000, 500, chip, 2).seconds, roofline(1000, 500, chip, 2).bound) == (25.0, "memory")
    sent = roofline(1000, 50, chip, 4, sent_bytes=7)
    assert (sent.seconds, sent.bound) == (7.0, "interconnect")
    with pytest.raises(ValueError, match="at least one chip, got 0"):
        roofline(1, 1, chip, 0)


# ── parameters and bytes ────────────────────────────────────────────────────────────────────────────────────


def test_parameters_of_the_7b_model():
    counted = parameters(MODEL)
    assert counted.total == 7_366_279_168
    assert counted.image_tower == counted.video_tower == 303_179_776
    assert (counted.projector, counted.decoder, counted.head) == (20_979_712, 6_607_605_760, 131_334_144)
    assert parameters(ORIGINAL).video_tower - counted.video_tower == 101_007_360


@pytest.mark.parametrize("variant", ["hf", "original"])
@pytest.mark.parametrize(
    "text",
    [
        TextConfig(vocab_size=33, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=6),
        TextConfig(vocab_size=33, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                   num_key_value_heads=2, head_dim=8, attention_bias=True, mlp_bias=True),
    ],
    ids=["grouped", "biased"],
)  # fmt: skip
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(variant: str, text: TextConfig, tied: bool):
    vision = VisionConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = ModelConfig(
        vision_config=vision,
        text_config=text,
        variant=variant,  # type: ignore[arg-type]
        vision_feature_layer=(1, 2),
        tie_word_embeddings=tied,
        image_token_id=30,
        video_token_id=31,
    )
    # The abstract model holds every tensor of a checkpoint but the layers of the towers that never run.
    model = nnx.eval_shape(lambda: VideoLlava(config, rngs=nnx.Rngs(0)))
    sizes = {
        ".".join(map(str, path)): int(np.prod(leaf.shape))
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }

    def held(prefix: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    counted = parameters(config)
    assert counted.projector == held("multi_modal_projector")
    assert counted.decoder == held("language_model")
    assert counted.embedding == held("language_model.embed_tokens")
    assert counted.head == held("lm_head")
    for tower, total in (("image_tower", counted.image_tower), ("video_tower", counted.video_tower)):
        layers = {
            name.split(".layers.")[1].split(".")[0]
            for name in sizes
            if name.startswith(f"{tower}.") and ".layers." in name
        }
        one = held(
            next(n for n in sizes if n.startswith(f"{tower}.") and ".layers.0." in n).split(".layers.")[0]
            + ".layers.0."
        )
        missing = (vision.num_hidden_layers - len(layers)) * one
        post = 0 if any("post_layernorm" in name for name in sizes) else 2 * vision.hidden_size
        assert total == held(f"{tower}.") + missing + post


def test_bytes_of_weights_and_caches():
    assert weight_bytes(MODEL) == pytest.approx(13.2e9, rel=0.002)
    assert stored_bytes(MODEL) == 2 * 7_366_279_168
    assert kv_bytes(MODEL) == MIB // 2
    assert kv_bytes(MODEL, 2112) == 1056 * MIB
    # int8: a byte a number, and a float32 scale for each of 2 × 32 layers × 32 heads.
    assert kv_bytes(MODEL, 1, INT8) == MIB // 4 + 2 * 32 * 32 * 4
    # Seven projections a layer: 4 × 4096 rows of attention, 2 × 11008 + 4096 of the MLP, a float32 scale for each.
    scales = 32 * (4 * 4096 + 2 * 11008 + 4096) * 4
    assert weight_bytes(MODEL) - weight_bytes(MODEL, INT8) == 6_476_005_376 - scales
    assert stored_bytes(MODEL) - stored_bytes(MODEL, INT8) == 6_476_005_376 - scales


# ── operations ──────────────────────────────────────────────────────────────────────────────────────────────


def test_operations_of_the_7b_model():
    assert tower_flops(MODEL, 8, video=True) / TERA == pytest.approx(1.24, abs=0.005)
    assert decoder_flops(MODEL, VIDEO + QUESTION) / TERA == pytest.approx(28.4, abs=0.05)
    question = decoder_flops(MODEL, QUESTION, VIDEO)
    assert question / TERA == pytest.approx(0.70, abs=0.005)
    assert decoder_flops(MODEL, VIDEO + QUESTION) / question == pytest.approx(40, abs=1)


def test_a_prompt_in_two_parts_is_the_same_work():
    parts = decoder_flops(MODEL, VIDEO, logits=0) + decoder_flops(MODEL, QUESTION, VIDEO)
    assert parts == pytest.approx(decoder_flops(MODEL, VIDEO + QUESTION), rel=1e-12)


def test_temporal_attention_adds_its_own():
    """Temporal attention: four projections of each of 257 tokens, and attention over eight frames; images have none."""
    extra = 23 * 8 * 257 * (2 * 4 * 1024**2 + 4 * 8 * 1024)
    assert tower_flops(ORIGINAL, 8, video=True) - tower_flops(MODEL, 8, video=True) == pytest.approx(extra)
    assert tower_flops(ORIGINAL, 8, video=False) == tower_flops(MODEL, 8, video=False)
    assert encode_flops(MODEL, images=1) == tower_flops(MODEL, 1, video=False) + projector_flops(MODEL, 256)


def test_operations_are_those_that_xla_counts():
    """`cost_analysis` counts every matrix product of a compiled tower, projector and decoder."""
    vision = VisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
    )
    text = TextConfig(
        vocab_size=320, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    config = ModelConfig(vision_config=vision, text_config=text, image_token_id=300, video_token_id=301)
    model = VideoLlava(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    pixels = jax.ShapeDtypeStruct((1, 4, 56, 56, 3), np.uint8)
    encode = jax.jit(lambda s, p: nnx.merge(graph, s).encode_videos(p))
    counted = encode.lower(state, pixels).compile().cost_analysis()["flops"]
    # Norms, softmax and activations weigh more in so small a model.
    assert counted == pytest.approx(encode_flops(config, frames=4), rel=0.15)
    assert counted > encode_flops(config, frames=4)


def test_operations_of_a_micro_batch_by_hand():
    """6 operations per weight and token, 4 if the weight is frozen; for attention three times its forward pass."""
    lengths, products = (3072, 1000), 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32064 * 4096
    attention = 3 * 4 * 32 * 4096 * sum(n * (n + 1) / 2 for n in lengths)
    assert train_flops(MODEL, ["decoder"], lengths) == pytest.approx(6 * products * 4072 + attention)
    assert train_flops(MODEL, ["projector"], lengths) == pytest.approx(4 * products * 4072 + attention)
    adapters = 32 * 128 * (4 * 8192 + 3 * 15104)
    lora = train_flops(MODEL, ["projector", "lora"], lengths, adapters=adapters)
    assert lora == pytest.approx((4 * products + 6 * adapters) * 4072 + attention)
    # A row alone does more than the same tokens in several conversations.
    assert train_flops(MODEL, ["decoder"], [4072]) > train_flops(MODEL, ["decoder"], lengths)

    first, second = 2 * 2312 * 1024 * 4096, 2 * 2312 * 4096 * 4096
    media = {"images": 1, "frames": 8}
    video, image = tower_flops(MODEL, 8, video=True), tower_flops(MODEL, 1, video=False)

    def of_media(*trained: str) -> float:
        return train_flops(MODEL, trained, [], **media)

    assert of_media("decoder") == pytest.approx(first + second + video + image)
    assert of_media("projector") == pytest.approx(2 * first + 3 * second + video + image)
    every = of_media("projector", "image_tower", "video_tower")
    assert every == pytest.approx(3 * (first + second + video + image))
    # A frozen projector before which the images' tower is trained gives the gradients of its inputs alone.
    assert of_media("image_tower") == pytest.approx((first + second) * (1 + 256 / 2312) + video + 3 * image)


@pytest.mark.parametrize(
    "rates",
    [
        Rates(projector=1),
        Rates(projector=1, decoder=1),
        Rates(projector=1, lora=1),
        Rates(projector=1, decoder=1, image_tower=1, video_tower=1),
    ],
)
def test_operations_of_a_micro_batch_are_those_that_xla_counts(rates: Rates):
    """XLA counts the same without recomputation, except that of the logits in the loss, a 64th here."""
    vision = VisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, image_size=56
    )
    text = TextConfig(
        vocab_size=320, hidden_size=512, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128,
    )  # fmt: skip
    config = ModelConfig(
        vision_config=vision, text_config=text, image_token_id=300, video_token_id=301, vision_feature_layer=-1
    )
    lora = Lora(rank=64, dropout=0) if rates.lora else None
    model = TrainingModel(config, preprocess=UNCHANGED, lora=lora, remat="none", loss_chunk=64)
    parameters = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in model.shapes.items()}
    trained = {name: value for name, value in parameters.items() if rates.trains(name)}
    ids = jax.ShapeDtypeStruct((1, 64), np.int32)
    images, videos = (jax.ShapeDtypeStruct((1, *media, 56, 56, 3), np.uint8) for media in ((2,), (1, 8)))
    batch = Batch(ids, ids, ids, ids, ids, images, videos)
    gradients = jax.jit(jax.grad(lambda trained, others, batch: model.loss(others | trained, batch).loss))
    counted = gradients.lower(trained, parameters, batch).compile().cost_analysis()["flops"]
    groups = [group for group in GROUPS if rates.of(group) is not None]
    adapters = sum(math.prod(shape) for name, shape in model.shapes.items() if is_lora(name))
    expected = train_flops(config, groups, [64], images=2, frames=8, adapters=adapters)
    assert counted == pytest.approx(expected, rel=0.04)


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_limits_of_the_parts_on_an_h200():
    prompt = VIDEO + QUESTION
    assert 1 / roofline(encode_flops(MODEL, frames=8), 0, H200).seconds == pytest.approx(595, rel=0.005)
    assert prompt / roofline(decoder_flops(MODEL, prompt), 0, H200).seconds == pytest.approx(58.5e3, rel=0.005)


@pytest.mark.parametrize(("rows", "storage", "rate"), [(1, Storage(), 299), (64, Storage(), 3162), (200, INT8, 6900)])
def test_limits_of_decoding_on_an_h200(rows: int, storage: Storage, rate: float):
    """The limits of decoding at 2200 tokens of context."""
    step = decode_step(MODEL, H200, prefixes=rows, rows=rows, prefix=VIDEO, tail=144, storage=storage)
    assert step.bound == "memory"
    assert rows / step.seconds == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("job", "storage", "answers"),
    [
        (Job(), Storage(), 24.7),
        (Job(questions=10), Storage(), 206),
        (Job(answer_tokens=256), Storage(), 8.7),
        (Job(answer_tokens=256), INT8, 13.4),
    ],
)
def test_limits_of_jobs_on_an_h200(job: Job, storage: Storage, answers: float):
    limit = best_possible(job, MODEL, H200, storage=storage)
    assert limit.answers_per_second == pytest.approx(answers, rel=0.015)
    assert limit.videos_per_second * job.questions == pytest.approx(limit.answers_per_second)
    assert limit.tokens_per_second == pytest.approx(limit.answers_per_second * job.answer_tokens)


def test_sharing_a_prefix_is_what_makes_many_questions_cheap():
    one, ten = (best_possible(Job(questions=n), MODEL, H200).answers_per_second for n in (1, 10))
    assert 8 < ten / one < 9


def test_batches_fill_the_memory():
    limit = best_possible(Job(questions=10), MODEL, H200)
    a_video = kv_bytes(MODEL, VIDEO + 10 * 60)
    assert limit.rows == 10 * int((H200.hbm_bytes - stored_bytes(MODEL)) // a_video)


def test_chips_divide_into_copies_of_the_weights():
    job = Job(questions=10)
    v5e = CHIPS["v5e"]
    # A chip of 16 GiB holds the weights and one video: many chips that share them do better than as many copies.
    single, shared = (best_possible(job, MODEL, v5e, 8, tensor=t) for t in (1, 8))
    assert (single.rows, single.tensor, shared.tensor) == (10, 1, 8)
    assert shared.videos_per_second > single.videos_per_second
    assert shared.videos_per_second == pytest.approx(shared.rows / 10 / sum(shared.phases.values()))
    best = best_possible(job, MODEL, v5e, 8)
    assert best.videos_per_second == max(
        best_possible(job, MODEL, v5e, 8, tensor=t).videos_per_second for t in (1, 2, 4, 8)
    )
    # Twice the chips, twice the rate; eight copies, eight times that of one.
    assert single.videos_per_second == pytest.approx(8 * best_possible(job, MODEL, v5e).videos_per_second)
    assert best_possible(job, MODEL, v5e, 16, tensor=8).videos_per_second == pytest.approx(2 * shared.videos_per_second)


def test_the_first_token_of_an_answer_takes_no_step():
    assert best_possible(Job(answer_tokens=1), MODEL, H200).phases["decode"] == 0
    two, three = (best_possible(Job(answer_tokens=n), MODEL, CHIPS["v5e"], tensor=1).phases["decode"] for n in (2, 3))
    assert three / two == pytest.approx(2, rel=0.001)


def test_slow_links_bound_what_is_split():
    slow = dataclasses.replace(CHIPS["v5e"], interconnect_bytes_per_second=1e6)
    step = decode_step(MODEL, slow, 8, prefixes=64, rows=64, prefix=VIDEO, tail=50)
    assert step.bound == "interconnect"
    assert step.seconds == pytest.approx(all_reduced_bytes(MODEL, 64, 8) / 1e6)
    limit = best_possible(Job(), MODEL, slow, 8, tensor=8)
    assert limit.phases["prefill"] == pytest.approx(all_reduced_bytes(MODEL, limit.rows * VIDEO, 8) / 1e6)
    assert limit.phases["begin"] == pytest.approx(all_reduced_bytes(MODEL, limit.rows * QUESTION, 8) / 1e6)
    assert decode_step(MODEL, slow, 1, prefixes=1, rows=1, prefix=VIDEO, tail=50).bound == "memory"


def test_what_all_reduces_send():
    """Two all-reduces a layer over bfloat16 [tokens, 4096]; a ring of n chips sends 2 (n - 1) / n of the array."""
    assert all_reduced_bytes(MODEL, 100, 1) == 0
    assert all_reduced_bytes(MODEL, 100, 8) == pytest.approx(64 * 100 * 4096 * 2 * 2 * 7 / 8)


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match=r"weights and one video take .* GB, more than 1 × a10g of 24.0 GB hold"):
        best_possible(Job(frames=15, questions=40, answer_tokens=512), MODEL, CHIPS["a10g"])
    with pytest.raises(ValueError, match="8 chips do not divide into copies of 3"):
        best_possible(Job(), MODEL, CHIPS["v5e"], 8, tensor=3)
    with pytest.raises(ValueError, match=r"Job.answer_tokens: expected at least 1, got 0"):
        Job(answer_tokens=0)
