"""Loads a model to answer with: network, tokenizer, generation settings, voice and prompts."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from osum_echat import device as devices
from osum_echat import logs
from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.generation import decoder, step_graph
from osum_echat.generation.batch_engine import BatchEngine
from osum_echat.generation.ctc_beam import Bigrams
from osum_echat.generation.decoder import Answer, ClipMemory, Starts, Token
from osum_echat.generation.sampling import NoLoops, Sampling
from osum_echat.generation.vllm_engine import VllmEngine
from osum_echat.inference import recognizer, safety
from osum_echat.inference.recognizer import Recognizer, RecognizerSettings
from osum_echat.inference.talker import Talker
from osum_echat.models import checkpoint, int8, lora, pretrained
from osum_echat.models.checkpoint import BASE_KEY, SET_UP, BaseModel
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.settings import UPSTREAM_KEY, read_settings
from osum_echat.models.voice_labels import VoiceLabels
from osum_echat.models.whisper_decoder import DECODER_FILE, WhisperDecoder
from osum_echat.paths import PUBLISHED_PROMPTS
from osum_echat.settings import check_word, parse
from osum_echat.tasks import PROMPTS_FILE, Prompts, Task
from osum_echat.thinking import CHINESE, LabelTemplate, template_named
from osum_echat.token2wav import model
from osum_echat.token2wav.model import VOICE_FILE, Token2Wav
from osum_echat.vocab import TEXT_END, Vocab

KINDS = ("label", "natural", "both", "either")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
INT8, AUTO = "int8", "auto"
CPU_DTYPE = "cpu_dtype"         # of model.yaml: what `auto` is on a CPU
LARGEST_BESIDE_BYTES = 2**30    # in float32, beside int8 weights; what is larger stays in bfloat16
ENDS = (TEXT_END, "<|endoftext|>")  # what an LLM's eos_token_id may be: chat models, base models
PUBLISHED_LANGUAGE = "chinese"
MOST_OF_MEMORY = 0.8
NO_TALKER = "none"
ENGINES = OWN, VLLM = "own", "vllm"
RECOGNIZER = "recognizer"
CTC_WEIGHT, OLD_CTC_WEIGHT = "ctc_weight", "hearing"     # the old key: in models made before
LOG = logs.logger(__name__)
Own = TypeVar("Own", Sampling, NoLoops)


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How a model is to be decoded: the keys of its model.yaml that the network does not read.

    thinking: label, natural, both (it is told which, by the opening of its thought) or either (it
    was trained to one, and nothing is forced); template: chinese or english; text, speech: its own
    sampling; text_loop: what keeps its text out of loops, None: nothing; ctc_weight: of the CTC
    prefix score beside the LLM while the user's words are written, for a model trained with the CTC
    loss, 0: none; recognizer: how one whose CTC spells decides what it heard;
    safety: the language of the rules that answer crisis and abuse, None: there are none.
    """

    thinking: str = "label"
    template: LabelTemplate = CHINESE
    text: Sampling | None = None
    speech: Sampling | None = None
    text_loop: NoLoops | None = None
    ctc_weight: float = 0.0
    recognizer: RecognizerSettings = recognizer.SETTINGS
    safety: str | None = None

    @classmethod
    def of(cls, found: pretrained.ModelFiles) -> "GenerationSettings":
        """Those of a model's YAML; upstream's has none."""
        raw, path = found.settings_yaml(), found.settings
        kind = raw.get("thinking", "either" if UPSTREAM_KEY in raw else "label")
        if kind not in KINDS:
            raise CheckpointError(f"{path}: thinking {kind!r}; write one of {', '.join(KINDS)}")
        own, language = raw.get("sampling") or {}, raw.get("safety")
        if language is not None:
            check_word(f"{path}: safety", str(language), safety.FILES)
        return cls(
            kind,
            template_named(raw.get("template", "chinese")),
            _own(Sampling, own, "text", f"{path}: sampling"),
            _own(Sampling, own, "speech", f"{path}: sampling"),
            _own(NoLoops, raw, "text_loop", f"{path}: settings"),
            _weight(raw.get(CTC_WEIGHT, raw.get(OLD_CTC_WEIGHT, 0.0)), f"{path}: {CTC_WEIGHT}"),
            parse(RecognizerSettings, raw.get(RECOGNIZER) or {}, f"{path}: {RECOGNIZER}"),
            language,
        )


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What is to be loaded; None: what lies beside the weights."""

    source: str | Path
    config: str | Path | None = None
    tokenizer: str | Path | None = None
    token2wav: str | Path | None = None
    voice: str | Path | None = None
    talker: str | Path | None = None    # none: the model speaks itself
    dtype: str = AUTO
    keep_lora: bool = False
    recognizer: str | None = None       # None: as the model's YAML has it
    engine: str = OWN                   # what decodes: one of ENGINES


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """All that answers are made with."""

    directory: Path
    network: EChatModel
    vocab: Vocab
    generation: GenerationSettings
    recognizer: Recognizer              # of a model whose CTC spells
    voice: Token2Wav | None
    prompts: Prompts
    talker: Talker | None = None        # what speaks the words; None: the model itself
    engine: BatchEngine | VllmEngine | None = None      # that many callers share; None: each
                                        # decodes by itself
    memory: ClipMemory | None = None    # of what was heard; None: clips are heard each time
    starts: Starts | None = None        # of prompts; None: each is read from its first token

    def decode(
        self, task: Task, prompts: Sequence[Tensor], answers: Sequence[Answer],
        interrupt: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, Token]]:  # fmt: skip
        """As `decoder.decode`, by the engine that there is. task: of the first prompt."""
        if self.engine is not None:
            return self.engine.decode(prompts, answers, interrupt)
        start = None if self.starts is None else self.starts.of(task)
        return decoder.decode(self.network, prompts, answers, interrupt, start)


def load(
    wanted: LoadOptions, place: torch.device, speaks: bool, share: LoadedModel | None = None
) -> LoadedModel:
    """Load a model onto a device.

    speaks: with its voice; share: a loaded model whose voice and equal weights are used. Raises
    CheckpointError naming what is missing or wrong.
    """
    found = pretrained.find(wanted.source, wanted.config)
    check_engine(wanted)
    is_free = not wanted.keep_lora and wanted.engine == OWN
    if wanted.dtype == AUTO and place.type == "cpu" and is_free:
        wanted = replace(wanted, dtype=str(found.settings_yaml().get(CPU_DTYPE, AUTO)))
    shrinks = wanted.dtype == INT8
    if shrinks and (place.type != "cpu" or wanted.keep_lora):
        raise InputError("dtype int8: only on a CPU, and with LoRA merged; choose bf16")
    generation, settings = GenerationSettings.of(found), read_settings(found.settings)
    if wanted.recognizer is not None:
        kind = replace(generation.recognizer, kind=wanted.recognizer)
        generation = replace(generation, recognizer=kind)
    reader_place = place_of_reader(found, generation.recognizer.kind)
    # The small parts first: what is wrong with them is told before gigabytes are read.
    vocab = _vocab(Path(wanted.tokenizer) if wanted.tokenizer else found.tokenizer(), settings)
    named = generation.recognizer.language_model
    bigrams = None if named is None else Bigrams.load(found.settings.parent / named)
    named = generation.recognizer.voice_labels
    voice_labels = None if named is None else VoiceLabels.load(found.settings.parent / named)
    voice_place = token2wav_place(wanted.token2wav) if wanted.token2wav else found.token2wav()
    voice = _voice(voice_place, wanted, place, share) if speaks else None
    talker = _talker(found, wanted, voice, place, share) if voice is not None else None
    if place.type == "cpu":
        devices.choose_threads(settings.llm["hidden_size"])
    dtype = pick_dtype(wanted.dtype, place, found.weights, settings.tied)
    network = checkpoint.load(
        found.weights, settings, dtype, device=place,
        keep_lora=wanted.keep_lora, share=share.network if share else None,
        as_stored=int8.SHRUNK if shrinks else None,
    )  # fmt: skip
    if shrinks:
        changes = {}
        if settings.lora is not None:
            stored = checkpoint.read_weights(found.weights, settings.tied)
            changes = lora.changes(stored, settings.lora)
        int8.shrink(network, changes)
        if step_graph.fits(network.llm):
            network.llm.step_graph = step_graph.StepGraph(network.llm)
    reader = None if reader_place is None else _reader(reader_place, network, shrinks)
    engine = VllmEngine(network) if wanted.engine == VLLM else None
    return LoadedModel(
        found.home, network, vocab, generation,
        Recognizer(network, vocab, generation.recognizer, reader, bigrams, voice_labels),
        voice, _prompts(found), talker, engine, starts=Starts(network, vocab) if shrinks else None,
    )  # fmt: skip


def check_engine(wanted: LoadOptions) -> None:
    """Raise InputError for an engine that there is not, or that cannot do what else is wanted."""
    if wanted.engine not in ENGINES:
        raise InputError(f"engine {wanted.engine!r}: choose one of {', '.join(ENGINES)}")
    if wanted.engine == VLLM and wanted.dtype == INT8:
        raise InputError("engine vllm: it has no int8 of ours; choose fp32, bf16, or engine own")
    if wanted.engine == VLLM and wanted.keep_lora:
        raise InputError("engine vllm: LoRA layers must be merged; leave out keep_lora")


def pick_dtype(name: str, place: torch.device, weights: Path, tied: bool = True) -> torch.dtype:
    """The type to compute in. auto: float32 on a CPU that has the memory for it, bfloat16 else.

    int8: of what is beside the shrunk weights.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name not in (AUTO, INT8):
        raise InputError(f"dtype {name!r}: choose one of auto, {', '.join(DTYPES)}, int8")
    if place.type != "cpu":
        return torch.bfloat16
    sizes = {
        key: torch.float32.itemsize * math.prod(one.shape)
        for key, one in checkpoint.read_weights(weights, tied).items()
    }
    if name == INT8:
        beside = sum(size for key, size in sizes.items() if not int8.SHRUNK.fullmatch(key))
        return torch.float32 if beside <= LARGEST_BESIDE_BYTES else torch.bfloat16
    needed, free = sum(sizes.values()), devices.free_memory_bytes()
    if free is None or needed < MOST_OF_MEMORY * free:
        return torch.float32
    LOG.warning(
        "%s: %.1f GB in float32, %.1f GB free: using bfloat16, which rounds and, on a CPU without "
        "instructions for it, is slower", weights, needed / 1e9, free / 1e9,
    )  # fmt: skip
    return torch.bfloat16


