"""The same utterances as raw list, shard and combine pair, for tests of the readers."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osum_echat.audio import load
from osum_echat.data.sources import Dropped, Source
from osum_echat.records import Turn, Utterance
from tests.data.world import write_world

Members = list[tuple[str, bytes]]
def raw_rows(folder: Path, name: str, count: int = 8) -> list[dict[str, Any]]:
    """The rows of one list of the small world, its sound files beside it."""
    path = write_world(folder, count)[name]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def members(row: dict[str, Any], folder: Path) -> Members:
    """A row as the members of a tar, in the writer's order."""
    key = row["key"]
    found: Members = [(f"{key}.txt", row["txt"].encode())]
    if "wav" in row:
        found.append((f"{key}.wav", (folder / row["wav"]).read_bytes()))
    for name, value in row.items():
        if name.startswith("wav_"):
            found.append((f"{key}.{name}", (folder / value).read_bytes()))
        elif name.startswith("txt_"):
            found.append((f"{key}.{name}", value.encode()))
    found.append((f"{key}.task", row.get("task", "none").encode()))
    found += [(f"{key}.{name}", b"none") for name in ("lang", "speaker", "emotion", "gender")]
    found.append((f"{key}.duration", b"0"))
    found.append((f"{key}.extra", json.dumps(row.get("extra", {}), ensure_ascii=False).encode()))
    return found


def tar_bytes(parts: Iterable[tuple[str, bytes]]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, contents in parts:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return made.getvalue()


def write_shard(path: Path, rows: list[dict[str, Any]], folder: Path) -> Path:
    """A tar of rows; packed where the name ends in gz."""
    data = tar_bytes(part for row in rows for part in members(row, folder))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The jsonl of a combine pair: everything but the sound."""
    kept = [{name: value for name, value in row.items() if not name.startswith("wav")}
            for row in rows]  # fmt: skip
    lines = [json.dumps({**row, "wav": "only-meta"}, ensure_ascii=False) for row in kept]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_all(source: Source) -> tuple[list[Utterance], list[Dropped]]:
    """What a source gives and what it leaves out."""
    every = [source.read(unit) for unit in range(len(source))]
    return ([one for one in every if isinstance(one, Utterance)],
            [one for one in every if isinstance(one, Dropped)])  # fmt: skip


def plain(utterance: Utterance) -> tuple[Any, ...]:
    """An utterance with its sounds as numbers, so that any two forms can be compared."""
    turns = tuple(_plain_turn(turn) for turn in (*utterance.history, utterance.user))
    return (utterance.key, utterance.task, utterance.labels, utterance.thought,
            utterance.prompt, turns)  # fmt: skip


def _plain_turn(turn: Turn) -> tuple[Any, ...]:
    samples = load(turn.audio).numpy().tobytes() if turn.audio is not None else None
    return samples, turn.text, turn.reply_text, turn.reply_speech
