"""A directory of token2wav tensors: flow, its training loss, HiFT, offline pipelines."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.settings import parse, read_mapping
from osum_echat.token2wav import flow as flows
from osum_echat.token2wav.flow import Draws, Flow, FlowSettings, frames_for, solver_times
from osum_echat.token2wav.hift import BINS, Hift, HiftSettings, fold
from osum_echat.token2wav.layers import stretch
from osum_echat.token2wav.voice import VoicePrompt
from tests.parity.rows import OTHERWISE, Row, close, not_compared, read_arrays

STEP = 2e-5                     # intermediates; of their rms, where that is above 1
MEL = 1e-4
LOSS = 1e-5                     # or 1e-6 of it, where that is more
WAVE = 1e-5                     # from the stored source
PIPELINE_WAVE = 5e-3            # with the pitch found anew
PITCH_HZ = 5e-3
GRADIENT = 1e-4                 # relative to the largest of the tensor
LEAST_NORM = 1e-3               # some gradients are zero but for rounding (biases of keys)
TAPPED_CALL = 3                 # `step4_` arrays are from the fourth call of the estimator
CACHE = OTHERWISE + "the 34-frame cache of streaming"
STREAMING = OTHERWISE + "streaming pipelines"
GIVEN = "given"
FLOW = {                        # our setting -> its place in config.json
    "codes": "flow.vocab_size", "tokens_per_s": "flow.input_frame_rate",
    "conformer.input_width": "flow.input_size",
    "conformer.width": "flow.encoder.output_size",
    "conformer.heads": "flow.encoder.attention_heads",
    "conformer.feed_forward": "flow.encoder.linear_units",
    "conformer.blocks": "flow.encoder.num_blocks",
    "estimator.channels": "flow.estimator.channels", "estimator.heads": "flow.estimator.num_heads",
    "estimator.head_width": "flow.estimator.attention_head_dim",
    "estimator.transformers": "flow.estimator.n_blocks",
    "estimator.mid_blocks": "flow.estimator.num_mid_blocks",
    "guidance": "flow.cfm.cfm_params.inference_cfg_rate",
    "smallest_noise": "flow.cfm.cfm_params.sigma_min",
}  # fmt: skip
HIFT = {"channels": "hift.base_channels", "pitch_channels": "f0_predictor.cond_channels"}

Arrays = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks of a directory; one whose weights are not there is None."""

    flow: Flow | None
    hift: Hift | None
    drop: float


def rows(directory: Path) -> list[Row]:
    """Compare every array of every file. Raises CheckpointError where a file cannot be read."""
    path = directory / "config.json"
    config = read_mapping(path, CheckpointError, "it holds all sizes")
    networks = Networks(read_flow(directory, config), read_hift(directory, config, "hift.pt"),
                        found(config, "flow.cfm.cfm_params.training_cfg_rate", 0.2))  # fmt: skip
    made: list[Row] = []
    for path in sorted(directory.glob("*.npz")):
        kinds = (more for start, *more in KINDS if path.stem.startswith(start))
        compare, *needed = next(kinds, (lambda *_: {},))
        arrays = {key: torch.from_numpy(value.copy()) for key, value in read_arrays(path).items()}
        absent = [name for name in needed if getattr(networks, name) is None]
        ours = (dict.fromkeys(arrays, f"no {absent[0]}.pt") if absent
                else compare(networks, arrays, path))  # fmt: skip
        made += [_row(path.stem, key, value, ours) for key, value in arrays.items()]
        made += ours.get("extra rows", [])
    return made + _namings(directory, config)


def _row(stem: str, key: str, theirs: Tensor, ours: dict[str, Any]) -> Row:
    """Ours is a tensor and a limit, or the reason why there is none."""
    name = f"{stem}.{key}"
    mine = ours.get(key, GIVEN)
    if isinstance(mine, str):
        return not_compared(name, mine)
    values, limit = mine
    if limit == STEP:
        limit *= max(1.0, float(theirs.double().square().mean().sqrt()))
    return close(name, values, theirs, limit)


def found(config: Any, place: str, otherwise: Any = None) -> Any:
    """What a nested mapping holds at a dotted place."""
    for name in place.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return otherwise if config is None else config


