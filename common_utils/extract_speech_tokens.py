"""Speech tokens of the recordings in a raw list, by the ONNX tokenizer, into the list's `extra`.

A process listens to a portion of recordings in one go, but to one at a time: the input of the
published file, and of those like it, is (1, mels, frames), so that a run holds one clip, and two
clips in a row would hear each other. What makes it faster is more processes, a core each.
"""

import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common_utils import jobs
from common_utils.command import command
from common_utils.jobs import Job, Made, Piece, Report, Work, digest
from osum_echat import audio
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.paths import TINY
from osum_echat.records import Utterance
from osum_echat.tasks import task_for
from osum_echat.token2wav.model import TOKENIZER_FILES
from osum_echat.token2wav.voice import SpeechTokenizer

PORTION = 16  # recordings that a process listens to in one go
TOKENS, REPLY_AUDIO, USER_AUDIO = "speech_token", "a_wav_path", "wav"


@dataclass(frozen=True, slots=True)
class Extraction:
    """Which recording of a record is listened to. field: wav, or one of `extra`; None: by task."""

    tokenizer: Path
    beside: Path  # the folder of the new list
    field: str | None = None
    keep: bool = False  # tokens that a record has already

    def __call__(self, piece: Piece) -> Made:
        """The records of a piece with their tokens, and those whose audio cannot be used."""
        return Made.of(
            raw if isinstance(raw, Dropped) else self._with_tokens(raw, where, piece.path)
            for where, raw in jobs.records(piece)
        )

    def _with_tokens(
        self, raw: dict[str, Any], where: str, path: Path
    ) -> dict[str, Any] | Dropped:
        """The record with tokens, or why it has none."""
        root = path.parent.resolve()
        try:
            utterance = Utterance.from_json(raw, where, root)
            is_silent = self.field is None and not task_for(utterance.task).speaks
            if is_silent or (self.keep and utterance.user.reply_speech):
                return _moved(raw, root, self.beside)
            given = raw.get("extra") or {}
            extra = dict(json.loads(given) if isinstance(given, str) else given)
            # A task that hears has the user in `wav`; of one that only speaks it is the reply.
            hears = self.field is None and task_for(utterance.task).hears
            field = self.field or (REPLY_AUDIO if hears else USER_AUDIO)
            name = raw.get(USER_AUDIO) if field == USER_AUDIO else extra.get(field)
            if not isinstance(name, str) or not name:
                return Dropped("no recording of the reply", f"{where}: no {field}; see --field")
            segment_s = utterance.user.segment_s if field == USER_AUDIO else None
            samples = audio.load(root / name, segment_s=segment_s)
            codes = _tokenizer(self.tokenizer)(samples, str(root / name))
        except InputError as error:
            return Dropped("audio or task cannot be used", f"{where}: {error}")
        except ValueError as error:
            return Dropped("bad record", str(error))
        return _moved(raw | {"extra": extra | {TOKENS: codes}}, root, self.beside)


def make(
    raw: Path, out: Path, /, work: Work, tokenizer: Path = TINY, field: str | None = None,
    keep: bool = False,
) -> Report:  # fmt: skip
    """Make the list again with tokens: 25 a second of the reply."""
    place, beside = find_tokenizer(tokenizer), out.parent.resolve()
    _tokenizer(place)  # what is wrong with it is told before the work begins
    job = Job(out, digest(place, field, keep, str(beside), raw),
              Extraction(place, beside, field, keep), [raw], work)  # fmt: skip
    return jobs.run(job, jobs.pieces(raw, PORTION), f"{PORTION} recordings")


def find_tokenizer(place: Path) -> Path:
    """The ONNX file itself, or the one in a model's folder."""
    folders = (place, place / "token2wav")
    candidates = [place, *(folder / name for folder in folders for name in TOKENIZER_FILES)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise InputError(f"{place}: no {' or '.join(TOKENIZER_FILES)} there; give --tokenizer")
    return found


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> SpeechTokenizer:
    return SpeechTokenizer(path)


def _moved(raw: dict[str, Any], root: Path, beside: Path) -> dict[str, Any]:
    """The record for a list in another folder: relative audio paths would start there."""
    if root == beside:
        return raw

    def moved(fields: dict[str, Any]) -> dict[str, Any]:
        named = {name: root / value for name, value in fields.items()
                 if (name.partition("_")[0] == USER_AUDIO or name == REPLY_AUDIO)
                 and isinstance(value, str) and value}  # fmt: skip
        return fields | {name: str(place) for name, place in named.items() if place.exists()}

    extra = raw.get("extra")
    return moved(raw) | ({"extra": moved(extra)} if isinstance(extra, dict) else {})


main = command(
    make, raw="raw jsonl list; audio paths start at its folder", out="the new list",
    tokenizer="ONNX file, or a model or CosyVoice folder (default: the tiny model)",
    field="what to listen to: wav or a field of extra (default: wav for tasks that only speak, "
    "a_wav_path for those that hear wav)", keep="leave records with tokens as they are",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
