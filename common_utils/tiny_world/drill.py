"""Words that cannot be guessed: random ones, and sentences of the world with some words changed.

A small model that only meets the world's few thousand sentences learns to tell them apart, not to
read; what it meets here it has to take word by word. Needs OUT/train/exchanges.jsonl. Writes, in
OUT/train, drill.list with audio/drill-*.wav: short drills, spoken; and reading.list: long ones
without sound, for stand-ins.

    python -m common_utils.tiny_world.drill --corpus OUT --spoken 2500 --silent 30000
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from common_utils.command import command
from common_utils.tiny_world import lists
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.effects import SAMPLE_RATE_HZ
from common_utils.tiny_world.reply_voice import write_wav
from common_utils.tiny_world.speaking import speak
from common_utils.tiny_world.voices import ESPEAK, Studio, Voice, all_voices, varied
from common_utils.tiny_world.world import AGES, EMOTIONS, EVENTS, GENDERS, normalise
from osum_echat.files import write_jsonl
from osum_echat.logs import progress

SPOKEN_LIST, SILENT_LIST = "drill.list", "reading.list"
SPOKEN_WORDS, SILENT_WORDS = (2, 9), (6, 24)    # fewest and most
CHANGED_SHARE = 0.5                     # of spoken drills that begin as a sentence of the world
CHANGED_WORDS = 0.35                    # of its words
PLAIN_SHARE = 0.4                       # that are asked for the words alone
PLAIN_TAG = "<TRANSCRIBE>"


@dataclass(frozen=True, slots=True)
class Drill:
    """Makes the turns: their words and labels."""

    sentences: Sequence[Sequence[str]]
    words: Sequence[str]

    @classmethod
    def of(cls, exchanges: Sequence[lists.Row]) -> "Drill":
        """The words and sentences of users; common words are drawn as often as rare ones."""
        said = {normalise(text) for text in lists.said_by_users(exchanges)}
        sentences = [sentence.split() for sentence in sorted(said)]
        return cls(sentences, sorted({word for sentence in sentences for word in sentence}))

    def random(self, rng: Random, bounds: tuple[int, int]) -> str:
        """Words that have nothing to do with each other."""
        return " ".join(rng.choice(self.words) for _ in range(rng.randint(*bounds)))

    def changed(self, rng: Random) -> str:
        """A sentence with some of its words replaced."""
        return " ".join(rng.choice(self.words) if rng.random() < CHANGED_WORDS else word
                        for word in rng.choice(self.sentences))

    def turn(self, rng: Random) -> lists.Row:
        """A turn to be spoken: words and labels, like those of an exchange."""
        emotion = rng.choice(EMOTIONS)
        events = EVENTS[emotion]
        labels = {
            "age": rng.choice(AGES), "gender": rng.choice(GENDERS), "emotion": emotion,
            "event": rng.choices([*events], weights=[*events.values()])[0],
        }
        is_changed = rng.random() < CHANGED_SHARE
        text = self.changed(rng) if is_changed else self.random(rng, SPOKEN_WORDS)
        return {"user_text": text, "labels": labels, "reply_style": None}


def silent_rows(drill: Drill, count: int, seed: int) -> Iterator[lists.Row]:
    """Long drills without sound or labels."""
    for number in range(count):
        rng = Random(f"reading:{seed}:{number}")
        text = drill.random(rng, SILENT_WORDS)
        yield {"key": f"reading-{seed}-{number:06d}", "txt": text, "task": PLAIN_TAG,
               "extra": {"q_txt": text}}


def spoken_rows(
    drill: Drill, folder: Path, count: int, seed: int, assets: Path
) -> Iterator[lists.Row]:
    """Short drills. A wav that is there is kept: the same seed gives the same sound."""
    studio = Studio(AssetPaths(assets))
    cast: dict[tuple[str, str], list[Voice]] = {}
    for voice in all_voices("train"):
        if voice.engine == ESPEAK:
            cast.setdefault(voice.cell, []).append(voice)
    for number in range(count):
        rng = Random(f"drill:{seed}:{number}")
        turn, key = drill.turn(rng), f"drill-{seed}-{number:06d}"
        tag = PLAIN_TAG if rng.random() < PLAIN_SHARE else lists.FULL_TAG
        turn["wav"] = f"audio/{key}.wav"
        if not (folder / turn["wav"]).exists():
            chance = np.random.default_rng(rng.getrandbits(64))
            labels = turn["labels"]
            voices = cast[labels["age"], labels["gender"]]
            voice = varied(voices[int(chance.integers(len(voices)))], chance)
            wave = speak(studio, turn["user_text"], voice, labels["emotion"], labels["event"],
                         chance)
            write_wav(folder / turn["wav"], wave, SAMPLE_RATE_HZ)
        text = lists.understanding_text(tag, turn)
        yield lists.row_of({"key": key}, turn, tag, text, "understand")


def write(
    corpus: Path, spoken: int = 2500, silent: int = 30_000, seed: int = 1,
    assets: Path = Path("build/assets"),
) -> None:  # fmt: skip
    """Write both lists."""
    folder = corpus / "train"
    drill = Drill.of(lists.read_jsonl(folder / "exchanges.jsonl"))
    unheard = silent_rows(drill, silent, seed)
    write_jsonl(folder / SILENT_LIST, progress(unheard, "silent drills", silent))
    heard = spoken_rows(drill, folder, spoken, seed, assets)
    write_jsonl(folder / SPOKEN_LIST, progress(heard, "spoken drills", spoken))


main = command(write, corpus="what the tiny world made", spoken="drills with sound",
               silent="drills without")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
