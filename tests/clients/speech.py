"""What the Python clients' scripts share; the standard library alone, as each runs elsewhere."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

RATE_HZ, SAMPLE_BYTES = 24_000, 2
PIECE_S = 0.1
PIECE_BYTES = round(PIECE_S * RATE_HZ) * SAMPLE_BYTES
LEAST_AUDIO_S = 0.5             # of a reply that counts as spoken
STEP_S = 180.0                  # that a step may take on a busy machine


class Microphone:
    """Sound in real time, in pieces of 100 ms: what is to be said, silence otherwise."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send, self._waiting = send, b""
        self._work = asyncio.create_task(self._run())

    def say(self, number: int) -> None:
        """A question of the folder that the runner made."""
        self._waiting += (Path(sys.argv[2]) / f"question_{number}.pcm").read_bytes()

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            piece, self._waiting = self._waiting[:PIECE_BYTES], self._waiting[PIECE_BYTES:]
            await self._send(piece.ljust(PIECE_BYTES, b"\0"))
            due += PIECE_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def close(self) -> None:
        self._work.cancel()


def passed(step: str, told: str) -> None:
    """A step is done: a line for the runner's table."""
    sys.stdout.write(json.dumps({"step": step, "told": told}) + "\n")
    sys.stdout.flush()


def spoken(audio: bytes, transcript: str) -> str:
    """What a reply was, for the table. Raises AssertionError for one without sound or words."""
    seconds = len(audio) / SAMPLE_BYTES / RATE_HZ
    assert seconds > LEAST_AUDIO_S and transcript.strip(), (seconds, transcript)
    return f"{seconds:.1f} s: {transcript.strip()}"
