"""Claims about token to wav: its directory or tar, flow and voices; it says what is wrong."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from osum_echat import weights
from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.token2wav.flow import Flow, FlowSettings, draw, frames_for
from osum_echat.token2wav.hift import Hift, HiftSettings
from osum_echat.token2wav.model import Token2Wav, find_files, first_of
from osum_echat.token2wav.voice import SpeakerEncoder, SpeechTokenizer, VoicePrompt, make_prompt
from tests.parity.token2wav import mel_of
from tests.token2wav import tiny_flow as tiny
from tests.token2wav.tiny_flow import CODES, FLOW, tiny_flow, write_directory, write_published


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Token2Wav:
    return Token2Wav.load(write_directory(tmp_path_factory.mktemp("token2wav")))


def test_tokens_become_samples_that_their_seed_decides(speaker: Token2Wav):
    first, again, other = (speaker([1, 2, 3, 4, 5], seed=seed) for seed in (5, 5, 6))
    assert first.shape == (5 * 441 // 128 * 256,) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)


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


def test_the_voice_of_the_directory_is_the_default(tmp_path: Path, speaker: Token2Wav):
    directory = write_directory(tmp_path)
    own = VoicePrompt.absent(torch.arange(192.0).view(1, -1))
    own.save(directory / "voice.safetensors")
    assert torch.equal(
        Token2Wav.load(directory)([1, 2, 3], seed=0), speaker([1, 2, 3], own, seed=0)
    )


@pytest.mark.parametrize(("name", "text", "message"), [
    *((name, None, name) for name in ("token2wav.yaml", "flow.pt", "vocoder.safetensors")),
    ("token2wav.yaml", "vocodr: hift", "did you mean 'vocoder'"),
    ("token2wav.yaml", "vocoder: lpc", "not one of hift, nsf_vocos"),
    ("token2wav.yaml", "hift: 3", "a mapping of settings"),
])  # fmt: skip
def test_a_missing_file_and_a_wrong_setting_are_told(tmp_path: Path, name, text, message: str):
    file = write_directory(tmp_path) / name
    file.unlink() if text is None else file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError if text is None else ConfigError, match=message):
        Token2Wav.load(tmp_path)


# A voice whose recording is solved once

def voice(tokens: int = 18, frames: int = 61) -> VoicePrompt:
    torch.manual_seed(8)
    return VoicePrompt(
        torch.randint(0, CODES, (1, tokens)), torch.randn(1, frames, 80), torch.randn(1, 192)
    )


def test_a_prepared_voice_gives_nearly_the_sound_of_one_that_is_solved_anew(speaker: Token2Wav):
    tokens, state = torch.arange(40) % CODES, speaker.prepare_voice(voice(), seed=3)
    assert state.kept_frames == 44 and len(state.kept) == FLOW.steps
    noise = torch.randn(80, 61 + 137, generator=torch.Generator().manual_seed(2))
    whole = speaker.flow.voice_state(voice())
    anew, prepared = (speaker.flow.mels([tokens], one, [noise])[0] for one in (whole, state))
    assert anew.shape == prepared.shape and (anew - prepared).abs().mean() < 0.1 * anew.std()
    for kept in state.kept:                 # speech does attend to what was kept
        kept[:] = [(key * 0 + 3, value * 0 + 3) for key, value in kept]
    (other,) = speaker.flow.mels([tokens], state, [noise])
    assert not torch.allclose(other, prepared, atol=1e-3)


# Speaker vectors of other widths

def test_a_speaker_vector_of_another_width_is_loaded_and_asked_for(tmp_path: Path):
    directory = write_directory(tmp_path)
    narrow = tiny_flow(replace(FLOW, speaker_width=48))
    torch.save(narrow.state_dict(), directory / "flow.pt")
    model = Token2Wav.load(directory)
    assert model.settings.flow.speaker_width == 48 and model.voice.speaker.shape == (1, 48)
    other = VoicePrompt.absent(torch.ones(1, 48))
    assert not torch.equal(model([1, 2], other, seed=0), model([1, 2], seed=0))
    with pytest.raises(InputError, match="vector of 192 numbers, where this model needs 48"):
        model([1, 2], voice())
    voice().save(directory / "voice.safetensors")
    with pytest.raises(InputError, match=r"voice\.safetensors: a speaker vector of 192"):
        Token2Wav.load(directory)


# The published layout: flow.pt and hift.pt, its weight norm in two parts; beside it other files

def refused(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Token2Wav.load(source)
    return str(caught.value)


def test_directory_tar_and_every_naming_speak_the_same(tmp_path: Path, speaker: Token2Wav):
    said = speaker([1, 2, 3], seed=0)
    directory = write_published(tmp_path / "model")
    new = tiny.split_norm(tiny.tiny_hift().state_dict(), ("parametrizations.weight.original0",
                     "parametrizations.weight.original1"), "generator.")  # fmt: skip
    other = write_published(tmp_path / "other", {**new, "discriminator.conv.bias": torch.ones(3)})
    flow = {f"module.{key}": value for key, value in tiny_flow().state_dict().items()}
    torch.save(flow, other / "flow.pt")
    for source in (directory, tiny.write_tar(directory), other):
        assert torch.allclose(Token2Wav.load(source)([1, 2, 3], seed=0), said, atol=1e-5)


def test_without_a_yaml_the_sizes_are_the_published_ones(tmp_path: Path):
    directory = write_published(tmp_path / "model")
    (directory / "token2wav.yaml").unlink()
    said = refused(directory)
    assert "flow.pt (no token2wav.yaml: the published sizes): 117" in said
    with weights.empty():
        flow, hift = Flow(FlowSettings()), Hift(HiftSettings())
    assert len(flow.state_dict()) == 1185
    assert len(tiny.split_norm(dict(hift.state_dict()), ("g", "v"))) == 227
    assert sum(value.numel() for value in flow.parameters()) == 104_874_752


def test_the_published_model_of_another_token_rate_is_refused(tmp_path: Path):
    directory = write_published(tmp_path / "model")
    (directory / "token2wav.yaml").unlink()
    for rate, said in (("25", "keys do not fit"), ("50", "50 speech tokens a second, need 25")):
        text = (directory / "cosyvoice.yaml").read_text().replace("25", rate)
        (directory / "cosyvoice.yaml").write_text(text)
        for source in (directory, tiny.write_tar(directory)):
            assert said in refused(source)


def test_what_is_no_weight_file_of_this_model_is_refused(tmp_path: Path):
    directory = write_published(tmp_path / "model")
    norm = tiny.split_norm(tiny.tiny_hift().state_dict(), ("weight_g", "weight_v"))
    torch.save(norm | {"conv_pre.weight_g": torch.ones(1, 1, 4000)}, directory / "hift.pt")
    assert "conv_pre.weight_g (1, 1, 4000), need (16, 1, 1)" in refused(directory)
    torch.save(norm, directory / "hift.pt")
    wrong = tiny_flow().state_dict()
    wrong["encoder_proj.bias"][0] = float("inf")
    for content, said in (({"epoch": 3}, "holds no mapping"), ([torch.ones(2)], "holds no mapping"),
                          (wrong, "not finite"), (norm, "keys do not fit")):  # fmt: skip
        torch.save(content, directory / "flow.pt")
        assert said in refused(directory)
    tar = tiny.write_tar(directory)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert str(tar) in refused(tar)
    assert "give the .tar as it was published" in refused(directory / "hift.pt")


def test_half_precision_files_are_computed_in_float32_and_the_flow_in_what_is_asked(tmp_path: Path):
    directory = write_published(tmp_path / "model")
    halves = {key: value.half() for key, value in tiny_flow().state_dict().items()}
    torch.save(halves, directory / "flow.pt")
    loaded = Token2Wav.load(directory, torch.device("cpu"), torch.bfloat16)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    exact = Token2Wav.load(directory)
    noise = torch.randn(1, 80, 10, generator=torch.Generator().manual_seed(0))
    mel = mel_of(exact.flow, torch.tensor([[5, 4, 7]]), None, noise)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mel_of(loaded.flow, torch.tensor([[5, 4, 7]]), None, noise)
    assert 0 < (rounded - mel).abs().mean() < 0.05 * mel.abs().mean()
    assert loaded([5, 4, 7], seed=0).dtype == torch.float32


# Tars, whose members are only ever read in place

def write_members(path: Path, *members: str, **kinds: bytes) -> Path:
    """A tar of members that hold their own names; kinds: links and devices by their type."""
    with tarfile.open(path, "w") as archive:
        for name in members:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        for name, kind in kinds.items():
            member = tarfile.TarInfo(f"{name}.pt")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def test_names_are_only_names_and_links_are_passed_over(tmp_path: Path):
    path = write_members(tmp_path / "a.tar", "../../../flow.pt", "/etc/campplus.onnx", "a/llm.pt",
                         hift=tarfile.SYMTYPE, flow=tarfile.CHRTYPE)  # fmt: skip
    files = find_files(path)
    assert set(files) == {"flow.pt", "campplus.onnx"}
    with weights.opened(files["flow.pt"]) as stream:
        assert stream.read() == b"../../../flow.pt"
    assert {one.name for one in tmp_path.iterdir()} == {"a.tar"}
    with pytest.raises(CheckpointError, match=r"holds no hift\.pt or vocoder\.pt"):
        first_of(files, ("hift.pt", "vocoder.pt"), path)


def test_a_tar_that_is_damaged_packed_or_of_two_models_is_refused(tmp_path: Path):
    twice = write_members(tmp_path / "a.tar", "a/flow.pt", "b/flow.pt")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(__file__, "flow.pt")
    long_name = tarfile.TarInfo("flow.pt")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "c.tar").write_bytes(long_name.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    (tmp_path / "d.tar").write_bytes(twice.read_bytes()[:515])
    for name, said in (("a.tar", "holds flow.pt twice"), ("b.tar.gz", "not a readable, uncomp"),
                       ("c.tar", "not a readable"), ("d.tar", "cut short at flow.pt"),
                       ("gone", "no such file or directory; give a token2wav")):  # fmt: skip
        with pytest.raises(CheckpointError, match=said):
            find_files(tmp_path / name)


# The flow: rows, guards, seeds, normalisation

TOKENS = torch.arange(9).view(1, -1)


def test_normalisation_reaches_the_loss():
    flow = tiny_flow(replace(FLOW, mel_mean=-5.5, mel_scale=2.2))
    mel = torch.randn(2, 31, 80)
    draws = draw(torch.tensor([31, 31]), 31, torch.Generator().manual_seed(0))
    tokens, speaker = torch.randint(0, CODES, (2, 9)), torch.zeros(2, 192)
    normal = tiny_flow().loss(tokens, mel, speaker, draws)
    scaled = flow.loss(tokens, mel * 2.2 - 5.5, speaker, draws)
    assert scaled.matching.item() == pytest.approx(normal.matching.item(), rel=1e-4)
    assert scaled.mu.item() == pytest.approx(normal.mu.item(), rel=1e-4)


@pytest.mark.parametrize("prompt", [voice(5, 17), voice(0, 0)])
def test_rows_solved_side_by_side_are_as_if_each_were_alone(prompt: VoicePrompt):
    flow, drawn = tiny_flow(), torch.Generator().manual_seed(0)
    state = flow.voice_state(prompt)
    rows = [torch.randint(0, CODES, (size,), generator=drawn) for size in (1, 9, 20, 53)]
    lengths = [state.known.shape[1] + frames_for(len(row), 25) for row in rows]
    noises = [torch.randn(80, length, generator=drawn) for length in lengths]
    alone = [flow.mels([row], state, [noise])[0] for row, noise in zip(rows, noises, strict=True)]
    for one, other in zip(flow.mels(rows, state, noises), alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_flow_that_starts_at_the_mean_stays_there_and_is_taught_it_by_l1_alone():
    conformer = replace(FLOW.conformer, kernel=3)
    flow = tiny_flow(replace(FLOW, mean_start=0.5, guidance=0.0, conformer=conformer))
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.weight)
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.bias)
    tokens = torch.arange(30)[None] % CODES
    quiet = mel_of(flow, tokens)
    speaker = torch.zeros(1, FLOW.speaker_width)
    speaker[0, 0] = 1.0
    # The mean knows who speaks.
    assert not torch.allclose(quiet, mel_of(flow, tokens, VoicePrompt.absent(speaker)))
    noise = torch.randn(1, 80, quiet.shape[2])
    moved = mel_of(flow, tokens, None, noise) - quiet
    assert torch.allclose(moved, 0.5 * FLOW.mel_scale * noise, atol=1e-5)
    flow = tiny_flow(replace(FLOW, mean_start=0.5, guidance=0.0))
    draws = draw(torch.tensor([20]), 20, torch.Generator().manual_seed(0))
    loss = flow.loss(TOKENS, torch.randn(1, 20, 80), torch.zeros(1, FLOW.speaker_width), draws)
    taught = flow.encoder_proj.weight
    moved = torch.autograd.grad(loss.matching, taught, retain_graph=True, allow_unused=True)
    assert moved == (None,) and torch.autograd.grad(loss.mu, taught)[0].abs().sum() > 0


# Voices: files, guards, and the two ONNX models

def write_wav(path: Path, seconds: float, rate: int = 24_000) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    soundfile.write(path, samples, rate)
    return path


def test_a_recording_over_30_s_or_of_silence_makes_no_voice(tmp_path: Path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    write_wav(tmp_path / "long.wav", 31.0, 8_000)
    for name, said in (("long.wav", r"31\.0 s; a voice prompt is at most 30 s"),
                       ("silent.wav", "digital silence.*no voice is in it")):  # fmt: skip
        with pytest.raises(InputError, match=f"{name}: {said}"):
            make_prompt(tmp_path / name, None, None)


NONE, MEL = torch.full((1, 192), float("nan")), torch.zeros(1, 2, 80)


@pytest.mark.parametrize(("content", "message"), [
    (b"no", "not a readable voice file"), (b"0" * 20_000_000, "over 16777216 bytes"),
    ({"mel": MEL}, "no speaker, tokens; make the voice anew"),
    ({"tokens": torch.zeros(1, 3).long(), "mel": MEL, "speaker": NONE}, "not finite"),
    ({"tokens": torch.tensor([[-3]]), "mel": MEL, "speaker": torch.zeros(1, 192)}, "are no ids"),
    ({"tokens": torch.zeros(1, 3).long(), "mel": MEL[0], "speaker": NONE}, "of shapes"),
])  # fmt: skip
def test_what_is_no_voice_is_refused(tmp_path: Path, content, message: str):
    path = tmp_path / "voice.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else save(content))
    with pytest.raises(CheckpointError, match=rf"voice\.safetensors: .*{message}"):
        VoicePrompt.load(path)
    with pytest.raises(InputError, match="not written"):
        VoicePrompt.absent().save(path / "in_a_file.safetensors")


def write_onnx(path: Path, *inputs: tuple[int, list[int | str]]) -> Path:
    """A graph that hands on its first input; the inputs are (type, axes)."""
    named = [helper.make_tensor_value_info(f"in{number}", kind, axes)
             for number, (kind, axes) in enumerate(inputs)]  # fmt: skip
    out = helper.make_tensor_value_info("out", inputs[0][0], inputs[0][1])
    node = helper.make_node("Identity", ["in0"], ["out"])
    graph = helper.make_graph([node], "graph", named, [out])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


HEARS_TOKENS = (TensorProto.FLOAT, [1, 128, "frames"]), (TensorProto.INT32, [1])
HEARS_SPEAKER = ((TensorProto.FLOAT, [1, "frames", 80]),)


@pytest.mark.parametrize(("kind", "inputs", "message"), [
    (SpeechTokenizer, HEARS_SPEAKER, "a speaker encoder where a speech tokenizer is"),
    (SpeakerEncoder, HEARS_TOKENS, "a speech tokenizer where a speaker encoder is"),
    (SpeechTokenizer, (HEARS_TOKENS[0], (TensorProto.INT64, [1])), "another model where"),
    (SpeakerEncoder, ((TensorProto.FLOAT, [1, "frames", 40]),), "hears 40 bins, need 80"),
])  # fmt: skip
def test_an_onnx_file_of_another_kind_is_told(tmp_path: Path, kind, inputs, message: str):
    with pytest.raises(CheckpointError, match=rf"other\.onnx: {message}"):
        kind(write_onnx(tmp_path / "other.onnx", *inputs))


def test_a_member_of_a_tar_opens_as_a_file_does(tmp_path: Path):
    path = write_onnx(tmp_path / "campplus.onnx", *HEARS_SPEAKER)
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(path, "folder/campplus.onnx")
    member = find_files(tmp_path / "model.tar")["campplus.onnx"]
    assert len(SpeakerEncoder(member).inputs) == 1
    assert SpeechTokenizer(write_onnx(tmp_path / "hears.onnx", *HEARS_TOKENS)).mels == 128
