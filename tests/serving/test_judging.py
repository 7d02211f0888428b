"""Our own server as the judge of `videollava eval score`: the whole chain, with a judge that knows shapes alone."""

from videollava_jax.evaluation.judge.endpoint import Item, Judge
from videollava_jax.evaluation.judge.prompts import Prompt


def test_the_server_can_be_the_judge(served, tmp_path):
    """The tiny model cannot write a dictionary: each of its replies is asked for again, kept and counted."""
    prompt = Prompt((("user", "{question} {answer} {pred}"),), "test", "match")
    judge = Judge(
        url=f"{served.url}/v1",
        model="tiny",
        prompts={"match": prompt},
        cache=tmp_path / "judge.db",
        max_tokens=2,
        tries=2,
    )
    items = [
        Item(str(i), "match", {"question": "red?", "answer": "red", "pred": colour}) for i, colour in enumerate("ab")
    ]
    found = judge.judged(items)
    assert found.counts() == {"judged": 2, "asked_again": 0, "unparsed": 2, "refused": 0}
    assert all(len(texts) == 2 for texts in found.replies.values())
    assert found.models == {"tiny"}
    assert judge.judged(items).replies == found.replies
