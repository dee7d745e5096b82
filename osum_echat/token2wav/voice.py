"""A voice to speak in: its speech tokens, mel and speaker vector, and what measures them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from osum_echat import audio
from osum_echat.errors import CheckpointError, InputError

SAMPLE_RATE_HZ = 22_050
HOP_SAMPLES = 256                       # 11.6 ms
WINDOW_SAMPLES = 1024
MELS = 80
HIGHEST_HZ = 8000.0                     # of the mel that the flow and the vocoder read
SPEAKER_WIDTH = 192
LONGEST_PROMPT_S = 30
LEAST_LEVEL = 1e-5


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """One voice. tokens: (1, tokens) long; mel: (1, frames, 80) log-mel; speaker: (1, 192).

    Tokens and mel may both be empty: then the speaker vector alone says who speaks.
    """

    tokens: Tensor
    mel: Tensor
    speaker: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.tokens.shape), tuple(self.mel.shape), tuple(self.speaker.shape)
        right = (
            self.tokens.dim() == 2 and self.mel.dim() == 3 and self.mel.shape[2] == MELS
            and self.speaker.shape == (1, SPEAKER_WIDTH)
        )
        if not right or len(self.tokens) != 1 or len(self.mel) != 1:
            raise InputError(
                f"voice prompt: tokens, mel, speaker of shapes {shapes}; "
                f"need (1, tokens), (1, frames, {MELS}), (1, {SPEAKER_WIDTH})"
            )

    @classmethod
    def absent(cls, speaker: Tensor | None = None) -> "VoicePrompt":
        """No recording at all; a zero speaker vector if none is given."""
        vector = torch.zeros(1, SPEAKER_WIDTH) if speaker is None else speaker
        return cls(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, MELS), vector)

    def save(self, path: str | Path) -> None:
        tensors = {"tokens": self.tokens, "mel": self.mel, "speaker": self.speaker}
        save_file({name: part.contiguous() for name, part in tensors.items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> "VoicePrompt":
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not a readable voice file ({error})") from error
        missing = {"tokens", "mel", "speaker"} - set(tensors)
        if missing:
            raise CheckpointError(
                f"{path}: no {', '.join(sorted(missing))}; make the voice anew with make_prompt"
            )
        return cls(tensors["tokens"].long(), tensors["mel"].float(), tensors["speaker"].float())


@cache
def mel_basis(highest_hz: float = HIGHEST_HZ) -> Tensor:
    """Triangles on the Slaney scale with Slaney's area norm: (80, 513), for 22.05 kHz."""
    linear_hz, break_hz, log_step = 200.0 / 3, 1000.0, np.log(6.4) / 27.0

    def to_mel(hz: float) -> float:
        if hz < break_hz:
            return hz / linear_hz
        return float(break_hz / linear_hz + np.log(hz / break_hz) / log_step)

    marks = np.linspace(0.0, to_mel(highest_hz), MELS + 2)
    above = break_hz * np.exp(log_step * (marks - break_hz / linear_hz))
    edges = np.where(marks >= break_hz / linear_hz, above, linear_hz * marks)
    bins = np.fft.rfftfreq(WINDOW_SAMPLES, 1.0 / SAMPLE_RATE_HZ)
    ramps, gaps = edges[:, None] - bins, np.diff(edges)
    rising, falling = -ramps[:-2] / gaps[:-1, None], ramps[2:] / gaps[1:, None]
    basis = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    basis *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(basis)


def prompt_mel(samples: Tensor, highest_hz: float = HIGHEST_HZ) -> Tensor:
    """The log-mel of 22.05 kHz samples (samples,): (1, samples // 256, 80), natural log."""
    pad = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
    if samples.numel() <= pad:
        raise InputError(f"voice: {samples.numel()} samples are too few for a mel; need {pad + 1}")
    padded = F.pad(samples.view(1, 1, -1), (pad, pad), mode="reflect").view(1, -1)
    window = torch.hann_window(WINDOW_SAMPLES, device=samples.device)
    spectrum = torch.stft(
        padded, WINDOW_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
    )
    level = torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + 1e-9)
    mel = mel_basis(highest_hz).to(samples.device) @ level
    return mel.clamp(min=LEAST_LEVEL).log().transpose(1, 2)


