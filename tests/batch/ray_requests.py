"""Requests without media for tests of Ray, and a runner that fails at some."""

from videollava_jax.engine import Request, Result

# ── the parts ──


def asks(name, *paths):
    content = [*({"type": "video", "video": path} for path in paths), {"type": "text", "text": "?"}]
    return Request(id=str(name), conversation=[{"role": "user", "content": content}])


class Fails:
    """A runner that raises at every third request while it holds others."""

    def __init__(self, error):
        self.error, self.runs = error, 0

    def run(self, requests):
        self.runs += 1
        held = []
        for request in requests:
            held.append(request)
            if int(request.id) % 3 == 2:
                raise self.error
            if len(held) == 2:
                yield Result(id=held.pop(0).id, finish_reason="stop")
        yield from (Result(id=request.id, finish_reason="stop") for request in held)
