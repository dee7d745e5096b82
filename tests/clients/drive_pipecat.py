"""pipecat's realtime service in a pipeline of its own, every event through its strict parser."""

import asyncio
import sys
from contextlib import suppress
from typing import Any

from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    ProposedUserStartedSpeakingFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner
from speech import RATE_HZ, STEP_S, Microphone, passed, spoken

TOLD = (ErrorFrame, LLMFullResponseEndFrame, ProposedUserStartedSpeakingFrame, TranscriptionFrame,
        TTSAudioRawFrame, TTSTextFrame)  # fmt: skip


class Ear(FrameProcessor):
    """Passes frames on, and those that tell of a reply to a queue as well."""

    def __init__(self, direction: FrameDirection, told: "asyncio.Queue[Any]") -> None:
        super().__init__()
        self._direction, self._told = direction, told

    async def process_frame(self, frame: Any, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is self._direction and isinstance(frame, TOLD):
            self._told.put_nowait(frame)
        await self.push_frame(frame, direction)


class Talk:
    """A pipeline with a microphone, and what it has told."""

    def __init__(self, address: str) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self.audio, self.text, self.heard = b"", "", ""
        heard = events.AudioInput(
            transcription=events.InputAudioTranscription(), turn_detection=events.TurnDetection()
        )
        properties = events.SessionProperties(audio=events.AudioConfiguration(input=heard))
        self.service = OpenAIRealtimeLLMService(
            api_key="none", base_url=f"ws{address.removeprefix('http')}/v1/realtime",
            settings=OpenAIRealtimeLLMService.Settings(session_properties=properties),
        )  # fmt: skip
        ears = [Ear(one, self.told) for one in (FrameDirection.UPSTREAM, FrameDirection.DOWNSTREAM)]
        self.worker = PipelineWorker(
            Pipeline([ears[0], self.service, ears[1]]),
            params=PipelineParams(audio_in_sample_rate=RATE_HZ), cancel_on_idle_timeout=False,
        )  # fmt: skip

    async def send(self, piece: bytes) -> None:
        await self.worker.queue_frame(
            InputAudioRawFrame(audio=piece, sample_rate=RATE_HZ, num_channels=1)
        )

    async def until(self, kind: type) -> Any:
        """The next frame of a kind. Raises AssertionError for an error frame."""
        while True:
            frame = await asyncio.wait_for(self.told.get(), STEP_S)
            assert not isinstance(frame, ErrorFrame), frame
            if isinstance(frame, TTSAudioRawFrame):
                self.audio += frame.audio
            elif isinstance(frame, TTSTextFrame):
                self.text += frame.text
            elif isinstance(frame, TranscriptionFrame):
                self.heard = frame.text
            if isinstance(frame, kind):
                return frame

    async def answered(self) -> str:
        """The next reply with words: sound of one that was broken into may still be on its way."""
        self.text = ""
        while not self.text.strip():
            self.audio = b""
            await self.until(TTSAudioRawFrame)
            await self.until(LLMFullResponseEndFrame)
        return spoken(self.audio, self.text)


async def talk(one: Talk) -> None:
    messages = [{"role": "user", "content": "hello"}]
    await one.worker.queue_frame(LLMContextFrame(context=LLMContext(messages)))
    passed("connect", await one.answered())
    microphone = Microphone(one.send)
    microphone.say(3)
    passed("turn", f"{await one.answered()} <- {one.heard}")
    microphone.say(4)
    await one.until(TTSAudioRawFrame)
    microphone.say(5)
    await one.until(ProposedUserStartedSpeakingFrame)
    passed("break in", await one.answered())
    microphone.say(6)
    passed("second turn", await one.answered())
    await one.worker.queue_frame(BotStoppedSpeakingFrame())     # as a loudspeaker tells it
    await asyncio.sleep(1)
    await one.service.reset_conversation()
    microphone.say(3)
    passed("reconnect", await one.answered())
    microphone.close()


async def main() -> None:
    one = Talk(sys.argv[1])
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(one.worker)
    work = asyncio.create_task(runner.run())
    try:
        await talk(one)
    finally:
        await runner.cancel()
        with suppress(asyncio.CancelledError):
            await work


asyncio.run(main())
