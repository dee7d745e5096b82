"""Claims about a token2wav directory: it loads, speaks, and says what is wrong with it."""

from pathlib import Path

import pytest
import torch

from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.token2wav.model import Token2Wav, alike
from osum_echat.token2wav.voice import VoicePrompt
from tests.token2wav.tiny_flow import CODES, tiny_flow, write_directory


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Token2Wav:
    return Token2Wav.load(write_directory(tmp_path_factory.mktemp("token2wav")))


def test_tokens_become_the_right_number_of_samples(speaker: Token2Wav):
    wave = speaker([1, 2, 3, 4, 5], seed=0)
    assert wave.shape == (5 * 441 // 128 * 256,)
    assert wave.dtype == torch.float32
    assert speaker.sample_rate_hz == 22_050


def test_the_same_seed_gives_the_same_sound(speaker: Token2Wav):
    first, again, other = (speaker([1, 2, 3], seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_steps_are_a_choice_of_whoever_loads(tmp_path: Path, speaker: Token2Wav):
    directory = write_directory(tmp_path)
    fine = Token2Wav.load(directory, steps=5)
    assert fine([1, 2, 3], seed=0).shape == speaker([1, 2, 3], seed=0).shape
    assert not torch.equal(fine([1, 2, 3], seed=0), speaker([1, 2, 3], seed=0))
    assert torch.equal(Token2Wav.load(directory, steps=2)([1, 2], seed=0), speaker([1, 2], seed=0))
    with pytest.raises(ConfigError, match=r"flow\.steps 0"):
        Token2Wav.load(directory, steps=0)


@pytest.mark.parametrize("most_frames", [None, 100])
def test_many_utterances_sound_as_each_by_itself(speaker: Token2Wav, most_frames: int | None):
    lists, seeds = [[1] * 9, [2] * 30, [3, 4, 5] * 3, [6] * 8], [5, 6, None, 7]
    made = speaker.many(lists, seeds=seeds, most_frames=most_frames)
    for tokens, seed, wave in zip(lists, seeds, made, strict=True):
        assert len(wave) == len(speaker(tokens, seed=0))
        if seed is not None:
            assert torch.allclose(wave, speaker(tokens, seed=seed), atol=1e-3)
    assert speaker.many([]) == []
    with pytest.raises(InputError, match=f"speech token {CODES}"):
        speaker.many([[1], [CODES]], most_frames=most_frames)


def test_rows_of_like_length_are_worked_on_together():
    lengths = [100, 10, 90, 300, 95]
    assert list(alike(lengths, 0)) == [[1], [2], [4], [0], [3]]
    assert list(alike(lengths, 300)) == [[1], [2, 4, 0], [3]]
    assert list(alike(lengths, 200)) == [[1], [2, 4], [0], [3]]
    assert list(alike([], 100)) == []


def test_a_call_leaves_nothing_behind(speaker: Token2Wav):
    before = speaker([1, 2], seed=1)
    speaker([4] * 30, VoicePrompt.absent(torch.ones(1, 192)), seed=2)
    assert torch.equal(speaker([1, 2], seed=1), before)


def test_twice_the_speed_gives_half_the_sound(speaker: Token2Wav):
    assert len(speaker([1] * 8, seed=0, speed=2.0)) == 13 * 256
    with pytest.raises(InputError, match="must be above 0"):
        speaker([1], speed=0)


def test_bad_tokens_are_refused(speaker: Token2Wav):
    for tokens in ([], [1, CODES], [-1]):
        with pytest.raises(InputError):
            speaker(tokens)


def test_the_voice_of_the_directory_is_the_default(tmp_path: Path, speaker: Token2Wav):
    directory = write_directory(tmp_path)
    own = VoicePrompt.absent(torch.arange(192.0).view(1, -1))
    own.save(directory / "voice.safetensors")
    assert torch.equal(
        Token2Wav.load(directory)([1, 2, 3], seed=0), speaker([1, 2, 3], own, seed=0)
    )


@pytest.mark.parametrize("name", ["token2wav.yaml", "flow.pt", "vocoder.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path):
    directory = write_directory(tmp_path)
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Token2Wav.load(directory)


def test_every_differing_key_is_told_at_once(tmp_path: Path):
    directory = write_directory(tmp_path)
    tensors = tiny_flow().state_dict()
    tensors["extra.weight"] = tensors.pop("encoder_proj.bias")
    tensors["encoder_proj.weight"] = torch.zeros(3, 3)
    torch.save(tensors, directory / "flow.pt")
    with pytest.raises(CheckpointError) as caught:
        Token2Wav.load(directory)
    for part in ("3 keys do not fit", "missing: encoder_proj.bias", "unexpected: extra.weight",
                 "encoder_proj.weight [3, 3] there, [80, 16] by"):  # fmt: skip
        assert part in str(caught.value)


def test_a_damaged_weight_file_is_refused(tmp_path: Path):
    directory = write_directory(tmp_path)
    (directory / "flow.pt").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not written by torch"):
        Token2Wav.load(directory)


@pytest.mark.parametrize(
    ("line", "message"),
    [("vocodr: hift", "did you mean 'vocoder'"), ("vocoder: lpc", "not one of hift, nsf_vocos"),
     ("flow: {steps: many}", "a whole number is needed"), ("hift: 3", "a mapping of settings")],
)  # fmt: skip
def test_a_wrong_setting_is_refused(line: str, message: str, tmp_path: Path):
    directory = write_directory(tmp_path)
    (directory / "token2wav.yaml").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Token2Wav.load(directory)
