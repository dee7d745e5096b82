"""A CosyVoice directory in the published layout: small random weights, and a yaml full of tags."""

import tarfile
from pathlib import Path
from typing import Any

import torch

from osum_echat.token2wav.conformer import ConformerSettings
from osum_echat.token2wav.estimator import EstimatorSettings
from osum_echat.token2wav.flow import Flow, FlowSettings
from osum_echat.token2wav.hift import Hift, HiftSettings

FLOW = FlowSettings(
    codes=4096,
    conformer=ConformerSettings(16, 24, 2, 32, 2, 0.1),
    estimator=EstimatorSettings((16, 16), 2, 64, 1, 2),
    regulator_convs=4,
)
HIFT = HiftSettings(channels=16, pitch_channels=8)
YAML = """
__set_seed1: !apply:random.seed [1986]
__mark: !apply:builtins.open ["{mark}", "w"]
__python: !!python/object/apply:builtins.open ["{mark}", "w"]
sample_rate: 22050
spk_embed_dim: 192
llm: !new:cosyvoice.llm.llm.TransformerLM
    text_token_size: 60515
    spk_embed_dim: !ref <spk_embed_dim>
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        output_size: 1024
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 16
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: 4096
    input_frame_rate: 25
    encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        output_size: 24
        attention_heads: 2
        linear_units: 32
        num_blocks: 2
        dropout_rate: 0.1
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: 80
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: 240
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                inference_cfg_rate: 0.7
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            channels: [16, 16]
            attention_head_dim: 64
            n_blocks: 1
            num_mid_blocks: 2
            num_heads: 2
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    base_channels: 16
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        cond_channels: 8
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1024
    num_mels: 80
    sampling_rate: !ref <sample_rate>
    hop_size: 256
    win_size: 1024
    fmin: 0
    fmax: 8000
    center: False
data_pipeline: [!ref <feat_extractor>, !ref <sample_rate> // 2]
"""


def flow_tensors() -> dict[str, Any]:
    """The content of a flow.pt, with the further entries of a training checkpoint."""
    torch.manual_seed(3)
    return {**Flow(FLOW).state_dict(), "epoch": 3, "step": 10}


def hift_tensors(prefix: str = "") -> dict[str, Any]:
    """The content of a hift.pt, its weight norm in two parts."""
    torch.manual_seed(4)
    split: dict[str, Any] = {}
    for key, value in Hift(HIFT).state_dict().items():
        if key.endswith("weight") and value.dim() == 3 and "source_downs" not in key:
            split[f"{prefix}{key}_g"] = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            split[f"{prefix}{key}_v"] = value * 3
        else:
            split[prefix + key] = value
    return split


def write_published(directory: Path) -> Path:
    """The directory without its ONNX models. Whoever obeyed the yaml would make a file `ran`."""
    directory.mkdir(parents=True, exist_ok=True)
    text = YAML.replace("{mark}", str(directory / "ran"))
    (directory / "cosyvoice.yaml").write_text(text, encoding="utf-8")
    torch.save(flow_tensors(), directory / "flow.pt")
    torch.save(hift_tensors(), directory / "hift.pt")
    (directory / "llm.pt").write_bytes(b"never read")
    return directory


def write_tar(directory: Path, path: Path) -> Path:
    """The directory as it is published: an uncompressed tar with one folder."""
    with tarfile.open(path, "w") as archive:
        archive.add(directory, "CosyVoice-300M-25Hz")
    return path
