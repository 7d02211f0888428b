"""What is ours in the processor: it stays a core's processor, reads media within limits, and runs without torch."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.processing.inputs import ask
from videollava_jax import VideoLlavaProcessor, register
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.engine import Engine, Request
from videollava_jax.face import call, opening
from videollava_jax.generation.chat import Chat
from videollava_jax.media import MediaLimits, Uniform
from videollava_jax.processing.processor import VideoLlavaProcessor as CoreProcessor

CLIP, IMAGE = MEDIA / "rising-triangle.mp4", MEDIA / "three-triangles.png"
PROMPT = "USER: <video>\nWhich way does it move? ASSISTANT:"
TALK = ask({"type": "video", "video": str(CLIP)}, "Which way does it move?")


@pytest.fixture(scope="module")
def processor() -> VideoLlavaProcessor:
    return VideoLlavaProcessor.from_pretrained(TINY)


@pytest.fixture
def private(processor: VideoLlavaProcessor) -> VideoLlavaProcessor:
    """For one test, which may change its settings."""
    own = copy.copy(processor)
    own.image_processor, own.video_processor = copy.copy(own.image_processor), copy.copy(own.video_processor)
    return own


def assert_same(got: Any, want: Any) -> None:
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_usual_calls_are_the_cores(processor: VideoLlavaProcessor, tiny_processor: CoreProcessor) -> None:
    assert_same(processor(PROMPT, videos=str(CLIP)), tiny_processor(PROMPT, videos=str(CLIP)))
    options = dict(frame_sampling=Uniform(4), video_pooling=2, max_new_tokens=8)
    assert_same(processor(PROMPT, videos=CLIP, **options), tiny_processor(PROMPT, videos=CLIP, **options))
    got = processor.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert_same(got, tiny_processor.conversation_inputs(TALK))
    assert processor.preprocessors == tiny_processor.preprocessors
    assert processor.tokens_per_frame == tiny_processor.tokens_per_frame


def test_chats_and_the_engine_take_it(processor: VideoLlavaProcessor, tiny_processor: Any, tiny_model: Any) -> None:
    turns = [Chat(tiny_model, p, videos=[CLIP]).ask("Which way does it move?") for p in (processor, tiny_processor)]
    assert turns[0].token_ids == turns[1].token_ids
    request = Request(id="1", conversation=TALK, max_new_tokens=8)
    (result,) = Engine(tiny_model, processor, max_rows=1).run([request])
    assert result.token_ids == turns[0].token_ids[:8]


def test_both_ways_give_the_same_inputs(processor: VideoLlavaProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes the core's way by default, sent transformers' way."""
    calls: list[dict[str, Any]] = [
        dict(text=PROMPT, videos=CLIP),
        dict(text=["<image> a", "b <video>"], images=[[IMAGE], []], videos=[[], [CLIP]], padding=True),
        dict(images=IMAGE),
    ]
    usual = [processor(**one) for one in calls]
    monkeypatch.setattr(call.Call, "asks_for_more", True)
    for one, want in zip(calls, usual, strict=True):
        assert_same(processor(**one), want)


def test_settings_of_the_sub_processors_count_everywhere(private: VideoLlavaProcessor) -> None:
    private.video_processor.image_mean = [0.1, 0.2, 0.3]
    assert private.preprocessors["video"].mean == (0.1, 0.2, 0.3)
    private.video_processor.do_resize = False
    with pytest.raises(ValueError, match="do_resize=False is not supported"):
        _ = private.preprocessors
    assert private(PROMPT, videos=CLIP).pixel_values_videos.shape[1] == 8


@pytest.mark.parametrize("more", [{}, {"add_special_tokens": False}], ids=["the core's way", "transformers' way"])
def test_a_prompt_that_cannot_fit(private: VideoLlavaProcessor, more: dict[str, Any]) -> None:
    private.max_positions = 140
    private(PROMPT, videos=CLIP, frame_sampling=Uniform(4), **more)
    with pytest.raises(ValueError, match="positions"):
        private(PROMPT, videos=CLIP, **more)
    private.max_positions, private.frame_window = None, 8
    with pytest.raises(ValueError, match="multiple of 8 frames"):
        private(PROMPT, videos=CLIP, frame_sampling=Uniform(4), **more)


def test_pooling_goes_the_cores_way_only(processor: VideoLlavaProcessor) -> None:
    with pytest.raises(ValueError, match=r"video_pooling=2 goes with the usual arguments.*add_special_tokens"):
        processor(PROMPT, videos=CLIP, video_pooling=2, add_special_tokens=False)


def test_remote_media_are_asked_for_by_name(processor: VideoLlavaProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetcher(hosts: Any) -> Any:
        def fetch(url: str, file: Any, max_bytes: int) -> None:
            fetched.append((hosts, url, max_bytes))
            file.write(IMAGE.read_bytes())

        return fetch

    with pytest.raises(ValueError, match="private or reserved network"):
        processor(images="http://127.0.0.1:9/a.png", allow_remote_media=True)
    monkeypatch.setattr(opening, "Fetcher", fetcher)
    url, limits = "https://example.org/a.png", MediaLimits(max_image_bytes=10**6)
    assert_same(processor(images=url, allow_remote_media=True, limits=limits), processor(images=IMAGE))
    talk = ask({"type": "image", "url": url}, "What?")
    with pytest.raises(ValueError, match="allow_remote_media=True"):
        processor.apply_chat_template(talk, tokenize=True)
    processor.apply_chat_template(talk, tokenize=True, allow_remote_media=True)
    assert fetched[0] == (None, url, 10**6)
    assert len(fetched) == 2


def test_a_chat_template_cannot_reach_out_of_its_sandbox(processor: VideoLlavaProcessor) -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        processor.apply_chat_template(TALK, chat_template="{{ ''.__class__.__mro__ }}")


def test_the_users_conversation_is_left_as_it_was(processor: VideoLlavaProcessor) -> None:
    talk = copy.deepcopy(TALK)
    processor.apply_chat_template(talk, tokenize=True, chat_template="{{ messages[0].content[1].text }}<video>")
    assert talk == TALK


def test_pushed_to_the_hub(processor: VideoLlavaProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    def create_commit(repo_id: str, operations: Any, **named: Any) -> Any:
        sent[repo_id] = sorted(operation.path_in_repo for operation in operations)

    hub = SimpleNamespace(
        create_repo=lambda repo_id, **named: SimpleNamespace(repo_id=repo_id), create_commit=create_commit
    )
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: SimpleNamespace(save=len))
    processor.push_to_hub("owner/name")
    assert {"chat_template.jinja", "processor_config.json", "preprocessor_config.json"} <= set(sent["owner/name"])


def test_registering_alone_leaves_auto_processor_with_the_class_of_transformers(monkeypatch):
    """Why `register` takes the name out of transformers' list: once this fails, it need not."""
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    register()
    assert type(AutoProcessor.from_pretrained(TINY)) is VideoLlavaProcessor
    monkeypatch.setitem(PROCESSOR_MAPPING_NAMES, "video_llava", "VideoLlavaProcessor")
    try:
        found = type(AutoProcessor.from_pretrained(TINY))
    except ImportError:  # it needs torchvision
        return
    assert found is not VideoLlavaProcessor
