"""Local Hugging Face audio data sets to raw lists: parquet, saved sets, or a folder with metadata.

Metadata: metadata.jsonl, .csv or .parquet. Parquet and saved sets need pyarrow.
"""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common_utils import jobs
from common_utils.command import command
from common_utils.jobs import Job, Made, Report, Work, digest
from osum_echat.data.sources import Dropped, json_object
from osum_echat.errors import DataError, InputError
from osum_echat.files import BYTE_ORDER_MARK, Files, absolute, whole_file
from osum_echat.records import DEFAULT_TASK, Utterance

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SETS = ("*.parquet", "data-*.arrow", "dataset.arrow")   # the last two: what save_to_disk wrote
NEEDS = "needs one more package: pip install pyarrow (or -r requirements-train.txt)"
ROWS = 16  # that are in memory with their audio
TEXT_COLUMNS = ("txt", "text", "sentence", "transcription", "transcript", "normalized_text")
KEY_COLUMNS = ("key", "id", "utt_id", "segment_id")
LABEL_COLUMNS = {"emotion": "q_emotion", "age": "age", "gender": "gender"}
FOUND_NAMES = {"lang": "lang", "language": "lang", "locale": "lang", "speaker": "speaker",
               "speaker_id": "speaker", "client_id": "speaker", "gender": "gender",
               "emotion": "emotion", "task": "task"}  # fmt: skip
_SUFFIXES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
_UNFIT = re.compile(r"[^\w.-]+")


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
    places = find_places(folder, split)
    if any(one.suffix in (".parquet", ".arrow") for one in places) and not find_spec("pyarrow"):
        raise InputError(f"{folder}: {NEEDS}")
    columns, place = Columns(audio, text, key), absolute(out)
    stamps = {str(one): Files().stamp(str(one)) for one in places}
    job = Job(out, digest(task, audio, text, key, str(place), stamps),
              partial(convert, columns, task, place), places, work)  # fmt: skip
    return jobs.run(job, [*stems_of(folder, places).items()], "files")


def find_places(folder: Path, split: str | None = None) -> list[Path]:
    """The metadata, parquet or arrow files of a data set, in order.

    Raises InputError for none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a downloaded data set")
    found = [path for name in METADATA for path in sorted(folder.rglob(name))]
    for pattern in SETS:
        found = found or sorted(folder.rglob(pattern))
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


def convert(columns: Columns, task: str, out: Path, item: tuple[Path, str]) -> Made:
    """The lines of a file and its stem; embedded audio is written beside the list."""
    place, stem = item
    return Made.of(_converted(columns, task, out, place, stem))


def _converted(
    columns: Columns, task: str, out: Path, place: Path, stem: str
) -> Iterator[dict[str, Any] | Dropped]:
    for number, row in enumerate(_rows(place)):
        where = f"{place} (row {number + 1})"
        if isinstance(row, Dropped):
            yield row
            continue
        try:
            made = _line(row, columns, task, out, place, f"{stem}-{number:08d}")
            json.dumps(made, ensure_ascii=False).encode()
            Utterance.from_json(made, where, out.parent)    # can it be read as a record?
            yield made
        except UnicodeEncodeError as error:
            yield Dropped("bad row", f"{where}: half a character or bad bytes: {error}")
        except InputError as error:
            yield Dropped("bad row", f"{where}: {error}")
        except DataError as error:
            yield Dropped("bad row", str(error))


def _line(
    row: Mapping[str, Any], columns: Columns, task: str, out: Path, place: Path, name: str
) -> dict[str, Any]:
    """One record. name: of its sound, and its key where it tells none.

    Raises InputError for a row without text or audio.
    """
    text_column = columns.text or _first(row, TEXT_COLUMNS)
    text = row.get(text_column) if text_column else None
    if not isinstance(text, str):
        raise InputError(f"no text in {text_column or 'any usual column'}; give --text")
    key_column = columns.key or _first(row, KEY_COLUMNS)
    own = row.get(key_column) if key_column else None
    key = ("" if own is None else _UNFIT.sub("_", str(own).strip()).strip(".")) or name
    named = "file_name" if "file_name" in row else None
    held = (column for column, value in row.items() if _is_sound(value))
    audio_column = columns.audio or named or next(held, None)
    wav = _audio(row[audio_column], out, place, name) if audio_column else None
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


def _audio(value: Any, out: Path, place: Path, name: str) -> str:
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
    home = absolute(place.parent)
    path = absolute(home / named)
    if not path.is_relative_to(home):
        raise InputError(f"audio {named!r} lies outside of the data set")
    try:
        is_there = path.is_file()
    except (OSError, ValueError):       # a name that is too long, say
        is_there = False
    if not is_there:
        raise InputError(f"audio {named[:200]!r}: no such file")
    return str(path.relative_to(out.parent)) if path.is_relative_to(out.parent) else str(path)


def _rows(place: Path) -> Iterable[Mapping[str, Any] | Dropped]:
    """The rows of a file. Raises InputError for one that cannot be read."""
    return _arrow(place) if place.suffix in (".parquet", ".arrow") else _listed(place)


def _arrow(place: Path) -> Iterator[Mapping[str, Any] | Dropped]:
    """Rows of parquet or of a saved set: sounds as bytes and path, classes by their names.

    What follows a damaged place is lost, and told once.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        if place.suffix == ".parquet":
            file: Any = parquet.ParquetFile(place)
            schema, batches = file.schema_arrow, file.iter_batches(ROWS)
        else:
            file = pyarrow.ipc.open_stream(pyarrow.memory_map(str(place)))
            schema, batches = file.schema, file
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{place}: not a file that can be read ({error})") from error
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = told.get("info", {}).get("features", {})
    classes = {name: one["names"] for name, one in features.items()
               if isinstance(one, dict) and one.get("_type") == "ClassLabel"}  # fmt: skip
    try:
        for batch in batches:
            for number in range(len(batch)):
                try:
                    (row,) = batch.slice(number, 1).to_pylist()
                except UnicodeDecodeError as error:
                    yield Dropped("bad row", f"{place}: text is not UTF-8: {error}")
                    continue
                yield row | {
                    name: names[row[name]] for name, names in classes.items()
                    if row[name] is not None and 0 <= row[name] < len(names)
                }  # fmt: skip
    except (pyarrow.ArrowException, OSError) as error:
        yield Dropped("damaged file", f"{place}: all from here on: {error}")


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


main = command(
    make, folder="the data set as downloaded", audio="column that holds the audio",
    text="column that holds the text", key="column that holds the key",
    out="the raw jsonl list; parquet audio goes beside it, into a folder of its name",
    split="only files whose name begins so: train, test ...",
    task="task tag where no column tells one",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
