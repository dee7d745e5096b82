"""Claims about the page and its door: offline, private, limited, in two languages."""

import socket
import urllib.error
import urllib.request
from dataclasses import make_dataclass
from types import SimpleNamespace

import pytest

from osum_echat.errors import InputError
from osum_echat.paths import TINY
from osum_echat.serving import app, page
from osum_echat.serving.chat import ChatService
from osum_echat.serving.session import Limits, Voices
from tests.browsing import gradio_door
from tests.serving.test_chat import service as chat_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ChatService:
    return chat_service(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def config(service: ChatService) -> dict:
    return page.build(service, (), 60).get_config_file()


def test_nothing_is_offered_to_programs_reported_asked_from_elsewhere_or_read_as_html(config):
    assert not config["analytics_enabled"]
    assert {one["api_visibility"] for one in config["dependencies"]} <= {"private", "undocumented"}
    theme = page.theme()
    assert not [sheet for sheet in theme._stylesheets if "//" in sheet]
    for name in ("page.css", "player.js"):
        text = (app.HERE / name).read_text(encoding="utf-8")
        assert "//" not in text.replace("// ", ""), name
        assert "innerHTML" not in text      # words of a model never enter as HTML
    assert "&lt;b&gt;" in page._notice("<b>.wav: bad")["value"]


def test_the_options_of_the_server_are_the_narrow_ones_and_those_given_reach_it():
    given = app.parser().parse_args([])
    options = app.launch_options(given, Limits())
    assert options["server_name"] == "127.0.0.1" and options["auth"] is None
    assert options["share"] is False and options["max_file_size"] == Limits().audio_bytes
    assert options["server_port"] >= app.PORT
    given = app.parser().parse_args(["--auth", "ann:b:c", "--megabytes", "2", "--seconds", "5"])
    assert given.auth == ("ann", "b:c") and (given.megabytes, given.seconds) == (2, 5)


def test_recordings_come_along_of_our_own_models_alone():
    assert app._samples(["elsewhere"]) == [] and app._samples([str(TINY)])[0].name == "question.wav"


def test_a_port_in_use_is_passed_over_or_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {taken} cannot be used"):
            page.free_port("127.0.0.1", [taken])
        assert page.free_port("127.0.0.1", [taken, 0]) == 0


def test_a_voice_is_measured_once_and_only_given_ones_have_names(tmp_path):
    measured = []
    speech = SimpleNamespace(voice_of=lambda file: measured.append(file) or file,
                             in_voice=lambda voice: SimpleNamespace(spoken_in=voice))
    model = make_dataclass("Model", ["voice"])(speech)
    assistant = make_dataclass("EChat", ["model", "seed"])(model, 3)
    recording = tmp_path / "me.wav"
    recording.write_bytes(b"sound")
    voices = Voices([assistant], [recording])
    assert voices.named(assistant, "") is assistant
    mine = voices.named(assistant, str(recording))
    assert mine.model.voice.spoken_in == str(recording) and mine.seed == 3
    assert assistant.model.voice is speech
    again = [voices.recorded(assistant, recording) for _ in range(2)]
    assert again[0] is again[1] is mine and len(measured) == 1
    with pytest.raises(InputError, match="not one of those given"):
        voices.named(assistant, "/etc/hostname")


@pytest.mark.slow
def test_the_door_serves_the_page_to_those_with_the_password(model_directory, tmp_path):
    options = ("--checkpoint-a", str(model_directory), "--auth", "ann:secret")
    with gradio_door(tmp_path, *options) as address:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}config", timeout=60)
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
