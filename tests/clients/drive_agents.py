"""openai-agents for Python, its defaults kept: the session's own history is what is looked at."""

import asyncio
import sys
from typing import Any

from agents.realtime import RealtimeAgent, RealtimeRunner
from speech import STEP_S, Microphone, passed, spoken


class Talk:
    """An open session with a microphone, and what it has told."""

    def __init__(self, session: Any) -> None:
        self.session, self.audio, self.history = session, b"", []
        self.events = aiter(session)
        self.microphone = Microphone(session.send_audio)

    async def until(self, kind: str) -> Any:
        """The next event of a kind. Raises AssertionError for an error event."""
        while True:
            event = await asyncio.wait_for(anext(self.events), STEP_S)
            assert event.type != "error", event
            if event.type == "agent_start":
                self.audio = b""
            elif event.type == "audio":
                self.audio += event.audio.data
            elif event.type == "history_updated":
                self.history = event.history
            elif event.type == "history_added":
                self.history = [*self.history, event.item]
            if event.type == kind:
                return event

    async def settled(self, turns: int) -> list[tuple[str, str]]:
        """Role and words of each item, once so many questions are written down."""
        while True:
            found = {one.item_id: (one.role, " ".join(
                part.transcript or "" for part in one.content if hasattr(part, "transcript")
            )) for one in self.history if one.type == "message"}  # fmt: skip
            told = list(found.values())
            if sum(role == "user" and bool(words) for role, words in told) >= turns:
                return told
            await self.until("history_updated")

    async def answered(self) -> str:
        await self.until("agent_start")
        await self.until("agent_end")
        replies = [one for one in self.history if one.type == "message" and one.role == "assistant"]
        return spoken(self.audio, replies[-1].content[0].transcript or "")


async def opened(address: str) -> Any:
    url = f"ws{address.removeprefix('http')}/v1/realtime"
    runner = RealtimeRunner(RealtimeAgent(name="Assistant", instructions="Be kind."))
    return await runner.run(model_config={"url": url, "api_key": "none"})


async def main() -> None:
    async with await opened(sys.argv[1]) as session:
        one = Talk(session)
        passed("connect", "session opened")
        one.microphone.say(3)
        passed("turn", await one.answered())
        one.microphone.say(4)
        await one.until("audio")
        one.microphone.say(5)
        await one.until("audio_interrupted")
        passed("break in", await one.answered())
        one.microphone.say(6)
        told = await one.answered()
        history = await one.settled(4)
        assert [role for role, _ in history] == ["user", "assistant"] * 4, history
        passed("second turn", f"{told}; history of {len(history)}")
        one.microphone.close()
    async with await opened(sys.argv[1]) as session:
        one = Talk(session)
        await session.send_message("hello")
        passed("reconnect", await one.answered())
        one.microphone.close()


asyncio.run(main())
