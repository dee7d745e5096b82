"""A judge on loopback that answers as it is told to: well, badly, late or not at all."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMES = ("relevance", "perception", "empathy", "delivery", "naturalness")


def scores(value: int = 70) -> str:
    return json.dumps({"scores": dict.fromkeys(NAMES, value), "reason": "fine"})


@dataclass
class JudgeServer:
    """plan: what to do with the n-th request of a body; the last step is repeated.

    A step is a text (sent as every choice), a list of texts (one a choice), a status number,
    "drop", "late" or "not json".
    """

    url: str = ""
    plan: Callable[[dict[str, Any]], Sequence[Any]] = lambda body: [scores()]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, body: dict[str, Any]) -> Any:
        with self.lock:
            asked = [one["messages"] for one in self.requests].count(body["messages"])
            self.requests.append(body)
        steps = self.plan(body)
        return steps[min(asked, len(steps) - 1)]


class Quiet(BaseHTTPRequestHandler):
    """Answers in one piece and keeps no log; who is refused may ask again in 10 ms."""

    def send(self, status: int, data: str | bytes) -> None:
        data = data.encode() if isinstance(data, str) else data
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def served(handler: Callable[..., BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """The address of a server on loopback for the time of a with block; port 0: any free one."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(plan: Callable[[dict[str, Any]], Sequence[Any]] | None = None) -> Iterator[JudgeServer]:
    """A server for the time of a with block."""
    judge = JudgeServer()
    if plan is not None:
        judge.plan = plan
    with served(_handler(judge)) as judge.url:
        yield judge


def _handler(judge: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            step = judge.step(body)
            if step == "drop":
                self.close_connection = True
                self.connection.close()
            elif step == "late":
                time.sleep(1.0)
                self.close_connection = True
            elif isinstance(step, int):
                self.send(step, json.dumps({"error": {"message": f"status {step}"}}))
            elif step == "not json":
                self.send(200, "<html>gateway</html>")
            else:
                texts = step if isinstance(step, list) else [step] * body["n"]
                self.send(200, json.dumps({
                    "choices": [{"message": {"content": text}} for text in texts],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10 * len(texts)},
                }))  # fmt: skip

    return Handler
