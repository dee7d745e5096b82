"""The page in a real browser, with the tiny model: what people do there, by hand of a driver."""

import json
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from osum_echat.paths import TINY
from tests.browsing import chromium, gradio_door

pytestmark = pytest.mark.slow
PATIENCE_MS = 120_000           # a reply on a busy CPU
SPOKEN = TINY / "samples" / "question_2.wav"        # what the browser's microphone hears
RECORDED_MS = 5_000             # a little longer than that
LONGEST_REPLY_S = 3             # of a reply that was stopped; the whole one takes over 3 s
DONE, CHAT = ".osum-done", ".osum-chat:visible"
SOUND = f"{CHAT} .bot [aria-label=Audio].minimal-audio-player"
COUNT_JS = """() => [...window.osum.sounds.values()].map(
    (sound) => [sound.rate, sound.chunks.reduce((sum, chunk) => sum + chunk.length, 0)])"""
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the door itself."""
    place = tmp_path_factory.mktemp("page")
    feedback = str(place / "feedback.jsonl")
    with gradio_door(place, "--model", "tiny", "--feedback", feedback) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={SPOKEN.resolve()}",
    ) as opened:  # fmt: skip
        yield opened


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Open]:
    """Opens a page as one more user; nothing may be asked from elsewhere, nothing may fail."""
    foreign: list[str] = []
    faults: list[str] = []

    def opened(**options: Any) -> Any:
        page = browser.new_context(locale="en-US", **options).new_page()
        page.set_default_timeout(PATIENCE_MS)
        own = (address, "data:", "blob:")
        page.on("request", lambda one: one.url.startswith(own) or foreign.append(one.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector("text=Record or choose a sound")
        page.wait_for_timeout(2_000)
        return page

    yield opened
    for context in browser.contexts:
        context.close()
    assert not foreign and not faults


def upload(page: Any, path: Path) -> None:
    """Hand the page a file and wait until it lies there."""
    page.set_input_files("#clip input[type=file]", str(path))
    page.wait_for_selector("#clip button[aria-label=Clear]")
    page.wait_for_timeout(2_000)


def choose(page: Any, task: str) -> None:
    page.click("#task input")
    page.click(f"#task [role=option]:has-text('{task}')")


def samples_heard(page: Any) -> list[list[int]]:
    return page.evaluate(COUNT_JS)


def answered(page: Any, sound: str | None, end: str = SOUND) -> None:
    """Ask, with a sample where one is named, and wait for what ends the answer."""
    if sound is not None:
        upload(page, TINY / "samples" / sound)
    page.click("#send")
    page.wait_for_selector(end)


def saved(page: Any, selector: str, path: Path) -> Path:
    """What a click on it downloads."""
    with page.expect_download() as given:
        page.click(selector)
    given.value.save_as(path)
    return path


def test_a_wav_is_answered_in_text_and_sound_and_the_next_turn_follows(tab, tmp_path):
    page = tab()
    answered(page, "question_2.wav")
    assert re.search(r"\w+ \w+", page.inner_text(f"{DONE} .osum-text"))
    assert page.locator(".osum-chip").count() >= 3
    assert page.locator(f"{CHAT} .user .minimal-audio-player").count() == 1
    thought = page.locator(f"{CHAT} .thought-group .title >> nth=0")
    assert page.locator(f"{CHAT} .thought-group .osum-text").count() == 0
    thought.click()
    page.wait_for_selector(f"{CHAT} .thought-group .osum-text:has-text('The user said')")
    link = f"{CHAT} .bot-row ~ .message-buttons a, {CHAT} .message-buttons-left a"
    with wave.open(str(saved(page, f"{link} >> nth=-1", tmp_path / "reply.wav"))) as sound:
        assert samples_heard(page) == [[22_050, sound.getnframes()]] and sound.getnframes() > 11_025
    answered(page, "question_4.wav", f"{SOUND} >> nth=1")
    assert page.locator(DONE).count() == 2 and len(samples_heard(page)) == 1
    turns = json.loads(saved(page, "#save", tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert [turn["file"] for turn in turns] == ["question_2.wav", "question_4.wav"]
    page.fill("#note textarea, #note input", "too short")
    page.click(f"{CHAT} button[aria-label=Like] >> nth=0")
    page.wait_for_selector("text=Thank you, saved.")
    page.click("#reset")
    page.wait_for_selector(DONE, state="detached")


def test_two_kinds_of_thought_answer_side_by_side(tab):
    page = tab()
    page.click("#models label >> nth=1")
    answered(page, "question_2.wav", f"{SOUND} >> nth=1")
    left, right = (page.locator(CHAT).nth(number).bounding_box() for number in range(2))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert len(samples_heard(page)) == 2


def test_the_microphone_is_recorded_and_answered(tab):
    page = tab(permissions=["microphone"])
    page.click("#clip button[aria-label='Record audio']")
    page.wait_for_timeout(1_500)
    page.click("#clip button:has-text('Record'):visible")
    page.wait_for_timeout(RECORDED_MS)
    page.click("#clip button:has-text('Stop'):visible")
    page.wait_for_timeout(3_000)
    answered(page, None)
    assert "boss" in page.inner_text(DONE) and samples_heard(page)[0][1] > 11_025


def test_words_are_spoken_and_labels_listened_for(tab):
    page = tab()
    choose(page, "Speak")
    page.fill("#text textarea", "<CALM>Hello my friend.")
    answered(page, None)
    assert samples_heard(page)[0][1] > 11_025
    page = tab()
    choose(page, "Listen · words and labels")
    page.wait_for_selector("#listen_for")
    answered(page, "question.wav", DONE)
    assert page.locator(".osum-chip").count() >= 2 and not samples_heard(page)


def test_what_cannot_be_heard_is_told_once_and_clearly(tab, tmp_path):
    page = tab()
    notes, long = tmp_path / "notes.wav", tmp_path / "long.wav"
    notes.write_text("these are notes and no sound\n" * 200)
    soundfile.write(long, np.zeros(31 * 8_000), 8_000)
    for path, message in ((notes, "notes.wav: not audio"), (long, "31.0 s; at most 30 s")):
        page.set_input_files("#clip input[type=file]", str(path))
        page.wait_for_timeout(4_000)
        page.click("#send")
        page.wait_for_selector("#problem .osum-notice")
        assert message in page.inner_text("#problem")
        assert page.locator("#problem .osum-notice").count() == 1
        assert page.locator(".osum-reply").count() == 0
        page.click("#reset")
        page.wait_for_selector("#problem .osum-notice", state="detached")
        page.wait_for_timeout(2_000)


def test_a_file_that_is_too_large_is_told_at_once(tab, tmp_path):
    page = tab()
    large = tmp_path / "large.wav"
    soundfile.write(large, np.zeros(14_000_000), 48_000)
    page.set_input_files("#clip input[type=file]", str(large))
    page.wait_for_selector("text=maximum allowed size of 25")
    page.wait_for_selector("#clip button[aria-label=Clear]", state="detached")  # it was not taken
    assert page.locator(".osum-reply").count() == 0


def test_two_users_are_answered_at_once_each_with_their_own(tab):
    pages = [tab(), tab()]
    for page, number in zip(pages, (2, 5), strict=True):
        upload(page, TINY / "samples" / f"question_{number}.wav")
    for page in pages:
        page.click("#send")
    for page in pages:
        page.wait_for_selector(".osum-reply")
    assert all(page.locator(DONE).count() == 0 for page in pages)     # both under way together
    for page, number in zip(pages, (2, 5), strict=True):
        page.wait_for_selector(SOUND)
        assert page.locator(".osum-reply").count() == 1
        assert f"question_{number}.wav" in page.inner_text(f"{CHAT} .user")


def test_an_answer_can_be_stopped(tab):
    page = tab()
    answered(page, "question_3.wav", ".osum-reply")
    page.click("#stop")
    page.wait_for_selector(".osum-stopped")
    assert page.locator(".osum-reply").count() == page.locator(".osum-stopped").count() == 1
    assert sum(count for _, count in samples_heard(page)) < 22_050 * LONGEST_REPLY_S


def test_a_phone_reads_chinese_in_the_dark_without_scrolling_sideways(tab):
    page = tab(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.click("#language label >> nth=1")
    page.wait_for_selector("#send:has-text('发送')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
