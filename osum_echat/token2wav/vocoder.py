"""Speech tokens to sound: a directory with a flow, a vocoder and a voice, behind one call."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.token2wav import weights
from osum_echat.token2wav.flow import Flow, FlowSettings
from osum_echat.token2wav.hift import Hift, HiftSettings, fold
from osum_echat.token2wav.layers import stretch
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.token2wav.settings import parse, read_yaml
from osum_echat.token2wav.voice import (
    SAMPLE_RATE_HZ,
    SpeakerEncoder,
    SpeechTokenizer,
    VoicePrompt,
    make_prompt,
)

SETTINGS_FILE = "token2wav.yaml"
FLOW_FILES = ("flow.safetensors", "flow.pt")
VOCODER_FILES = ("vocoder.safetensors", "hift.safetensors", "hift.pt")
TOKENIZER_FILES = ("speech_tokenizer.onnx", "speech_tokenizer_v1.onnx")
SPEAKER_FILES = ("speaker.onnx", "campplus.onnx")
VOICE_FILE = "voice.safetensors"
VOCODERS = ("hift", "nsf_vocos")


@dataclass(frozen=True, slots=True)
class Token2WavSettings:
    """`token2wav.yaml`: which vocoder, and the sizes; the defaults are the published model's."""

    vocoder: str = "hift"
    flow: FlowSettings = field(default_factory=FlowSettings)
    hift: HiftSettings = field(default_factory=HiftSettings)
    nsf_vocos: NsfVocosSettings = field(default_factory=NsfVocosSettings)

    def __post_init__(self) -> None:
        if self.vocoder not in VOCODERS:
            raise ConfigError(f"vocoder {self.vocoder!r}: not one of {', '.join(VOCODERS)}")


class Token2Wav(nn.Module):
    """Flow and vocoder with a default voice. Nothing of a call stays on it."""

    def __init__(self, settings: Token2WavSettings, voice: VoicePrompt) -> None:
        super().__init__()
        self.settings = settings
        self.sample_rate_hz = SAMPLE_RATE_HZ
        self.flow = Flow(settings.flow)
        self.vocoder: Hift | NsfVocos = (
            Hift(settings.hift) if settings.vocoder == "hift" else NsfVocos(settings.nsf_vocos)
        )
        self.voice = voice
        self.directory: Path | None = None

    @classmethod
    def load(cls, directory: str | Path, device: torch.device | None = None) -> "Token2Wav":
        """Read a directory: settings, weights of either format, and the voice if it holds one.

        Raises CheckpointError for a missing or damaged file and for keys that differ.
        """
        directory = Path(directory)
        path = directory / SETTINGS_FILE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; give a directory made for token to wav")
        settings = parse(Token2WavSettings, read_yaml(path), SETTINGS_FILE)
        voice_path = directory / VOICE_FILE
        voice = VoicePrompt.load(voice_path) if voice_path.is_file() else VoicePrompt.absent()
        made = cls(settings, voice)
        made.directory = directory
        flow_path = find(directory, FLOW_FILES)
        weights.fill(made.flow, weights.read(flow_path), str(flow_path))
        vocoder_path = find(directory, VOCODER_FILES)
        tensors = weights.read(vocoder_path)
        if isinstance(made.vocoder, Hift):
            tensors = fold(tensors)
        weights.fill(made.vocoder, tensors, str(vocoder_path))
        return made.to(device).eval() if device is not None else made.eval()

    def __call__(
        self,
        tokens: list[int],
        voice: VoicePrompt | None = None,
        seed: int | None = None,
        speed: float = 1.0,
    ) -> Tensor:
        """Synthesise a whole utterance.

        tokens: speech ids, without begin and end marks; voice: None for the directory's own; the
        same seed gives the same sound; speed: 2 is twice as fast. Returns (samples,) float32 on
        the CPU, at 22.05 kHz. Raises InputError for no tokens or ids out of range.
        """
        if speed <= 0:
            raise InputError(f"speed {speed}: must be above 0")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        device = self.flow.input_embedding.weight.device
        ids = torch.tensor([tokens], dtype=torch.long, device=device)
        mel = self.flow.mel(ids, voice or self.voice, generator=generator)
        if speed != 1.0:
            mel = at_speed(mel, speed)
        return self.vocoder.wave(mel, generator)[0].float().cpu()

    def listen(self, wav: str | Path) -> VoicePrompt:
        """Measure a recording as a voice to speak in, with the directory's two ONNX models."""
        if self.directory is None:
            raise CheckpointError("a voice can only be measured with a token2wav directory loaded")
        return make_prompt(
            wav,
            SpeechTokenizer(find(self.directory, TOKENIZER_FILES)),
            SpeakerEncoder(find(self.directory, SPEAKER_FILES)),
        )


def at_speed(mel: Tensor, speed: float) -> Tensor:
    """Squeeze or stretch (1, mel, frames) in time."""
    frames = max(1, int(mel.shape[2] / speed))
    return stretch(mel.transpose(1, 2), frames).transpose(1, 2)


def find(directory: Path, names: tuple[str, ...]) -> Path:
    """The first of `names` that the directory holds."""
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(f"{directory}: holds no {' or '.join(names)}; copy the whole model")
