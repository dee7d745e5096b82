"""A live server under unruly clients: they break in, leave, and send what is no event.

python -m benchmarks.online_soak [--model pretrained/tiny] [--turns 10] [--sessions 4]

Each session asks a question of its own, faster than real time.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.online import appended, serving
from osum_echat import audio, cli, logs
from osum_echat.paths import TINY
from osum_echat.serving.audio_formats import PCM_RATE_HZ, Resampler, Samples

QUESTIONS = ("question_3.wav", "question_4.wav", "question_5.wav", "question_6.wav")
OWN_WORDS = ("exam", "bus", "lessons", "bed")   # a word that only this question has
PAUSE_S, PIECE_S, STEP_S = 1.0, 0.1, 30.0
FIRST_S = 20.0          # for the first sound: a turn in which no words are heard gets none
NO_EVENTS = ("", "{", "[]", "7", '{"type": 1}', '{"type": "nope"}', "[" * 10_000,
             '{"type": "input_audio_buffer.append", "audio": "!"}',
             '{"type": "session.update", "session": {"type": "realtime", "audio": 3}}',
             '{"type": "conversation.item.delete", "item_id": "x"}')  # fmt: skip
SESSION = {"type": "realtime", "audio": {"input": {
    "transcription": {"model": "own"},
    "turn_detection": {"type": "server_vad", "silence_duration_ms": 300}}}}  # fmt: skip


class Caller:
    """One connection of an unruly session."""

    def __init__(self, connection: Any, found: Counter[str], own: str) -> None:
        self.connection, self.found, self.own = connection, found, own

    async def send(self, kind: str, **more: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **more}))

    async def say(self, samples: Samples) -> None:
        """A sound, and the pause after it, at once."""
        pause = np.zeros(round(PAUSE_S * PCM_RATE_HZ), np.float32)
        whole, step = np.concatenate((samples, pause)), round(PIECE_S * PCM_RATE_HZ)
        for at in range(0, len(whole), step):
            await self.connection.send(json.dumps(appended(whole[at : at + step])))

    async def until(self, *kinds: str) -> dict[str, Any]:
        while True:
            event = json.loads(await asyncio.wait_for(self.connection.recv(), STEP_S))
            if event["type"].endswith("input_audio_transcription.completed"):
                words = event["transcript"].split()
                foreign = {*OWN_WORDS} - {self.own}
                self.found["foreign words"] += len(foreign & {*words})
            if event["type"] in kinds:
                return event
            self.found["unexpected errors"] += event["type"] == "error"

    async def turn(self, question: Samples, rng: np.random.Generator) -> bool:
        """One turn of a kind that chance chooses. Returns whether the client is still there."""
        await self.say(question)
        try:
            await asyncio.wait_for(self.until("response.output_audio.delta"), FIRST_S)
        except TimeoutError:
            self.found["without a reply"] += 1
            return True
        try:
            return await self.go_on(question, rng)
        except TimeoutError:
            self.found["waited in vain"] += 1
            return False

    async def go_on(self, question: Samples, rng: np.random.Generator) -> bool:
        """What the client does when the reply has begun. Raises TimeoutError."""
        match rng.integers(4):
            case 0:
                await self.until("response.done")
                self.found["answered"] += 1
            case 1:
                await self.say(question)
                await self.until("input_audio_buffer.speech_started")
                await self.until("response.created")
                await self.until("response.done")
                self.found["broken into"] += 1
            case 2:
                text = str(rng.choice(NO_EVENTS))
                await self.connection.send(text)
                await self.until("error")
                await self.send("response.cancel")
                await self.until("response.done", "error")
                self.found["malformed"] += 1
            case _:
                self.found["left"] += 1
                return False
        return True


def memory_mb(process: int) -> float:
    """Resident memory of a process; NaN where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def unruly(address: str, number: int, turns: int, found: Counter[str], done: Any) -> None:
    """One session's turns, over as many connections as it takes."""
    import websockets

    samples = audio.load(TINY / "samples" / QUESTIONS[number % len(QUESTIONS)]).numpy()
    question = Resampler(audio.SAMPLE_RATE_HZ, PCM_RATE_HZ).push(samples, last=True)
    rng, left = np.random.default_rng(number), turns
    while left:
        async with websockets.connect(address, max_size=None) as connection:
            caller = Caller(connection, found, OWN_WORDS[number % len(OWN_WORDS)])
            await caller.send("session.update", session=SESSION)
            await caller.until("session.updated")
            stays = True
            while left and stays:
                stays = await caller.turn(question, rng)
                left -= 1
                done()


async def soak(port: int, process: int, sessions: int, turns: int) -> None:
    """All sessions, and the table."""
    address, found, memory = f"ws://127.0.0.1:{port}/v1/realtime", Counter[str](), []

    tenth = max(1, sessions * turns // 10)

    def done() -> None:
        memory.append(memory_mb(process))
        if len(memory) % tenth == 0:
            logs.out(f"{len(memory)} turns: {median(memory[-tenth:]):.0f} MB")

    await asyncio.gather(*(unruly(address, one, turns, found, done) for one in range(sessions)))
    logs.out(f"{sessions} sessions, {len(memory)} turns: "
             + ", ".join(f"{name} {count}" for name, count in sorted(found.items())))  # fmt: skip
    first, last = (median(memory[at : at + tenth]) for at in (tenth, len(memory) - tenth))
    logs.out(f"memory from the second tenth of the turns to the last: {first:.0f} to {last:.0f} MB "
             f"({last / first - 1:+.1%}), medians")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = argparse.ArgumentParser(prog="benchmarks.online_soak", description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--turns", type=int, default=10, help="of each session (default: 10)")
    parser.add_argument("--sessions", type=int, default=4, help="at once (default: 4)")
    arguments = parser.parse_args(argv)

    def work() -> None:
        with serving(str(arguments.model)) as (port, process):
            asyncio.run(soak(port, process.pid, arguments.sessions, arguments.turns))

    return cli.run("benchmarks.online_soak", work)


if __name__ == "__main__":
    sys.exit(main())
