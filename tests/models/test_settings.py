"""Claims about settings: ours and upstream's, and one clear error for what cannot be used."""

from pathlib import Path

import pytest
import yaml

from osum_echat.errors import CheckpointError
from osum_echat.models.echat import EChatSettings
from osum_echat.models.lora import LoraSettings
from osum_echat.models.settings import read_settings
from osum_echat.paths import PUBLISHED_SETTINGS
from tests.tiny_network import SETTINGS

ENCODER = {"output_size": 8, "attention_heads": 2, "linear_units": 16, "num_blocks": 1,
           "dropout_rate": 0.1}  # fmt: skip
UPSTREAM = {"input_dim": 6, "speech_token_num": 65, "lora_alpha": 16, "lora_rank": 4,
            "encoder_conf": ENCODER}  # fmt: skip


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    (tmp_path / "ct_config.yaml").write_text(yaml.safe_dump(UPSTREAM))
    (tmp_path / "llm_config.json").write_text('{"vocab_size": 10, "rms_norm_eps": 1e-06}')
    return tmp_path / "ct_config.yaml"


def change(path: Path, **values: object) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def test_upstreams_settings_are_read(upstream: Path):
    settings = read_settings(upstream)
    assert settings.encoder == SETTINGS.encoder and settings.speech_codes == 64
    assert settings.llm["rms_norm_eps"] == 1e-6
    assert settings.lora == LoraSettings(4, 16.0, 0.1)


def test_the_llm_of_upstreams_settings_may_lie_in_three_places(upstream: Path):
    config = (upstream.parent / "llm_config.json").read_text()
    (upstream.parent / "llm_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"llm_config\.json: .* put the config\.json"):
        read_settings(upstream)
    change(upstream, llm_path="prepared/qwen")
    for place in ("prepared/qwen", "llm"):
        (upstream.parent / place).mkdir(parents=True)
        (upstream.parent / place / "config.json").write_text(config)
        assert read_settings(upstream).llm["vocab_size"] == 10


def test_the_published_settings_are_the_published_sizes():
    settings = read_settings(PUBLISHED_SETTINGS)
    defaults = EChatSettings()
    assert (settings.encoder, settings.adapter) == (defaults.encoder, defaults.adapter)
    assert settings.speech_codes == 4096 and settings.lora == LoraSettings()
    assert settings.llm["rms_norm_eps"] == 1e-6 and settings.tied


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {mels: 80", "not YAML"),
        ("encoder: {}\nadapter: {}", "llm: missing"),
        ("encoder: {headz: 2}\nadapter: {}\nllm: {}", "headz: .*did you mean 'heads'"),
        ("encoder: {width: 9}\nadapter: {}\nllm: {}", "width 9: must be even"),
        ("encoder: {}\nadapter: {}\nllm: {model_type: llama}", "only qwen2, qwen3 can be used"),
        ("encoder: {}\nadapter: {}\nllm: {hidden_size: -1}", "llm.hidden_size -1: need a whole n"),
        ("encoder: {}\nadapter: {}\nllm: {}\nspeech_codes: -5", "speech_codes -5: need 1 or more"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_settings(tmp_path)
    assert "model.yaml" in str(caught.value) or "llm_config" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_conf": {"output_size": 8}}, "attention_heads"),
        ({"encoder_conf": {**ENCODER, "input_layer": "conv2d"}}, "input_layer 'conv2d': only"),
        ({"adapter_type": "osum_echat2"}, "adapter_type 'osum_echat2': only 'osum_echat'"),
    ],
)
def test_settings_of_upstream_that_are_not_ours_to_run_are_told(upstream, values, message):
    change(upstream, **values)
    with pytest.raises(CheckpointError, match=message):
        read_settings(upstream)
