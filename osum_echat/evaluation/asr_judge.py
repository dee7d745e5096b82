"""What a recogniser hears in synthetic speech: faster-whisper of a directory, or our own model."""

from pathlib import Path
from typing import Any, Protocol

from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.evaluation.runner import Model

OWN = "own-model"
LANGUAGES = {"english": "en", "chinese": "zh"}


class Listener(Protocol):
    """Writes down what it hears."""

    name: str

    def __call__(self, wav: Path, language: str) -> str:
        """language: english or chinese."""


class OwnModel:
    """The asr task of the model under test. It may have learnt the faults that it listens for."""

    name = OWN

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, wav: Path, language: str) -> str:
        return self.model.assistant.reply(wav, task="asr", greedy=True).heard or ""


class FasterWhisper:
    """A Whisper in CTranslate2's layout. Raises InputError for a folder that is none."""

    def __init__(self, directory: Path) -> None:
        self.name = f"faster-whisper {directory.name}"
        for name in ("model.bin", "tokenizer.json"):
            if not (directory / name).is_file():
                raise InputError(f"--asr {directory}: no {name}; give a faster-whisper directory, "
                                 f"or {OWN}")
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise InputError(f"--asr: {error}; pip install -r requirements-bench.txt") from error
        self._model: Any = WhisperModel(str(directory), device="auto", compute_type="float32")

    def __call__(self, wav: Path, language: str) -> str:
        samples = audio.load(wav).numpy()
        segments, _ = self._model.transcribe(
            samples, language=LANGUAGES[language], beam_size=5, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


def listener(name: str, model: Model) -> Listener:
    """The recogniser of that name or folder."""
    return OwnModel(model) if name == OWN else FasterWhisper(Path(name))
