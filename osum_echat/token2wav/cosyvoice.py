"""The published CosyVoice-300M-25Hz: settings of flow and vocoder from its yaml and its weights.

Sizes come from the weights' shapes; cosyvoice.yaml, where it is there, must agree with them and
gives what no shape tells. What neither tells is as in the published model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.token2wav.conformer import ConformerSettings
from osum_echat.token2wav.estimator import EstimatorSettings
from osum_echat.token2wav.flow import FlowSettings
from osum_echat.token2wav.hift import HiftSettings
from osum_echat.token2wav.tagged_yaml import Sheet
from osum_echat.token2wav.voice import HIGHEST_HZ, HOP_SAMPLES, MELS, SAMPLE_RATE_HZ, WINDOW_SAMPLES

YAML_FILE, FLOW_FILE, VOCODER_FILE = "cosyvoice.yaml", "flow.pt", "hift.pt"
FLOW, VOCODER, LANGUAGE_MODEL = "the flow", "the vocoder", "a language model"
MARKS = {                               # names that only this kind of file has
    "decoder.estimator.": FLOW,
    "m_source.": VOCODER,
    "llm_decoder.": LANGUAGE_MODEL,
}
DILATIONS = (1, 3, 5)
MATCHING = ("flow", "decoder", "cfm_params")
# What this implementation computes in one way only.
FIXED: tuple[tuple[tuple[str, ...], float | str], ...] = (
    (("sample_rate",), SAMPLE_RATE_HZ),
    (("hift", "sampling_rate"), SAMPLE_RATE_HZ),
    (("flow", "input_frame_rate"), FlowSettings().tokens_per_s),
    (("feat_extractor", "n_fft"), WINDOW_SAMPLES),
    (("feat_extractor", "win_size"), WINDOW_SAMPLES),
    (("feat_extractor", "hop_size"), HOP_SAMPLES),
    (("feat_extractor", "num_mels"), MELS),
    (("feat_extractor", "fmin"), 0),
    (("feat_extractor", "fmax"), HIGHEST_HZ),
    ((*MATCHING, "solver"), "euler"),
    ((*MATCHING, "t_scheduler"), "cosine"),
)


def check_kind(tensors: Mapping[str, Tensor], wanted: str, where: str) -> None:
    """Raise CheckpointError where a weight file holds another part of the model than `wanted`."""
    found = {kind for mark, kind in MARKS.items() if any(mark in key for key in tensors)}
    if wanted in found:
        return
    other = f"{', '.join(sorted(found))}" if found else "weights of another model"
    first = ", ".join(list(tensors)[:3])
    raise CheckpointError(
        f"{where}: holds {other} ({first} ...) where {wanted} is needed; are files swapped? "
        "Copy the published directory again"
    )


def sheet_of(data: bytes | None, where: str) -> Sheet:
    """The settings in cosyvoice.yaml; none at all without it.

    Raises CheckpointError for a damaged one, and for one of another model.
    """
    sheet = Sheet({}, where) if data is None else Sheet.parse(data, where)
    parts = [sheet.value(part) for part in ("flow", "hift")]
    if data is not None and not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(
            f"{where}: tells nothing of flow and hift; take the yaml of CosyVoice-300M-25Hz"
        )
    other = [
        f"{'.'.join(path)} {value!r}, need {need!r}"
        for path, need in FIXED
        if (value := sheet.value(*path)) is not None and value != need
    ]
    if other:
        raise CheckpointError(
            f"{where}: of another model: {'; '.join(other)}. OSUM-EChat speaks through "
            "CosyVoice-300M-25Hz"
        )
    return sheet


@dataclass(slots=True)
class _Sizes:
    """Sizes read from shapes, each compared with what the yaml says of it."""

    sheet: Sheet
    tensors: Mapping[str, Tensor]
    where: str
    faults: list[str] = field(default_factory=list)

    def axis(self, key: str, axis: int, *path: str) -> int:
        """The length of an axis of a tensor, told in the yaml at `path`."""
        if key not in self.tensors or self.tensors[key].dim() <= axis:
            raise CheckpointError(
                f"{self.where}: no {key} of {axis + 1} axes in it; not of CosyVoice-300M-25Hz"
            )
        return self.told(self.tensors[key].shape[axis], *path)

    def count(self, prefix: str, *path: str) -> int:
        """How many numbered modules lie below a name."""
        after = (key[len(prefix) :] for key in self.tensors if key.startswith(prefix))
        return self.told(len({rest.partition(".")[0] for rest in after}), *path)

    def told(self, found: Any, *path: str) -> Any:
        """`found`, noted as a fault where the yaml says something else."""
        if path:
            said = self.sheet.wholes(*path) if isinstance(found, tuple) else self.sheet.whole(*path)
            if said is not None and said != found:
                self.faults.append(f"{'.'.join(path)} {said}, but {found} in the weights")
        return found

    def constant(self, usual: float, *path: str) -> float:
        """What no shape tells: the yaml's number, or the usual one."""
        said = self.sheet.number(*path)
        return usual if said is None else said

    def check(self) -> None:
        """Raise one CheckpointError on all that the yaml says otherwise."""
        if self.faults:
            raise CheckpointError(
                f"{self.where}: does not fit {self.sheet.where}: {'; '.join(self.faults)}. "
                "Take the weights and the yaml from the same model"
            )


