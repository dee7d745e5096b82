"""Corpora of voices rather than words: VocalSound, MELD, MER2023."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from common_utils.public_corpora.found import Found, Lost, only, rows
from osum_echat.errors import InputError
from osum_echat.records import Labels

EVENTS = {"laughter": "LAUGH", "sigh": "SIGH", "cough": "COUGH", "sneeze": "SNEEZE",
          "throatclearing": "THROAT CLEARING", "sniff": "SNIFF"}  # fmt: skip
EMOTIONS = {"neutral": "NEUTRAL", "joy": "HAPPY", "happy": "HAPPY", "sadness": "SAD", "sad": "SAD",
            "anger": "ANGER", "angry": "ANGER", "surprise": "SURPRISE", "fear": "FEAR",
            "disgust": "DISGUST", "worried": "FEAR"}  # fmt: skip
GENDERS = {"f": "FEMALE", "m": "MALE"}
SOUNDS = (".wav", ".flac", ".mp3")
SPLITS = {"train", "dev", "val", "valid", "test"}      # as words of a folder's name


def vocalsound(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: with audio_16k/ (or audio_44k/) and datafiles/PART.json; part: tr, val or te.

    A file's name tells all: f0003_0_cough is a woman's cough.
    """
    place = root / "datafiles" / f"{part}.json"
    try:
        listed = [Path(one["wav"]).name for one in json.loads(place.read_bytes())["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: cannot be used ({error!r}); it is a list of VocalSound, "
                         "--part is tr, val or te") from error
    folder = only(root, "audio_*", "the sounds of VocalSound")
    for name in listed:
        stem = Path(name).stem
        speaker, _, rest = stem.partition("_")
        event = EVENTS.get(rest.rpartition("_")[2])
        if event is None:
            lost.append(f"{place}: {name}: no event of VocalSound in its name")
            continue
        yield Found(stem, folder / name,
                    labels=Labels(gender=GENDERS.get(speaker[:1]), event=event))  # fmt: skip


def meld(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: with PART_sent_emo.csv and sounds below, named dia0_utt0.wav, a folder a part.

    MELD is published as mp4: take the sound out first (ffmpeg -i X.mp4 -ac 1 -ar 16000 X.wav).
    """
    sounds = _by_stem(root, part)
    table = rows(root / f"{part}_sent_emo.csv", "a table of MELD",
                 ("Utterance", "Emotion", "Dialogue_ID", "Utterance_ID"), lost)  # fmt: skip
    for row in table:
        key = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        yield Found(f"{part}_{key}", sounds.get(key, root / f"{key}.wav"), row["Utterance"],
                    Labels(emotion=_emotion(row["Emotion"], key, lost)))  # fmt: skip


def mer_2023(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: with PART-label.csv (or PART.csv) of `name` and `discrete`, sounds anywhere below.

    `worried`, which no other corpus has, counts as FEAR.
    """
    place = root / f"{part}-label.csv"
    place = place if place.exists() else root / f"{part}.csv"
    sounds = _by_stem(root, part)
    for row in rows(place, "a table of MER2023", ("name", "discrete"), lost):
        name = row["name"]
        yield Found(name, sounds.get(name, root / f"{name}.wav"), row.get("text") or "",
                    Labels(emotion=_emotion(row["discrete"], name, lost)))  # fmt: skip


def _emotion(name: str, key: str, lost: Lost) -> str | None:
    emotion = EMOTIONS.get(name.strip().lower())
    if emotion is None:
        lost.append(f"{key}: emotion {name!r}: not one of {', '.join(EMOTIONS)}")
    return emotion


def _by_stem(root: Path, part: str) -> dict[str, Path]:
    """Every sound of a part by its name; folders named for another part are left out.

    Raises InputError for a name that is there twice: one utterance would get another's sound.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        folders = path.relative_to(root).parts[:-1]
        words = {word for folder in folders for word in re.split(r"[\W_]+", folder.lower())}
        if path.suffix.lower() not in SOUNDS or (words & SPLITS) - {part.lower()}:
            continue
        if path.stem in found:
            raise InputError(
                f"{path} and {found[path.stem]}: one name twice; keep the sounds of {part!r} in "
                "one folder of its name"
            )
        found[path.stem] = path
    return found
