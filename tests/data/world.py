"""A handful of spoken records in a folder, in every form, for tests of data and training."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from osum_echat.audio import load
from osum_echat.data.sources import Dropped, Source
from osum_echat.records import Turn, Utterance
from tests.letters import MARKS

SAID = ("i lost my kite", "we won", "where is my dog", "good morning")
REPLY = ("Oh no.", "Well done.", "Let us look.", "Hello.")
CODES = 32


def write_world(folder: Path, count: int = 8) -> dict[str, Path]:
    """Lists by name: understand, tts, s2s, s2s_think, s2t, s2t_think, t2t, history."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(count):
        key = f"u{number}"
        samples = rng.normal(0, 0.1, 4_000 + 800 * number).astype(np.float32)
        soundfile.write(folder / "audio" / f"{key}.wav", samples, 16_000)
        for name, row in _rows(key, number, rng).items():
            rows.setdefault(name, []).append({"key": key, **row})
    return {name: write_list(folder / f"{name}.list", lines) for name, lines in rows.items()}


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _rows(key: str, number: int, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    said, reply = SAID[number % 4], REPLY[number % 4]
    wav = f"audio/{key}.wav"
    labels = {"age": "<CHILD>", "gender": "<MALE>", "q_emotion": "<SAD>", "caption": "<OTHER>",
              "reply_emotion": "<SOFT>"}  # fmt: skip
    codes = rng.integers(0, CODES, 30 + number).tolist()
    heard = {**labels, "q_txt": said, "think_str": f"I hear a boy who said {said}."}
    spoken = {**heard, "speech_token": codes}
    chat = {"wav": wav, "txt": reply}
    earlier = {"wav_1": "audio/u0.wav", "txt_1": "Hello."}
    return {
        "understand": {"wav": wav, "txt": f"{said}<CHILD><MALE>", "extra": heard,
                       "task": "<TRANSCRIBE> <AGE> <GENDER>"},
        "tts": {"txt": f"<SOFT>{reply}", "task": "<TEXT2TOKEN>", "extra": {"speech_token": codes}},
        "s2s": {**chat, "task": "<S2TCHAT> <TEXT2TOKEN>", "extra": spoken},
        "s2s_think": {**chat, "task": "<S2TCHAT> <TEXT2TOKEN> <THINK>", "extra": spoken},
        "s2t": {**chat, "task": "<S2TCHAT>", "extra": heard},
        "s2t_think": {**chat, "task": "<S2TCHAT> <THINKER>", "extra": heard},
        "t2t": {"txt": reply, "task": "<TEXT2TEXT>", "extra": {"question": said}},
        "history": {**chat, **earlier, "task": "<S2TCHAT> <TEXT2TOKEN>",
                    "extra": {**spoken, "speech_token_1": codes[:5], "speech_token_num": 1,
                              "q_txt_1": "hello"}},
    }  # fmt: skip


def write_tokenizer(folder: Path) -> Path:
    """The letters of tests.letters as a tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = {chr(number): number for number in range(128)}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


# The same utterances as raw list, shard and combine pair

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
