"""Who can answer: each model once for every way in which it thinks, in any of the voices."""

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat import logs
from osum_echat.errors import CheckpointError, InputError
from osum_echat.serving.session import Refused

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat

KINDS = ("label", "natural")
OWN_VOICE = ""                  # the name of the model's own
MOST_UPLOADED = 32              # voices of recordings that are kept measured

LOG = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Lane:
    """One column of answers: a model, and the kind of thought that it is asked for."""

    model: str
    assistant: "EChat"
    thinking: str | None        # None: as the model does by itself

    @property
    def manner(self) -> str:
        """How it thinks: label, natural, or either where the model does not tell."""
        return self.thinking or self.assistant.thinking


def load(
    sources: Sequence[str], voices: Sequence[Path], **options: Any
) -> tuple[tuple[Lane, ...], "Voices"]:
    """Load the models, sharing what is equal, and measure the voices.

    sources: of one or two models; options: further ones of `EChat.load`. A model without a voice
    of its own speaks in the first of `voices`. Raises CheckpointError and InputError.
    """
    from osum_echat.inference.assistant import EChat

    loaded: dict[str, EChat] = {}
    for source in sources:
        LOG.info("loading %s", source)
        first = next(iter(loaded.values()), None)
        try:
            assistant = EChat.load(source, share=first, **options)
        except CheckpointError:
            if not voices:
                raise
            assistant = EChat.load(source, share=first, voice=voices[0], **options)
        loaded[_unlike(Path(source).stem, loaded)] = assistant
    return lanes_of(loaded), Voices(loaded.values(), voices)


def lanes_of(models: "Mapping[str, EChat]") -> tuple[Lane, ...]:
    """A lane for each model, two for one that is told how to think."""
    return tuple(
        Lane(name, assistant, kind)
        for name, assistant in models.items()
        for kind in (KINDS if assistant.thinking == "both" else (None,))
    )


def who_answers(lanes: Sequence[Lane], chosen: Sequence[int], thinks: bool) -> list[int]:
    """The lanes to ask: those chosen; a model answers once where no thought tells them apart.

    Raises Refused when none is chosen.
    """
    picked: dict[tuple[str, str | None], int] = {}
    for number in chosen:
        if 0 <= number < len(lanes):
            lane = lanes[number]
            picked.setdefault((lane.model, lane.thinking if thinks else None), number)
    if not picked:
        raise Refused("no_model", "no model is chosen; tick one or more")
    return list(picked.values())


class Voices:
    """Assistants by the voice that they speak in: their own, those of files, or a recording's."""

    def __init__(self, assistants: "Iterable[EChat]", files: Sequence[Path]) -> None:
        self.names = (OWN_VOICE, *(str(file) for file in files))
        self._lock = threading.Lock()
        self._made: dict[tuple[int, str], EChat] = {}
        for assistant in assistants:
            for file in files:
                self.speaking(assistant, str(file))

    def named(self, assistant: "EChat", name: str) -> "EChat":
        """The assistant in one of the given voices. Raises InputError for a name never given."""
        if name not in self.names:
            raise InputError(f"voice {name!r}: not one of those given by --voice")
        return assistant if name == OWN_VOICE else self.speaking(assistant, name)

    def recorded(self, assistant: "EChat", recording: Path) -> "EChat":
        """The assistant in the voice of a recording. Raises InputError where there is none."""
        digest = hashlib.sha256(recording.read_bytes()).hexdigest()
        return self.speaking(assistant, str(recording), digest)

    def speaking(self, assistant: "EChat", file: str, key: str | None = None) -> "EChat":
        """The assistant in the voice of a file, which is measured once."""
        wanted = (id(assistant), key or file)
        with self._lock:
            if wanted not in self._made:
                speech = assistant.model.voice
                if speech is None:
                    raise InputError("the model was loaded without speech")
                parts = replace(assistant.model, voice=speech.in_voice(speech.voice_of(file)))
                other = type(assistant)(parts, assistant.seed)
                uploaded = [made for made in self._made if made[1] not in self.names]
                if len(uploaded) >= MOST_UPLOADED:
                    del self._made[uploaded[0]]
                self._made[wanted] = other
            return self._made[wanted]


def _unlike(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken."""
    taken, number, wanted = set(taken), 2, name
    while wanted in taken:
        wanted, number = f"{name} ({number})", number + 1
    return wanted
