"""Makes the tiny world's corpus: each exchange spoken, its reply spoken, one line of JSON for both.

Writes OUT/<split>/exchanges.jsonl, audio/ (what users say) and replies/; reply sentences are kept
in OUT/sentences. Stopped and started again, it goes on; the same seed always gives the same sound.

    python -m common_utils.tiny_world.make --out OUT --split train --size 7000 --processes 2
"""

import json
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.command import command
from common_utils.jobs import Job, Made, Report, Work, digest, run
from common_utils.tiny_world import reply_voice
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.effects import SAMPLE_RATE_HZ
from common_utils.tiny_world.reply_voice import ReplyVoice, file_name
from common_utils.tiny_world.speaking import speak, write_wav
from common_utils.tiny_world.voices import ESPEAK, KOKORO, Studio, Voice, all_voices, varied
from common_utils.tiny_world.world import Exchange, SaidTurn, load_world
from osum_echat.errors import DataError

LIST_FILE, REPLY_RATE_HZ = "exchanges.jsonl", reply_voice.SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what the corpus sounds like, but for the words."""

    out: Path
    split: str
    seed: int
    assets: Path
    kokoro_share: float

    @property
    def folder(self) -> Path:
        return self.out / self.split

    @property
    def sentences(self) -> Path:
        return self.out / "sentences"


def make(plan: Plan, size: int, processes: int = 1) -> Report:
    """Write the split's first `size` exchanges; stopped, it goes on.

    Raises InputError when a worker process dies.
    """
    if size < 1:
        raise DataError(f"--size {size}: give 1 or more exchanges")
    for folder in (plan.folder / "audio", plan.folder / "replies", plan.sentences):
        folder.mkdir(parents=True, exist_ok=True)
    exchanges = list(load_world().exchanges(plan.split, plan.seed, size))
    job = Job(
        plan.folder / LIST_FILE,
        digest(plan.kokoro_share, [exchange.to_json() for exchange in exchanges]),
        partial(_line, plan), work=Work(processes),
    )  # fmt: skip
    return run(job, exchanges, f"{plan.split} exchanges")


def _line(plan: Plan, exchange: Exchange) -> Made:
    """As each process makes it: its engines are opened once."""
    return Made([json.dumps(_maker(plan).row(exchange))])


class Maker:
    """Speaks exchanges. One a process: it holds the engines and the split's voices."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._studio = Studio(AssetPaths(plan.assets))
        self._replies = ReplyVoice(plan.assets)
        self._voices: dict[tuple[tuple[str, str], str], list[Voice]] = {}
        for voice in all_voices(plan.split):
            self._voices.setdefault((voice.cell, voice.engine), []).append(voice)

    def row(self, exchange: Exchange) -> dict[str, Any]:
        """Write the wavs of one exchange and return its line of the corpus."""
        row = exchange.to_json()
        rng = _rng(self._plan.seed, exchange.key)
        voice = self._voice(exchange, rng)
        row["voice"] = voice.name
        if self._plan.split == "train":     # more people than there are engines' voices
            voice = varied(voice, _rng(self._plan.seed, f"{exchange.key}:voice"))
        for number, (said, raw) in enumerate(zip(exchange.turns, row["turns"], strict=True)):
            raw |= self._spoken(said, f"{exchange.key}-turn{number}", voice, rng)
        return row | self._spoken(exchange, exchange.key, voice, rng)

    def _voice(self, exchange: Exchange, rng: Generator) -> Voice:
        cell = (exchange.labels.age, exchange.labels.gender)
        engine = KOKORO if rng.random() < self._plan.kokoro_share else ESPEAK
        voices = self._voices.get((cell, engine))
        if not voices:
            raise DataError(f"exchange {exchange.key}: no voice for {' '.join(cell).lower()}")
        return voices[rng.integers(len(voices))]

    def _spoken(
        self, turn: Exchange | SaidTurn, name: str, voice: Voice, rng: Generator
    ) -> dict[str, str]:
        """Write the turn's wav and that of its reply; returns where they are."""
        labels = turn.labels
        wave = speak(self._studio, turn.user_text, voice, labels.emotion, labels.event, rng)
        user = f"audio/{name}.wav"
        write_wav(self._plan.folder / user, wave, SAMPLE_RATE_HZ)
        style = turn.reply_style
        reply = f"replies/{file_name(style, *turn.reply_sentences)}.wav"
        if not (self._plan.folder / reply).exists():
            parts = [self._sentence(sentence, style) for sentence in turn.reply_sentences]
            write_wav(self._plan.folder / reply, reply_voice.join(parts), REPLY_RATE_HZ)
        return {"wav": user, "reply_wav": reply}

    def _sentence(self, sentence: str, style: str) -> NDArray[np.float32]:
        path = self._plan.sentences / f"{file_name(style, sentence)}.wav"
        if not path.exists():
            write_wav(path, self._replies.say(sentence, style), REPLY_RATE_HZ)
        return soundfile.read(path, dtype="float32")[0]


_maker = lru_cache(maxsize=1)(Maker)


def _rng(seed: int, key: str) -> Generator:
    """Randomness of one exchange, whatever was made before it."""
    return np.random.default_rng(list(sha256(f"{seed}:{key}".encode()).digest()))


def make_split(
    out: Path, split: Literal["train", "test"], size: int, seed: int = 0,
    assets: Path = Path("build/assets"), kokoro_share: float = 0.04, processes: int = 1,
) -> Report:  # fmt: skip
    """Make the split; what was made is told."""
    return make(Plan(out, split, seed, assets, kokoro_share), size, processes)


main = command(make_split, size="exchanges", kokoro_share="of the users' voices")

if __name__ == "__main__":
    sys.exit(main())
