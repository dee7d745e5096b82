"""Local Hugging Face audio data sets to raw lists: parquet files, or a folder with metadata."""

import argparse
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from osum_echat.corpus.jobs import Job, Made, Report, plan_of, run
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.files import whole_file

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
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
    """A portion of a data set: `count` rows from `start`. group: of a parquet file, they are it."""

    file: Path
    start: int
    count: int
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; None: found by their usual names."""

    audio: str | None = None
    text: str | None = None
    key: str | None = None


def run_arguments(chosen: argparse.Namespace) -> Report:
    """Make the list that parsed arguments ask for."""
    columns = Columns(chosen.audio, chosen.text, chosen.key)
    files = find_files(chosen.folder, chosen.split)
    told = [(str(path), path.stat().st_size) for path in files]
    plan = plan_of(
        files=told, task=chosen.task, columns=[columns.audio, columns.text, columns.key],
        out=str(chosen.out.resolve()),
    )  # fmt: skip
    items = [rows for file in files for rows in _portions(file)]
    made = partial(convert, columns, chosen.task, chosen.out.resolve())
    return run(Job.of(chosen, chosen.out, plan), made, items, "portions")


def find_files(folder: Path, split: str | None = None) -> list[Path]:
    """The parquet or metadata files of a data set, in order. Raises InputError for none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a downloaded data set")
    found = [path for name in METADATA for path in sorted(folder.rglob(name))]
    if not found:
        found = sorted(folder.rglob("*.parquet"))
    if split is not None:
        inside = [(path, path.relative_to(folder).parts) for path in found]
        found = [path for path, parts in inside if any(part.startswith(split) for part in parts)]
    if not found:
        arrow = next(folder.rglob("*.arrow"), None)
        hint = (
            f"{arrow.name} was written by save_to_disk: use to_parquet" if arrow
            else f"need *.parquet or {', '.join(METADATA)}"
        )  # fmt: skip
        raise InputError(f"{folder}: no data set{f' of split {split}' if split else ''}; {hint}")
    return found


def convert(columns: Columns, task: str, out: Path, rows: Rows) -> Made:
    """The lines of some rows; embedded audio is written beside the list."""
    lines, left_out = [], []
    for number, row in _read(rows):
        where = f"{rows.file} (row {number + 1})"
        try:
            line = _line(row, columns, task, out, rows, number)
            lines.append(json.dumps(line, ensure_ascii=False))
        except InputError as error:
            left_out.append(Dropped("bad row", f"{where}: {error}"))
    return Made(lines, left_out)


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
    stem = rows.file.stem if rows.file.name not in METADATA else rows.file.parent.name
    key = _UNFIT.sub("_", str(own)).strip(".") if own is not None else f"{stem}-{number:08d}"
    audio_column = columns.audio or _audio_column(row)
    wav = _audio(row[audio_column], out, rows, f"{stem}-{number:08d}") if audio_column else None
    line: dict[str, Any] = {"key": key, **({"wav": wav} if wav else {}), "txt": text, "task": task}
    extra: dict[str, Any] = {}
    for name, value in row.items():
        if name in (text_column, key_column, audio_column) or value in (None, ""):
            continue
        if name in FOUND_NAMES and isinstance(value, str):
            line[FOUND_NAMES[name]] = value
        if name in LABEL_COLUMNS and isinstance(value, str):
            extra[LABEL_COLUMNS[name]] = value
        elif name not in FOUND_NAMES and isinstance(value, str | int | float | bool | list):
            extra[name] = value
    return line | {"extra": extra}


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _audio_column(row: Mapping[str, Any]) -> str | None:
    """The column of a sound: file_name, or one that holds bytes and a path."""
    if "file_name" in row:
        return "file_name"
    return next((name for name, value in row.items() if _is_sound(value)), None)


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
    home = rows.file.parent.resolve()
    path = (home / named).resolve()
    if not path.is_relative_to(home):
        raise InputError(f"audio {named!r} lies outside of the data set")
    if not path.is_file():
        raise InputError(f"audio {path}: no such file")
    return str(path.relative_to(out.parent)) if path.is_relative_to(out.parent) else str(path)


def _portions(file: Path) -> Iterator[Rows]:
    """A parquet file by its row groups, which are read as a whole; others by row numbers."""
    if file.suffix != ".parquet":
        total = len(_listed(file))
        for start in range(0, total, PORTION):
            yield Rows(file, start, min(PORTION, total - start))
        return
    metadata, start = _parquet(file).metadata, 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        yield Rows(file, start, count, group)
        start += count


def _read(rows: Rows) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The numbers and values of a portion's rows."""
    if rows.group is None:
        held: Iterable[Mapping[str, Any]] = _listed(rows.file)[rows.start : rows.start + rows.count]
        yield from enumerate(held, rows.start)
        return
    file = _parquet(rows.file)
    classes = _classes(file.schema_arrow.metadata or {})
    number = rows.start
    for batch in file.iter_batches(PARQUET_ROWS, row_groups=[rows.group]):
        for row in batch.to_pylist():
            named = {
                name: classes[name][value]
                for name, value in row.items()
                if name in classes and isinstance(value, int) and 0 <= value < len(classes[name])
            }
            yield number, row | named
            number += 1


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names behind the numbers of ClassLabel columns, as the `datasets` library writes them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


@lru_cache(maxsize=1)
def _listed(file: Path) -> list[dict[str, Any]]:
    """The rows of metadata.jsonl or metadata.csv."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: every line must be a JSON object")
    return rows


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise InputError(f"{file}: parquet needs one more package: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(file)
    except (lib.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a parquet file that can be read ({error})") from error