class Session(Protocol):
    """What is used of an onnxruntime session."""

    def get_inputs(self) -> Any: """Names and shapes, in order."""

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> Any: """One pass."""


def open_onnx(path: str | Path) -> Session:
    """A session on one thread, on a GPU where onnxruntime finds one."""
    import onnxruntime

    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; the voice part of a model needs it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:      # onnxruntime's own errors have no common base
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable ONNX model ({first})") from error


class SpeechTokenizer:
    """The published `speech_tokenizer_v1.onnx`, or one like it with other mel bins."""

    def __init__(self, path: str | Path) -> None:
        self.session = open_onnx(path)
        inputs = self.session.get_inputs()
        if len(inputs) != 2 or not isinstance(inputs[0].shape[1], int):
            raise CheckpointError(
                f"{path}: not a speech tokenizer; its inputs must be features (1, mel, frames) "
                "with a fixed number of mel bins, and their length"
            )
        self.names = [one.name for one in inputs]
        self.mels = int(inputs[0].shape[1])

    def __call__(self, samples: Tensor) -> list[int]:
        """16 kHz samples (samples,) -> token ids, 25 a second."""
        features = audio.log_mel(samples, self.mels).T.unsqueeze(0).contiguous().numpy()
        length = np.array([features.shape[2]], dtype=np.int32)
        found = self.session.run(None, {self.names[0]: features, self.names[1]: length})
        return [int(token) for token in np.asarray(found[0]).reshape(-1)]


def speaker_features(samples: Tensor) -> Tensor:
    """Kaldi filter banks of 16 kHz samples (samples,), less their mean over time.

    Samples stay within -1..1, no dither, otherwise Kaldi's defaults. Returns (1, frames, 80).
    """
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = audio.SAMPLE_RATE_HZ
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = MELS
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(audio.SAMPLE_RATE_HZ, samples.tolist())
    bank.input_finished()
    if not bank.num_frames_ready:
        raise InputError(f"voice: {len(samples)} samples at 16 kHz are too few; give 25 ms or more")
    frames = np.stack([bank.get_frame(index) for index in range(bank.num_frames_ready)])
    features = torch.from_numpy(frames)
    return (features - features.mean(0, keepdim=True)).unsqueeze(0)


class SpeakerEncoder:
    """The published `campplus.onnx`, or one like it: who speaks, as 192 numbers."""

    def __init__(self, path: str | Path) -> None:
        self.session = open_onnx(path)
        self.name = self.session.get_inputs()[0].name

    def __call__(self, samples: Tensor) -> Tensor:
        """16 kHz samples (samples,) -> (1, 192)."""
        found = self.session.run(None, {self.name: speaker_features(samples).numpy()})
        return torch.from_numpy(np.asarray(found[0], dtype=np.float32).reshape(1, -1))


def make_prompt(
    wav: str | Path, tokenizer: SpeechTokenizer, speaker: SpeakerEncoder
) -> VoicePrompt:
    """Measure a recording of up to 30 s, at any sample rate."""
    samples = audio.load(Path(wav), SAMPLE_RATE_HZ)
    if len(samples) > LONGEST_PROMPT_S * SAMPLE_RATE_HZ:
        raise InputError(
            f"{wav}: {len(samples) / SAMPLE_RATE_HZ:.1f} s; a voice prompt is at most "
            f"{LONGEST_PROMPT_S} s, so cut it"
        )
    low = audio.resample(samples, SAMPLE_RATE_HZ, audio.SAMPLE_RATE_HZ)
    tokens = torch.tensor([tokenizer(low)], dtype=torch.long)
    return VoicePrompt(tokens, prompt_mel(samples), speaker(low))
