"""What is no turn: sounds without speech get no reply, and "uh-huh" does not stop one."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.online import Caller, appended
from common_utils.tiny_world import speaking
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.voices import Espeak, Voice, all_voices
from osum_echat import audio
from osum_echat.serving.audio_formats import PCM_RATE_HZ, Resampler, Samples

WORDS = ("Hm.", "Uh-huh.", "Yeah.", "Okay.", "Right.")
VOICES, LEVEL = 4, 0.3
WAIT_S, SILENCE_S, STEP_S = 2.0, 9.0, 60.0      # the longest wait of semantic_vad is 8 s
TOGETHER = 4                                    # sessions at once
SPOKEN_S = 0.3                                  # of a reply, before somebody says "uh-huh"


def sounds() -> list[Samples]:
    """20 sounds that are no speech, 24 kHz: hum, clicks, noise; those of the tiny world."""
    rng = np.random.default_rng(0)
    at = np.arange(PCM_RATE_HZ, dtype=np.float32) / PCM_RATE_HZ
    hums = [sum(0.1 * np.sin(2 * np.pi * hertz * part * at) for part in (1, 2, 3))
            for hertz in (50, 60, 100, 120)]  # fmt: skip
    clicks = [np.where(rng.random(len(at)) < share, 0.8, 0.0) for share in (0.0002, 0.001)]
    noises = [rng.normal(0, level, len(at)) for level in (0.02, 0.1)]
    made = [np.asarray(one, np.float32) for one in (*hums, *clicks, *noises)]
    voices = [Voice("man", "espeak", "", "ADULT", "MALE", 115.0, 1.0),
              Voice("woman", "espeak", "", "ADULT", "FEMALE", 205.0, 1.15),
              Voice("child", "espeak", "", "CHILD", "MALE", 280.0, 1.3)]  # fmt: skip
    for make in (speaking.cough, speaking.sigh, speaking.laugh, speaking.cry):
        for voice in voices:
            wave = np.asarray(make(voice, rng), np.float32)
            wave = 0.5 * wave / max(float(np.abs(wave).max()), 1e-6)
            made.append(Resampler(audio.SAMPLE_RATE_HZ, PCM_RATE_HZ).push(wave, last=True))
    return made


def one_word_answers(assets: Path) -> list[Samples]:
    """20 of them, 24 kHz: each word by four voices. Raises InputError without espeak-ng."""
    engine, made = Espeak(AssetPaths(assets)), []
    adults = [one for one in all_voices("test") if one.engine == "espeak" and one.age == "ADULT"]
    for voice in adults[:VOICES]:
        for word in WORDS:
            spoken = engine.say(word, voice)
            wave = np.asarray(spoken.samples, np.float32)
            wave = Resampler(round(spoken.rate_hz * spoken.speed), PCM_RATE_HZ).push(wave, True)
            loud = np.nonzero(np.abs(wave) > 0.01 * np.abs(wave).max())[0]
            wave = wave[loud[0] : loud[-1] + 1]
            made.append(LEVEL * wave / np.abs(wave).max())
    return made


async def begun_and_answered(address: str, kind: str, sound: Samples) -> tuple[int, int]:
    """Turns that a sound begins, and replies; it is heard faster than it plays."""
    import websockets

    whole = np.concatenate((np.zeros(PCM_RATE_HZ // 2, np.float32), sound,
                            np.zeros(round(SILENCE_S * PCM_RATE_HZ), np.float32)))  # fmt: skip
    seen: list[str] = []
    async with websockets.connect(address, max_size=None) as connection:
        await connection.send(_update(kind))
        for start in range(0, len(whole), PCM_RATE_HZ):
            await connection.send(json.dumps(appended(whole[start : start + PCM_RATE_HZ])))
        end = time.monotonic() + WAIT_S
        while (left := end - time.monotonic()) > 0:
            try:
                told = json.loads(await asyncio.wait_for(connection.recv(), left))["type"]
            except TimeoutError:
                break
            seen.append(told)
            if told.endswith("speech_started"):
                end = time.monotonic() + STEP_S
            if told.endswith(("transcription.completed", "response.created")):
                end = time.monotonic() + WAIT_S
    return seen.count("input_audio_buffer.speech_started"), seen.count("response.created")


async def stopped(question: Samples, address: str, kind: str, answer: Samples) -> tuple[int]:
    """Whether a one-word answer stops the reply to a question, in real time."""
    import websockets

    async with websockets.connect(address, max_size=None) as connection:
        await connection.send(_update(kind))
        caller = Caller(connection)
        caller.waiting.append(question)
        await caller.until("response.output_audio.delta")
        await asyncio.sleep(SPOKEN_S)
        caller.waiting.append(answer)
        _, event = await caller.until("response.done", "input_audio_buffer.speech_started")
        if event["type"] == "response.done" and event["response"]["status"] == "completed":
            ends = asyncio.create_task(caller.until("input_audio_buffer.speech_started"))
            await asyncio.sleep(len(answer) / PCM_RATE_HZ + 2 * SPOKEN_S)
            is_stopped = ends.done()
            ends.cancel()
        else:
            is_stopped = True
        await caller.close()
    return (int(is_stopped),)


Check = Callable[[str, str, Samples], Awaitable[tuple[int, ...]]]


async def count(address: str, kind: str, check: Check, given: list[Samples]) -> list[int]:
    """The sums of what a check finds. kind: of turn detection."""
    free = asyncio.Semaphore(TOGETHER)

    async def one(sound: Samples) -> tuple[int, ...]:
        async with free:
            return await check(address, kind, sound)

    found = await asyncio.gather(*map(one, given))
    return [sum(column) for column in zip(*found, strict=True)]


async def table(port: int, assets: Path, question: Samples) -> list[str]:
    """The lines that tell both, for both kinds of turn detection. question: that is answered."""
    address, lines = f"ws://127.0.0.1:{port}/v1/realtime", []
    for kind in ("semantic_vad", "server_vad"):
        begun, answered = await count(address, kind, begun_and_answered, sounds())
        line = f"{kind:13} sounds without speech: {begun} of {len(sounds())} begin a turn, "
        line += f"{answered} get a reply"
        if AssetPaths(assets).espeak_library.is_file():
            answers = one_word_answers(assets)
            (ended,) = await count(address, kind, partial(stopped, question), answers)
            line += f"; one-word answers: {ended} of {len(answers)} stop a reply"
        lines.append(line)
    return lines


def _update(kind: str) -> str:
    turn: dict[str, Any] = {"type": kind}
    return json.dumps({"type": "session.update", "session": {
        "type": "realtime",
        "audio": {"input": {"turn_detection": turn, "transcription": {"model": "own"}}},
    }})  # fmt: skip
