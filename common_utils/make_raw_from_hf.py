"""Local Hugging Face audio data sets to raw lists: parquet files, or a folder with metadata.

Metadata: metadata.jsonl, .csv or .parquet. Parquet needs pyarrow.
"""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common_utils import jobs
from common_utils.command import command
from common_utils.jobs import Job, Made, Report, Work, digest, stamp
from osum_echat import audio as sounds
from osum_echat.data.sources import Dropped, Noted, json_object
from osum_echat.errors import DataError, InputError
from osum_echat.files import BYTE_ORDER_MARK, absolute, whole_file
from osum_echat.records import DEFAULT_TASK, Utterance

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SAVED = "dataset_info.json"          # beside the arrow files of save_to_disk
NEEDS = "needs one more package: pip install datasets (or -r requirements-train.txt)"
PORTION = 200  # rows of metadata that a process turns into lines in one go
PARQUET_ROWS = 16  # that are in memory with their audio
TEXT_COLUMNS = ("txt", "text", "sentence", "transcription", "transcript", "normalized_text")
KEY_COLUMNS = ("key", "id", "utt_id", "segment_id")
LABEL_COLUMNS = {"emotion": "q_emotion", "age": "age", "gender": "gender"}
FOUND_NAMES = {"lang": "lang", "language": "lang", "locale": "lang", "speaker": "speaker",
               "speaker_id": "speaker", "client_id": "speaker", "gender": "gender",
               "emotion": "emotion", "task": "task"}  # fmt: skip
_SUFFIXES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
_UNFIT = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a file or saved set: `count` from `start`. group: they are one of parquet.

    stem: what rows without a key, and their sounds, are called by; no other place has the same.
    """

    place: Path
    stem: str
    start: int
    count: int
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; None: found by their usual names."""

    audio: str | None = None
    text: str | None = None
    key: str | None = None


def make(
    folder: Path, out: Path, /, work: Work, split: str | None = None, task: str = DEFAULT_TASK,
    audio: str | None = None, text: str | None = None, key: str | None = None,
) -> Report:  # fmt: skip
    """Make the raw list of a data set."""
    columns, place = Columns(audio, text, key), absolute(out)
    places = find_places(folder, split)
    if any(one.suffix == ".parquet" or one.is_dir() for one in places):
        for name in ("datasets", "pyarrow"):
            if find_spec(name) is None:
                raise InputError(f"{folder}: {NEEDS}")
    stems = stems_of(folder, places)
    items = [rows for one in places for rows in _portions(one, stems[one])]
    job = Job(
        out, digest(task, audio, text, key, str(place), [stamp(one) for one in places]),
        partial(convert, columns, task, place), places, work,
    )  # fmt: skip
    return jobs.run(job, items, "portions")


