"""Real people's speech as raw lists: as recorded, and again as from other rooms and microphones.

    python -m common_utils.small_model.people --people DIR --out build/ear/people --copies 1

Writes train_N.list for each copy N (0: as recorded), dev.list (speakers nobody trains on), bursts
(laughs, sighs, groans, and noises without a voice) and their dev list.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.command import command
from common_utils.small_model import waves
from common_utils.small_model.pieces import heard_words
from common_utils.tiny_world.world import fraction
from osum_echat.errors import DataError
from osum_echat.files import write_jsonl
from osum_echat.logs import logger

WORDS = (
    "librispeech_train_clean5", "librispeech_dev_clean_part", "librispeech_train_clean100_4spk",
    "common_voice_en", "vctk_samples", "misc_en", "picovoice_wakewords",
)  # fmt: skip
SAID = ("text", "speaker", "seconds")  # what a line of these tells
KEYWORDS = "picovoice_wakewords"
KEYWORD_SHARE = 0.25  # of these one-word clips: there are many of few words
DEV_SPEAKERS = frozenset({
    "ls1272", "ls2428", "ls1462", "ls3000", "vctk_p225", "vctk_p226", "vctk_p302",
})  # fmt: skip
DEV_SHARE = 0.1  # of the speakers of the sets with a clip or some each
ADULT_SETS = frozenset({"vctk_samples", "librispeech_train_clean5", "librispeech_dev_clean_part",
                        "librispeech_train_clean100_4spk"})  # fmt: skip
OLD_AGES = frozenset({"60s", "70s", "80s", "90s"})
LONGEST_S = 20.0
NOISES = 1200  # where nobody speaks
EMOTIONS = {
    "elation": "HAPPY", "triumph": "HAPPY", "amusement": "HAPPY", "sadness": "SAD",
    "anger": "ANGER", "fear": "FEAR", "disgust": "DISGUST", "neutral": "NEUTRAL",
    "surprise (positive)": "SURPRISE", "surprise (negative)": "SURPRISE",
}  # fmt: skip
EVENTS = {"amusement": "LAUGH", "relief": "SIGH", "pain": "GROAN", "baby_cry": "CRY",
          "sneeze": "SNEEZE", "laughter": "LAUGH"}  # fmt: skip

log = logger(__name__)


def is_dev(line: dict[str, Any]) -> bool:
    """Whether a clip's speaker is kept for choosing between models."""
    speaker: str = line["speaker"]
    if speaker in DEV_SPEAKERS:
        return True
    return speaker.startswith(("cv_", "eg_", "fs_")) and fraction(f"dev {speaker}") < DEV_SHARE


def spoken(people: Path, most: int) -> Iterator[tuple[str, dict[str, Any], waves.Wave, str]]:
    """Set, manifest line, clip and words of what can be learnt from; most: clips of a set."""
    for name in WORDS:
        for line, wave in islice(waves.recordings(people, name, SAID), most):
            words = heard_words(line["text"])
            if not words or line["seconds"] > LONGEST_S or len(wave) < waves.RATE_HZ // 3:
                continue
            if name == KEYWORDS and fraction(line["name"]) > KEYWORD_SHARE:
                continue
            yield name, line, wave, words


def labels_of(name: str, line: dict[str, Any]) -> dict[str, str | None]:
    """Age and gender as far as they are known."""
    gender = str(line.get("gender", "")).upper()
    age = "ADULT" if name in ADULT_SETS else None
    if told := str(line.get("age", "")):
        age = "OLD" if told in OLD_AGES else "ADULT"
    return {"age": age, "gender": gender if gender in ("MALE", "FEMALE") else None}


def words_lists(people: Path, out: Path, copy: int, around: waves.Surroundings, most: int) -> None:
    """One copy of all that is spoken; copy 0 as recorded, with the dev list."""
    train: list[dict[str, Any]] = []
    dev: list[dict[str, Any]] = []
    seconds = 0.0
    for name, line, wave, words in spoken(people, most):
        kept_out = is_dev(line)
        if copy and kept_out:
            continue
        key = f"{Path(line['name']).stem}-{copy}"
        if copy:
            rng = np.random.default_rng([copy, int(fraction(line["name"]) * 2**40)])
            wave = waves.elsewhere(wave, around, rng)
        made = waves.kept(out, f"{name}_{copy}", key, wave, words, labels_of(name, line))
        (dev if kept_out else train).append(made)
        seconds += 0.0 if kept_out else len(wave) / waves.RATE_HZ
    write_jsonl(out / f"train_{copy}.list", train)
    if dev:
        write_jsonl(out / "dev.list", dev)
    log.info("copy %d: %d clips, %.2f h", copy, len(train), seconds / 3600)


def burst_lists(people: Path, out: Path, around: waves.Surroundings, most: int) -> None:
    """Sounds without words: bursts of a voice with their labels, and noises where nobody speaks."""
    lists: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for name in ("emogator", "esc10_human"):
        for line, wave in islice(waves.recordings(people, name, ("speaker",)), most):
            kind = str(line.get("emotion") or line.get("event"))
            labels = {"emotion": EMOTIONS.get(kind), "event": EVENTS.get(kind)}
            if not any(labels.values()) or len(wave) < waves.RATE_HZ // 3:
                continue
            key = Path(line["name"]).stem
            lists[is_dev(line)].append(waves.kept(out, name, key, wave, "", labels))
    rng = np.random.default_rng(5)
    for number in range(min(NOISES, most)):
        length = int(rng.uniform(0.5, 6.0) * waves.RATE_HZ)
        level = 10 ** (rng.uniform(-70, -20) / 20)
        wave = waves.noise(length, float(level), around, rng)
        made = waves.kept(out, "noise", f"noise_{number:04d}", wave, "", {"event": "NOISE"})
        lists[number % 10 == 0].append(made)
    write_jsonl(out / "bursts.list", lists[False])
    write_jsonl(out / "bursts_dev.list", lists[True])


def write(
    people: Path, out: Path, copies: tuple[int, ...] = (0,), bursts: bool = False,
    most: int = 10**6,
) -> None:  # fmt: skip
    """Write the lists and their sounds."""
    if not people.is_dir():
        raise DataError(f"--people {people}: no such folder")
    around = waves.Surroundings.of(people)
    for copy in copies:
        words_lists(people, out, copy, around, most)
    if bursts:
        burst_lists(people, out, around, most)


main = command(write, people="folder of tars and manifests", copies="0: as recorded",
               bursts="sounds without words too", most="clips of each set")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
