"""Speech tokens to sound: a directory or tar of flow, vocoder and voice, behind one call.

A new vocoder is a file of its own (settings, and a module with the methods of `streaming.Vocoder`),
a row of VOCODERS and a field of Token2WavSettings of that name.
"""

import copy
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from osum_echat import device as devices
from osum_echat import weights
from osum_echat.errors import CheckpointError, InputError
from osum_echat.settings import check_word, mapping, parse
from osum_echat.token2wav import streaming
from osum_echat.token2wav.flow import Flow, FlowSettings, VoiceState, frames_for, speaker_width
from osum_echat.token2wav.hift import Hift, HiftSettings, fold
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.token2wav.voice import (
    SAMPLE_RATE_HZ,
    SpeakerEncoder,
    SpeechTokenizer,
    VoicePrompt,
    make_prompt,
)
from osum_echat.weights import TarMember

SETTINGS_FILE = "token2wav.yaml"
FLOW_FILES = ("flow.safetensors", "flow.pt")
VOCODER_FILES = ("vocoder.safetensors", "hift.safetensors", "hift.pt")
TOKENIZER_FILES = ("speech_tokenizer.onnx", "speech_tokenizer_v1.onnx")
SPEAKER_FILES = ("speaker.onnx", "campplus.onnx")
VOICE_FILE = "voice.safetensors"
STREAM = streaming.StreamSettings()
STYLE_FILE = re.compile(r"voice_(\w+)\.safetensors")         # the voice in a style of speaking
PUBLISHED_YAML = "cosyvoice.yaml"
LARGEST_YAML = 1 << 20          # bytes of it that are looked at
FILES = (
    SETTINGS_FILE, PUBLISHED_YAML, VOICE_FILE,
    *FLOW_FILES, *VOCODER_FILES, *TOKENIZER_FILES, *SPEAKER_FILES,
)  # fmt: skip
PUBLISHED_FILES = ("flow.pt", "hift.pt")        # of CosyVoice-300M-25Hz
VOCODERS: dict[str, type[Hift] | type[NsfVocos]] = {"hift": Hift, "nsf_vocos": NsfVocos}
Files = dict[str, Path | TarMember]
WAVE_FADE_FRAMES = 1            # of 11.6 ms: over which the sound of a piece goes into the next
CARD_FRAMES = 20_000            # solved side by side on a card; a CPU gains nothing by it
FIRST_WITHIN_S = 0.2            # a first piece may wait so long for sound that runs out before
SENT_WITHIN_S = 0.1             # what comes behind the flow takes: the vocoder, and the way out
MOST_PADDING = 0.2              # of a row, where several are solved side by side


@dataclass(frozen=True, slots=True)
class Token2WavSettings:
    """`token2wav.yaml`: which vocoder, and the sizes; the defaults are the published model's."""

    vocoder: str = "hift"
    flow: FlowSettings = field(default_factory=FlowSettings)
    hift: HiftSettings = field(default_factory=HiftSettings)
    nsf_vocos: NsfVocosSettings = field(default_factory=NsfVocosSettings)

    def __post_init__(self) -> None:
        check_word("vocoder", self.vocoder, VOCODERS)