def find_places(folder: Path, split: str | None = None) -> list[Path]:
    """The metadata files, parquet files or saved sets of a data set, in order.

    Raises InputError for none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a downloaded data set")
    found = [path for name in METADATA for path in sorted(folder.rglob(name))]
    found = found or sorted(folder.rglob("*.parquet"))
    found = found or [path.parent for path in sorted(folder.rglob(SAVED))]
    if split is not None:
        inside = [(path, path.relative_to(folder).parts) for path in found]
        found = [path for path, parts in inside if any(part.startswith(split) for part in parts)]
    if not found:
        raise InputError(
            f"{folder}: no data set{f' of split {split}' if split else ''}; need *.parquet, "
            f"{', '.join(METADATA)}, or what save_to_disk wrote"
        )
    return found


def stems_of(folder: Path, places: list[Path]) -> dict[Path, str]:
    """The name of each place, or of its folder; with the way there where several have that name."""
    names = {place: place.parent.name if place.name in METADATA else place.stem for place in places}
    counts = Counter(names.values())
    return {
        place: name if counts[name] == 1 else str(place.relative_to(folder).parent / name)
        for place, name in names.items()
    }


def convert(columns: Columns, task: str, out: Path, rows: Rows) -> Made:
    """The lines of some rows; embedded audio is written beside the list."""
    return Made.of(_converted(columns, task, out, rows))


def _converted(
    columns: Columns, task: str, out: Path, rows: Rows
) -> Iterator[dict[str, Any] | Dropped | Noted]:
    for number, row in _read(rows):
        where = f"{rows.place} (row {number + 1})"
        if isinstance(row, Dropped):
            yield row
            continue
        try:
            made = _line(row, columns, task, out, rows, number)
            json.dumps(made, ensure_ascii=False).encode()
            Utterance.from_json(made, where, out.parent)    # can it be read as a record?
            if "wav" in made:
                found = sounds.read(out.parent / made["wav"], None).findings
                yield from (Noted(one.kind, f"{where}: {one.detail}") for one in found)
            yield made
        except UnicodeEncodeError as error:
            yield Dropped("bad row", f"{where}: half a character or bad bytes: {error}")
        except InputError as error:
            yield Dropped("bad row", f"{where}: {error}")
        except DataError as error:
            yield Dropped("bad row", str(error))


def _line(
    row: Mapping[str, Any], columns: Columns, task: str, out: Path, rows: Rows, number: int
) -> dict[str, Any]:
    """One record. Raises InputError for a row without text or usable audio."""
    text_column = columns.text or _first(row, TEXT_COLUMNS)
    text = row.get(text_column) if text_column else None
    if not isinstance(text, str):
        raise InputError(f"no text in {text_column or 'any usual column'}; give --text")
    key_column = columns.key or _first(row, KEY_COLUMNS)
    own = row.get(key_column) if key_column else None
    name = f"{rows.stem}-{number:08d}"
    key = ("" if own is None else _UNFIT.sub("_", str(own).strip()).strip(".")) or name
    named = "file_name" if "file_name" in row else None
    held = (name for name, value in row.items() if _is_sound(value))
    audio_column = columns.audio or named or next(held, None)
    wav = _audio(row[audio_column], out, rows, name) if audio_column else None
    line: dict[str, Any] = {"key": key, **({"wav": wav} if wav else {}), "txt": text, "task": task}
    extra: dict[str, Any] = {}
    for column, value in row.items():
        if column in (text_column, key_column, audio_column) or value in (None, ""):
            continue
        if column in FOUND_NAMES and isinstance(value, str):
            line[FOUND_NAMES[column]] = value
        if column in LABEL_COLUMNS and isinstance(value, str):
            extra[LABEL_COLUMNS[column]] = value
        elif column not in FOUND_NAMES and isinstance(value, str | int | float | bool | list):
            extra[column] = value
    return line | {"extra": extra}


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _is_sound(value: object) -> bool:
    return isinstance(value, Mapping) and {"bytes", "path"} <= set(value)


def _audio(value: Any, out: Path, rows: Rows, name: str) -> str:
    """Where a row's sound lies as seen from the list; embedded sound is written there."""
    held = value.get("bytes") if _is_sound(value) else None
    if held:
        suffix = _SUFFIXES.get(held[:4], "mp3")
        path = out.parent / out.stem / f"{name}.{suffix}"
        with whole_file(path) as file:
            file.write(held)
        return str(path.relative_to(out.parent))
    named = value.get("path") if _is_sound(value) else value
    if not isinstance(named, str) or not named:
        raise InputError("no audio: neither bytes nor a path")
    home = absolute(rows.place.parent)
    path = absolute(home / named)
    if not path.is_relative_to(home):
        raise InputError(f"audio {named!r} lies outside of the data set")
    return str(path.relative_to(out.parent)) if path.is_relative_to(out.parent) else str(path)