def settings_of(kind: Any, table: dict[str, str], config: dict[str, Any]) -> Any:
    """Our settings from config.json; what it does not tell is as published."""
    raw: dict[str, Any] = {}
    for name, place in table.items():
        value = found(config, place)
        if value is not None:
            *outer, last = name.split(".")
            (raw.setdefault(outer[0], {}) if outer else raw)[last] = value
    if kind is FlowSettings and (ratios := found(config, "flow.length_regulator.sampling_ratios")):
        raw["regulator_convs"] = len(ratios)
    return parse(kind, raw, "config.json")


def read_flow(directory: Path, config: dict[str, Any]) -> Flow | None:
    path = directory / "flow.pt"
    if not path.is_file():
        return None
    tensors, settings = weights.read(path), settings_of(FlowSettings, FLOW, config)
    flow = Flow(replace(settings, speaker_width=flows.speaker_width(tensors, settings)))
    weights.fill(flow, tensors, str(path))
    return flow.eval()


def read_hift(directory: Path, config: dict[str, Any], file: str, prefix: str = "") -> Hift | None:
    path = directory / file
    if not path.is_file():
        return None
    tensors = fold({prefix + key: value for key, value in weights.read(path).items()}, str(path))
    hift = Hift(settings_of(HiftSettings, HIFT, config))
    weights.fill(hift, tensors, str(path))
    return hift.eval()