def flow_settings(sheet: Sheet, tensors: Mapping[str, Tensor], where: str) -> FlowSettings:
    """The settings of a flow.pt. Raises CheckpointError where yaml and shapes disagree."""
    sizes, published = _Sizes(sheet, tensors, where), FlowSettings()
    encoder, layer = ("flow", "encoder"), "encoder.encoders.0."
    made = FlowSettings(
        codes=sizes.axis("input_embedding.weight", 0, "flow", "vocab_size"),
        conformer=ConformerSettings(
            input_width=sizes.axis("input_embedding.weight", 1, "flow", "input_size"),
            width=sizes.axis("encoder.embed.out.0.weight", 0, *encoder, "output_size"),
            heads=sizes.axis(f"{layer}self_attn.pos_bias_u", 0, *encoder, "attention_heads"),
            feed_forward=sizes.axis(f"{layer}feed_forward.w_1.weight", 0, *encoder, "linear_units"),
            blocks=sizes.count("encoder.encoders.", *encoder, "num_blocks"),
            dropout=sizes.constant(published.conformer.dropout, *encoder, "dropout_rate"),
        ),
        estimator=_estimator_settings(sizes),
        regulator_convs=_regulator_convs(sizes),
        guidance=sizes.constant(published.guidance, *MATCHING, "inference_cfg_rate"),
        smallest_noise=sizes.constant(published.smallest_noise, *MATCHING, "sigma_min"),
    )
    sizes.check()
    return made