def _portions(place: Path, stem: str) -> Iterator[Rows]:
    """A parquet file by its row groups, which are read as a whole; others by row numbers."""
    if place.suffix == ".parquet":
        metadata, start = _parquet(place).metadata, 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            yield Rows(place, stem, start, count, group)
            start += count
        return
    total = len(_saved(place) if place.is_dir() else _listed(place))
    for start in range(0, total, PORTION):
        yield Rows(place, stem, start, min(PORTION, total - start))


def _read(rows: Rows) -> Iterator[tuple[int, Mapping[str, Any] | Dropped]]:
    """The numbers and values of a portion's rows."""
    if rows.group is not None:
        yield from enumerate(_of_group(rows), rows.start)
    elif rows.place.is_dir():
        part = _saved(rows.place).select(range(rows.start, rows.start + rows.count))
        yield from enumerate(_plain(part), rows.start)
    else:
        yield from enumerate(_listed(rows.place)[rows.start : rows.start + rows.count], rows.start)


def _of_group(rows: Rows) -> Iterator[Mapping[str, Any] | Dropped]:
    """The rows of a group; what follows a damaged place is lost, and told once."""
    import pyarrow
    from datasets import Dataset

    file = _parquet(rows.place)
    try:
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=[rows.group]):
            yield from _plain(Dataset(pyarrow.Table.from_batches([batch])))
    except (pyarrow.ArrowException, OSError) as error:
        yield Dropped("damaged parquet", f"{rows.place} group {rows.group}: {error}")


def _plain(rows: Any) -> Iterator[Mapping[str, Any] | Dropped]:
    """Rows of a Dataset: sounds as bytes and path, not decoded; classes by their names."""
    from datasets import Audio, ClassLabel

    for name, feature in rows.features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(name, Audio(decode=False))
    classes = {name: feature for name, feature in rows.features.items()
               if isinstance(feature, ClassLabel)}  # fmt: skip
    for number in range(len(rows)):
        try:
            row = rows[number]
        except UnicodeDecodeError as error:
            yield Dropped("bad row", f"text is not UTF-8: {error}")
            continue
        yield row | {
            name: feature.int2str(row[name]) for name, feature in classes.items()
            if row[name] is not None and 0 <= row[name] < feature.num_classes
        }  # fmt: skip


@lru_cache(maxsize=1)
def _listed(file: Path) -> list[Mapping[str, Any] | Dropped]:
    """The rows of metadata.jsonl or metadata.csv; one that cannot be read is one row lost."""
    try:
        if file.suffix == ".csv":
            text = file.read_bytes().removeprefix(BYTE_ORDER_MARK)
            told = io.StringIO(text.decode(errors="surrogateescape"), newline="\n")
            return [
                row if None not in (*row, *row.values())    # a comma without quotation marks, say
                else Dropped("bad row", f"{file}: {[*row.values()]}: not a cell for each column")
                for row in csv.DictReader(told)
            ]
        with file.open("rb") as lines:
            return [_object(line, f"{file} line {number}", file)
                    for number, line in enumerate(lines, 1) if line.strip()]  # fmt: skip
    except (OSError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def _object(line: bytes, where: str, file: Path) -> Mapping[str, Any] | Dropped:
    row = json_object(line, where, str(file))
    return Dropped("bad row", f"{row.detail} ({row.reason})") if isinstance(row, Dropped) else row


@lru_cache(maxsize=1)
def _saved(folder: Path) -> Any:
    """What save_to_disk wrote."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a saved data set that can be read ({error})") from error


def _parquet(file: Path) -> Any:
    from pyarrow import lib, parquet

    try:
        return parquet.ParquetFile(file)
    except (lib.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a parquet file that can be read ({error})") from error


main = command(
    make, folder="the data set as downloaded", audio="column that holds the audio",
    text="column that holds the text", key="column that holds the key",
    out="the raw jsonl list; parquet audio goes beside it, into a folder of its name",
    split="only files whose name begins so: train, test ...",
    task="task tag where no column tells one",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
