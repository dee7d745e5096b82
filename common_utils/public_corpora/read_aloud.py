"""Corpora of words: AISHELL-1, AISHELL-2, LibriSpeech, WenetSpeech, Common Voice, CMU Sphinx."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common_utils.public_corpora.found import Found, Lost, lines, only, pairs, rows
from osum_echat.errors import InputError
from osum_echat.records import Labels

GENDERS = {"f": "FEMALE", "m": "MALE", "female": "FEMALE", "male": "MALE",
           "female_feminine": "FEMALE", "male_masculine": "MALE"}  # fmt: skip
# Common Voice tells decades. `teens` are neither children nor adults: no label.
AGES = {**dict.fromkeys(("twenties", "thirties", "fourties", "forties", "fifties"), "ADULT"),
        **dict.fromkeys(("sixties", "seventies", "eighties", "nineties"), "OLD")}  # fmt: skip
READ_BYTES = 1 << 20
_SPHINX_LINE = re.compile(r"(?:<s>)?(.*?)(?:</s>)?\s*\(([^()]+)\)\s*")


def aishell_1(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: data_aishell with transcript/, wav/PART/SPEAKER/; resource_aishell beside it is used.

    Words come apart by spaces there and are joined.
    """
    place = only(root, "transcript/aishell_transcript*.txt", "the transcript of AISHELL-1")
    texts = dict(pairs(place, "the transcript of AISHELL-1", lost))
    info = root.parent / "resource_aishell" / "speaker.info"
    told = dict(pairs(info, "the speakers", lost)) if info.exists() else {}
    genders = {who.removeprefix("S"): GENDERS.get(rest.lower()) for who, rest in told.items()}
    for audio in sorted((root / "wav" / part).glob("*/*.wav")):
        if audio.stem in texts:
            gender = genders.get(audio.parent.name.removeprefix("S"))
            yield Found(audio.stem, audio, texts[audio.stem].replace(" ", ""),
                        Labels(gender=gender))  # fmt: skip


def aishell_2(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: a folder per device and set, such as iOS/test, with wav.scp, trans.txt and wav/."""
    folder = root / part
    texts = dict(pairs(folder / "trans.txt", "the words of AISHELL-2", lost))
    for key, audio in pairs(folder / "wav.scp", "the sounds of AISHELL-2", lost):
        if key in texts:
            yield Found(key, folder / audio, texts[key])


def librispeech(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: LibriSpeech with SPEAKERS.TXT and PART/SPEAKER/CHAPTER/."""
    genders: dict[str, str | None] = {}
    if (root / "SPEAKERS.TXT").exists():
        for line in lines(root / "SPEAKERS.TXT", "the speakers", lost):
            cells = [cell.strip() for cell in line.split("|")]
            if not line.startswith(";") and len(cells) > 1:
                genders[cells[0]] = GENDERS.get(cells[1].lower())
    for place in sorted((root / part).glob("*/*/*.trans.txt")):
        gender = genders.get(place.parent.parent.name)
        for key, text in pairs(place, "a transcript of LibriSpeech", lost):
            yield Found(key, place.parent / f"{key}.flac", text.lower(), Labels(gender=gender))


def sphinx(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: PART/KEY.wav, and PART/transcription or NAME.transcription of `<s> words </s> (key)`.

    So lie CMU Sphinx's test data: recordings of people, such as those of LibriVox, which Debian's
    package pocketsphinx-testdata holds.
    """
    place = only(root / part, "*transcription", "the words in the form of CMU Sphinx")
    for line in lines(place, "the words in the form of CMU Sphinx", lost):
        found = _SPHINX_LINE.fullmatch(line)
        if found is None:
            lost.append(f"{place}: {line!r} is not `<s> words </s> (key)`")
            continue
        yield Found(found[2], place.parent / f"{found[2]}.wav", " ".join(found[1].split()))


def wenetspeech(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: with WenetSpeech.json and audio/; part: a subset such as TEST_NET or TEST_MEETING.

    The file is read a recording at a time: it is larger than memory.
    """
    for recording in _recordings(root / "WenetSpeech.json"):
        try:
            sound, segments = root / recording["path"], recording["segments"]
            for one in (one for one in segments if part in one.get("subsets", ())):
                times = float(one["begin_time"]), float(one["end_time"])
                yield Found(str(one["sid"]), sound, str(one["text"]), segment_s=times)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            lost.append(f"{root / 'WenetSpeech.json'}: {str(recording)[:80]}...: {error!r}")


def _recordings(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of the list `audios`, as they come in the file. Raises InputError."""
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(READ_BYTES)
            start = text.find("[", text.find('"audios"'))
            if '"audios"' not in text or start < 0:
                raise InputError(f"{path}: no list `audios`; it is the list of WenetSpeech")
            text = text[start + 1 :]
            while True:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    return
                try:
                    one, end = decoder.raw_decode(text)
                except json.JSONDecodeError as error:
                    more = file.read(max(READ_BYTES, len(text)))
                    if not more:
                        raise InputError(f"{path}: ends within a recording ({error})") from error
                    text += more
                    continue
                yield one
                text = text[end:]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); it is needed") from error


def common_voice(root: Path, part: str, lost: Lost) -> Iterator[Found]:
    """root: a language's folder with PART.tsv and clips/, or Kaggle's, with PART.csv and PART/."""
    if (root / f"{part}.tsv").exists():
        table = rows(root / f"{part}.tsv", "a table of Common Voice", ("path", "sentence"), lost)
        for row in table:
            yield _of_common_voice(row["sentence"], root / "clips" / row["path"], row)
        return
    table = rows(root / f"{part}.csv", "a table of Common Voice", ("filename", "text"), lost)
    for row in table:
        # Kaggle's archive nests the folder in one of its own name.
        inner, outer = root / part / row["filename"], root / row["filename"]
        yield _of_common_voice(row["text"], inner if inner.exists() else outer, row)


def _of_common_voice(text: str, audio: Path, row: Any) -> Found:
    age, gender = (row.get(name) or "" for name in ("age", "gender"))
    labels = Labels(age=AGES.get(age), gender=GENDERS.get(gender.lower()))
    return Found(audio.stem, audio, text, labels)
