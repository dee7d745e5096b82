"""A voice to speak in: its speech tokens, mel and speaker vector, and what measures them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F

from osum_echat import audio
from osum_echat.errors import CheckpointError, InputError
from osum_echat.logs import logger
from osum_echat.weights import TarMember, opened, write_safetensors_file

LOG = logger(__name__)
SAMPLE_RATE_HZ = 22_050
HOP_SAMPLES = 256                       # 11.6 ms
WINDOW_SAMPLES = 1024
MELS = 80
HIGHEST_HZ = 8000.0                     # of the mel that the flow and the vocoder read
SPEAKER_WIDTH = 192                     # numbers of a published speaker vector
MOST_SPEAKER_WIDTH = 4096
LONGEST_PROMPT_S = 30
MOST_TOKENS_PER_S = 50                  # the published sibling's; this model's are 25
LEAST_LEVEL = 1e-5
LARGEST_VOICE_BYTES = 16 << 20          # 30 s of mel are 0.8 MB
TOKENIZER_MELS = 128                    # of the published tokenizer, should its file not tell
TOKENIZER, SPEAKER = "a speech tokenizer", "a speaker encoder"
SIGNATURES = {                          # types of the inputs, and how many axes each has
    TOKENIZER: (("tensor(float)", 3), ("tensor(int32)", 1)),
    SPEAKER: (("tensor(float)", 3),),
}
# What `prompt_mel` reads a spectrum by: (513, 80).
mel_bank = partial(
    audio.mel_bank, MELS, SAMPLE_RATE_HZ, WINDOW_SAMPLES, highest_hz=HIGHEST_HZ
)


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """One voice. tokens: (1, tokens) long; mel: (1, frames, 80) log-mel; speaker: (1, numbers).

    Tokens and mel may both be empty: then the speaker vector alone says who speaks.
    """

    tokens: Tensor
    mel: Tensor
    speaker: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.tokens.shape), tuple(self.mel.shape), tuple(self.speaker.shape)
        right = (
            self.tokens.dim() == 2 and self.mel.dim() == 3 and self.mel.shape[2] == MELS
            and self.speaker.dim() == 2 and len(self.speaker) == 1 and self.speaker.numel() > 0
        )
        if not right or len(self.tokens) != 1 or len(self.mel) != 1:
            raise InputError(
                f"voice prompt: tokens, mel, speaker of shapes {shapes}; "
                f"need (1, tokens), (1, frames, {MELS}), (1, numbers)"
            )
        if not (self.mel.isfinite().all() and self.speaker.isfinite().all()):
            raise InputError("voice prompt: holds numbers that are not finite; measure it again")
        if self.tokens.is_floating_point() or (self.tokens < 0).any():
            raise InputError("voice prompt: its tokens are no ids; measure it again")

    @classmethod
    def absent(cls, speaker: Tensor | None = None) -> "VoicePrompt":
        """No recording at all; a zero speaker vector if none is given."""
        vector = torch.zeros(1, SPEAKER_WIDTH) if speaker is None else speaker
        return cls(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, MELS), vector)

    def save(self, path: str | Path) -> None:
        """Write a small safetensors file, whole or not at all. Raises InputError if it cannot."""
        tensors = {"tokens": self.tokens, "mel": self.mel, "speaker": self.speaker}
        write_safetensors_file(Path(path), tensors)

    @classmethod
    def load(cls, file: str | Path | TarMember) -> "VoicePrompt":
        """A saved voice. Raises CheckpointError for what is none."""
        file = file if isinstance(file, TarMember) else Path(file)
        with opened(file) as stream:
            data = stream.read(LARGEST_VOICE_BYTES + 1)
        if len(data) > LARGEST_VOICE_BYTES:
            raise CheckpointError(f"{file}: over {LARGEST_VOICE_BYTES} bytes; a voice has fewer")
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise CheckpointError(f"{file}: not a readable voice file ({error})") from error
        missing = {"tokens", "mel", "speaker"} - set(tensors)
        if missing:
            raise CheckpointError(
                f"{file}: no {', '.join(sorted(missing))}; make the voice anew from a recording"
            )
        try:
            return cls(tensors["tokens"], tensors["mel"].float(), tensors["speaker"].float())
        except InputError as error:
            raise CheckpointError(f"{file}: {error}") from error


def prompt_mel(samples: Tensor) -> Tensor:
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
    mel = mel_bank().T.contiguous().to(samples.device) @ level
    return mel.clamp(min=LEAST_LEVEL).log().transpose(1, 2)


def open_onnx(file: Path | TarMember) -> Any:
    """A session on one thread, on a GPU where onnxruntime finds one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    with opened(file) as stream:
        graph = str(file) if isinstance(file, Path) else stream.read()
    try:
        return onnxruntime.InferenceSession(graph, options, providers=providers)
    except Exception as error:      # onnxruntime's own errors have no common base
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: not a readable ONNX model ({first})") from error


