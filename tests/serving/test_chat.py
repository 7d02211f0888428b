"""Chat completions over a real socket by the official client: whole, streamed, about media in every form."""

import pytest

from tests.serving.asking import CLIP, IMAGE, OTHER, about, data_url


def ask(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def streamed(client, messages, **options):
    """The pieces of a streamed answer, and its last chunk that has a choice."""
    pieces, last = [], None
    for chunk in ask(client, messages, stream=True, **options):
        if chunk.choices:
            last = chunk
            pieces.append(chunk.choices[0].delta.content or "")
    return pieces, last


def test_an_answer_about_a_video(client):
    answer = ask(client, about(CLIP, "Which way does it move?"), temperature=0)
    assert answer.choices[0].message.content == "up"
    assert (answer.choices[0].finish_reason, answer.object, answer.model) == ("stop", "chat.completion", "tiny")
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens > 8 * 17
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_is_the_whole_one(client):
    messages = about(IMAGE, "How many shapes are there?")
    pieces, last = streamed(client, messages)
    assert "".join(pieces) == ask(client, messages).choices[0].message.content == "three"
    assert last.choices[0].finish_reason == "stop"


def data_url_bytes(name):
    from videollava_jax.assets import MEDIA

    return (MEDIA / name).read_bytes()


@pytest.mark.parametrize(
    "form", ["path", "file: URL", "data: URL", "uploaded, by URL", "uploaded, OpenAI's part", "file_data"]
)
def test_a_video_is_named_in_every_form(client, form):
    from videollava_jax.assets import MEDIA

    question = {"type": "text", "text": "Which shape comes first?"}
    if form.startswith("uploaded"):
        file = client.files.create(file=(OTHER, data_url_bytes(OTHER)), purpose="user_data")
        assert (file.status, file.bytes) == ("processed", len(data_url_bytes(OTHER)))
        by_url = {"type": "video_url", "video_url": {"url": f"vllm-file://{file.id}"}}
        medium = by_url if form == "uploaded, by URL" else {"type": "file", "file": {"file_id": file.id}}
    elif form == "file_data":
        medium = {"type": "file", "file": {"file_data": data_url(OTHER), "filename": OTHER}}
    else:
        url = {"path": OTHER, "file: URL": f"file://{MEDIA / OTHER}", "data: URL": data_url(OTHER)}[form]
        medium = {"type": "video_url", "video_url": {"url": url}}
    answer = ask(client, [{"role": "user", "content": [medium, question]}])
    assert answer.choices[0].message.content == "circle"
    assert answer.usage.prompt_tokens > 8 * 17
    if form.startswith("uploaded"):
        assert client.files.delete(file.id).deleted


def test_text_alone_is_a_string(client):
    assert ask(client, [{"role": "user", "content": "What shape is it?"}]).usage.prompt_tokens < 40


def test_uploads_are_listed_and_their_frames_shown(client):
    file = client.files.create(file=(CLIP, data_url_bytes(CLIP)), purpose="user_data")
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.retrieve(file.id).filename == CLIP
    shown = client.get(f"/files/{file.id}/frames?frames=4", cast_to=object)
    assert len(shown["data"]) == 4
    assert all(frame["image"].startswith("data:image/jpeg;base64,/9j/") for frame in shown["data"])
    client.files.delete(file.id)
