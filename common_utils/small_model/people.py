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
from osum_echat.settings import read_mapping

SETS = read_mapping(Path(__file__).with_suffix(".yaml"))
SAID = ("text", "speaker", "seconds")  # what a line of these tells
KEYWORDS = "picovoice_wakewords"
KEYWORD_SHARE = 0.25  # of these one-word clips: there are many of few words
DEV_SHARE = 0.1  # of the speakers of the sets with a clip or some each
LONGEST_S = 20.0
NOISES = 1200  # where nobody speaks

log = logger(__name__)


def is_dev(line: dict[str, Any]) -> bool:
    """Whether a clip's speaker is kept for choosing between models."""
    speaker: str = line["speaker"]
    if speaker in SETS["dev_speakers"]:
        return True
    return speaker.startswith(("cv_", "eg_", "fs_")) and fraction(f"dev {speaker}") < DEV_SHARE


def spoken(people: Path, most: int) -> Iterator[tuple[str, dict[str, Any], waves.Wave, str]]:
    """Set, manifest line, clip and words of what can be learnt from; most: clips of a set."""
    for name in SETS["words"]:
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
    age = "ADULT" if name in SETS["adults"] else None
    if told := str(line.get("age", "")):
        age = "OLD" if told in SETS["old"] else "ADULT"
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
    for name in SETS["bursts"]:
        for line, wave in islice(waves.recordings(people, name, ("speaker",)), most):
            kind = str(line.get("emotion") or line.get("event"))
            labels = {name: SETS[f"{name}s"].get(kind) for name in ("emotion", "event")}
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