def published_sines(hift: Hift, pitch: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
    """Noisy harmonics of the pitch by the published arithmetic, which rounds their cycles.

    pitch: (1, frames) in Hz; phase: (1, harmonics, 1) radians, that of the fundamental is taken as
    0; noise: standard normal (1, harmonics, samples). Returns the shape of `noise`.
    """
    offset = torch.cat((torch.zeros_like(phase[:, :1]), phase[:, 1:]), dim=1)
    turns = hift.turns(pitch).to(pitch.dtype) % 1
    return hift.noisy(turns + offset / (2 * torch.pi), pitch, noise)


def at_speed(mel: Tensor, speed: float) -> Tensor:
    """Squeeze or stretch (1, mel, frames) in time, as upstream does it; a speed of 2 halves it."""
    return stretch(_flipped(mel), max(1, int(mel.shape[2] / speed))).transpose(1, 2)


@contextmanager
def taps(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """Inside, each call of a module adds its (inputs, output) to the list under its name."""
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in modules}

    def keep(name: str) -> Any:
        return lambda _, inputs, output: calls[name].append((inputs, output))

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _flipped(values: Tensor) -> Tensor:
    return values.transpose(1, 2)


def _prompt(arrays: Arrays) -> VoicePrompt:
    return VoicePrompt(arrays["prompt_token"], arrays["prompt_feat"], arrays["embedding"])


def mel_of(
    flow: Flow, tokens: Tensor, voice: VoicePrompt | None = None, noise: Tensor | None = None
) -> Tensor:
    """The log-mel (1, mel, frames) of one utterance; tokens: (1, tokens); noise: None is zeros."""
    state = flow.voice_state(voice)
    frames = state.known.shape[1] + frames_for(tokens.shape[1], flow.settings.tokens_per_s)
    noise = torch.zeros(1, 80, frames) if noise is None else noise
    return flow.mels([*tokens], state, [*noise])[0]


def _estimator_modules(flow: Flow) -> dict[str, nn.Module]:
    """The parts of the estimator by the names of the stored arrays."""
    unet = flow.decoder.estimator
    found: dict[str, nn.Module] = {"time_mlp": unet.time_mlp, "final_block": unet.final_block}
    stages = {"down": unet.down_blocks, "mid": unet.mid_blocks, "up": unet.up_blocks}
    for name, blocks in stages.items():
        for index, block in enumerate(blocks):
            assert isinstance(block, nn.ModuleList)
            for part, module in zip(("resnet", "attn", "out"), block, strict=False):
                inner = module[-1] if isinstance(module, nn.ModuleList) else module
                found[f"{name}{index}_{part}"] = inner
    return found


def _flow_case(networks: Networks, arrays: Arrays, path: Path) -> dict[str, Any]:
    """One synthesis of a mel."""
    flow = networks.flow
    modules: dict[str, nn.Module] = {
        "enc_embed": flow.encoder.embed, "enc_out": flow.encoder, "enc_proj": flow.encoder_proj,
        "regulator": flow.length_regulator, "estimator": flow.decoder.estimator,
        "spk": flow.spk_embed_affine_layer,
    }
    modules |= {f"enc_layer{index}": layer for index, layer in enumerate(flow.encoder.encoders)}
    modules |= {f"step4_{name}": part for name, part in _estimator_modules(flow).items()}
    with taps(modules) as calls:
        mel = mel_of(flow, arrays["token"], _prompt(arrays), arrays["z"])
    ours: dict[str, Any] = {name: (found[0][1], STEP) for name, found in calls.items()
                            if name.startswith(("enc", "spk"))}  # fmt: skip
    stretched, mu = calls["regulator"][0][0][0], calls["regulator"][0][1]
    ours |= {"lr_interp": (_flipped(stretched), STEP), "mu": (_flipped(mu), STEP)}
    inputs = [call[0] for call in calls["estimator"]]
    ours |= {"mu_in": (_flipped(inputs[0][1]), STEP), "cond_in": (_flipped(inputs[0][4]), STEP),
             "spks_in": (inputs[0][3], STEP), "t_span": (solver_times(len(inputs)), STEP),
             "t_used": (torch.stack([call[2] for call in inputs]), STEP),
             "x_steps": (torch.stack([_flipped(call[0]) for call in inputs]), STEP),
             "est_steps": (torch.stack([_flipped(call[1]) for call in calls["estimator"]]), STEP),
             "mel": (mel, MEL), "flow_cache_out": CACHE}  # fmt: skip
    for name in (name for name in calls if name.startswith("step4_")):
        values = calls[name][TAPPED_CALL][1]
        rows_first = name.endswith(("attn", "time_mlp"))
        ours[name] = (values if rows_first else _flipped(values), STEP)
    if arrays.get("flow_cache_in", torch.zeros(0)).numel():
        before = ("spk", "enc_embed", "enc_layer", "enc_out", "enc_proj", "lr_interp", "mu", "t_")
        kept = {key: value for key, value in ours.items()
                if key.startswith(before) and key != "mu_in"}
        ours = dict.fromkeys(ours, CACHE) | kept
    return ours


def _estimator_case(networks: Networks, arrays: Arrays, path: Path) -> dict[str, Any]:
    """The estimator alone on a padded batch."""
    with torch.no_grad():
        out = networks.flow.decoder.estimator(
            _flipped(arrays["x"]), _flipped(arrays["mu"]), arrays["t"], arrays["spks"],
            _flipped(arrays["cond"]), arrays["mask"][:, 0].bool(),
        )
    return {"out": (_flipped(out), STEP)}


def _training_case(networks: Networks, arrays: Arrays, path: Path) -> dict[str, Any]:
    """The training loss of a padded batch, and its gradients."""
    flow = networks.flow
    times = 1 - torch.cos(arrays["t_uniform"].view(-1) * 0.5 * torch.pi)
    kept = arrays["cfg_uniform"] > networks.drop
    draws = Draws(times, _flipped(arrays["z"]), arrays["cond_len"], kept)
    with taps({"mu": flow.length_regulator, "estimator": flow.decoder.estimator}) as calls:
        loss = flow.loss(
            arrays["token"], arrays["feat"], arrays["embedding"], draws,
            token_lengths=arrays["token_len"], mel_lengths=arrays["feat_len"],
        ).matching
    flow.zero_grad()
    loss.backward()
    gradients = {name: part.grad for name, part in flow.named_parameters() if part.grad is not None}
    (mixed, mu, when, speaker, known, valid), velocity = calls["estimator"][0]
    ours: dict[str, Any] = {
        "loss": (loss, max(LOSS, 1e-6 * float(arrays["loss"]))),
        "mu": (calls["mu"][0][1] * valid.unsqueeze(-1), STEP), "y": (_flipped(mixed), STEP),
        "est_mask": (valid.unsqueeze(1).float(), 0.0), "est_mu": (_flipped(mu), STEP),
        "est_t": (when, STEP), "est_spks": (speaker, STEP), "est_cond": (_flipped(known), STEP),
        "pred": (_flipped(velocity), STEP),
    }  # fmt: skip
    for key in (key for key in arrays if key.startswith("grad:")):
        name = key.removeprefix("grad:")
        scale = float(arrays[key].abs().max()) or 1.0
        ours[key] = (gradients[name], GRADIENT * scale) if name in gradients else "no gradient"
    ours["extra rows"] = _gradient_norms(path, gradients)
    return ours


def _gradient_norms(path: Path, gradients: dict[str, Tensor]) -> list[Row]:
    """One row for the norms of all gradients, relative; none without the file beside."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return []
    theirs = json.loads(beside.read_text(encoding="utf-8")).get("grad_norm", {})
    names = [name for name in theirs if name in gradients]
    norms = torch.stack([gradients[name].norm() for name in names])
    right = torch.tensor([theirs[name] for name in names])
    scale = right.clamp(min=LEAST_NORM)
    row = close(f"{path.stem}.grad_norm", norms / scale, right / scale, GRADIENT, "relative")
    if len(names) < len(theirs):
        return [row, Row(f"{path.stem}.grad_norm names", len(theirs) - len(names), 0.0, "missing")]
    return [row]


def _hift_case(networks: Networks, arrays: Arrays, path: Path) -> dict[str, Any]:
    """One call of the vocoder; sound from the stored source, source from the stored pitch."""
    hift = networks.hift
    modules: dict[str, nn.Module] = {"conv_pre": hift.conv_pre, "conv_post": hift.conv_post}
    lists = {"ups": hift.ups, "source_down": hift.source_downs,
             "source_resblock": hift.source_resblocks, "resblock": hift.resblocks}
    for name, blocks in lists.items():
        modules |= {f"{name}{index}": block for index, block in enumerate(blocks)}
    mel, source = _flipped(arrays["mel"]), arrays["source"][:, 0]
    with torch.no_grad(), taps(modules) as calls:
        wave = hift.decode(mel, source)
        pitch = hift.f0_predictor(mel)
        drawn = arrays["f0"], arrays["phase"], arrays["noise"]
        sines = published_sines(hift, *drawn)
        own_source = hift.mixed(sines)
        parts_first = _flipped(hift.spectrum(source))
    cached = arrays["cache_source"].shape[2] if "cache_source" in arrays else 0
    own_source = torch.cat((source[:, :cached], own_source[:, cached:]), dim=1)
    ours: dict[str, Any] = {name: (_flipped(found[0][1]), STEP) for name, found in calls.items()}
    return ours | {"wav": (wave, WAVE), "f0": (pitch, PITCH_HZ), "sine_waves": (sines, STEP),
                   "source": (own_source.unsqueeze(1), STEP),
                   "stft_real": (parts_first[:, :BINS], STEP),
                   "stft_imag": (parts_first[:, BINS:], STEP)}  # fmt: skip


def _pipeline_case(networks: Networks, arrays: Arrays, path: Path) -> dict[str, Any]:
    """Tokens to sound in one piece, with the stored draws."""
    if int(arrays["n_chunks"]) != 1 or arrays["c0_mel_overlap_out"].numel():
        return dict.fromkeys(arrays, STREAMING)
    mel = mel_of(networks.flow, arrays["source_token"], _prompt(arrays), arrays["c0_z"])
    speed = float(arrays["speed"])
    heard = mel if speed == 1.0 else at_speed(mel, speed)
    with torch.no_grad():
        pitch = networks.hift.f0_predictor(_flipped(heard))
        sines = published_sines(networks.hift, pitch, arrays["c0_phase"], arrays["c0_noise"])
        wave = networks.hift.decode(_flipped(heard), networks.hift.mixed(sines))
    return {"wav": (wave, PIPELINE_WAVE), "c0_wav": (wave, PIPELINE_WAVE),
            "c0_flow_mel": (mel, MEL), "c0_hift_mel": (heard, MEL), "c0_flow_cache_out": CACHE,
            "c0_mel_overlap_out": STREAMING,
            "chunk_samples": (torch.tensor([wave.shape[1]]), 0.0)}  # fmt: skip


def _namings(directory: Path, config: dict[str, Any]) -> list[Row]:
    """The same vocoder under its other published key names gives the same weights."""
    plain = read_hift(directory, config, "hift.pt")
    if plain is None:
        return []
    others = {"generator. prefix": read_hift(directory, config, "hift.pt", "generator.")}
    others["parametrizations"] = read_hift(directory, config, "hift_parametrizations.pt")
    whole = torch.cat([part.flatten() for part in plain.parameters()])
    return [
        close(f"hift weights, {name}", torch.cat([p.flatten() for p in other.parameters()]), whole,
              STEP)
        for name, other in others.items() if other is not None
    ]


KINDS = (                       # start of a file's name, its case, and the networks that it needs
    ("flow_train", _training_case, "flow"), ("flow_", _flow_case, "flow"),
    ("estimator_", _estimator_case, "flow"), ("hift_", _hift_case, "hift"),
    ("pipe_", _pipeline_case, "flow", "hift"),
)  # fmt: skip
