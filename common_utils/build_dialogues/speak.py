"""The sound: questions in voices that fit their labels, with events, and replies in one voice.

Engines, chosen by `engine` for the questions and for the replies: `endpoint` (any server with
/v1/audio/speech), `recipe` (espeak-ng, Kokoro and Piper as the tiny world's corpus has them),
`model` (a model of ours, in its own voice or in those of recordings). A question that is a
recording's words stays that recording. A sound that is there is never made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import soxr
from numpy.random import Generator

from common_utils.build_dialogues.dialogue import (
    NO_EVENT,
    Calls,
    Dialogue,
    EndpointSettings,
    Exchange,
    depends,
    dialogues_of,
    endpoint_of,
    made,
)
from common_utils.jobs import Made, Piece, digest
from common_utils.tiny_world import effects, speaking, voices
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.reply_voice import SAMPLE_RATE_HZ as PIPER_HZ
from common_utils.tiny_world.reply_voice import STYLES, ReplyVoice, write_wav
from common_utils.tiny_world.voices import Wave
from osum_echat import audio
from osum_echat.data.sources import Dropped
from osum_echat.errors import ConfigError, InputError
from osum_echat.evaluation.endpoint import EndpointError
from osum_echat.records import Labels
from osum_echat.settings import check_word
from osum_echat.token2wav.voice import VoicePrompt

ASSISTANT = "assistant"  # the key of the replies' voice
PIPER = "piper"
NAMES = {"questions": "question", "replies": "reply"}  # part -> its name in file names
RATE_HZ = effects.SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One way to speak. voices: AGE/GENDER (or assistant) -> names, of which a dialogue has one;
    manners: a user's emotion, or the style of a reply -> what the engine is told: instructions
    (endpoint), a feeling of tiny_world/effects.py or a style of Piper (recipe), a style's tag
    (model); recordings: AGE/GENDER/[EMOTION/]*.wav, the voices that a model speaks in."""

    engine: str = "recipe"
    voices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    manners: dict[str, str] = field(default_factory=dict)
    endpoint: EndpointSettings | None = None
    assets: str = "build/assets"
    model: str = "small"
    recordings: str | None = None

    def __post_init__(self) -> None:
        check_word("speak.engine", self.engine, ENGINES)
        if self.engine == "endpoint" and self.endpoint is None:
            raise ConfigError("speak.endpoint: missing; engine: endpoint needs model and url")


@dataclass(frozen=True, slots=True)
class SpeakSettings:
    """languages: those that are spoken, dialogues in others stay written; events: a folder
    EVENT/*.wav, null: those of the tiny world; room, noise: shares of questions with one."""

    questions: EngineSettings = field(default_factory=EngineSettings)
    replies: EngineSettings = field(default_factory=EngineSettings)
    languages: tuple[str, ...] = ("en",)
    events: str | None = None
    room: float = 0.4
    noise: float = 0.5


