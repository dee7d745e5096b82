"""A corpus for measuring: voice-like sounds of 2 to 10 s, mixed tasks, in all three forms."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat.logs import progress

RATE_HZ = 16_000
PER_TAR = 100
_UNDERSTANDING = ("", "", " <EMOTION>", " <AGE>", " <GENDER>", " <CAPTION>", " <STYLE>",
                  " <AGE> <GENDER>")  # fmt: skip
_LABELS = {"EMOTION": "<HAPPY>", "AGE": "<ADULT>", "GENDER": "<MALE>", "CAPTION": "<laugh>",
           "STYLE": "<客服>"}  # fmt: skip
_CHARACTERS = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"
_WORDS = "hello music today weather happy phone model".split()


def make_corpus(folder: Path, size: int) -> dict[str, Path]:
    """The lists of a corpus by form: raw, shard, combine. Made once, the same each time."""
    lists = {
        "raw": folder / "raw" / "data.list",
        "shard": folder / "shard" / "shards_list.txt",
        "combine": folder / "combine" / "combines_list.txt",
    }
    done = folder / f"made_{size}"
    if done.exists():
        return lists
    rng = np.random.default_rng(0)
    for inner in (folder / "raw" / "audio", folder / "shard", folder / "combine"):
        inner.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    tars: list[Path] = []
    jsonls: list[Path] = []
    for number in progress(range(size), "corpus", size):
        rows.append(_row(folder / "raw", number, rng))
        if len(rows) % PER_TAR == 0 or number == size - 1:
            stem = f"shard_{len(tars):09d}"
            part = rows[len(tars) * PER_TAR :]
            tars.append(folder / "shard" / f"{stem}.tar")
            jsonls.append(folder / "combine" / f"{stem}.list")
            _write_tar(tars[-1], part, folder / "raw")
            jsonls[-1].write_text("".join(_line({**row, "wav": "only-meta"}) for row in part))
    lists["raw"].write_text("".join(map(_line, rows)), encoding="utf-8")
    lists["shard"].write_text("".join(f"{tar}\n" for tar in tars), encoding="utf-8")
    lists["combine"].write_text("".join(f"{one}\n" for one in jsonls), encoding="utf-8")
    root = lists["combine"].with_name("combines_tar_root.txt")
    root.write_text(f"{(folder / 'shard').resolve()}\n", encoding="utf-8")
    done.touch()
    return lists


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _row(folder: Path, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Of twenty rows 8 understand, 4 speak a text, 6 talk (half of them think), 2 are text only."""
    import soundfile

    place = number % 20
    text = _text(rng, int(rng.integers(10, 40)))
    extra: dict[str, Any] = {}
    row: dict[str, Any] = {"key": f"utt_{number:06d}", "txt": text, "extra": extra}
    if place < 8:
        tags = _UNDERSTANDING[place]
        row["task"] = f"<TRANSCRIBE>{tags}"
        row["txt"] += "".join(_LABELS[tag] for tag in _LABELS if f"<{tag}>" in tags)
    elif place < 18:
        extra["speech_token"] = rng.integers(0, 4096, int(rng.integers(150, 300))).tolist()
        extra |= {"q_txt": _text(rng, 12), "think_str": _text(rng, 60)}
        kind = "" if place < 15 else " <THINK>"
        row["task"] = "<TEXT2TOKEN>" if place < 12 else f"<S2TCHAT> <TEXT2TOKEN>{kind}"
    else:
        row["task"] = "<TEXT2TEXT>"
        extra["question"] = _text(rng, 12)
    suffix = "wav" if number % 2 else "flac"
    row["wav"] = f"audio/{row['key']}.{suffix}"
    soundfile.write(folder / row["wav"], _sound(rng), RATE_HZ, subtype="PCM_16")
    return row


def _text(rng: np.random.Generator, size: int) -> str:
    """Chinese with a twelfth of English words."""
    letters = rng.integers(0, len(_CHARACTERS), size).tolist()
    words = rng.integers(0, 12 * len(_WORDS), size).tolist()
    return "".join(
        f" {_WORDS[word]} " if word < len(_WORDS) else _CHARACTERS[letter]
        for letter, word in zip(letters, words, strict=True)
    )


def _sound(rng: np.random.Generator) -> np.ndarray:
    """Harmonics under a slow envelope, and noise: 2 to 10 s."""
    samples = int(rng.uniform(2.0, 10.0) * RATE_HZ)
    times = np.arange(samples) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(rng.uniform(100, 250) + 20 * np.sin(3 * times)) / RATE_HZ
    voice = np.sin(phase) + np.sin(2 * phase) / 2 + np.sin(5 * phase) / 5
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 5) * times)
    mixed = 0.1 * voice * envelope + rng.normal(0, 0.005, samples)
    return np.clip(mixed, -1, 1).astype(np.float32)


def _write_tar(path: Path, rows: list[dict[str, Any]], folder: Path) -> None:
    """A shard as upstream writes it: sounds as 16-bit wav, eight small members beside each."""
    import soundfile

    with tarfile.open(path, "w") as tar:
        for row in rows:
            samples, rate = soundfile.read(folder / row["wav"], dtype="int16")
            wav = io.BytesIO()
            soundfile.write(wav, samples, rate, format="WAV", subtype="PCM_16")
            parts = {"txt": row["txt"].encode(), "wav": wav.getvalue(),
                     "task": row["task"].encode()}  # fmt: skip
            parts |= dict.fromkeys(("lang", "speaker", "emotion", "gender"), b"none")
            parts["duration"] = b"0"
            parts["extra"] = json.dumps(row["extra"], ensure_ascii=False).encode()
            for postfix, contents in parts.items():
                info = tarfile.TarInfo(f"{row['key']}.{postfix}")
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