def _vocab(tokenizer: Path, settings: EChatSettings) -> Vocab:
    """The model's vocabulary. Raises CheckpointError for a tokenizer of another LLM."""
    vocab = Vocab.from_directory(tokenizer, settings.llm["vocab_size"], settings.speech_codes)
    end = settings.llm.get("eos_token_id")
    if isinstance(end, int) and (end,) not in [vocab.encode(mark) for mark in ENDS]:
        raise CheckpointError(
            f"{tokenizer}: not this model's tokenizer: {TEXT_END} is {vocab.text_end} there, and "
            f"the LLM ends texts with {end}; use the tokenizer of the model's LLM"
        )
    return vocab


def token2wav_place(place: str | Path) -> Path:
    """The directory or tar of token to wav: itself, from the hub, or inside a model directory."""
    if pretrained.is_hub(place):
        return pretrained.fetch(str(place), names=model.FILES)
    inside = [Path(place) / name for name in pretrained.TOKEN2WAV_PLACES]
    return next((path for path in inside if path.exists()), Path(place))


def _voice(
    place: Path, wanted: LoadOptions, device: torch.device, share: LoadedModel | None
) -> Token2Wav:
    """Token to wav with the voice that it shall speak in; the shared one where it is the same."""
    loaded = share.voice if share else None
    named = wanted.token2wav is not None or place.exists()
    if loaded is None or (loaded.source != place and named):
        halved = wanted.dtype == "bf16" and device.type != "cpu"
        loaded = Token2Wav.load(place, device, torch.bfloat16 if halved else torch.float32)
    if wanted.voice is not None:
        return loaded.in_voice(loaded.voice_of(wanted.voice))
    if not loaded.has_voice:
        raise CheckpointError(
            f"{place / VOICE_FILE}: no such file; copy it again, give --voice FILE (a recording or "
            "a saved voice), or save one there by common_utils/make_voice.py"
        )
    return loaded


