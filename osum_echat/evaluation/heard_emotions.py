"""The emotion of every reply of a run, each heard once and kept beside the predictions."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import InputError
from osum_echat.evaluation.delivery import Delivery
from osum_echat.evaluation.predictions import Lines, Prediction
from osum_echat.evaluation.reply_emotion import (
    MODEL,
    NAMES,
    Acoustic,
    OwnModel,
    Recogniser,
    read_neutral,
    to_json,
)  # fmt: skip
from osum_echat.evaluation.runner import Model
from osum_echat.files import write_json


@dataclass(frozen=True, slots=True)
class HeardEmotions:
    """A recogniser by name. language, style: of the plain sentences that show the voice's neutral.
    """

    model: Model
    name: str
    language: str
    style: str | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InputError(f"--reply-emotion {self.name}: not one of {', '.join(NAMES)}")

    def of(self, made: Sequence[Prediction], out: Path) -> dict[str, str]:
        """Key -> emotion of the replies that sound and whose emotion can be told."""
        found: dict[str, str] = {}
        recogniser: Recogniser | None = None
        with Lines(out / "reply_emotions.jsonl") as kept:
            for one in logs.progress(made, "reply emotion", len(made)):
                if one["wav"] is None:
                    continue
                key = f"{self.name}:{one['key']}"
                if key not in kept.found:
                    recogniser = recogniser or self._recogniser(out)
                    told = recogniser(out / one["wav"], one["text"])
                    kept.add({"key": key, "emotion": to_json(told)})
                emotion = kept.found[key]["emotion"]
                if emotion is not None:
                    found[one["key"]] = emotion["label"]
        return found

    def _recogniser(self, out: Path) -> Recogniser:
        if self.name == MODEL:
            return OwnModel(self.model.assistant)
        return Acoustic(self._neutral(out / "neutral.json"))

    def _neutral(self, place: Path) -> Delivery:
        """The voice's neutral, read out once a run."""
        if place.exists():
            try:
                return Delivery(**json.loads(place.read_bytes()))
            except (ValueError, TypeError) as error:
                raise InputError(f"{place}: cannot be used ({error}); remove it") from error
        neutral = read_neutral(self.model.assistant, self.language, self.style)
        write_json(place, asdict(neutral))
        return neutral
