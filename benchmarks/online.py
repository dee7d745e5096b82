"""How soon a live session is answered, alone and beside others: the real server on loopback.

python -m benchmarks.online [--model pretrained/tiny] [--turns 10] [--sessions 1 2 4]

Each session speaks the questions among the model's samples in real time, with 300 ms of silence
asked. First audio is counted from the end of the user's speech (VAD included) and from
`speech_stopped` (ours alone); turns without a reply are counted, and waited for no longer.
Beside it stand the same questions by HTTP, and what is no turn (benchmarks/online_turns.py).
"""

import argparse
import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.tiny_world.assets import AssetPaths
from osum_echat import audio, cli, logs
from osum_echat.errors import InputError
from osum_echat.paths import HOUSE, TINY, model_source
from osum_echat.serving.audio_formats import FORMATS, PCM_RATE_HZ, Resampler, Samples, encode_file

PIECE_S, LOUD = 0.02, 0.02
SILENCE_MS = 300
QUESTIONS = ("question_3.wav", "question_4.wav", "question_5.wav")
STARTED = "input_audio_buffer.speech_started"
STOPPED = "input_audio_buffer.speech_stopped"
DELTA, DONE = "response.output_audio.delta", "response.done"
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
START_S, TURN_S, FIRST_S = 180.0, 60.0, 15.0    # FIRST_S: for the first sound of a reply


@dataclass
class Measures:
    """Seconds, a value a turn."""

    from_speech: list[float] = field(default_factory=list)
    from_stopped: list[float] = field(default_factory=list)
    barge_in: list[float] = field(default_factory=list)
    underruns: list[float] = field(default_factory=list)
    unanswered: int = 0


def questions(model: str) -> list[Samples]:
    """What a model is asked, at 24 kHz, ending where speech does.

    Its own samples, or those of the tiny model where it has none.
    """
    from silero_vad import get_speech_timestamps, load_silero_vad

    vad = load_silero_vad(onnx=True)
    folder = Path(model_source(model)) / "samples"
    own = sorted(one for one in folder.glob("*") if one.suffix in SOUNDS)
    if not own or {*QUESTIONS} <= {one.name for one in own}:
        own = [TINY / "samples" / name for name in QUESTIONS]
    found = []
    for path in own:
        samples = audio.load(path)
        cut = samples[: get_speech_timestamps(samples, vad)[-1]["end"]].numpy()
        found.append(Resampler(audio.SAMPLE_RATE_HZ, PCM_RATE_HZ).push(cut, last=True))
    return found


def loud(samples: Samples) -> np.ndarray[Any, Any]:
    """The numbers of the samples that are speech, not silence around it."""
    return np.nonzero(np.abs(samples) > LOUD)[0]


def appended(samples: Samples) -> dict[str, Any]:
    """The event that tells a piece of sound, (samples,) at 24 kHz."""
    data = base64.b64encode(FORMATS["audio/pcm"].encode(samples)).decode()
    return {"type": "input_audio_buffer.append", "audio": data}


class Caller:
    """One session: a microphone that never stops, and what comes back."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.waiting: list[Samples] = []    # to be spoken
        self.spoken_at = 0.0                # the end of what was to be spoken
        self.events: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
        self.tasks = [asyncio.create_task(self._speak()), asyncio.create_task(self._hear())]

    async def _speak(self) -> None:
        step = round(PIECE_S * PCM_RATE_HZ)
        silence = np.zeros(step, np.float32)
        due = time.monotonic()
        while True:
            piece = silence
            if self.waiting:
                piece, rest = self.waiting[0][:step], self.waiting[0][step:]
                self.waiting[0] = rest
                if not len(rest):
                    del self.waiting[0]
                    self.spoken_at = time.monotonic() + PIECE_S
                piece = np.pad(piece, (0, step - len(piece)))
            await self.send(**appended(piece))
            due += PIECE_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _hear(self) -> None:
        async for text in self.connection:
            self.events.put_nowait((time.monotonic(), json.loads(text)))

    async def send(self, **event: Any) -> None:
        await self.connection.send(json.dumps(event))

    async def until(self, *kinds: str, within_s: float = TURN_S) -> tuple[float, dict[str, Any]]:
        """When the next event of these kinds came, and the event. Raises TimeoutError."""
        end = time.monotonic() + within_s
        while True:
            left = end - time.monotonic()
            when, event = await asyncio.wait_for(self.events.get(), left)
            if event["type"] == "error":
                raise InputError(f"the server answered with an error: {event['error']}")
            if event["type"] in kinds:
                return when, event

    async def turn(self, question: Samples, found: Measures, interrupt: bool) -> None:
        """Speak, wait for the reply's end; or break into it."""
        self.spoken_at, self.events = 0.0, asyncio.Queue()
        self.waiting.append(question)
        try:
            stopped, _ = await self.until(STOPPED, within_s=FIRST_S)
            first, event = await self.until(DELTA, within_s=FIRST_S)
            if 0 < self.spoken_at < stopped:    # else it ended at a pause within the question
                found.from_speech.append(first - self.spoken_at)
            found.from_stopped.append(first - stopped)
            if interrupt:
                found.barge_in.append(await self.break_in(question, first))
            else:
                found.underruns.append(await self.hear_out(first, event))
        except TimeoutError:
            found.unanswered += 1

    async def break_in(self, question: Samples, last: float) -> float:
        """Seconds from the onset of speech over a reply to its last sound; waits for the next
        reply's end. last: when its last sound came so far. Raises TimeoutError."""
        begin = time.monotonic() + loud(question)[0] / PCM_RATE_HZ
        event: dict[str, Any] = {"type": DELTA}
        self.waiting.append(question)
        while event["type"] != STARTED:
            when, event = await self.until(DELTA, STARTED, within_s=FIRST_S)
            last = when if event["type"] == DELTA else last
        await self.until(DELTA, within_s=FIRST_S)
        await self.until(DONE)
        return max(0.0, last - begin)

    async def hear_out(self, first: float, event: dict[str, Any]) -> float:
        """Seconds for which a reply's sound was late, at most. first: when its first sound came,
        with that event. Raises TimeoutError."""
        played, underrun, when = first, 0.0, first
        while event["type"] != DONE:
            seconds = len(event["delta"]) * 3 / 4 / 2 / PCM_RATE_HZ
            underrun = max(underrun, when - played)
            played = max(played, when) + seconds
            when, event = await self.until(DELTA, DONE)
        await asyncio.sleep(max(0.0, played - time.monotonic()))
        return underrun

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.connection.close()


