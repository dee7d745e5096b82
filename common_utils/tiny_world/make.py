"""Makes the tiny world's corpus: each exchange spoken, its reply spoken, one line of JSON for both.

Writes OUT/<split>/exchanges.jsonl, audio/ (what users say) and replies/; reply sentences are kept
in OUT/sentences. Stopped and started again, it goes on; the same seed always gives the same sound.

    python -m common_utils.tiny_world.make --out OUT --split train --size 7000 --processes 2
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.jobs import in_order
from common_utils.tiny_world import reply_voice
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.effects import SAMPLE_RATE_HZ
from common_utils.tiny_world.reply_voice import ReplyVoice
from common_utils.tiny_world.speaking import speak, write_wav
from common_utils.tiny_world.voices import ESPEAK, KOKORO, Studio, Voice, all_voices, varied
from common_utils.tiny_world.world import SPLITS, Exchange, SaidTurn, load_world
from osum_echat import cli
from osum_echat.errors import DataError, InputError
from osum_echat.logs import logger, progress

LIST_FILE = "exchanges.jsonl"
REPORT_EVERY_S = 30.0

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what the corpus sounds like, but for the words."""

    out: Path
    split: str
    seed: int
    assets: Path
    kokoro_share: float
    sentences: Path

    @property
    def folder(self) -> Path:
        return self.out / self.split


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--size", type=int, required=True, help="exchanges")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assets", type=Path, default=Path("build/assets"))
    parser.add_argument("--kokoro-share", type=float, default=0.04, help="of the users' voices")
    parser.add_argument("--sentences", type=Path, help="keeps reply sentences; OUT/sentences")
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args(argv)
    plan = Plan(chosen.out, chosen.split, chosen.seed, chosen.assets, chosen.kokoro_share,
                chosen.sentences or chosen.out / "sentences")
    return cli.run("make", lambda: make(plan, chosen.size, chosen.processes))


def make(plan: Plan, size: int, processes: int = 1) -> None:
    """Write the split's first `size` exchanges; those already there with their wavs are kept.

    Raises InputError when a worker process dies.
    """
    if processes < 1:
        raise InputError(f"processes {processes}: give 1 or more")
    for folder in (plan.folder / "audio", plan.folder / "replies", plan.sentences):
        folder.mkdir(parents=True, exist_ok=True)
    wanted = list(load_world().exchanges(plan.split, plan.seed, size))
    listed = plan.folder / LIST_FILE
    kept = _made_before(listed)
    ready = [kept[exchange.key] for exchange in wanted if exchange.key in kept]
    missing = [exchange for exchange in wanted if exchange.key not in kept]
    draft = listed.with_suffix(".draft")
    draft.write_text("".join(json.dumps(row) + "\n" for row in ready), "utf-8")
    draft.replace(listed)
    log.info("%s: %d exchanges ready, %d to make", plan.folder, len(ready), len(missing))
    with listed.open("a", encoding="utf-8") as rows:
        for row in progress(_reported(_made(plan, missing, processes), len(missing)),
                            f"{plan.split} exchanges", len(missing)):
            rows.write(json.dumps(row) + "\n")
            rows.flush()


def _made_before(listed: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run by key; a line that was cut short is left out."""
    rows: dict[str, dict[str, Any]] = {}
    for line in listed.read_text("utf-8").splitlines() if listed.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if all((listed.parent / one["wav"]).exists() and (listed.parent / one["reply_wav"]).exists()
               for one in (row, *row["turns"])):
            rows[row["key"]] = row
    return rows


def _made(plan: Plan, exchanges: Sequence[Exchange], processes: int) -> Iterator[dict[str, Any]]:
    """The rows in order, made here or in several processes (with the same result)."""
    row = Maker(plan).row if processes == 1 else partial(_row, plan)
    return in_order(row, exchanges, processes)


def _row(plan: Plan, exchange: Exchange) -> dict[str, Any]:
    """As a worker process makes it: its engines are opened once."""
    return _maker(plan).row(exchange)


@lru_cache(maxsize=1)
def _maker(plan: Plan) -> "Maker":
    return Maker(plan)


def _reported(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """The same rows; how far and how much longer goes to the log now and then."""
    start = last = time.monotonic()
    for done, row in enumerate(rows, start=1):
        yield row
        now = time.monotonic()
        if now - last > REPORT_EVERY_S or done == total:
            left_s = (now - start) / done * (total - done)
            log.info("%d of %d, %.1f min to go", done, total, left_s / 60)
            last = now


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
        reply = f"replies/{_name(style, *turn.reply_sentences)}.wav"
        if not (self._plan.folder / reply).exists():
            parts = [self._sentence(sentence, style) for sentence in turn.reply_sentences]
            whole = reply_voice.join(parts)
            write_wav(self._plan.folder / reply, whole, reply_voice.SAMPLE_RATE_HZ)
        return {"wav": user, "reply_wav": reply}

    def _sentence(self, sentence: str, style: str) -> NDArray[np.float32]:
        path = self._plan.sentences / f"{_name(style, sentence)}.wav"
        if not path.exists():
            write_wav(path, self._replies.say(sentence, style), reply_voice.SAMPLE_RATE_HZ)
        return soundfile.read(path, dtype="float32")[0]


def _rng(seed: int, key: str) -> Generator:
    """Randomness of one exchange, whatever was made before it."""
    return np.random.default_rng(list(sha256(f"{seed}:{key}".encode()).digest()))


def _name(style: str, *sentences: str) -> str:
    """A file name for a sentence, or several, in a style; the same as in a reply set."""
    return sha256(f"{style} {' '.join(sentences)}".encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
