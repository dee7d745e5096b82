"""The corpus maker, with a tone for a voice: what it writes, and that it can be stopped."""

import json
import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common_utils.tiny_world import make as maker
from common_utils.tiny_world.make import LIST_FILE, Plan, make
from common_utils.tiny_world.voices import Manner, Spoken, Voice, all_voices
from common_utils.tiny_world.world import load_world
from osum_echat.errors import InputError

SIZE = 6
ASSETS = Path(__file__).parents[2] / "build" / "assets"


class Tone:
    """Stands for all engines."""

    def __init__(self, assets: object) -> None: ...

    def say(self, text: str, voice: object, manner: Manner | None = None) -> object:
        tone = np.sin(np.arange(200 * len(text)) * 0.1).astype(np.float32)
        return Spoken(tone, 16_000, 1.0) if isinstance(voice, Voice) else tone


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(maker, "load_world", cache(load_world))
    monkeypatch.setattr(maker, "Studio", Tone)
    monkeypatch.setattr(maker, "ReplyVoice", Tone)
    return Plan(tmp_path, "test", 3, tmp_path, 0.2, tmp_path / "sentences")


def rows_of(plan: Plan) -> list[dict]:
    return [json.loads(line) for line in (plan.folder / LIST_FILE).read_text().splitlines()]


def sounds_of(plan: Plan) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in plan.folder.glob("*/*.wav")}


def test_every_turn_has_its_wavs_in_a_voice_of_the_split_with_the_labelled_age_and_gender(plan):
    make(plan, SIZE)
    rows, voices = rows_of(plan), {voice.name: voice for voice in all_voices("test")}
    assert len(rows) == SIZE
    for row in rows:
        assert voices[row["voice"]].cell == (row["labels"]["age"], row["labels"]["gender"])
        for turn in (row, *row["turns"]):
            assert soundfile.info(plan.folder / turn["wav"]).samplerate == 16_000
            assert soundfile.info(plan.folder / turn["reply_wav"]).samplerate == 22_050
            assert {"user_text", "labels", "reply_text", "reply_style"} <= set(turn)


def test_a_second_run_adds_what_is_missing_and_changes_nothing(plan):
    make(plan, SIZE)
    before, sounds = rows_of(plan), sounds_of(plan)
    (plan.folder / before[2]["wav"]).unlink()
    make(plan, SIZE + 2)
    assert rows_of(plan)[:SIZE] == before and len(rows_of(plan)) == SIZE + 2
    assert sounds.items() <= sounds_of(plan).items()


def killed(plan: Plan, exchange: object) -> None:
    """What a crash inside an engine does to a worker."""
    os.kill(os.getpid(), signal.SIGABRT)


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_not_a_wait(plan, monkeypatch):
    monkeypatch.setattr(maker, "_line", killed)
    with pytest.raises(InputError, match="a worker process was ended from outside"):
        make(plan, SIZE, processes=2)
    assert not (plan.folder / LIST_FILE).exists()


@pytest.mark.slow
@pytest.mark.skipif(not (ASSETS / "espeak").is_dir(), reason="build/assets is not unpacked")
def test_two_processes_make_what_one_makes(tmp_path):
    plans = [Plan(tmp_path / name, "test", 3, ASSETS, 0.2, tmp_path / name) for name in "ab"]
    for processes, one in enumerate(plans, 1):
        make(one, SIZE, processes)
    assert rows_of(plans[0]) == rows_of(plans[1])
    one, two = ([path.read_bytes() for path in sorted(each.folder.glob("audio/*.wav"))]
                for each in plans)     # Piper's noise, in the replies, is drawn anew each time
    assert one == two
