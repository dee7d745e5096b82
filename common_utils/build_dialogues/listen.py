"""The sound, listened to: are the words heard, is it one speaker, do the labels come through?"""

from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import torch

from common_utils.build_dialogues.dialogue import (
    LANGUAGES,
    Calls,
    Dialogue,
    EndpointSettings,
    dialogues_of,
    made,
)
from common_utils.jobs import Made, Piece
from osum_echat import audio, metrics
from osum_echat.data.sources import Dropped
from osum_echat.errors import ConfigError
from osum_echat.evaluation.runner import Model
from osum_echat.evaluation.tts import Recogniser, recogniser
from osum_echat.inference.assistant import EChat
from osum_echat.inference.load import token2wav_place
from osum_echat.settings import check_word
from osum_echat.thinking import VALUES
from osum_echat.token2wav.model import SPEAKER_FILES, find_files, first_of
from osum_echat.token2wav.voice import SpeakerEncoder


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """recognizer: a faster-whisper folder, own-model or endpoint; null: words are not checked.

    most_errors: of a text, as a share of its words or Chinese characters; labels: those that the
    model must hear as planned in the question; speaker: a model directory or speaker encoder whose
    vectors of a dialogue's questions must be at least so alike.
    """

    recognizer: str | None = None
    endpoint: EndpointSettings | None = None
    most_errors: float = 0.25
    model: str = "small"
    labels: tuple[str, ...] = ()
    speaker: str | None = None
    least_alike: float = 0.5

    def __post_init__(self) -> None:
        if self.recognizer == "endpoint" and self.endpoint is None:
            raise ConfigError("listen.endpoint: missing; recognizer: endpoint needs model and url")
        for name in self.labels:
            check_word("listen.labels", name, VALUES)


@dataclass(frozen=True, slots=True)
class Listening:
    """The step: a portion of spoken dialogues to those that are heard as planned."""

    settings: ListenSettings
    folder: Path
    calls: Path

    def __call__(self, portion: Piece) -> Made:
        dialogues, own = dialogues_of(portion), self.settings
        if own.recognizer == "endpoint" and own.endpoint is not None:
            with Calls(own.endpoint, self.calls, portion) as calls:

                def hear(wav: Path, language: str) -> str:
                    seconds = audio.length(wav) / audio.SAMPLE_RATE_HZ
                    return calls.transcription(wav, seconds, language)

                return made(calls.each(partial(self._heard, hear), dialogues))
        heard = _recogniser(own.recognizer, own.model) if own.recognizer else None
        return made(self._heard(heard, one) for one in dialogues)

    def _heard(self, hear: Recogniser | None, dialogue: Dialogue) -> Dialogue | Dropped:
        """The dialogue, or the first thing that is not heard as planned."""
        questions = [self.folder / one.wav for one in dialogue.turns if one.wav]
        if not questions:
            return dialogue
        for turn in dialogue.turns if hear else ():
            for what, wav, text in (("question", turn.wav, turn.question),
                                    ("reply", turn.reply_wav, turn.reply)):  # fmt: skip
                if hear and wav and text:
                    words = hear(self.folder / wav, LANGUAGES[dialogue.language])
                    if errors(text, words) > self.settings.most_errors:
                        return Dropped(f"{what}: other words are heard",
                                       f"{dialogue.key}: {words!r} for {text!r}")  # fmt: skip
        if self.settings.labels:
            found = _model(self.settings.model).reply(
                questions[-1], task="understand", labels=self.settings.labels, greedy=True)
            for name in self.settings.labels:
                label, planned = (getattr(one, name) for one in (found.labels, dialogue.labels))
                if label != planned:
                    return Dropped(f"another {name} is heard", f"{dialogue.key}: {label}")
        if self.settings.speaker and len(questions) > 1:
            alike = likeness(self.settings.speaker, questions)
            if alike < self.settings.least_alike:
                return Dropped("another speaker is heard", f"{dialogue.key}: {alike:.2f}")
        return dialogue


def errors(text: str, heard: str) -> float:
    """Errors as a share of the words, or characters in Chinese."""
    unit = "character" if metrics.language_of(text) == "chinese" else "word"
    return metrics.error_rate([metrics.normalised_pair(text, heard)], unit).rate


def likeness(speaker: str, wavs: list[Path]) -> float:
    """The least cosine between one recording and the next."""
    vectors = [_encoder(speaker)(audio.load(wav)) for wav in wavs]
    return min(torch.cosine_similarity(one, two).item() for one, two in pairwise(vectors))


@lru_cache(maxsize=1)
def _model(source: str) -> EChat:
    return EChat.load(source, speaks=False)


@lru_cache(maxsize=1)
def _recogniser(name: str, source: str) -> Recogniser:
    return recogniser(name, Model(source, partial(_model, source)))


@lru_cache(maxsize=1)
def _encoder(source: str) -> SpeakerEncoder:
    place = token2wav_place(source)
    return SpeakerEncoder(first_of(find_files(place), SPEAKER_FILES, place))
