"""A stand-in for a server that speaks OpenAI's protocol, on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(answers: list[Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A stand-in for a server: answers in turn, the last one for ever; notes what it was asked."""
    asked: list[dict[str, Any]] = []
    left = list(answers)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append({"path": self.path, "token": self.headers["Authorization"], **body})
                answer = left.pop(0) if len(left) > 1 else left[0]
            status, content = answer if isinstance(answer, tuple) else (200, answer)
            content = content(body) if callable(content) else content
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.end_headers()
            with suppress(BrokenPipeError):  # of a client that has no more patience
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Says what was asked."""
    said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    part = (
        {"message": {"role": "assistant", "content": said}}
        if "messages" in body
        else {"text": said}
    )
    return {"choices": [{**part, "finish_reason": "length"}], "usage": {"completion_tokens": 5}}


def saying(reply: str) -> dict[str, Any]:
    """An answer of a chat model."""
    choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 1}}