def _estimator_settings(sizes: _Sizes) -> EstimatorSettings:
    unet, names = ("flow", "decoder", "estimator"), "decoder.estimator."
    inner = sizes.axis(f"{names}down_blocks.0.1.0.attn1.to_q.weight", 0)
    head_width = int(
        sizes.constant(EstimatorSettings().head_width, *unet, "attention_head_dim")
    )
    if head_width < 1 or inner % head_width:
        raise CheckpointError(
            f"{sizes.where}: attention {inner} wide does not part into heads of {head_width}; "
            f"set flow.decoder.estimator.attention_head_dim in {YAML_FILE}"
        )
    channels = tuple(
        sizes.axis(f"{names}down_blocks.{stage}.0.block1.block.0.weight", 0)
        for stage in range(sizes.count(f"{names}down_blocks."))
    )
    return EstimatorSettings(
        channels=sizes.told(channels, *unet, "channels"),
        heads=sizes.told(inner // head_width, *unet, "num_heads"),
        head_width=head_width,
        transformers=sizes.count(f"{names}down_blocks.0.1.", *unet, "n_blocks"),
        mid_blocks=sizes.count(f"{names}mid_blocks.", *unet, "num_mid_blocks"),
    )


def _regulator_convs(sizes: _Sizes) -> int:
    """Convolutions before the last: as many as the yaml has sampling ratios."""
    ratios = ("flow", "length_regulator", "sampling_ratios")
    start = "length_regulator.model."
    kernels = [key for key, value in sizes.tensors.items()
               if key.startswith(start) and value.dim() == 3]  # fmt: skip
    said = sizes.sheet.wholes(*ratios)
    if said is not None and len(said) != len(kernels) - 1:
        sizes.faults.append(f"{'.'.join(ratios)} {said}, but {len(kernels) - 1} in the weights")
    return len(kernels) - 1


def hift_settings(sheet: Sheet, tensors: Mapping[str, Tensor], where: str) -> HiftSettings:
    """The settings of a hift.pt, its weight norm folded. Raises CheckpointError as above."""
    sizes, published = _Sizes(sheet, tensors, where), HiftSettings()
    stages = sizes.count("ups.")
    branches = sizes.count("resblocks.") // max(1, stages)
    kernels = tuple(sizes.axis(f"ups.{stage}.weight", 2) for stage in range(stages))
    rates = sheet.wholes("hift", "upsample_rates") or tuple(kernel // 2 for kernel in kernels)
    window = sizes.axis("conv_post.weight", 0) - 2
    sizes.told(window, "hift", "istft_params", "n_fft")
    hop = sheet.whole("hift", "istft_params", "hop_len") or window // 4
    if len(rates) != stages or math.prod(rates) * hop != HOP_SAMPLES:
        sizes.faults.append(
            f"upsample_rates {rates} times hop_len {hop}, where {stages} rates must give "
            f"{HOP_SAMPLES} samples"
        )
    made = HiftSettings(
        channels=sizes.axis("conv_pre.weight", 0, "hift", "base_channels"),
        pitch_channels=sizes.axis(
            "f0_predictor.condnet.0.weight", 0, "hift", "f0_predictor", "cond_channels"
        ),
        harmonics=sizes.told(
            sizes.axis("m_source.l_linear.weight", 1) - 1, "hift", "nb_harmonics"
        ),
        sine_level=sizes.constant(published.sine_level, "hift", "nsf_alpha"),
        noise_level=sizes.constant(published.noise_level, "hift", "nsf_sigma"),
        voiced_above_hz=sizes.constant(published.voiced_above_hz, "hift", "nsf_voiced_threshold"),
        upsample=rates,
        upsample_kernels=sizes.told(kernels, "hift", "upsample_kernel_sizes"),
        window_samples=window,
        hop_samples=hop,
        kernels=_block_kernels(sizes, "resblocks", branches, "resblock_kernel_sizes"),
        dilations=_dilations(sizes, "resblocks", branches, "resblock_dilation_sizes"),
        source_kernels=_block_kernels(
            sizes, "source_resblocks", stages, "source_resblock_kernel_sizes"
        ),
        source_dilations=_dilations(
            sizes, "source_resblocks", stages, "source_resblock_dilation_sizes"
        ),
        slope=sizes.constant(published.slope, "hift", "lrelu_slope"),
        limit=sizes.constant(published.limit, "hift", "audio_limit"),
    )
    sizes.check()
    return made


def _block_kernels(sizes: _Sizes, name: str, blocks: int, setting: str) -> tuple[int, ...]:
    """The kernel of each of the first blocks of a list."""
    kernels = tuple(
        sizes.axis(f"{name}.{block}.convs1.0.weight", 2) for block in range(blocks)
    )
    return sizes.told(kernels, "hift", setting)


def _dilations(
    sizes: _Sizes, name: str, blocks: int, setting: str
) -> tuple[tuple[int, ...], ...]:
    """The dilations of each block: no shape tells them, only how many they are."""
    counts = tuple(sizes.count(f"{name}.{block}.convs1.") for block in range(blocks))
    said = sizes.sheet.tables("hift", setting)
    made = said or tuple(DILATIONS[:count] for count in counts)
    if tuple(map(len, made)) != counts:
        sizes.faults.append(f"hift.{setting} {made}, but {counts} convolutions in the weights")
    return made
