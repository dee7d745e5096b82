"""Claims about the live page, in a real browser whose microphone is a sound file."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from osum_echat import audio
from osum_echat.paths import TINY
from osum_echat.serving.online import Server
from osum_echat.serving.turns import VoiceActivity
from tests.browsing import chromium
from tests.serving.canned import HEARD, LABELS, THOUGHT, WORDS, Canned, service

pytestmark = pytest.mark.slow
WAIT_MS = 30_000


@contextmanager
def serving(assistant: Any, port: int = 0) -> Iterator[tuple[str, Server]]:
    """The server of a canned assistant, in a thread. Gives its address."""
    import uvicorn

    server = Server(service(assistant, activity=VoiceActivity()))
    held = socket.create_server(("127.0.0.1", port))
    port = held.getsockname()[1]
    config = uvicorn.Config(server.app(), log_level="warning", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [held]}, daemon=True)
    thread.start()
    server.running = running, thread
    while not running.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}/", server
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """A question, then a long silence: the browser plays it over and over."""
    question = audio.load(TINY / "samples" / "question_3.wav").numpy()
    path = tmp_path_factory.mktemp("sound") / "microphone.wav"
    silence = np.zeros(round(4.0 * audio.SAMPLE_RATE_HZ), np.float32)
    soundfile.write(path, np.concatenate((silence[:8000], question, silence)), audio.SAMPLE_RATE_HZ)
    return path


@contextmanager
def page(address: str, spoken: Path, script: str = "", **options: Any) -> Iterator[Any]:
    """The page of a browser that hears a file. script: run before the page's own."""
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                  f"--use-file-for-fake-audio-capture={spoken}",
                  "--autoplay-policy=no-user-gesture-required") as browser:  # fmt: skip
        context = browser.new_context(permissions=["microphone"], **options)
        context.add_init_script(script)
        opened = context.new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(address)
        yield opened
        assert not problems


def answered(opened: Any) -> bool:
    """Wait for a reply's sound. Whether nothing has been complained of."""
    opened.wait_for_selector(".reply .times", timeout=WAIT_MS)
    return not opened.locator("#notice").is_visible()


def test_what_is_spoken_is_answered_with_words_labels_and_sound(spoken: Path, tmp_path: Path):
    with serving(Canned()) as (address, _), page(address, spoken) as opened:
        opened.click("#go")
        assert answered(opened)
        words = f"document.querySelector('.reply .words').textContent === {''.join(WORDS)!r}"
        opened.wait_for_function(words, timeout=WAIT_MS)
        user = opened.locator(".turn.user").first
        assert user.locator(".words").inner_text() == HEARD
        assert LABELS.emotion.lower() in user.locator(".chips").inner_text()
        assert not user.locator("details[open]").count()
        user.locator("summary").click()
        assert THOUGHT in user.locator("details").inner_text()
        opened.click("#go")
        assert opened.locator("#state").inner_text() == "not connected"


def test_speaking_over_a_reply_silences_it(spoken: Path):
    with serving(Canned(times=30)) as (address, server), page(address, spoken) as opened:
        opened.click("#go")
        opened.wait_for_selector(".reply.cut", timeout=2 * WAIT_MS)
        opened.wait_for_function("document.querySelectorAll('.turn.user').length > 1")
        assert not server.service.metrics.errors.collect()[0].samples


def test_it_is_speaking_until_its_sound_is_played(spoken: Path):
    with serving(Canned(times=5)) as (address, _), page(address, spoken) as opened:
        opened.click("#go")
        opened.wait_for_selector("#state.speaking", timeout=WAIT_MS)
        opened.wait_for_timeout(1000)
        assert opened.locator("#state").inner_text() == "speaking"
        opened.wait_for_selector("#state.listening", timeout=2000)


def test_two_tabs_talk_side_by_side(spoken: Path):
    with serving(Canned()) as (address, server), page(address, spoken) as one:
        other = one.context.new_page()
        other.goto(address)
        for tab in (one, other):
            tab.click("#go")
        for tab in (one, other):
            assert answered(tab)
        assert len(server.open) == 2


def test_a_refused_microphone_is_told():
    with serving(Canned()) as (address, _), chromium() as browser:
        opened = browser.new_context(permissions=[]).new_page()
        opened.goto(address)
        opened.click("#go")
        opened.wait_for_selector("#notice:not([hidden])", timeout=WAIT_MS)
        assert "microphone" in opened.locator("#notice").inner_text()


def test_a_server_that_goes_is_told_and_comes_back(spoken: Path):
    with serving(Canned()) as (address, server), page(address, spoken) as opened:
        running, thread = server.running
        port = int(address.rsplit(":", 1)[1].rstrip("/"))
        opened.click("#go")
        opened.wait_for_selector("#state.listening", timeout=WAIT_MS)
        running.should_exit = True
        opened.wait_for_selector("#notice:not([hidden])", timeout=WAIT_MS)
        thread.join()
        with serving(Canned(), port):
            opened.click("#go")
            assert answered(opened)


def test_it_fits_a_phone_speaks_chinese_and_knows_the_dark(spoken: Path, tmp_path: Path):
    phone = {"viewport": {"width": 360, "height": 720}, "color_scheme": "dark"}
    with serving(Canned()) as (address, _), page(address, spoken, **phone) as opened:
        assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
        opened.click("#language")
        assert opened.locator("#go").inner_text() == "开始对话"
        opened.click("#theme")
        assert opened.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_browser_that_records_at_the_rate_of_its_device_is_heard(spoken: Path):
    rates = """
        const made = AudioContext.prototype.createMediaStreamSource;
        AudioContext.prototype.createMediaStreamSource = function (stream) {
          if (this.sampleRate === 24000) throw new DOMException("rates", "NotSupportedError");
          return made.call(this, stream);
        };"""
    with serving(Canned()) as (address, _), page(address, spoken, rates) as opened:
        opened.click("#go")
        assert answered(opened)


def test_a_change_of_device_begins_one_new_connection(spoken: Path):
    with serving(Canned()) as (address, server), page(address, spoken) as opened:
        opened.evaluate("for (const _ of [1, 2]) document.getElementById('go').click()")
        opened.wait_for_selector("#state.listening", timeout=WAIT_MS)
        assert len(server.open) == 1
        opened.evaluate("document.getElementById('echo').click()")
        assert answered(opened)
        assert len(server.open) == 1


def test_a_button_that_is_hardly_pressed_asks_nothing(spoken: Path):
    with serving(Canned()) as (address, _), page(address, spoken) as opened:
        opened.check("#push", force=True)
        opened.click("#go")
        opened.wait_for_selector("#state.listening", timeout=WAIT_MS)
        button = opened.locator("#go")
        button.dispatch_event("pointerdown")
        button.dispatch_event("pointerup")
        opened.wait_for_timeout(600)
        assert not opened.locator(".turn").count() and not opened.locator("#notice").is_visible()
        button.focus()
        opened.keyboard.down(" ")
        opened.wait_for_timeout(600)
        opened.keyboard.up(" ")
        assert answered(opened)