def _talker(
    found: pretrained.ModelFiles, wanted: LoadOptions, voice: Token2Wav, device: torch.device,
    share: LoadedModel | None,
) -> Talker | None:  # fmt: skip
    """The talker that is asked for or that the model's YAML names, a path from its folder."""
    named = wanted.talker if wanted.talker is not None else found.settings_yaml().get("talker")
    if named is None or str(named) == NO_TALKER:
        return None
    place = Path(named) if wanted.talker is not None else found.settings.parent / str(named)
    loaded = share.talker if share else None
    if loaded is not None and loaded.source == place:
        return loaded
    return Talker.load(place, voice.settings.flow.codes, device)


def place_of_reader(found: pretrained.ModelFiles, kind: str) -> Path | None:
    """Where Whisper's decoder lies, if the recognizer needs it: beside the model's encoder.

    Raises InputError for a model without such an encoder, or a cache without the decoder.
    """
    if kind == recognizer.EAR:
        return None
    raw = (found.settings_yaml().get(BASE_KEY) or {}).get("encoder")
    if raw is None:
        raise InputError(f"recognizer {kind}: {found.home} has no Whisper of its own; choose ear")
    folder = parse(BaseModel, raw, f"{found.settings}: {BASE_KEY}").find(found.home)
    if not (folder / DECODER_FILE).is_file():
        raise InputError(
            f"recognizer {kind}: {folder} holds no {DECODER_FILE}; run {SET_UP}"
        )
    return folder


