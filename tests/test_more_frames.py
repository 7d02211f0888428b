"""More than 8 frames: windows of the original video tower, and pooled frames, from the command to the features."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerances import LAYER, MODEL
from videollava_jax import VideoLlavaProcessor
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli import main
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig, poolings
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.chat import Chat
from videollava_jax.media import Fps, FramePreprocessor, Indices, Uniform
from videollava_jax.model.video_llava import abstract_model, pool_patches

CLIP = MEDIA / "rising-triangle.mp4"
PROMPT = "USER: <video>\nWhich way does it move? ASSISTANT:"
SIDES = st.integers(1, 16)


def pooled_by_hand(features, pooling):
    """The mean of every window, one at a time: float [N, 1 + patches, D] to [N, 1 + windows, D]."""
    side = round((features.shape[1] - 1) ** 0.5)
    frames = []
    for frame in features:
        tokens = [frame[0]]
        for top in range(0, side, pooling):
            for left in range(0, side, pooling):
                window = [
                    frame[1 + row * side + column]
                    for row in range(top, top + pooling)
                    for column in range(left, left + pooling)
                ]
                tokens.append(np.mean(window, axis=0, dtype=np.float64))
        frames.append(tokens)
    return np.array(frames)


@st.composite
def sides_and_poolings(draw):
    side = draw(SIDES)
    return side, draw(st.sampled_from(poolings(side)))


# ── the features ──


@settings(max_examples=40, deadline=None)
@given(case=sides_and_poolings(), frames=st.integers(1, 5), seed=st.integers(0, 1000))
def test_every_window_is_averaged_and_the_class_token_kept(case, frames, seed):
    side, pooling = case
    features = np.random.default_rng(seed).standard_normal((frames, side**2 + 1, 3)).astype(np.float32)
    pooled = np.asarray(pool_patches(jnp.asarray(features), pooling))
    np.testing.assert_array_equal(pooled[:, 0], features[:, 0])
    np.testing.assert_allclose(pooled, pooled_by_hand(features, pooling), rtol=0, atol=LAYER)


def test_bfloat16_is_averaged_in_float32():
    features = np.random.default_rng(0).standard_normal((2, 257, 4)).astype(jnp.bfloat16)
    pooled = pool_patches(jnp.asarray(features), 16)
    assert pooled.dtype == jnp.bfloat16
    expected = pooled_by_hand(features.astype(np.float32), 16)
    np.testing.assert_allclose(np.asarray(pooled, np.float32), expected, rtol=2**-8, atol=0)  # one rounding


def test_the_models_features_are_its_own_pooled(tiny_model, tiny_processor):
    pixels = jnp.asarray(tiny_processor(videos=CLIP)["pixel_values_videos"])
    graph, state = tiny_model.graph, tiny_model.state
    plain = np.asarray(compiled.encode_videos(graph, state, pixels, 1)).reshape(8, 17, -1)
    for pooling, tokens in ((2, 5), (4, 2)):
        pooled = np.asarray(compiled.encode_videos(graph, state, pixels, pooling)).reshape(8, tokens, -1)
        np.testing.assert_allclose(pooled, pooled_by_hand(plain, pooling), rtol=0, atol=MODEL)


@pytest.mark.parametrize("pooling", [0, -2, 3, 5, 32, 2.0, "2", None])
def test_windows_that_do_not_tile_a_frame_are_refused(tiny_model, tiny_processor, pooling):
    with pytest.raises(ValueError, match=r"do not tile the 16 by 16 patches .* expected one of 1, 2, 4, 8, 16"):
        ModelConfig().pooled_tokens_per_frame(pooling)
    with pytest.raises(ValueError, match="do not tile"):
        pool_patches(jnp.zeros((1, 257, 2)), pooling)
    if pooling is not None:  # which asks models for none, and processors for their own
        inputs = tiny_processor(text=PROMPT, videos=CLIP)
        for call in (tiny_model, tiny_model.generate):
            with pytest.raises(ValueError, match=r"do not tile the 4 by 4 patches .* expected one of 1, 2, 4$"):
                call(**inputs, video_pooling=pooling)
        with pytest.raises(ValueError, match="do not tile the 4 by 4 patches"):
            tiny_processor(text=PROMPT, videos="not even looked for", video_pooling=pooling)
        with pytest.raises(ValueError, match="do not tile the 4 by 4 patches"):
            VideoLlavaProcessor.from_pretrained(TINY, video_pooling=pooling)


# ── the tokens ──


@settings(max_examples=25, deadline=None)
@given(case=sides_and_poolings(), frames=st.integers(1, 4))
def test_processor_and_model_count_alike(tiny_processor, case, frames):
    side, pooling = case
    vision = VisionConfig(image_size=2 * side, patch_size=2, hidden_size=4, num_attention_heads=1, num_hidden_layers=2)
    text = TextConfig(hidden_size=8, num_attention_heads=1, num_key_value_heads=1, head_dim=8, num_hidden_layers=1)
    config = ModelConfig(vision_config=vision, text_config=text)
    square = {"size": {"shortest_edge": 2 * side}, "crop_size": {"height": 2 * side, "width": 2 * side}}
    processor = VideoLlavaProcessor(
        FramePreprocessor.from_json(square), tokenizer=tiny_processor.tokenizer, patch_size=2, video_pooling=pooling
    )
    inputs = processor(text="a <video> b", videos=np.zeros((frames, 40, 50, 3), np.uint8))
    tokens = int((inputs["input_ids"] == processor.video_token_id).sum())
    pixels = jnp.asarray(np.moveaxis(inputs["pixel_values_videos"], 2, -1))
    features = nnx.eval_shape(lambda model, x: model.encode_videos(x, pooling), abstract_model(config), pixels)
    assert tokens == features.shape[1] == frames * config.pooled_tokens_per_frame(pooling)
    assert processor.tokens_per_frame == config.pooled_tokens_per_frame(pooling)
    assert inputs.get("video_pooling", 1) == pooling


def test_tokens_of_the_real_shape():
    config = ModelConfig()
    assert [config.pooled_tokens_per_frame(pooling) for pooling in (1, 2, 4, 8, 16)] == [257, 65, 17, 5, 2]
    assert config.tokens_per_frame == 257


def test_what_the_processor_returns_is_all_that_the_model_needs(tiny_model, tiny_processor):
    own = VideoLlavaProcessor.from_pretrained(TINY, video_pooling=2)
    inputs = own(text=PROMPT, videos=CLIP, frame_sampling=Uniform(16))
    assert inputs["video_pooling"] == 2
    assert (inputs["input_ids"] == own.video_token_id).sum() == 16 * 5
    same = tiny_processor(text=PROMPT, videos=CLIP, frame_sampling=Uniform(16), video_pooling=2)
    np.testing.assert_array_equal(inputs["input_ids"], same["input_ids"])
    out = tiny_model(**inputs)
    assert out.video_hidden_states.shape == (16, 5, 128)
    ids = tiny_model.generate(**inputs, max_new_tokens=3)
    first = out.logits[0, -1].argmax()
    assert ids[0, inputs["input_ids"].shape[1]] == first
    messages = [{"role": "user", "content": [{"type": "video", "video": CLIP}, {"type": "text", "text": "What?"}]}]
    assert own.conversation_inputs(messages)["video_pooling"] == 2
    assert "video_pooling" not in own.conversation_inputs(messages, video_pooling=1)
    assert "video_pooling" not in own(text="no video")


def test_a_processor_keeps_its_pooling_and_windows_in_its_files(tiny_processor, tmp_path):
    own = VideoLlavaProcessor.from_pretrained(TINY, video_pooling=4)
    own.frame_window = 8
    own.save_pretrained(tmp_path)
    again = VideoLlavaProcessor.from_pretrained(tmp_path)
    assert (again.video_pooling, again.frame_window) == (4, 8)
    assert VideoLlavaProcessor.from_pretrained(tmp_path, video_pooling=1).video_pooling == 1
    tiny_processor.save_pretrained(tmp_path / "plain")
    saved = json.loads((tmp_path / "plain" / "processor_config.json").read_text())
    assert not {"video_pooling", "frame_window"} & set(saved)


@pytest.mark.parametrize(("made", "told"), [(2, 1), (1, 2), (4, 2)])
def test_a_model_that_is_not_told_says_so(tiny_model, tiny_processor, monkeypatch, made, told):
    inputs = dict(tiny_processor(text=PROMPT, videos=CLIP, video_pooling=made)) | {"video_pooling": told}
    monkeypatch.setattr(compiled, "encode_videos", None)  # nothing is computed
    message = rf"with video_pooling={told}\): the prompt was made for video_pooling={made}, which the model has to be"
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(**inputs)
    with pytest.raises(ValueError, match=message):
        tiny_model(**inputs)


def test_a_prompt_that_is_too_long_points_to_pooling(tiny_processor):
    frames = np.zeros((40, 56, 56, 3), np.uint8)
    with pytest.raises(ValueError, match=r"fewer frames: 29 fit, or pool each frame to 5 tokens \(video_pooling=2"):
        tiny_processor(text=PROMPT, videos=frames)
    tiny_processor(text=PROMPT, videos=frames, video_pooling=2)
    # Forty videos: not even a frame of each fits as it is.
    with pytest.raises(ValueError, match=r"positions\. Pool each frame to 5 tokens \(video_pooling=2, untrained\)$"):
        tiny_processor(text="<video>" * 40, videos=[np.zeros((2, 56, 56, 3), np.uint8)] * 40)
    with pytest.raises(ValueError, match=r"fewer frames: 102 fit$"):  # no pooling is strong enough
        tiny_processor(text="<video>", videos=np.zeros((300, 56, 56, 3), np.uint8), video_pooling=2)


# ── windows of the original tower ──


@pytest.fixture
def windowed(tmp_path):
    """The processor of such a model, told by its config.json."""
    VideoLlavaProcessor.from_pretrained(TINY).save_pretrained(tmp_path)
    raw = json.loads((TINY / "config.json").read_text()) | {"variant": "original", "temporal_frames": 8}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return VideoLlavaProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("pooling", [1, 2])
def test_sixteen_frames_are_two_windows_of_eight(tiny_original, windowed, pooling):
    pixels = windowed(videos=CLIP, frame_sampling=Uniform(16))["pixel_values_videos"]

    def encode(clips):
        return np.asarray(compiled.encode_videos(tiny_original.graph, tiny_original.state, jnp.asarray(clips), pooling))

    whole = encode(pixels)
    halves = np.concatenate([encode(pixels[:, :8]), encode(pixels[:, 8:])], axis=1)
    np.testing.assert_allclose(whole, halves, rtol=0, atol=MODEL)
    shifted = np.concatenate([encode(pixels[:, 4:12]), encode(pixels[:, 8:])], axis=1)
    assert np.abs(whole - shifted).max() > 0.01  # which frames share a window matters


@pytest.mark.parametrize("frames", [1, 4, 12, 20])
def test_other_counts_are_refused_before_anything_is_read(windowed, frames):
    below = frames // 8 * 8
    counts = f"{below} or {below + 8}" if below else "8"
    message = rf"video 0: .* windows of 8 frames, .* a multiple of 8 frames, got {frames}: take {counts}$"
    for frame_sampling in (Uniform(frames), Indices(tuple(range(frames)))):
        with pytest.raises(ValueError, match=message):
            windowed(text=PROMPT, videos="not even looked for.mp4", frame_sampling=frame_sampling)
    with pytest.raises(ValueError, match=message):
        windowed(text=PROMPT, videos=np.zeros((frames, 9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=message):
        windowed(videos=np.zeros((frames, 9, 9, 3), np.uint8))


def test_a_count_that_only_the_file_decides_is_refused_too(windowed):
    with pytest.raises(ValueError, match=r"video 0: .* got 4: take 8"):
        windowed(text=PROMPT, videos=CLIP, frame_sampling=Fps(2))
    assert windowed(text=PROMPT, videos=CLIP, frame_sampling=Fps(2, multiple_of=8))["pixel_values_videos"].shape[1] == 8


def test_the_model_refuses_them_before_computing(tiny_original, tiny_processor, monkeypatch):
    monkeypatch.setattr(compiled, "encode_images", None)
    monkeypatch.setattr(compiled, "encode_videos", None)
    image = np.zeros((56, 56, 3), np.uint8)
    frames = np.zeros((4, 56, 56, 3), np.uint8)
    # Two videos of 4 frames are 8 frames in all, which the tower alone would take for one clip.
    inputs = tiny_processor(text="<image><video><video>", images=image, videos=[frames, frames])
    message = "pixel_values_videos: .* multiple of 8 frames, got 4: take 8"
    for call in (tiny_original, tiny_original.generate):
        with pytest.raises(ValueError, match=message):
            call(**inputs)
    model = nnx.merge(tiny_original.graph, tiny_original.state)
    with pytest.raises(ValueError, match="multiple of 8 frames, got 4"):
        model.encode_videos(jnp.zeros((2, 4, 56, 56, 3)))


def test_a_model_without_windows_takes_any_count(tiny_model, tiny_processor):
    assert tiny_processor.frame_window == tiny_model.model_config.frame_window == 1
    assert (
        tiny_model(**tiny_processor(text=PROMPT, videos=CLIP, frame_sampling=Uniform(3))).video_hidden_states.shape[0]
        == 3
    )


def test_too_long_for_windows_counts_in_windows(windowed):
    with pytest.raises(ValueError, match="Take fewer frames: 24 fit, or pool"):
        windowed(text=PROMPT, videos=np.zeros((32, 56, 56, 3), np.uint8))


def test_the_authors_checkpoints_have_windows(tmp_path):
    VideoLlavaProcessor.from_pretrained(TINY).save_pretrained(tmp_path)
    config = {"model_type": "llava", "mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert VideoLlavaProcessor.from_pretrained(tmp_path).frame_window == 8


@given(total=st.integers(1, 400), rate=st.floats(0.1, 5), windows=st.integers(1, 5), window=st.integers(1, 8))
def test_frames_by_rate_in_multiples(total, rate, windows, window):
    limit = windows * window
    plain = Fps(rate, max_frames=limit).indices(total, 10.0)
    chosen = Fps(rate, max_frames=limit, multiple_of=window).indices(total, 10.0)
    assert len(chosen) == min(-(-len(plain) // window) * window, limit)
    assert (chosen[0], chosen[-1]) == (plain[0], plain[-1] if len(chosen) > 1 else chosen[0])
    assert (np.diff(chosen) >= 0).all()
    with pytest.raises(ValueError, match=f"max_frames: expected a multiple of {limit + 1}, got {limit}"):
        Fps(rate, max_frames=limit, multiple_of=limit + 1)


# ── a conversation, and the command ──


def test_a_pooled_conversation_equals_itself_sent_anew(tiny_model, tiny_processor):
    chat = Chat(tiny_model, tiny_processor, videos=[CLIP], frame_sampling=Uniform(16), video_pooling=2)
    for question in ("Which way does it move?", "What shape is it?", "Does it change colour?"):
        turn = chat.ask(question, max_new_tokens=6)
        inputs = tiny_processor.conversation_inputs(chat.messages[:-1], frame_sampling=Uniform(16), video_pooling=2)
        ids = tiny_model.generate(**inputs, max_new_tokens=6)
        assert turn.token_ids == tuple(ids[0, inputs["input_ids"].shape[1] :].tolist())
        assert turn.prompt_tokens == inputs["input_ids"].shape[1]
    assert turn.cached_tokens > 80


def test_the_command_pools(capsys):
    def tokens(*options):
        assert main(["ask", str(CLIP), "What shape is it?", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["prompt_tokens"]

    text = tokens() - 8 * 17
    assert tokens("--frames", "16", "--pool", "2") == text + 16 * 5
    assert tokens("--frames", "32", "--pool", "4") == text + 32 * 2


def test_the_command_says_what_does_not_fit(capsys, windowed, tmp_path):
    assert main(["ask", str(CLIP), "What?", "--pool", "3"]) == 1
    assert "expected one of 1, 2, 4\n" in capsys.readouterr().err
    # `tmp_path` holds no weights: the frames are refused before those are looked for.
    assert main(["ask", str(CLIP), "What?", "--model", str(tmp_path), "--frames", "12"]) == 1
    assert "rising-triangle.mp4: this model's video tower attends over windows of 8" in capsys.readouterr().err
    assert main(["ask", str(CLIP), "What?", "--model", str(tmp_path), "--fps", "2", "--frames", "16"]) == 1
    assert "windows of" not in capsys.readouterr().err
