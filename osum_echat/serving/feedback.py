"""What is kept: opinions on replies, lines of jsonl that a data list could hold, and live turns."""

import hashlib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat import logs
from osum_echat.errors import InputError
from osum_echat.files import whole_file, write_json
from osum_echat.records import LIST_KEYS
from osum_echat.serving.audio_formats import encode_file

if TYPE_CHECKING:
    from osum_echat.inference.reply import Reply
    from osum_echat.serving.session import Question

VERDICTS = ("correct", "incorrect")
LONGEST_NOTE = 1000             # characters
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".webm")
LOG = logs.logger(__name__)


class Feedback:
    """Appends to one file; the sounds lie in `audio/` beside it, named by their content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def add(
        self, verdict: str, note: str, question: "Question", reply: "Reply", model: str
    ) -> dict[str, Any]:
        """Write one line and give it back.

        Raises InputError for an unknown verdict and where nothing can be written.
        """
        if verdict not in VERDICTS:
            raise InputError(f"verdict {verdict!r}: not one of {', '.join(VERDICTS)}")
        now = datetime.now(UTC)
        try:
            with self._lock:
                line = _line(verdict, note[:LONGEST_NOTE], question, reply, model, now)
                line["wav"] = self._keep(question.clip, Path(question.name).suffix.lower())
                line["extra"]["a_wav_path"] = self._keep(_sound(reply), ".wav")
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: not written ({error.strerror}); choose another place "
                             "by --feedback") from error  # fmt: skip
        return line

    def _keep(self, data: bytes | None, suffix: str) -> str | None:
        """Save a sound beside the list, once; its path from there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            return None
        suffix = suffix if suffix in SUFFIXES else ".wav"
        place = Path("audio") / f"{hashlib.sha256(data).hexdigest()[:20]}{suffix}"
        file = self.path.parent / place
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(data)
        return str(place)


def _line(
    verdict: str, note: str, question: "Question", reply: "Reply", model: str, now: datetime
) -> dict[str, Any]:
    labels = {told: getattr(reply.labels, name) for name, told in LIST_KEYS.items()}
    return {
        "key": f"feedback_{now:%Y%m%dT%H%M%S%f}",
        "wav": None,
        "txt": reply.text,
        "task": reply.task,
        "verdict": verdict,
        "note": note,
        "model": model,
        "time": now.isoformat(timespec="seconds"),
        "seed": question.seed,
        "extra": {
            "q_txt": reply.heard, "question": question.text or None, "think_str": reply.thought,
            "speech_token": list(reply.speech_tokens),
            **{name: label for name, label in labels.items() if label},
        },
    }  # fmt: skip


def _sound(reply: "Reply") -> bytes | None:
    """The sound of a reply as a wav file, if it has one."""
    if reply.wave is None or reply.sample_rate_hz is None:
        return None
    return encode_file(reply.wave.numpy(), reply.sample_rate_hz, "wav")


def recorder(folder: Path | None) -> Any:
    """Keeps each turn of the live server, where its owner asked for it. Raises InputError."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--record {folder}: {error.strerror}; choose another folder") from error

    def keep(session: str, number: int, item: Any, reply: Any) -> None:
        place = folder / session / f"{number:04d}"
        try:
            if item.clip:
                with whole_file(place.with_suffix(".wav")) as file:
                    file.write(item.clip)
            write_json(place.with_suffix(".json"), {
                "heard": item.text, "x_osum": item.perception, "reply": reply.text,
                "status": reply.status,
            })  # fmt: skip
        except InputError as error:
            LOG.error("--record: %s", error)

    return keep
