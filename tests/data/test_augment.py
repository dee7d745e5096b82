"""Claims about changed sounds and features."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from osum_echat.data.augment import (
    Augmenter,
    AugmentSettings,
    Change,
    in_room,
    substitute,
    with_noise,
)
from osum_echat.data.prepare import ClipReader
from osum_echat.data.targets import PrepareSettings
from osum_echat.errors import ConfigError
from osum_echat.records import Turn

VOICE = torch.sin(torch.arange(16_000) / 9.0) * 0.3


@pytest.fixture
def sounds(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "hiss.wav", rng.normal(0, 0.1, 3_000), 16_000)
    soundfile.write(tmp_path / "voice.wav", VOICE.numpy(), 16_000)
    (tmp_path / "hiss.txt").write_text("hiss.wav\n")
    return str(tmp_path / "hiss.txt")


def test_noise_is_as_far_below_the_voice_as_asked() -> None:
    noise = torch.randn(1_000, generator=torch.Generator().manual_seed(0))
    added = with_noise(VOICE, noise, 10.0, 0.7) - VOICE
    ratio = float(VOICE.square().mean() / added.square().mean())
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.1)


def test_an_empty_room_changes_nothing() -> None:
    response = torch.zeros(50)
    response[20] = 0.5
    assert torch.allclose(in_room(VOICE, response), VOICE, atol=1e-5)


def test_a_room_keeps_size_and_power() -> None:
    response = torch.randn(800) * torch.exp(-torch.arange(800) / 100.0)
    wet = in_room(VOICE, response)
    assert wet.shape == VOICE.shape
    assert float(wet.square().mean()) == pytest.approx(float(VOICE.square().mean()), rel=1e-3)


@pytest.mark.parametrize("speed", [0.9, 1.1, 0.95])
def test_speed_changes_the_length_as_promised(speed: float) -> None:
    changed = Augmenter(AugmentSettings()).apply(VOICE, Change(speed=speed))
    assert len(changed) == Change(speed=speed).length(len(VOICE))
    assert len(changed) == pytest.approx(len(VOICE) / speed, abs=1)


def test_substitutes_come_from_before() -> None:
    features = torch.arange(200.0)[:, None].expand(200, 4).clone()
    substitute(features, random.Random(1), 3)
    assert torch.all(features[:, 0] <= torch.arange(200.0))
    assert not torch.equal(features[:, 0], torch.arange(200.0))


@pytest.mark.parametrize(
    "changes", [{"speeds": (0.9, 1.1)}, {"substitutes": 3}, {"noise": True}, {"room": True}]
)
def test_a_visit_repeated_is_changed_alike(sounds: str, changes: dict[str, Any]) -> None:
    lists = {"noise": {"noises": sounds, "noise_chance": 1.0},
             "room": {"rooms": sounds, "room_chance": 1.0}}  # fmt: skip
    own = {}
    for name, value in changes.items():
        own |= lists.get(name, {name: value})
    plain = PrepareSettings(prompts=None)
    reader = ClipReader(PrepareSettings(prompts=None, augment=AugmentSettings(**own)), 80)
    turn = Turn(Path(sounds).with_name("voice.wav"))
    drafts = [reader.draft(turn, random.Random(seed)) for seed in (1, 1, 2)]
    features = [reader.read(draft)[0] for draft in drafts]
    assert [len(one) for one in features] == [draft.frames for draft in drafts]
    assert torch.equal(features[0], features[1])
    untouched = ClipReader(plain, 80)
    bare, _ = untouched.read(untouched.draft(turn, random.Random(1)))
    assert bare.shape != features[0].shape or not torch.equal(bare, features[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"speeds": (9.0,)}, "0.5 to 2.0"), ({"noise_chance": 2.0}, "need 0 to 1"),
     ({"noise_db": (5.0,)}, "the least and the most"), ({"substitutes": -1}, "0 or more")],
)  # fmt: skip
def test_wrong_settings_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentSettings(**changes)


def test_a_list_of_sounds_that_are_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.wav\n")
    with pytest.raises(ConfigError, match=r"gone\.wav in it"):
        Augmenter(AugmentSettings(noises=str(tmp_path / "list.txt")))
