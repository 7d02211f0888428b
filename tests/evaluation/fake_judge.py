"""A judge on loopback that speaks OpenAI's protocol and says what a test wants."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @contextlib.contextmanager
    def running(self):
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def completion(text):
    return json.dumps({"model": "judge-2026-01-01", "choices": [{"message": {"role": "assistant", "content": text}}]})


def strict(body):
    """Says yes and 5 where the predicted answer is the correct one, no and 1 elsewhere."""
    text = body["messages"][-1]["content"]
    found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    same = found["Correct answer"] == found["Predicted answer"]
    return f"{{'pred': '{'yes' if same else 'no'}', 'score': {5 if same else 1.9}}}"
