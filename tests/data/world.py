"""A handful of spoken records in a folder, for tests of data and training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

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