class Token2Wav(nn.Module):
    """Flow and vocoder with a default voice. Nothing of a call stays on it."""

    def __init__(self, settings: Token2WavSettings, voice: VoicePrompt) -> None:
        super().__init__()
        self.settings = settings
        self.sample_rate_hz = SAMPLE_RATE_HZ
        self.flow = Flow(settings.flow)
        self.vocoder = VOCODERS[settings.vocoder](getattr(settings, settings.vocoder))
        self.voice = voice
        self.styles: dict[str, VoicePrompt] = {}    # the voice in styles of speaking
        self.has_voice = False          # of its own: without, a call should bring one
        self.dtype = torch.float32
        self.source: Path | None = None
        self.solver: streaming.PieceSolver | None = None      # that all streams share
        self.prepared: dict[int, VoiceState] = {}   # by the identity of the voice

    def share(self) -> None:
        """Solve the pieces of all streams in one thread, and prepare the voices: for servers."""
        self.solver = streaming.PieceSolver(
            self.flow, lambda: devices.autocast(self.device, self.dtype)
        )
        for voice in (self.voice, *self.styles.values()):
            self.prepared[id(voice)] = self.prepare_voice(voice)

    @classmethod
    def load(
        cls, source: str | Path, device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Token2Wav":  # fmt: skip
        """Read a directory, or an uncompressed tar of one, in place: ours or CosyVoice-300M-25Hz.

        The weights stay mapped from disk where their type allows. dtype: what the flow computes in
        (the vocoder keeps to float32: its phases are sums of thousands of cycles). Raises
        CheckpointError for a missing or damaged file and for keys that differ, ConfigError for a
        setting out of range.
        """
        source = Path(source)
        files = find_files(source)
        flow_file = first_of(files, FLOW_FILES, source)
        vocoder_file = first_of(files, VOCODER_FILES, source)
        flow = weights.read(flow_file)
        vocoder = fold(weights.read(vocoder_file), str(vocoder_file))
        settings = _settings(files, source)
        width = speaker_width(flow, settings.flow)
        settings = replace(settings, flow=replace(settings.flow, speaker_width=width))
        voice = files.get(VOICE_FILE)
        absent = VoicePrompt.absent(torch.zeros(1, settings.flow.speaker_width))
        made = _empty(settings, absent if voice is None else VoicePrompt.load(voice))
        made.flow.check_voice(made.voice, str(voice))
        sizes = "" if SETTINGS_FILE in files else f" (no {SETTINGS_FILE}: the published sizes)"
        weights.fill(made.flow, flow, f"{flow_file}{sizes}")
        weights.fill(made.vocoder, vocoder, f"{vocoder_file}{sizes}")
        for name, file in files.items():
            if style := STYLE_FILE.fullmatch(name):
                made.styles[style[1]] = VoicePrompt.load(file)
                made.flow.check_voice(made.styles[style[1]], str(file))
        made.source, made.dtype, made.has_voice = source, dtype, voice is not None
        return made.to(device).eval() if device is not None else made.eval()

    def __call__(
        self,
        tokens: list[int],
        voice: VoicePrompt | VoiceState | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Synthesise a whole utterance.

        tokens: speech ids, without begin and end marks; voice: None for the directory's own, or
        what `prepare_voice` made of one; the same seed gives the same sound.
        Returns (samples,) float32 on the CPU, at 22.05 kHz. Raises InputError for no tokens or ids
        out of range.
        """
        return self.many([tokens], voice, [seed])[0]

    def many(
        self, lists: Sequence[list[int]], voice: VoicePrompt | VoiceState | None = None,
        seeds: Sequence[int | None] | None = None, most_frames: int | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Synthesise whole utterances, those of like length side by side.

        seeds: one for each; None draws them; most_frames: of the mels that are solved together,
        None: as many as the device gains by. Returns (samples,) each, in their order: what a call
        by itself gives, but for the order in which numbers are added. Raises InputError as a call
        does.
        """
        drawn = [streaming.generators(seed) for seed in seeds or [None] * len(lists)]
        with devices.autocast(self.device, self.dtype):
            state = self._state(voice)
        if most_frames is None:
            most_frames = 0 if self.device.type == "cpu" else CARD_FRAMES
        if state.kept:                          # which goes with rows of one length only
            most_frames = 0
        prompt_frames, rate = state.known.shape[1], self.settings.flow.tokens_per_s
        lengths = [prompt_frames + frames_for(len(tokens), rate) for tokens in lists]
        made: dict[int, Tensor] = {}
        for group in length_groups(lengths, most_frames):
            rows = [torch.tensor(lists[one], dtype=torch.long, device=self.device) for one in group]
            noises = [
                streaming.mel_noise(drawn[one], prompt_frames, lengths[one] - prompt_frames)
                for one in group
            ]
            with devices.autocast(self.device, self.dtype):
                mels = self.flow.mels(rows, state, noises)
            for one, mel in zip(group, mels, strict=True):
                wave = streaming.whole_wave(self.vocoder, mel.float(), drawn[one].source)
                made[one] = wave[0].float().cpu()
        return [made[one] for one in range(len(lists))]

    def stream(
        self, tokens: Iterable[int], voice: VoicePrompt | VoiceState | None = None,
        seed: int | None = None, settings: streaming.StreamSettings = STREAM,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Synthesise while the tokens come; they may come slowly.

        Arguments as in a whole call. Gives (samples,) float32 on the CPU, at 22.05 kHz, each as
        soon as its tokens and a few behind them are there; all together as many samples as the
        whole call. Several streams may run at once. Raises InputError for no tokens or ids out of
        range, when they come to be solved.
        """
        drawn = streaming.generators(seed)
        with devices.autocast(self.device, self.dtype):
            state = self._state(voice)
        mels = streaming.MelStream(self.flow, state, drawn, settings.fade_frames, self.solver)
        waves = streaming.WaveStream(self.vocoder, drawn.source, WAVE_FADE_FRAMES)
        ends = 0.0                              # the monotonic second at which the sound runs out
        for piece in streaming.pieces(tokens, settings):
            with devices.autocast(self.device, self.dtype):
                due = ends - SENT_WITHIN_S if ends else time.monotonic() + FIRST_WITHIN_S
                mel, new = mels.solve(piece, due)
            wave = waves.push(mel, new).float().cpu()
            ends = (ends or time.monotonic()) + len(wave) / SAMPLE_RATE_HZ
            yield wave

    def prepare_voice(self, voice: VoicePrompt | None = None, seed: int = 0) -> VoiceState:
        """A voice to speak in whose recording is solved now, once, and not again for every piece.

        Speech comes sooner by the recording's share of the work and is close to what it else would
        be, not equal. Its memory: 1 MB a second of it and step of the solver in the shipped size,
        25 MB in the published one. voice: None for the directory's own.
        """
        state = self.flow.voice_state(voice or self.voice)
        noise = streaming.mel_noise(streaming.generators(seed), state.known.shape[1], 0)
        with devices.autocast(self.device, self.dtype):
            return self.flow.prepared(state, noise)

    @property
    def device(self) -> torch.device:
        return self.flow.input_embedding.weight.device

    def _state(self, voice: VoicePrompt | VoiceState | None) -> VoiceState:
        if isinstance(voice, VoiceState):
            return voice
        voice = voice or self.voice
        return self.prepared.get(id(voice)) or self.flow.voice_state(voice)

    def in_voice(self, voice: VoicePrompt) -> "Token2Wav":
        """The same networks, in memory once, with another voice of their own."""
        other = copy.copy(self)
        other.voice, other.has_voice, other.styles, other.prepared = voice, True, {}, {}
        return other

    def measure_voice(self, wav: str | Path) -> VoicePrompt:
        """Measure a recording as a voice to speak in, with the model's own two ONNX files."""
        if self.source is None:
            raise CheckpointError("a voice can only be measured with a token2wav model loaded")
        return measure_voice(self.source, wav)

    def voice_of(self, path: str | Path) -> VoicePrompt:
        """The voice of a file: one that was saved (.safetensors), or a recording to measure.

        Raises InputError for a voice that another model's tokens speak of.
        """
        saved = Path(path).suffix == ".safetensors"
        voice = VoicePrompt.load(path) if saved else self.measure_voice(path)
        self.flow.check_voice(voice, str(path))
        return voice


def find_files(source: Path) -> Files:
    """The files of a model in a directory, or in an uncompressed tar, whatever its folders.

    Raises CheckpointError: nothing there, a damaged or packed tar, a name twice.
    """
    if source.is_dir():
        inside = sorted(source.iterdir())
        return {one.name: one for one in inside if _is_ours(one.name) and one.is_file()}
    if not source.is_file():
        raise CheckpointError(
            f"{source}: no such file or directory; give a token2wav directory or its .tar"
        )
    found: Files = {}
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if not _is_ours(name) or not member.isreg() or member.issparse():
                    continue
                if name in found:
                    raise tarfile.ReadError(f"holds {name} twice")
                if member.offset_data + member.size > source.stat().st_size:
                    raise tarfile.ReadError(f"cut short at {name}")
                found[name] = TarMember(source, member.name)
    except (tarfile.TarError, OSError, EOFError, MemoryError) as error:
        raise CheckpointError(
            f"{source}: not a readable, uncompressed tar ({error}); give the .tar as it was "
            "published, or the directory unpacked from it"
        ) from error
    return found


def _is_ours(name: str) -> bool:
    return name in FILES or STYLE_FILE.fullmatch(name) is not None


def first_of(files: Files, names: tuple[str, ...], source: Path) -> Path | TarMember:
    """The first of `names` that is there. Raises CheckpointError."""
    for name in names:
        if name in files:
            return files[name]
    raise CheckpointError(f"{source}: holds no {' or '.join(names)}; copy the whole model")


def measure_voice(source: Path, wav: str | Path) -> VoicePrompt:
    """Measure a recording with the two ONNX models of a token2wav directory or tar.

    Raises InputError where there is none of them: a model of trained voices alone.
    """
    files = find_files(source)
    if not files.keys() & {*TOKENIZER_FILES, *SPEAKER_FILES}:
        raise InputError(f"{wav}: {source} holds no {TOKENIZER_FILES[0]}, so it cannot imitate a "
                         "voice; speak in its own, or name another model")
    tokenizer = SpeechTokenizer(first_of(files, TOKENIZER_FILES, source))
    return make_prompt(wav, tokenizer, SpeakerEncoder(first_of(files, SPEAKER_FILES, source)))


def _settings(files: Files, source: Path) -> Token2WavSettings:
    """By our yaml; without one the published sizes, which the weights must then have."""
    if SETTINGS_FILE in files:
        with weights.opened(files[SETTINGS_FILE]) as stream:
            raw = mapping(stream.read(), str(files[SETTINGS_FILE]))
        return parse(Token2WavSettings, raw, SETTINGS_FILE)
    if any(name not in files for name in PUBLISHED_FILES):
        raise CheckpointError(
            f"{source / SETTINGS_FILE}: no such file; give a directory made for token to wav, "
            f"or the published one with {' and '.join(PUBLISHED_FILES)}"
        )
    check_rate(files.get(PUBLISHED_YAML), Token2WavSettings().flow.tokens_per_s)
    return Token2WavSettings()


def check_rate(file: Path | TarMember | None, tokens_per_s: int) -> None:
    """Refuse the published model of another rate of tokens: no shape tells it, only its yaml.

    The yaml is searched for the one number and not read: its tags would have code run.
    """
    if file is None:
        return
    with weights.opened(file) as stream:
        rates = re.findall(rb"^\s*input_frame_rate:\s*(\d+)", stream.read(LARGEST_YAML), re.M)
    other = [int(rate) for rate in rates if int(rate) != tokens_per_s]
    if other:
        raise CheckpointError(
            f"{file}: a model of {other[0]} speech tokens a second, need {tokens_per_s}; "
            "OSUM-EChat speaks through CosyVoice-300M-25Hz"
        )


def _empty(settings: Token2WavSettings, voice: VoicePrompt) -> Token2Wav:
    """The networks without any values yet."""
    try:
        with weights.empty():
            return Token2Wav(settings, voice)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{SETTINGS_FILE}: sizes that no network can have ({error}); copy the model again"
        ) from error


def length_groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The numbers of rows that are worth padding to one length, `most` frames in all or one row."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = lengths[number]
        spare = group and lengths[group[0]] >= (1 - MOST_PADDING) * longest
        if group and not (spare and (len(group) + 1) * longest <= most):
            yield group
            group = []
        group.append(number)
    if group:
        yield group
