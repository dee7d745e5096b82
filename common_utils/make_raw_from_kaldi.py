"""Kaldi data folders to raw lists: wav.scp, text, segments and any utt2* files."""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common_utils.command import command
from common_utils.jobs import Report, write_list
from osum_echat import audio
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.files import absolute, read_lines
from osum_echat.logs import logger
from osum_echat.records import DEFAULT_TASK

NAMES = {"spk": "speaker", "lang": "lang", "gender": "gender", "emotion": "emotion", "task": "task"}
LABELS = {"gender": "gender", "emotion": "q_emotion"}  # also wanted as labels of the voice
GENDERS = {"m": "MALE", "f": "FEMALE"}
NOT_TOLD = {"dur", "num_frames", "uniq", "num_samples"}  # utt2* files of features and recipes
BLANKS = " \t\r\n"
ARCHIVE = re.compile(r"\.ark(:\d+(\[[\d:,]*\])?)?$")  # raw.ark, raw.ark:17, raw.ark:17[0:99]
TO_FILES = (
    "write the audio to files (Kaldi: wav-copy scp:wav.scp scp:new.scp, where new.scp names a wav "
    "for each id) and name those"
)

LOG = logger(__name__)


def make(folder: Path, out: Path, /, task: str = DEFAULT_TASK, root: Path = Path()) -> Report:
    """Make the raw list of a data folder. Sounds are looked for, and decoded when they are used."""
    found = rows(folder, absolute(root), absolute(out.parent), task)
    return write_list(out, found, folder.glob("*"))


def rows(folder: Path, root: Path, beside: Path, task: str) -> Iterator[dict[str, Any] | Dropped]:
    """The utterances of `text` in order, and why some cannot be used.

    beside: the folder of the list, from which audio below it is named; other audio is absolute, as
    written: a link stays one. Raises InputError for a folder without wav.scp or text.
    """
    lost: list[Dropped] = []
    recordings, texts = _table(folder / "wav.scp"), _table(folder / "text", lost)
    segments = _table(folder / "segments") if (folder / "segments").exists() else None
    told = _told(folder)
    yield from lost
    for key, text in texts.items():
        recording, *times = [key] if segments is None else segments.get(key, "").split() or [""]
        if not recording:
            yield Dropped("not in segments", f"{folder / 'segments'}: {key}")
            continue
        place = recordings.get(recording)
        if problem := _problem(place, root):
            where = f"{folder / 'wav.scp'}: {recording}"
            yield Dropped("no sound file in wav.scp", f"{where}: {problem}")
            continue
        path = absolute(root / str(place))
        try:
            segment = _segment(times, path) if segments is not None else {}
        except (ValueError, InputError) as error:
            yield Dropped("bad segment", f"{folder / 'segments'}: {key}: {error}")
            continue
        wav = str(path.relative_to(beside)) if path.is_relative_to(beside) else str(path)
        own = {name: table[key] for name, table in told.items() if key in table}
        named = {NAMES[name]: value for name, value in own.items() if name in NAMES}
        yield {"key": key, "wav": wav, "txt": text, "task": task, **named, **segment,
               "extra": _extra(own)}  # fmt: skip


def _extra(told: Mapping[str, str]) -> dict[str, str]:
    """What goes into `extra`: labels of the voice, and what the lists have no name for."""
    found = {LABELS.get(name, name): value for name, value in told.items()
             if name in LABELS or name not in NAMES}  # fmt: skip
    gender = GENDERS.get(told.get("gender", "").lower())
    return found | ({"gender": gender} if gender else {})


def _segment(times: list[str], path: Path) -> dict[str, float]:
    """Start and end in seconds; an end of -1 is that of the recording.

    Raises ValueError, InputError.
    """
    start, end = map(float, times)
    if end == -1:
        end = round(audio.length(path) / audio.SAMPLE_RATE_HZ, 3)
    if not 0 <= start < end:
        raise ValueError(f"{start} to {end} s")
    return {"start": start, "end": end}


def _told(folder: Path) -> dict[str, dict[str, str]]:
    """The tables of utt2* by what they tell, and of spk2gender for each utterance."""
    told = {path.name.removeprefix("utt2"): _table(path) for path in sorted(folder.glob("utt2*"))
            if path.is_file() and path.name.removeprefix("utt2") not in NOT_TOLD}  # fmt: skip
    if (folder / "spk2gender").exists() and "spk" in told and "gender" not in told:
        table = _table(folder / "spk2gender")
        told["gender"] = {key: table[who] for key, who in told["spk"].items() if who in table}
    return told


def _table(path: Path, lost: list[Dropped] | None = None) -> dict[str, str]:
    """A file of `id rest of the line`, split at the first white space of any kind.

    lost: lines that cannot be read are added to it; None: they are told in the log.
    """
    table: dict[str, str] = {}

    def left_out(told: str) -> None:
        if lost is None:
            LOG.warning("%s; the line is left out", told)
        else:
            lost.append(Dropped("text is not UTF-8", told))

    for number, text in read_lines(path, "wav.scp and text are needed", left_out):
        key, *rest = re.split(r"\s", text.strip(BLANKS), maxsplit=1)
        if key in table:
            raise InputError(f"{path} line {number}: {key} for the second time; sort out the ids")
        table[key] = rest[0].strip(BLANKS) if rest else ""
    return table


def _problem(place: str | None, root: Path) -> str | None:
    """Why a place in wav.scp names no sound file; commands are never run, archives not read."""
    if not place:
        return "no path of an audio file behind the id" if place == "" else "no such id"
    if place.endswith("|"):
        return f"a command ({place[:60]!r}); commands are not run: {TO_FILES}"
    if ARCHIVE.search(place):
        return f"{place!r} is a place in an archive of Kaldi's own: {TO_FILES}"
    return None if (root / place).is_file() else f"{root / place}: no such file"


main = command(
    make, folder="with wav.scp and text", out="the raw jsonl list to write",
    task="task tag where utt2task tells none",
    root="where relative paths of wav.scp start (default: here)",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