class OnnxModel:
    """An ONNX model that hears a recording; told from others by the inputs that it asks for."""

    def __init__(self, source: str | Path | TarMember, kind: str) -> None:
        self.file = source if isinstance(source, TarMember) else Path(source)
        self.session = open_onnx(self.file)
        self.inputs = self.session.get_inputs()
        asked = tuple((one.type, len(one.shape)) for one in self.inputs)
        if asked != SIGNATURES[kind]:
            other = [name for name, signature in SIGNATURES.items() if signature == asked]
            raise CheckpointError(
                f"{self.file}: {other[0] if other else 'another model'} where {kind} is needed "
                f"(its inputs: {asked}); are files swapped? Copy the published directory again"
            )

    def run(self, *arrays: np.ndarray) -> np.ndarray:
        """The first output. Raises CheckpointError where the model fails on its inputs."""
        names = [one.name for one in self.inputs]
        try:
            return np.asarray(
                self.session.run(None, dict(zip(names, arrays, strict=True)))[0]
            )
        except Exception as error:      # onnxruntime's own errors have no common base
            first = str(error).splitlines()[0]
            raise CheckpointError(f"{self.file}: fails on a recording ({first})") from error


class SpeechTokenizer(OnnxModel):
    """The published `speech_tokenizer_v1.onnx`, or one like it with other mel bins."""

    def __init__(self, source: str | Path | TarMember) -> None:
        super().__init__(source, TOKENIZER)
        bins = self.inputs[0].shape[1]
        self.mels = bins if isinstance(bins, int) else TOKENIZER_MELS

    def __call__(self, samples: Tensor, where: str = "a recording") -> list[int]:
        """16 kHz samples (samples,) -> token ids, 25 a second.

        where: what the samples are of, for messages. Raises InputError for a clip that is longer
        than the model hears, CheckpointError for a model that hears nothing.
        """
        features = audio.log_mel(samples, self.mels, where).T.unsqueeze(0).contiguous().numpy()
        try:
            found = self._tokens(features)
        except CheckpointError as error:
            if features.shape[2] <= audio.FRAMES_PER_S:
                raise
            self._tokens(features[:, :, : audio.FRAMES_PER_S])      # or it hears no clip at all
            seconds = features.shape[2] / audio.FRAMES_PER_S
            raise InputError(
                f"{where}: {seconds:.1f} s, longer than the speech tokenizer hears (the published "
                f"one: {LONGEST_PROMPT_S} s); cut it ({error})"
            ) from error
        return [int(token) for token in found.reshape(-1)]

    def _tokens(self, features: np.ndarray) -> np.ndarray:
        """(1, mels, frames) -> token ids of any shape. Raises CheckpointError."""
        found = self.run(features, np.array([features.shape[2]], dtype=np.int32))
        most = features.shape[2] / audio.FRAMES_PER_S * MOST_TOKENS_PER_S + 1
        if not np.issubdtype(found.dtype, np.integer) or not 0 < found.size <= most:
            raise CheckpointError(
                f"{self.file}: gives {found.size} numbers of {found.dtype} for "
                f"{features.shape[2]} frames, where token ids are needed; copy the file again"
            )
        return found


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


class SpeakerEncoder(OnnxModel):
    """The published `campplus.onnx`, or one like it: who speaks, as a vector (192 numbers)."""

    def __init__(self, source: str | Path | TarMember) -> None:
        super().__init__(source, SPEAKER)
        bins = self.inputs[0].shape[2]
        if isinstance(bins, int) and bins != MELS:
            raise CheckpointError(f"{self.file}: hears {bins} bins, need {MELS}: another model")

    def __call__(self, samples: Tensor) -> Tensor:
        """16 kHz samples (samples,) -> (1, numbers)."""
        vector = self.run(speaker_features(samples).numpy())
        right = np.issubdtype(vector.dtype, np.floating) and vector.size == vector.shape[-1:][0]
        if not (right and 0 < vector.size <= MOST_SPEAKER_WIDTH):
            raise CheckpointError(
                f"{self.file}: gives {vector.dtype} of shape {vector.shape} for a voice, where one "
                "vector is needed; copy the file again"
            )
        return torch.from_numpy(vector.astype(np.float32).reshape(1, -1))


def make_prompt(
    wav: str | Path, tokenizer: SpeechTokenizer, speaker: SpeakerEncoder
) -> VoicePrompt:
    """Measure a recording of up to 30 s, at any sample rate.

    The tokens and the speaker are heard at 16 kHz: by way of 22.05 kHz, as published, from a
    recording of a higher rate, and directly from one of 16 kHz or less.
    """
    seconds = audio.length(Path(wav)) / audio.SAMPLE_RATE_HZ
    if seconds > LONGEST_PROMPT_S:
        raise InputError(
            f"{wav}: {seconds:.1f} s; a voice prompt is at most {LONGEST_PROMPT_S} s, so cut it"
        )
    sound = audio.read(Path(wav), None)
    for finding in sound.findings:
        if finding.kind == audio.SILENCE:
            raise InputError(f"{wav}: {finding}; no voice is in it, record it again")
        LOG.warning("%s: %s", wav, finding)
    recorded, rate = sound.samples, sound.rate_hz
    samples = audio.resample(recorded, rate, SAMPLE_RATE_HZ)
    low = (
        audio.resample(recorded, rate, audio.SAMPLE_RATE_HZ) if rate <= audio.SAMPLE_RATE_HZ
        else audio.resample(samples, SAMPLE_RATE_HZ, audio.SAMPLE_RATE_HZ)
    )  # fmt: skip
    tokens = torch.tensor([tokenizer(low, str(wav))], dtype=torch.long)
    return VoicePrompt(tokens, prompt_mel(samples), speaker(low))
