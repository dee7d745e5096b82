"""Raw lists to shards: tars of little files that are read in one go, several utterances each.

A member is `<key>.<kind>`, all those of a key side by side; the kinds are the original project's.
Audio is kept as 16 kHz, 16-bit, mono wav whatever it was.
"""

import contextlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from common_utils import jobs
from common_utils.command import command
from common_utils.jobs import Job, Made, Piece, Report, Work, digest
from osum_echat import audio
from osum_echat.data.manifest import SHARDS_LIST
from osum_echat.data.sources import Dropped
from osum_echat.errors import DataError, InputError, OsumError
from osum_echat.files import whole_file
from osum_echat.records import Turn, Utterance
from osum_echat.tasks import task_for

FINISHED = ".finished"  # an empty file of this ending beside each complete tar
UNSAID = "none"  # what stands for a field that a record does not have
FORMAT = 1  # goes up when the same list would give other tars
LONGEST_KEY = 1024
_FULL_SCALE = 32_768
_SPOKEN_FIELDS = ("lang", "speaker", "emotion", "gender")


def make(
    raw: Path, out: Path, /, work: Work, per_tar: int = 1000, prefix: str = "shard"
) -> Report:
    """Make the shards of a raw list, and their shards_list.txt."""
    if not prefix or Path(prefix).name != prefix:
        raise InputError(f"prefix {prefix!r}: give the beginning of a file name")
    job = Job(
        out / SHARDS_LIST, digest(FORMAT, prefix, per_tar, raw),
        partial(write_tar, out / prefix, per_tar), [raw], work,
    )  # fmt: skip
    return jobs.run(job, jobs.pieces(raw, per_tar), "shards")


def write_tar(beginning: Path, per_tar: int, piece: Piece) -> Made:
    """Write one tar, whole or not at all; the line of its list, and what was left out."""
    number = (piece.first - 1) // per_tar
    path = beginning.with_name(f"{beginning.name}_{number:09d}.tar")
    marker = path.with_name(path.name + FINISHED)
    keys: set[str] = set()
    left_out: list[Dropped] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    with whole_file(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for where, raw in jobs.records(piece):
            made = raw if isinstance(raw, Dropped) else members(raw, where, piece.path.parent)
            if isinstance(made, Dropped):
                left_out.append(made)
                continue
            key = _unused(str(raw["key"]) if isinstance(raw, dict) else "", keys)
            keys.add(key)
            for kind, data in made:
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    if not keys:
        path.unlink()
        return Made([], left_out, 0)
    marker.touch()
    return Made([path.name], left_out, len(keys))


def members(raw: dict[str, Any], where: str, root: Path) -> list[tuple[str, bytes]] | Dropped:
    """The kinds and contents of a record's members, or why it has none."""
    try:
        utterance = Utterance.from_json(raw, where, root)
        _check_key(utterance.key, where)
        return [
            ("txt", (utterance.user.reply_text or "").encode()),
            *_sound(utterance),
            *_earlier(raw, utterance),
            *_fields(raw, utterance),
        ]
    except InputError as error:
        return Dropped("audio cannot be used", f"{where}: {error}")
    except DataError as error:
        return Dropped("bad record", str(error))
    except UnicodeEncodeError as error:
        return Dropped("bad record", f"{where}: half a character (\\uD800 ...) in a text: {error}")


def wav_bytes(samples: Tensor) -> bytes:
    """(samples,) at 16 kHz as a 16-bit wav; what is beyond full scale is clipped."""
    levels = np.rint(samples.numpy().astype(np.float64) * _FULL_SCALE)
    data = levels.clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    held = io.BytesIO()
    soundfile.write(held, data, audio.SAMPLE_RATE_HZ, "PCM_16", format="WAV")
    return held.getvalue()


def _check_key(key: str, where: str) -> None:
    """A key is the name of a member, which must not lead out of a folder it is unpacked in."""
    parts = PurePosixPath(key).parts
    is_plain = key.isprintable() and "\\" not in key and str(PurePosixPath(key)) == key
    if not parts or ".." in parts or key.startswith("/") or not is_plain or len(key) > LONGEST_KEY:
        raise DataError(f"{where}: key {key[:80]!r}; need a plain name without .. and outer /")


def _unused(key: str, used: set[str]) -> str:
    """The key, or one like it where the tar already has it: two of one name would flow together."""
    number, free = 1, key
    while free in used:
        number += 1
        free = f"{key}_{number}"
    return free


def _load(turn: Turn) -> bytes:
    assert turn.audio is not None, "asked for the sound of a turn without any"
    return wav_bytes(audio.load(turn.audio, segment_s=turn.segment_s))


def _sound(utterance: Utterance) -> Iterator[tuple[str, bytes]]:
    """The user's audio. Tasks that do not hear may name a file that is not there."""
    if utterance.user.audio is None:
        return
    try:
        yield "wav", _load(utterance.user)
    except InputError:
        with contextlib.suppress(OsumError):
            if not task_for(utterance.task).hears:
                return
        raise


def _earlier(raw: dict[str, Any], utterance: Utterance) -> Iterator[tuple[str, bytes]]:
    """wav_N and txt_N of earlier turns in the record's order; nothing where one was lost."""
    if not utterance.history:
        return
    numbers = sorted({int(name[4:]) for name in raw if _is_turn(name)})
    turns = dict(zip(numbers, utterance.history, strict=True))
    for name in filter(_is_turn, raw):
        turn = turns[int(name[4:])]
        is_text = name.startswith("txt_")
        yield name, (turn.reply_text or "").encode() if is_text else _load(turn)


def _is_turn(name: str) -> bool:
    return name.startswith(("wav_", "txt_")) and name[4:].isdecimal()


def _fields(raw: dict[str, Any], utterance: Utterance) -> Iterator[tuple[str, bytes]]:
    """Task and what is known of the voice; the rest is JSON."""
    given = raw.get("extra") or {}
    extra = dict(json.loads(given) if isinstance(given, str) else given)
    if utterance.user.reply_speech:
        extra["speech_token"] = list(utterance.user.reply_speech)
    duration = extra.pop("duration", None) or raw.get("duration") or 0
    yield "task", utterance.task.encode()
    for name in _SPOKEN_FIELDS:
        yield name, str(raw.get(name) or UNSAID).encode()
    yield "duration", str(duration).encode()
    yield "extra", json.dumps(extra, ensure_ascii=False).encode()


main = command(
    make, raw="raw jsonl list; audio paths start at its folder", per_tar="utterances a tar",
    out="folder for the tars and shards_list.txt", prefix="of the tars' names",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
