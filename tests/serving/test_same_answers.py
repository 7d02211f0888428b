"""Drawn requests, many at a time: streamed pieces joined are the whole answer, and that is what `generate` says.

    python -m tests.serving.test_same_answers 200

draws this number of requests instead of the few of the tests.
"""

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.engine.jobs import padded
from tests.serving.asking import CLIP, IMAGE, OTHER, data_url, part
from videollava_jax.assets import MEDIA
from videollava_jax.generation.text import answer_text
from videollava_jax.media import Fps, Uniform
from videollava_jax.serving.stops import before

CASES = 10
TEXTS = (
    "Which way does it move?",
    "What shape is it?",
    "Does it change colour?",
    "How many shapes are there?",
    "say something, s'il vous plaît: \N{PARTY POPPER}",
    "x",
)


def drawn_case(draw):
    """A request: the body's fields, and the same for `generate`: prompt, media, options and frames."""
    media = draw.choice([[], [CLIP], [CLIP], [OTHER], [IMAGE], [IMAGE], [IMAGE, IMAGE]])
    text = draw.choice(TEXTS)
    prompt = "USER: " + "".join("<image>\n" if name == IMAGE else "<video>\n" for name in media) + f"{text} ASSISTANT:"
    urls = [data_url(name) if draw.random() < 0.3 else name for name in media]
    body = {"messages": [{"role": "user", "content": [*map(part, urls), {"type": "text", "text": text}]}]}
    body["max_tokens"] = draw.randint(1, 24)
    more = {}
    options = {"max_new_tokens": body["max_tokens"]}
    if draw.random() < 0.6:
        body["temperature"] = options["temperature"] = draw.choice([0.5, 1.0, 3.0])
        body["seed"] = options["seed"] = draw.randrange(1000)
        options["do_sample"] = True
        more["top_k"] = options["top_k"] = draw.choice([0, 5, 50])
        body["top_p"] = options["top_p"] = draw.choice([0.5, 1.0])
    else:
        body["temperature"], options["do_sample"] = 0, False
    if draw.random() < 0.3:
        more["repetition_penalty"] = options["repetition_penalty"] = 1.3
    if draw.random() < 0.5:  # an answer that does not end early
        body["logit_bias"] = {"2": -100}
        options["suppress_tokens"] = [2]
    if draw.random() < 0.3:
        body["stop"] = options["stop_strings"] = draw.sample(["e", "up", "th", "\N{PARTY POPPER}"], 2)
    frames = None
    if CLIP in media and draw.random() < 0.5:
        number = draw.choice([2, 4])
        frames = draw.choice([Uniform(number), Fps(number, max_frames=8)])
        rule = {"num_frames": number} if isinstance(frames, Uniform) else {"fps": number}
        more |= draw.choice([{"mm_processor_kwargs": rule}, {"media_io_kwargs": {"video": rule}}])
    if more:
        body["extra_body"] = more
    return body, prompt, media, options, frames


def by_generate(model, processor, prompt, media, options, frames):
    """The answer of `generate` to one request."""
    kinds = (("images", [MEDIA / n for n in media if n == IMAGE]), ("videos", [MEDIA / n for n in media if n != IMAGE]))
    given = {name: list(map(str, paths)) for name, paths in kinds if paths}
    if frames is not None:
        given["frame_sampling"] = frames
    inputs = processor(text=prompt, **given)
    padded(inputs)
    out = model.generate(**inputs, tokenizer=processor.tokenizer, **options)
    return answer_text(processor.light_tokenizer, out[0, inputs["input_ids"].shape[1] :].tolist())


def by_server(client, body, seed):
    """The whole answer and the pieces of the streamed one, asked for at the same time as others."""
    draw = random.Random(seed)
    time.sleep(draw.random() / 10)
    whole = client.chat.completions.create(model="tiny", **body).choices[0].message.content
    stream = client.chat.completions.create(model="tiny", stream=True, **body)
    return whole, [choice.delta.content or "" for chunk in stream for choice in chunk.choices]


def check(served, model, processor, count, seed):
    """Compares `count` drawn requests; clients that give up go on at the same time. Returns the number of pieces."""
    cases = [drawn_case(random.Random(seed + i)) for i in range(count)]
    done = threading.Event()

    def give_up():
        draw = random.Random(seed)
        with served.client() as client:
            while not done.is_set():
                body = {**drawn_case(draw)[0], "stream": True}
                stream = client.chat.completions.create(model="tiny", **body)
                time.sleep(draw.random() / 20)
                stream.close()

    pieces = 0
    with served.client() as client, ThreadPoolExecutor(7) as pool:
        noise = threading.Thread(target=give_up)
        noise.start()
        try:
            answers = list(pool.map(lambda i: by_server(client, cases[i][0], seed + i), range(count)))
        finally:
            done.set()
            noise.join()
    for (body, *case), (whole, streamed) in zip(cases, answers, strict=True):
        expected = before(by_generate(model, processor, *case), body.get("stop", ()))
        assert whole == expected, (body, case)
        assert "".join(streamed) == expected, (body, case)
        pieces += sum(map(bool, streamed))
    served.wait_until_idle()
    return pieces


def test_streamed_whole_and_generated_answers_are_the_same(served, tiny_model, tiny_processor):
    assert check(served, tiny_model, tiny_processor, CASES, seed=1000) > CASES


def test_a_character_of_several_tokens_comes_in_one_piece(client):
    """The model is made to write the bytes of an emoji, four tokens."""
    text = "\N{PARTY POPPER}"
    tokens = client.post("../tokenize", cast_to=object, body={"prompt": text})["tokens"][-4:]
    if len(set(tokens)) < 4:
        pytest.skip("the vocabulary has this character as one token")
    body = {"max_tokens": 16, "temperature": 5.0, "seed": 1, "logit_bias": {str(token): 100 for token in tokens}}
    messages = [{"role": "user", "content": "x"}]
    stream = client.chat.completions.create(model="tiny", messages=messages, stream=True, **body)
    joined = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    whole = client.chat.completions.create(model="tiny", messages=messages, **body)
    assert joined == whole.choices[0].message.content != ""


def main() -> None:
    """Draws the number of requests that the command line says."""
    from tests import conftest  # noqa: F401  (JAX as the tests have it)
    from tests.serving.conftest import LONGEST_ANSWER, serving
    from videollava_jax import VideoLlavaForConditionalGeneration
    from videollava_jax.assets import TINY
    from videollava_jax.engine import Engine
    from videollava_jax.processing.processor import VideoLlavaProcessor
    from videollava_jax.serving.settings import Settings

    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    processor, model = (
        VideoLlavaProcessor.from_pretrained(TINY),
        VideoLlavaForConditionalGeneration.from_pretrained(TINY),
    )
    session = Engine(model, processor, max_rows=8).session(rows=4, longest_answer=LONGEST_ANSWER)
    settings = Settings(model="tiny", media_root=MEDIA, longest_answer=LONGEST_ANSWER, max_tokens=512)
    with serving(session, processor, settings) as served:
        while not any(record["state"] == "ready" for record in served.said):
            time.sleep(0.1)
        began = time.monotonic()
        pieces = check(served, model, processor, count, seed)
    seconds = time.monotonic() - began
    print(f"{count} requests, streamed in {pieces} pieces, whole and by generate: the same, in {seconds:.0f} s")
    print(f"openai {openai.__version__}")


if __name__ == "__main__":
    main()
