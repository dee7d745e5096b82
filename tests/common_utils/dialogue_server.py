"""A stand-in for a chat model and a voice: dialogues of the tiny world, some of them spoilt.

    python -m tests.common_utils.dialogue_server PORT      # for a run by hand
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from random import Random
from typing import Any

import numpy as np

from common_utils.tiny_world.world import Exchange, load_world
from osum_echat.evaluation.judge import Rubric
from osum_echat.serving.audio_formats import encode_file
from tests.evaluation.judge_server import Quiet, served

MALFORMED, ERRORS, SLOW = 0.10, 0.05, 0.05
CHARACTERS = "邻居同学老师表哥送来一盆兰花借走雨伞学游泳养只乌龟修旧收音机约爬山看照片换自行车种番"


@dataclass
class Server:
    """faults: spoil some answers; hold_after: paid answers after which all others wait; status,
    break_after: what everything is answered with after so many; heard: a sound's name -> its words.
    """

    faults: bool = True
    slow_s: float = 0.2
    hold_after: int | None = None
    status: tuple[int, str] | None = None
    break_after: int = 0
    heard: dict[str, str] = field(default_factory=dict)
    url: str = ""
    paid: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    held: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    free: threading.Event = field(default_factory=threading.Event)

    def release(self, hold_after: int | None = None) -> None:
        """Let the waiting ones go, without an answer, and wait again after so many."""
        with self.lock:
            self.hold_after, self.held = hold_after, 0
            self.free.set()
            self.free = threading.Event()


@contextmanager
def serving(server: Server, port: int = 0) -> Iterator[Server]:
    with served(_handler(server), port) as server.url:
        try:
            yield server
        finally:
            server.release()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(Quiet):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            key = sha256(data).hexdigest()
            chance = int(key[:8], 16) / 16**8 if server.faults else 1.0
            with server.lock:
                server.asked[key] += 1
                again, free = server.asked[key] > 1, server.free
                is_held = server.hold_after is not None and server.paid.total() >= server.hold_after
                server.held += is_held
            if is_held:
                free.wait()
                self.close_connection = True
            elif server.status and server.paid.total() >= server.break_after:
                status, code = server.status
                self.send(status, json.dumps({"error": {"message": code, "code": code}}))
            elif chance < ERRORS and not again:
                self.send(500, '{"error": {"message": "out of order"}}')
            else:
                if ERRORS <= chance < ERRORS + SLOW:
                    time.sleep(server.slow_s)
                is_spoilt = ERRORS + SLOW <= chance < ERRORS + SLOW + MALFORMED
                self.send(200, self.answer(data, is_spoilt))
                with server.lock:
                    server.paid[key] += 1

        def answer(self, data: bytes, is_spoilt: bool) -> bytes:
            if self.path.endswith("/transcriptions"):
                name = data.partition(b'filename="')[2].partition(b'"')[0].decode()
                return json.dumps({"text": server.heard.get(name, "something else")}).encode()
            body = json.loads(data)
            server.bodies.append(body)
            if self.path.endswith("/speech"):
                return tone(body["input"], body["voice"])
            text = judgement(body) if _is_judge(body) else dialogue(body)
            text = text[: len(text) // 2] if is_spoilt else text
            usage = {"prompt_tokens": len(data) // 4, "completion_tokens": len(text) // 4}
            return json.dumps({"choices": [{"message": {"content": text}}],
                               "usage": usage}).encode()  # fmt: skip

    return Handler


def _is_judge(body: dict[str, Any]) -> bool:
    return "scores" in body["messages"][0]["content"]


def judgement(body: dict[str, Any]) -> str:
    """80 for all, and low marks for a few."""
    asked = body["messages"][0]["content"]
    low = int(sha256(body["messages"][1]["content"].encode()).hexdigest()[:4], 16) % 30 == 0
    names = [name for name in ("fits", "hidden", "natural", "harmless", *Rubric.load().names)
             if f"- {name}:" in asked]  # fmt: skip
    return json.dumps({"scores": dict.fromkeys(names, 80) | ({"natural": 20} if low else {})})


def dialogue(body: dict[str, Any]) -> str:
    """As many turns as the form in the message has, in its language."""
    asked = body["messages"][1]["content"]
    rng = Random(asked)
    turns = []
    for _ in range(asked.count('{"question"')):
        if "话题" in asked:
            said, reply = ("".join(rng.sample(CHARACTERS, 16)) + "。" for _ in range(2))
            turns.append({"question": said, "reply": reply, "thought": f"用户说{said}"})
        else:
            one = rng.choice(_exchanges())
            turns.append({"question": one.user_text, "reply": one.reply_text,
                          "thought": one.thought})  # fmt: skip
    return f"Here it is:\n```json\n{json.dumps({'turns': turns}, ensure_ascii=False)}\n```"


@cache
def _exchanges() -> list[Exchange]:
    return [one for one in load_world().exchanges("train", 7, 3000) if not one.turns]


def tone(text: str, voice: str) -> bytes:
    """A wav whose pitch is the voice's and whose length is the text's."""
    pitch = 100 + int(sha256(voice.encode()).hexdigest()[:4], 16) % 200
    time_s = np.arange(int(16_000 * (0.5 + 0.03 * len(text)))) / 16_000
    sound = 0.09 * np.sin(2 * np.pi * pitch * time_s) * (1 + np.sin(20 * time_s))
    return encode_file(sound, 16_000, "wav")


if __name__ == "__main__":
    with serving(Server(slow_s=2.0), int(sys.argv[1])) as own:
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stderr.write(f"{own.paid.total()} paid, {max(own.paid.values(), default=0)} times "
                             f"at most, {own.asked.total()} asked\n")  # fmt: skip