def _reader(folder: Path, network: EChatModel, shrinks: bool) -> WhisperDecoder:
    """Whisper's decoder; shrinks: for a CPU, in the type in which it is fast."""
    if not shrinks:
        return WhisperDecoder.load(folder)
    faster = torch.bfloat16 if devices.is_fast_in_bfloat16() else torch.float32
    return WhisperDecoder.load(folder, torch.float16).shrunk(faster).beside(network.encoder)


def _prompts(found: pretrained.ModelFiles) -> Prompts:
    """The model's own prompts; those of the published tasks for a published file."""
    own = found.home / PROMPTS_FILE
    if own.exists():
        return Prompts.from_file(own)
    if found.weights.suffix == ".safetensors" or not PUBLISHED_PROMPTS.exists():
        return Prompts({})
    return Prompts.from_file(PUBLISHED_PROMPTS, PUBLISHED_LANGUAGE)


def _own(kind: type[Own], raw: dict[str, Any], name: str, where: str) -> Own | None:
    """The settings of that name in model.yaml, if it has them."""
    if name not in raw:
        return None
    try:
        return kind(**raw[name])
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def _weight(raw: object, where: str) -> float:
    if not isinstance(raw, (int, float)) or isinstance(raw, bool) or not 0 <= raw < math.inf:
        raise CheckpointError(f"{where} {raw!r}: write a number from 0")
    return float(raw)
