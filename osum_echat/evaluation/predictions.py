"""Predictions on disk: one line of JSON an item, written as it comes, read back after a kill."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from osum_echat.errors import InputError
from osum_echat.files import whole_file
from osum_echat.logs import logger

if TYPE_CHECKING:
    from osum_echat.inference.reply import Reply

LOG = logger(__name__)
Prediction = dict[str, Any]


class Lines:
    """A growing jsonl of objects with a `key`; the last line of a key is the one that counts.

    A last line that a kill cut short is dropped. Several threads may add.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.found = {one["key"]: one for one in self._read()}
            self._file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; choose another --out") from error

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            LOG.warning("%s: the last line was cut short and is made again", self.path)
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                one = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{self.path} line {number}: not JSON ({error}); remove the line or --overwrite"
                ) from error
            if not isinstance(one, dict) or not isinstance(one.get("key"), str):
                raise InputError(f"{self.path} line {number}: no object with a key; remove it")
            yield one

    def add(self, one: Mapping[str, Any]) -> None:
        """Write a line, safe on disk when this returns."""
        line = json.dumps(one, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.found[one["key"]] = dict(one)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seed_of(seed: int, key: str) -> int:
    """A seed that belongs to one item, whatever came before it."""
    return zlib.crc32(f"{seed}:{key}".encode())


def file_name(key: str) -> str:
    """A key as a file name: its own letters, and a digest where some had to go."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", key)
    return plain[:80] if plain == key and len(key) <= 80 else f"{plain[:60]}-{_digest(key)}"


def _digest(key: str) -> str:
    return f"{zlib.crc32(key.encode()):08x}"


def write_wav(path: Path, samples: Tensor, rate_hz: int) -> None:
    """Write a 16-bit wav, whole or not at all. samples: (samples,) in [-1, 1]."""
    import soundfile

    clipped = np.clip(samples.detach().float().cpu().numpy(), -1.0, 1.0)
    with whole_file(path) as file:
        soundfile.write(file, clipped, rate_hz, subtype="PCM_16", format="WAV")


def of_reply(reply: "Reply", out: Path, name: str, folder: str = "audio") -> Prediction:
    """A reply as it is kept; its sound goes to `out`/`folder`/`name`.wav."""
    wav = None
    if reply.wave is not None and reply.sample_rate_hz is not None:
        wav = f"{folder}/{file_name(name)}.wav"
        write_wav(out / wav, reply.wave, reply.sample_rate_hz)
    return {
        "task": reply.task,
        "heard": reply.heard,
        "thought": reply.thought,
        "labels": asdict(reply.labels),
        "text": reply.text,
        "speech_tokens": len(reply.speech_tokens),
        "wav": wav,
        "audio_in_s": reply.audio_in_s,
        "audio_out_s": reply.audio_out_s,
        "timings": asdict(reply.timings),
    }


def in_order(keys: Sequence[str], found: Mapping[str, Prediction]) -> list[Prediction]:
    """The predictions of these keys, as far as there are any."""
    return [found[key] for key in keys if key in found]


def failed(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [one for one in predictions if "error" in one]


def made(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [one for one in predictions if "error" not in one]
