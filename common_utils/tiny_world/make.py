"""Makes the tiny world's corpus: each exchange spoken, its reply spoken, one line of JSON for both.

Writes OUT/<split>/exchanges.jsonl, audio/ (what users say) and replies/; reply sentences are kept
in OUT/sentences. Stopped and started again, it goes on; the same seed always gives the same sound.

    python -m common_utils.tiny_world.make --out OUT --split train --size 7000
"""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.command import command
from common_utils.tiny_world import reply_voice
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.effects import SAMPLE_RATE_HZ
from common_utils.tiny_world.reply_voice import ReplyVoice, file_name, write_wav
from common_utils.tiny_world.speaking import speak
from common_utils.tiny_world.voices import ESPEAK, KOKORO, Studio, Voice, all_voices, varied
from common_utils.tiny_world.world import Exchange, SaidTurn, load_world
from osum_echat.errors import DataError
from osum_echat.files import write_jsonl
from osum_echat.logs import progress

LIST_FILE, REPLY_RATE_HZ = "exchanges.jsonl", reply_voice.SAMPLE_RATE_HZ


def make(
    out: Path, split: Literal["train", "test"], size: int, seed: int = 0,
    assets: Path = Path("build/assets"), kokoro_share: float = 0.04,
) -> None:  # fmt: skip
    """Write the split's first `size` exchanges; sounds that are there are kept."""
    if size < 1:
        raise DataError(f"--size {size}: give 1 or more exchanges")
    maker = Maker(out, split, seed, assets, kokoro_share)
    exchanges = progress(load_world().exchanges(split, seed, size), f"{split} exchanges", size)
    write_jsonl(out / split / LIST_FILE, map(maker.row, exchanges))


class Maker:
    """Speaks exchanges. It holds the engines and the split's voices."""

    def __init__(self, out: Path, split: str, seed: int, assets: Path, kokoro_share: float):
        self._folder, self._sentences = out / split, out / "sentences"
        for folder in (self._folder / "audio", self._folder / "replies", self._sentences):
            folder.mkdir(parents=True, exist_ok=True)
        self._is_train, self._seed, self._kokoro_share = split == "train", seed, kokoro_share
        self._studio = Studio(AssetPaths(assets))
        self._replies = ReplyVoice(assets)
        self._voices: dict[tuple[tuple[str, str], str], list[Voice]] = {}
        for voice in all_voices(split):
            self._voices.setdefault((voice.cell, voice.engine), []).append(voice)

    def row(self, exchange: Exchange) -> dict[str, Any]:
        """Write the wavs of one exchange, if they are not there, and return its line."""
        row = exchange.to_json()
        rng = _rng(self._seed, exchange.key)
        voice = self._voice(exchange, rng)
        row["voice"] = voice.name
        if self._is_train:     # more people than there are engines' voices
            voice = varied(voice, _rng(self._seed, f"{exchange.key}:voice"))
        said: list[tuple[Exchange | SaidTurn, dict[str, Any]]] = [
            *zip(exchange.turns, row["turns"], strict=True), (exchange, row),
        ]  # fmt: skip
        for number, (turn, raw) in enumerate(said):
            name = exchange.key + (f"-turn{number}" if turn is not exchange else "")
            raw["wav"] = f"audio/{name}.wav"
            raw["reply_wav"] = f"replies/{file_name(turn.reply_style, *turn.reply_sentences)}.wav"
        if not all((self._folder / raw["wav"]).exists() for _, raw in said):
            for turn, raw in said:      # all of them: each draws on from the one before
                labels = turn.labels
                wave = speak(self._studio, turn.user_text, voice, labels.emotion, labels.event, rng)
                write_wav(self._folder / raw["wav"], wave, SAMPLE_RATE_HZ)
        for turn, raw in said:
            self._reply(turn, self._folder / raw["reply_wav"])
        return row

    def _voice(self, exchange: Exchange, rng: Generator) -> Voice:
        cell = (exchange.labels.age, exchange.labels.gender)
        engine = KOKORO if rng.random() < self._kokoro_share else ESPEAK
        voices = self._voices.get((cell, engine))
        if not voices:
            raise DataError(f"exchange {exchange.key}: no voice for {' '.join(cell).lower()}")
        return voices[rng.integers(len(voices))]

    def _reply(self, turn: Exchange | SaidTurn, path: Path) -> None:
        if not path.exists():
            parts = [self._sentence(sentence, turn.reply_style)
                     for sentence in turn.reply_sentences]  # fmt: skip
            write_wav(path, reply_voice.join(parts), REPLY_RATE_HZ)

    def _sentence(self, sentence: str, style: str) -> NDArray[np.float32]:
        path = self._sentences / f"{file_name(style, sentence)}.wav"
        if not path.exists():
            write_wav(path, self._replies.say(sentence, style), REPLY_RATE_HZ)
        return soundfile.read(path, dtype="float32")[0]


def _rng(seed: int, key: str) -> Generator:
    """Randomness of one exchange, whatever was made before it."""
    return np.random.default_rng(list(sha256(f"{seed}:{key}".encode()).digest()))


main = command(make, size="exchanges", kokoro_share="of the users' voices")

if __name__ == "__main__":
    sys.exit(main())