class Recipe:
    """The voices of the tiny world. `voices` narrows them; for replies Piper, or one of them.

    Every engine has `check`: raise ConfigError where it has no voice for AGE/GENDER (or assistant),
    or no manner; and `say`: (samples,) at 16 kHz without silence around, its rng the same for a
    dialogue's turns.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings, self.assets = settings, AssetPaths(Path(settings.assets))
        self.studio = voices.Studio(self.assets)
        self.people = [one for one in voices.all_voices("train")
                       if one.engine == voices.ESPEAK or self.assets.kokoro_model.is_file()]
        voices.Espeak(self.assets)  # what is missing is told now

    @cached_property
    def piper(self) -> ReplyVoice:
        return ReplyVoice(self.assets.root)

    def check(self, cell: str, manner: str) -> None:
        known, told = tuple(effects.DELIVERIES), self.settings.manners.get(manner, manner)
        if self._is_piper(cell):
            known, _ = tuple(STYLES), self.piper
        else:
            self._voices(cell)
        if told not in known:
            raise ConfigError(f"speak: engine recipe cannot speak {told}; it knows "
                              f"{', '.join(known)}: map it under manners, or leave it out of "
                              "plan.labels")  # fmt: skip

    def say(self, text: str, cell: str, manner: str, rng: Generator) -> Wave:
        told = self.settings.manners.get(manner, manner)
        if self._is_piper(cell):
            return soxr.resample(self.piper.say(text, told), PIPER_HZ, RATE_HZ)
        found = self._voices(cell)
        voice = found[int(rng.integers(len(found)))]
        if cell != ASSISTANT:
            voice = voices.varied(voice, rng)
        delivery = effects.DELIVERIES[told]
        spoken = self.studio.say(text, voice, effects.manner_of(delivery, voice, rng))
        return effects.render(spoken, voice, delivery, rng)

    def _is_piper(self, cell: str) -> bool:
        return cell == ASSISTANT and self.settings.voices.get(cell, (PIPER,)) == (PIPER,)

    def _voices(self, cell: str) -> list[voices.Voice]:
        named = self.settings.voices.get(cell)
        found = [one for one in self.people
                 if (one.name in named if named else "/".join(one.cell) == cell)]  # fmt: skip
        if not found:
            raise ConfigError(f"speak: engine recipe has no voice {', '.join(named or (cell,))}; "
                              "its names: common_utils/tiny_world/voices.py")  # fmt: skip
        return found


class Remote:
    """A server with /v1/audio/speech."""

    def __init__(self, settings: EngineSettings) -> None:
        assert settings.endpoint is not None, "checked with the settings"
        self.settings, self.model = settings, settings.endpoint.model
        self.endpoint = endpoint_of(settings.endpoint)

    def check(self, cell: str, manner: str) -> None:
        if cell not in self.settings.voices:
            raise ConfigError(f"speak: engine endpoint has no voice for {cell}; name one under "
                              "voices, or leave the label out of plan.labels")  # fmt: skip

    def say(self, text: str, cell: str, manner: str, rng: Generator) -> Wave:
        self.check(cell, manner)
        names, told = self.settings.voices[cell], self.settings.manners.get(manner)
        sound = self.endpoint.speech(
            model=self.model, input=text, voice=names[int(rng.integers(len(names)))],
            response_format="wav", **({"instructions": told} if told else {}),
        )  # fmt: skip
        try:
            return _level(audio.load(sound).numpy())
        except InputError as error:
            raise EndpointError(f"{self.endpoint.url}: not a sound ({error})") from error


class Own:
    """A model of ours: text to speech tokens, and these to sound in the voice of a recording."""

    def __init__(self, settings: EngineSettings) -> None:
        from osum_echat.inference.assistant import EChat

        self.settings = settings
        self.model = EChat.load(settings.model)
        self.recordings = recordings_of(settings.recordings) if settings.recordings else {}
        self._measured: dict[Path, VoicePrompt] = {}

    def check(self, cell: str, manner: str) -> None:
        if cell != ASSISTANT:
            self._recordings(cell, manner)

    def say(self, text: str, cell: str, manner: str, rng: Generator) -> Wave:
        tag = self.settings.manners.get(manner)
        seed = int(rng.integers(1 << 31))
        reply = self.model.reply(f"<{tag}>{text}" if tag else text, task="tts", seed=seed)
        wave, rate_hz = reply.wave, reply.sample_rate_hz
        if cell != ASSISTANT and self.model.voice is not None and reply.speech_tokens:
            found = self._recordings(cell, manner)
            place = found[int(rng.integers(len(found)))]
            if place not in self._measured:
                self._measured[place] = self.model.voice.measure_voice(place)
            wave = self.model.voice(list(reply.speech_tokens), self._measured[place], seed)
        if wave is None or rate_hz is None:
            raise InputError(f"{self.settings.model}: gave no speech for {text!r}")
        return audio.resample(wave.float().cpu(), rate_hz, RATE_HZ).numpy()

    def _recordings(self, cell: str, emotion: str) -> Sequence[Path]:
        found = self.recordings.get(f"{cell}/{emotion}") or self.recordings.get(cell)
        if not found:
            raise ConfigError(f"speak.recordings {self.settings.recordings}: no {cell}/*.wav; add "
                              "recordings, or leave the label out of plan.labels")  # fmt: skip
        return found


Engine = Recipe | Remote | Own
ENGINES: dict[str, Callable[[EngineSettings], Engine]] = {
    "recipe": Recipe, "endpoint": Remote, "model": Own,
}  # fmt: skip


def recordings_of(folder: str) -> dict[str, list[Path]]:
    """The wavs of a folder by AGE/GENDER and by AGE/GENDER/EMOTION."""
    found: dict[str, list[Path]] = {}
    for wav in sorted(Path(folder).glob("*/*/**/*.wav")):
        parts = wav.relative_to(folder).parts[:-1]
        for depth in range(2, len(parts) + 1):
            found.setdefault("/".join(parts[:depth]), []).append(wav)
    return found


def check_voices(settings: SpeakSettings, planned: Sequence[Dialogue]) -> None:
    """Raise ConfigError or InputError, before anything is paid for, where a voice is missing."""
    spoken = [one for one in planned if one.language in settings.languages]
    for labels in {one.labels for one in spoken if one.last.recording is None}:
        engine_of(settings, "questions").check(cell_of(labels), str(labels.emotion))
    for style in {str(one.labels.style) for one in spoken}:
        engine_of(settings, "replies").check(ASSISTANT, style)
    for event in {str(one.labels.event) for one in spoken} - {NO_EVENT}:
        made = speaking.EVENTS
        if not (_event_wavs(settings.events, event) if settings.events else event in made):
            raise ConfigError(f"speak.events {settings.events}: no {event}/*.wav; without a folder "
                              f"there are {', '.join(made)}")  # fmt: skip


def cell_of(labels: Labels) -> str:
    return f"{labels.age}/{labels.gender}"


_ENGINES: dict[str, Engine] = {}


def engine_of(settings: SpeakSettings, part: str) -> Engine:
    """The engine of the questions or the replies, opened once in a process."""
    own: EngineSettings = getattr(settings, part)
    key = digest(repr(own))
    if key not in _ENGINES:
        _ENGINES[key] = ENGINES[own.engine](own)
    return _ENGINES[key]


@dataclass(frozen=True, slots=True)
class Speaking:
    """The step: a portion of checked dialogues to spoken ones; wavs go to `folder`/wav."""

    settings: SpeakSettings
    folder: Path
    calls: Path
    seed: int

    def __call__(self, portion: Piece) -> Made:
        """Questions, then replies, each by its engine."""
        found: list[Dialogue | Dropped] = list(dialogues_of(portion))
        for part in NAMES:
            own: EngineSettings = getattr(self.settings, part)
            left = [one for one in found if isinstance(one, Dialogue)]
            if own.endpoint is not None and own.engine == "endpoint":
                with Calls(own.endpoint, self.calls / part, portion) as calls:
                    spoken = calls.each(partial(self._part, part, calls), left)
            else:
                spoken = [self._part(part, None, one) for one in left]
            by_key = {old.key: new for old, new in zip(left, spoken, strict=True)}
            found = [by_key[one.key] if isinstance(one, Dialogue) else one for one in found]
        return made(found)

    def _part(self, part: str, calls: Calls | None, dialogue: Dialogue) -> Dialogue | Dropped:
        if dialogue.language not in self.settings.languages:
            return dialogue
        try:
            return replace(dialogue, turns=tuple(
                self._turn(dialogue, number, turn, part, calls)
                for number, turn in enumerate(dialogue.turns)
            ))  # fmt: skip
        except InputError as error:
            if calls is not None:
                raise
            return Dropped("cannot be spoken", f"{dialogue.key}: {error}")

    def _turn(
        self, dialogue: Dialogue, number: int, turn: Exchange, part: str, calls: Calls | None
    ) -> Exchange:
        """The turn with one sound more, which is made where it is not there yet."""
        is_question = part == "questions"
        labels = dialogue.labels_at(number)
        cell = cell_of(labels) if is_question else ASSISTANT
        manner = str(labels.emotion if is_question else labels.style)
        text = str(turn.question if is_question else turn.reply)
        mark = digest(text, asdict(labels), turn.recording, depends(self.settings), self.seed)[:8]
        name = f"wav/{dialogue.key}-{number + 1}-{NAMES[part]}-{mark}.wav"
        wav, rng = self.folder / name, _rng(self.seed, dialogue.key)
        wav.parent.mkdir(parents=True, exist_ok=True)
        if not wav.exists():
            if is_question and turn.recording:
                words = _level(audio.load(Path(turn.recording)).numpy())
            else:
                words = engine_of(self.settings, part).say(text, cell, manner, rng)
            if is_question:
                chance, own = _rng(self.seed, name), self.settings
                sound = event_sound(own.events, labels, chance)
                around = speaking.Surroundings(own.room, own.noise)
                whole = speaking.staged(words, sound, chance, around)
            else:           # no room, no noise, a little silence at its ends
                whole = effects.limited(np.pad(words, RATE_HZ // 20))
            write_wav(wav, whole, RATE_HZ)
        if calls is not None and not (is_question and turn.recording):
            calls.spoken(wav.name, len(text))
        return replace(turn, **{"wav" if is_question else "reply_wav": name})


def event_sound(folder: str | None, labels: Labels, rng: Generator) -> Wave | None:
    """A recording of the event, or one made for a voice of that age and gender: (samples,)."""
    event = str(labels.event)
    if event == NO_EVENT:
        return None
    if found := _event_wavs(folder, event):
        return _level(audio.load(found[int(rng.integers(len(found)))]).numpy())
    people = [one for one in voices.all_voices("train") if "/".join(one.cell) == cell_of(labels)]
    return speaking.made_event(event, people[int(rng.integers(len(people)))], 0.0, rng)


@lru_cache
def _event_wavs(folder: str | None, event: str) -> list[Path]:
    return sorted((Path(folder) / event).glob("*.wav")) if folder else []


def _level(wave: Wave) -> Wave:
    """At the level of plain speech."""
    return effects.at_level(effects.trimmed(wave), effects.LEVEL_DB)


def _rng(seed: int, name: str) -> Generator:
    return np.random.default_rng([seed, *name.encode()])