async def measure(
    port: int, spoken: Sequence[Samples], sessions: int, turns: int, kind: str = "server_vad"
) -> Measures:
    """So many sessions at once, each with so many turns; every third is broken into.

    kind: of turn detection.
    """
    import websockets

    found = Measures()
    address = f"ws://127.0.0.1:{port}/v1/realtime"

    async def session(number: int) -> None:
        async with websockets.connect(address, max_size=None) as connection:
            caller = Caller(connection)
            detection = {"type": kind, "silence_duration_ms": SILENCE_MS}
            await caller.send(type="session.update", session={
                "type": "realtime", "audio": {"input": {"turn_detection": detection}}})  # fmt: skip
            await caller.until("session.updated")
            await asyncio.sleep(0.3 * number)
            for turn in range(turns):
                question = spoken[(number + turn) % len(spoken)]
                await caller.turn(question, found, interrupt=turn % 3 == 2)
            await caller.close()

    await asyncio.gather(*(session(number) for number in range(sessions)))
    return found


@contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server, ready: its port and process. Raises InputError where it does not start, or ended
    by itself."""
    port = free_port()
    door = str(HOUSE / "infer_online.py")
    command = [sys.executable, door, "--model", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + START_S
        while not _answers(port):
            if time.monotonic() > give_up or process.poll() is not None:
                raise InputError(f"the server did not start within {START_S:g} s")
            time.sleep(0.2)
        yield port, process
        if process.poll() is not None:
            raise InputError(f"the server ended with code {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def share(values: Sequence[float], percent: float) -> str:
    return f"{1000 * float(np.percentile(values, percent)):6.0f}" if values else "     -"


def over_http(port: int, spoken: Sequence[Samples], turns: int) -> list[float]:
    """Seconds from the call to the first sound, the same questions one by one: nothing prepared."""
    found = []
    for turn in range(turns):
        clip = encode_file(spoken[turn % len(spoken)], PCM_RATE_HZ, "wav")
        sound = {"data": base64.b64encode(clip).decode(), "format": "wav"}
        asked = {
            "model": "any", "stream": True, "modalities": ["text", "audio"],
            "audio": {"voice": "default", "format": "pcm16"},
            "messages": [{"role": "user",
                          "content": [{"type": "input_audio", "input_audio": sound}]}],
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        begin, first = time.monotonic(), 0.0
        with urllib.request.urlopen(request, timeout=TURN_S) as lines:
            for line in lines:
                first = first or (time.monotonic() - begin if b'"data": "' in line else 0.0)
        found.append(first)
    return found


def row(name: str, one: Measures) -> str:
    """The table's line of so many sessions, or of one with semantic_vad."""
    return (
        f"{name:>8}{len(one.from_speech):4}   {share(one.from_speech, 50)}  "
        f"{share(one.from_speech, 95)}       {share(one.from_stopped, 50)}  "
        f"{share(one.from_stopped, 95)}   {share(one.barge_in, 50)} "
        f"{share(one.barge_in, 95)}     {share(one.underruns, 100)}{one.unanswered:6}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = argparse.ArgumentParser(prog="benchmarks.online", description=__doc__)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--turns", type=int, default=10, help="of each session (default: 10)")
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 2, 4], help="at once")
    parser.add_argument("--assets", type=Path, default=HOUSE / "build" / "assets", help="where "
                        "make test-clients puts the turn model and espeak-ng")  # fmt: skip
    arguments = parser.parse_args(argv)

    def work() -> None:
        from benchmarks import online_turns

        turn_model = AssetPaths(arguments.assets).turn_model
        options = ("--turn-model", str(turn_model)) if turn_model.is_file() else ()
        spoken = questions(arguments.model)
        with serving(arguments.model, *options) as (port, _):
            logs.out("ms           from end of speech   from speech_stopped   barge-in   underrun"
                     "    no")  # fmt: skip
            logs.out("sessions  n       p50     p95          p50     p95       p50  p95      worst"
                     " reply")  # fmt: skip
            rows = [(str(sessions), sessions, "server_vad") for sessions in arguments.sessions]
            for name, sessions, kind in [*rows, ("semantic", 1, "semantic_vad")]:
                found = asyncio.run(measure(port, spoken, sessions, arguments.turns, kind))
                logs.out(row(name, found))
            called = over_http(port, spoken, arguments.turns)
            logs.out(f"    http{len(called):4}   {share(called, 50)}  {share(called, 95)}       "
                     "from the call, nothing prepared")  # fmt: skip
            for line in asyncio.run(online_turns.table(port, arguments.assets, spoken[0])):
                logs.out(line)

    return cli.run("benchmarks.online", work)


if __name__ == "__main__":
    sys.exit(main())
