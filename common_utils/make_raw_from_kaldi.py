"""Kaldi data folders to raw lists: wav.scp, text, segments and any utt2* files."""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common_utils import jobs
from common_utils.jobs import Job, Made, Report, Work, digest, stamp
from osum_echat import audio
from osum_echat.data.sources import Dropped, Noted
from osum_echat.errors import InputError
from osum_echat.files import absolute, read_lines
from osum_echat.logs import logger
from osum_echat.records import DEFAULT_TASK

NAME = "make_raw_from_kaldi.py"
PORTION = 200  # utterances that a process looks at in one go
NAMES = {"spk": "speaker", "lang": "lang", "gender": "gender", "emotion": "emotion", "task": "task"}
LABELS = {"gender": "gender", "emotion": "q_emotion"}  # also wanted as labels of the voice
NUMBERS = {"dur": "duration"}
NOT_TOLD = {"num_frames", "uniq", "num_samples"}  # utt2* files of features and recipes
SPEAKER_FILES = {"spk2gender": "gender"}
BLANKS = " \t\r\n"
ARCHIVE = re.compile(r"\.ark(:\d+(\[[\d:,]*\])?)?$")  # raw.ark, raw.ark:17, raw.ark:17[0:99]
TO_FILES = (
    "write the audio to files (Kaldi: wav-copy scp:wav.scp scp:new.scp, where new.scp names a wav "
    "for each id) and name those"
)

LOG = logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One utterance as the folder's files tell it."""

    key: str
    text: str
    audio: str
    segment_s: tuple[float, float] | None
    told: dict[str, str]  # from utt2*: the part after `utt2` -> its value


def make(
    folder: Path, out: Path, /, work: Work, task: str = DEFAULT_TASK, root: Path = Path()
) -> Report:
    """Make the raw list of a data folder."""
    entries, lost = read_folder(folder)
    portions: list[list[Entry | Dropped]] = [
        [*entries[at : at + PORTION]] for at in range(0, len(entries), PORTION)
    ]
    if lost:
        portions.append([*lost])
    start, beside = absolute(root), absolute(out.parent)

    def fingerprint(portion: list[Entry | Dropped]) -> str:
        return digest([(str(one), stamp(start / one.audio) if isinstance(one, Entry) else None)
                       for one in portion])  # fmt: skip

    job = Job(
        out, digest(task, str(start), str(beside)), partial(describe, start, beside, task),
        fingerprint, list(_files(folder)), work,
    )  # fmt: skip
    return jobs.run(job, portions, "utterances")


def read_folder(folder: Path) -> tuple[list[Entry], list[Dropped]]:
    """The utterances of `text` in order, and those without audio or with a broken segment.

    Raises InputError for a folder without wav.scp or text, or without one that can be used.
    """
    lost: list[Dropped] = []
    recordings, texts = _table(folder / "wav.scp"), _table(folder / "text", lost)
    segments = _table(folder / "segments") if (folder / "segments").exists() else None
    told = _told(folder)
    entries: list[Entry] = []
    for key, text in texts.items():
        recording, segment = key, None
        if segments is not None:
            if key not in segments:
                lost.append(Dropped("not in segments", f"{folder / 'segments'}: {key}"))
                continue
            try:
                recording, segment = _segment(segments[key])
            except ValueError:
                lost.append(Dropped("bad segment", f"{folder / 'segments'}: {key}"))
                continue
        where = f"{folder / 'wav.scp'}: {recording}"
        problem = _problem(recordings.get(recording))
        if problem is not None:
            lost.append(Dropped("no sound file in wav.scp", f"{where}: {problem}"))
            continue
        own = {name: table[key] for name, table in told.items() if key in table}
        entries.append(Entry(key, text, recordings[recording], segment, own))
    if not entries:
        first = f"; the first: {lost[0].detail}" if lost else ""
        raise InputError(f"{folder}: no utterance of `text` has audio that can be used{first}")
    return entries, lost


def _segment(told: str) -> tuple[str, tuple[float, float]]:
    """Recording, start and end in seconds; an end of -1 is that of the recording: infinity.

    Raises ValueError.
    """
    recording, *times = told.split()
    start, end = map(float, times)
    end = math.inf if end == -1 else end
    if not 0 <= start < end:
        raise ValueError
    return recording, (start, end)


def describe(root: Path, beside: Path, task: str, portion: list[Entry | Dropped]) -> Made:
    """The lines of some utterances; those whose audio cannot be decoded are left out."""
    return Made.of(one for entry in portion for one in (
        [entry] if isinstance(entry, Dropped) else _described(root, beside, task, entry)))


def _described(
    root: Path, beside: Path, task: str, entry: Entry
) -> Iterator[dict[str, Any] | Dropped | Noted]:
    path = root / entry.audio
    try:
        sound = audio.read(path, None, entry.segment_s)
    except InputError as error:
        yield Dropped("audio cannot be used", f"{entry.key}: {error}")
        return
    found = [Noted(one.kind, f"{entry.key}: {path}: {one.detail}") for one in sound.findings]
    beyond = [Dropped("bad segment", one.detail) for one in found if one.reason == audio.BEYOND]
    yield from beyond or found
    if not beyond:
        length_s = len(sound.samples) / sound.rate_hz
        yield _row(entry, task, _relative(path, beside), length_s)


def _row(entry: Entry, task: str, wav: str, length_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {"key": entry.key, "wav": wav, "txt": entry.text, "task": task}
    extra: dict[str, Any] = {}
    for name, value in entry.told.items():
        if name in NAMES:
            row[NAMES[name]] = value
        if name in LABELS:
            extra[LABELS[name]] = {"m": "MALE", "f": "FEMALE"}.get(value.lower(), value)
        elif name not in NAMES and name not in NUMBERS:
            extra[name] = value
    if entry.segment_s is not None:
        start, end = entry.segment_s
        row["start"], row["end"] = start, end if end < math.inf else round(start + length_s, 3)
    extra["duration"] = round(length_s, 3)
    return row | {"extra": extra}


def _relative(path: Path, folder: Path) -> str:
    """As seen from the folder of the list where it lies below, or else absolute.

    As written: a link stays one.
    """
    path = absolute(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _told(folder: Path) -> dict[str, dict[str, str]]:
    """The tables of utt2* by what they tell, and of spk2gender for each utterance."""
    told = {}
    for path in _files(folder):
        name = path.name.removeprefix("utt2")
        if path.name.startswith("utt2") and name not in NOT_TOLD:
            told[name] = _table(path)
    for file, name in SPEAKER_FILES.items():
        if (folder / file).exists() and "spk" in told and name not in told:
            table = _table(folder / file)
            told[name] = {key: table[who] for key, who in told["spk"].items() if who in table}
    return told


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_ours = path.name in {"wav.scp", "text", "segments", *SPEAKER_FILES}
        if path.is_file() and (is_ours or path.name.startswith("utt2")):
            yield path


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


def _problem(place: str | None) -> str | None:
    """Why a place in wav.scp names no sound file; commands are never run, archives not read."""
    if not place:
        return "no path of an audio file behind the id" if place == "" else "no such id"
    if place.endswith("|"):
        return f"a command ({place[:60]!r}); commands are not run: {TO_FILES}"
    if ARCHIVE.search(place):
        return f"{place!r} is a place in an archive of Kaldi's own: {TO_FILES}"
    return None


main = jobs.tool(
    NAME, make, folder="with wav.scp and text", out="the raw jsonl list to write",
    task="task tag where utt2task tells none",
    root="where relative paths of wav.scp start (default: here)",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
