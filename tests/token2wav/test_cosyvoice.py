"""Claims about the published directory and its tar: both speak; what is wrong is told, unrun."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.token2wav import cosyvoice
from osum_echat.token2wav.flow import Flow, FlowSettings
from osum_echat.token2wav.hift import Hift, HiftSettings, fold
from osum_echat.token2wav.model import Token2Wav
from osum_echat.token2wav.tagged_yaml import Sheet
from tests.token2wav.published import (
    FLOW,
    HIFT,
    flow_tensors,
    hift_tensors,
    write_published,
    write_tar,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "token2wav"
WORDS = [5, 4000, 77]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory as it should be."""
    return write_published(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(scope="module")
def said(whole: Path) -> torch.Tensor:
    return Token2Wav.load(whole)(WORDS, seed=0)


def refused(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Token2Wav.load(source)
    return str(caught.value)


def edit(directory: Path, old: str, new: str) -> Path:
    path = directory / "cosyvoice.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return directory


def test_the_directory_is_read_and_its_yaml_is_not_run(whole: Path):
    settings = Token2Wav.load(whole).settings
    assert (settings.flow, settings.hift, settings.vocoder) == (FLOW, HIFT, "hift")
    assert not (whole / "ran").exists()


def test_the_tar_speaks_as_the_directory_does(whole: Path, said: torch.Tensor, tmp_path: Path):
    tar = write_tar(whole, tmp_path / "model.tar")
    assert torch.equal(Token2Wav.load(tar)(WORDS, seed=0), said)
    assert list(tmp_path.iterdir()) == [tar]


def test_without_a_yaml_the_shapes_tell_the_sizes(directory: Path, said: torch.Tensor):
    (directory / "cosyvoice.yaml").unlink()
    assert torch.equal(Token2Wav.load(directory)(WORDS, seed=0), said)


def test_a_yaml_that_says_little_is_enough(directory: Path, said: torch.Tensor):
    (directory / "cosyvoice.yaml").write_text("flow: !new:a.Flow {}\nhift: {}\n", encoding="utf-8")
    assert torch.equal(Token2Wav.load(directory)(WORDS, seed=0), said)


def test_every_naming_of_the_weights_speaks_the_same(directory: Path, said: torch.Tensor):
    new = {key.replace("weight_g", "parametrizations.weight.original0")
           .replace("weight_v", "parametrizations.weight.original1"): value
           for key, value in hift_tensors("generator.").items()}  # fmt: skip
    torch.save({**new, "discriminator.conv.bias": torch.ones(3), "step": 4}, directory / "hift.pt")
    wrapped = {f"module.{key}": value for key, value in flow_tensors().items()
               if isinstance(value, torch.Tensor)}  # fmt: skip
    torch.save(wrapped, directory / "flow.pt")
    assert torch.equal(Token2Wav.load(directory)(WORDS, seed=0), said)


def test_half_precision_files_are_computed_in_float32(directory: Path):
    halves = {key: value.half() for key, value in flow_tensors().items()
              if isinstance(value, torch.Tensor)}  # fmt: skip
    torch.save(halves, directory / "flow.pt")
    loaded = Token2Wav.load(directory)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert loaded(WORDS, seed=0).isfinite().all()


def test_the_flow_can_compute_in_bfloat16(whole: Path):
    loaded = Token2Wav.load(whole, torch.device("cpu"), torch.bfloat16)
    ids = torch.tensor([WORDS])
    noise = torch.randn(1, 80, 10, generator=torch.Generator().manual_seed(0))
    exact = loaded.flow.mel(ids, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loaded.flow.mel(ids, noise=noise)
    assert 0 < (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert loaded(WORDS, seed=0).dtype == torch.float32


def test_the_settings_of_the_recorded_fixture_are_read_from_its_shapes():
    config = json.loads((GOLDENS / "config.json").read_text(encoding="utf-8"))
    own, empty = config["hift"], Sheet({}, "none")
    tensors = fold(weights.read(GOLDENS / "hift.pt"))
    settings = cosyvoice.hift_settings(empty, tensors, "hift.pt")
    assert settings.channels == own["base_channels"]
    assert list(settings.upsample) == own["upsample_rates"]
    assert [list(row) for row in settings.dilations] == own["resblock_dilation_sizes"]
    assert list(settings.source_kernels) == own["source_resblock_kernel_sizes"]


def test_the_full_size_has_as_many_tensors_as_published():
    with weights.empty():
        flow, hift = Flow(FlowSettings()), Hift(HiftSettings())
    normed = [key for key, value in hift.state_dict().items()
              if key.endswith("weight") and value.dim() == 3 and "source_downs" not in key]
    assert len(flow.state_dict()) == 1185
    assert len(hift.state_dict()) + len(normed) == 227
    assert sum(value.numel() for value in flow.parameters()) == 104_874_752


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_blocks: 2", "num_blocks: 3", "flow.encoder.num_blocks 3, but 2 in the weights"),
        ("vocab_size: 4096", "vocab_size: 6561", "flow.vocab_size 6561, but 4096"),
        ("[16, 16]", "[16, 32]", r"channels \(16, 32\), but \(16, 16\)"),
        ("input_frame_rate: 25", "input_frame_rate: 50", "of another model: .*25Hz"),
        ("sample_rate: 22050", "sample_rate: 24000", "another model: sample_rate 24000"),
        ("hop_size: 256", "hop_size: 480", "feat_extractor.hop_size 480, need 256"),
        ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", "t_scheduler 'linear', need 'cosine'"),
        ("num_heads: 2", "num_heads: 4", "num_heads 4, but 2"),
        ("attention_head_dim: 64", "attention_head_dim: 48", "does not part into heads of 48"),
        ("upsample_rates: [8, 8]", "upsample_rates: [8, 5]", "must give 256 samples"),
        ("base_channels: 16", "base_channels: 512", "hift.base_channels 512, but 16"),
        ("[[1, 3, 5], [1, 3, 5], [1, 3, 5]]", "[[1], [1], [1]]", "resblock_dilation_sizes"),
        ("nsf_alpha: 0.1", "nsf_alpha: .nan", "hift.nsf_alpha: nan is not a number"),
        ("linear_units: 32", "linear_units: many", "'many' is not a number"),
        ("hift: !new", "hifi: !new", "tells nothing of flow and hift"),
        ("flow: !new", "flow: [", "not YAML"),
    ],
)
def test_a_wrong_yaml_is_refused(directory: Path, old: str, new: str, message: str):
    edit(directory, old, new)
    with pytest.raises(CheckpointError, match=message):
        Token2Wav.load(directory)


def change(key: str, with_value: Callable[[torch.Tensor], Any] | None) -> dict[str, Any]:
    """The flow's tensors, one of them changed or gone."""
    tensors = flow_tensors()
    value = tensors.pop(key)
    return tensors if with_value is None else tensors | {key: with_value(value)}


@pytest.mark.parametrize(
    ("key", "with_value", "message"),
    [
        ("encoder.encoders.1.norm_ff.bias", None, "1 keys .*missing: .*norm_ff.bias"),
        ("encoder_proj.weight", lambda old: old[:, :5], r"encoder_proj.weight \[80, 5\] there"),
        ("encoder_proj.bias", lambda old: old * float("nan"), "not finite .*encoder_proj.bias"),
        ("encoder_proj.bias", lambda old: old + float("inf"), "not finite .*encoder_proj.bias"),
        ("input_embedding.weight", None, "no input_embedding.weight of 1 axes"),
    ],
)
def test_wrong_weights_are_refused(
    directory: Path, key: str, with_value: Callable[[torch.Tensor], Any] | None, message: str
):
    torch.save(change(key, with_value), directory / "flow.pt")
    with pytest.raises(CheckpointError, match=message):
        Token2Wav.load(directory)


def test_swapped_files_are_told(directory: Path):
    flow, hift = directory / "flow.pt", directory / "hift.pt"
    flow.rename(directory / "other")
    hift.rename(flow)
    (directory / "other").rename(hift)
    message = refused(directory)
    assert "flow.pt: holds the vocoder" in message and "are files swapped?" in message


def test_a_language_model_in_place_of_the_flow_is_told(directory: Path):
    torch.save({"llm_decoder.weight": torch.ones(2, 2)}, directory / "flow.pt")
    assert "flow.pt: holds a language model" in refused(directory)
    torch.save({"epoch": 3}, directory / "flow.pt")
    assert "flow.pt: holds no mapping" in refused(directory)
    torch.save([torch.ones(2)], directory / "flow.pt")
    assert "holds no mapping" in refused(directory)


def test_a_norm_of_the_wrong_shape_is_refused(directory: Path):
    wrong = hift_tensors() | {"conv_pre.weight_g": torch.ones(1, 1, 4000)}
    torch.save(wrong, directory / "hift.pt")
    assert "conv_pre.weight_g (1, 1, 4000), need (16, 1, 1)" in refused(directory)


def test_a_flow_with_code_is_refused_and_runs_nothing(directory: Path, tmp_path: Path):
    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save(flow_tensors() | {"step": Code()}, directory / "flow.pt")
    for source in (directory, write_tar(directory, tmp_path / "model.tar")):
        assert "flow.pt: holds more than plain tensors" in refused(source)
    assert not (tmp_path / "ran").exists()


def test_a_tar_cut_short_is_refused(directory: Path, tmp_path: Path):
    tar = write_tar(directory, tmp_path / "model.tar")
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert str(tar) in refused(tar)


def test_a_weight_file_alone_is_refused(whole: Path):
    assert "give the .tar as it was published" in refused(whole / "flow.pt")
