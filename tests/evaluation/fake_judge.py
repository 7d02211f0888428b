"""A judge on loopback that speaks OpenAI's protocol and says what a test wants."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler

from tests.loopback import answering


class FakeJudge:
    """Replies with what `reply` returns for a request: a text, or a status and a body."""

    def __init__(self, reply):
        self.requests, self.headers, self._reply, self._lock = [], [], reply, threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge._lock:
                    judge.requests.append(body)
                    judge.headers.append(dict(self.headers))
                    said = judge._reply(body)
                status, text = said if isinstance(said, tuple) else (200, completion(said))
                data = text.encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://example.invalid/")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._handler = Handler

    @contextlib.contextmanager
    def running(self):
        with answering(self._handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}/v1"
            yield self


def completion(text):
    return json.dumps({"model": "judge-2026-01-01", "choices": [{"message": {"role": "assistant", "content": text}}]})


def strict(body):
    """Says yes and 5 where the predicted answer is the correct one, no and 1 elsewhere."""
    text = body["messages"][-1]["content"]
    found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    same = found["Correct answer"] == found["Predicted answer"]
    return f"{{'pred': '{'yes' if same else 'no'}', 'score': {5 if same else 1.9}}}"
