"""Public corpora as they are unpacked to raw lists: python -m common_utils.make_raw_from_public -h.

Of words: AISHELL-1, AISHELL-2, LibriSpeech, WenetSpeech, Common Voice, CMU Sphinx; of voices rather
than words: VocalSound, MELD, MER2023.

    python -m common_utils.make_raw_from_public librispeech LibriSpeech --part test-clean \
        --out data/librispeech_test_clean.list
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common_utils.command import command
from common_utils.jobs import Report, write_list
from osum_echat import logs
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.files import absolute, read_lines
from osum_echat.records import LIST_KEYS, Labels
from osum_echat.tasks import Task, task_for, understanding_tag

GENDERS = {"f": "FEMALE", "m": "MALE", "female": "FEMALE", "male": "MALE",
           "female_feminine": "FEMALE", "male_masculine": "MALE"}  # fmt: skip
# Common Voice tells decades. `teens` are neither children nor adults: no label.
AGES = {**dict.fromkeys(("twenties", "thirties", "fourties", "forties", "fifties"), "ADULT"),
        **dict.fromkeys(("sixties", "seventies", "eighties", "nineties"), "OLD")}  # fmt: skip
READ_BYTES = 1 << 20
_SPHINX_LINE = re.compile(r"(?:<s>)?(.*?)(?:</s>)?\s*\(([^()]+)\)\s*")
EVENTS = {"laughter": "LAUGH", "sigh": "SIGH", "cough": "COUGH", "sneeze": "SNEEZE",
          "throatclearing": "THROAT CLEARING", "sniff": "SNIFF"}  # fmt: skip
EMOTIONS = {"neutral": "NEUTRAL", "joy": "HAPPY", "happy": "HAPPY", "sadness": "SAD", "sad": "SAD",
            "anger": "ANGER", "angry": "ANGER", "surprise": "SURPRISE", "fear": "FEAR",
            "disgust": "DISGUST", "worried": "FEAR"}  # fmt: skip
SOUNDS = (".wav", ".flac", ".mp3")
SPLITS = {"train", "dev", "val", "valid", "test"}      # as words of a folder's name


@dataclass(frozen=True, slots=True)
class Found:
    """An utterance. text: its words, empty where it has none; segment_s: the part that is meant."""

    key: str
    audio: Path
    text: str = ""
    labels: Labels = field(default_factory=Labels)
    segment_s: tuple[float, float] | None = None


Lost = list[str]    # lines and rows that cannot be used, each told as where it stands and why


def lines(path: Path, what: str, lost: Lost) -> Iterator[str]:
    """The lines of a text file that are not blank. Raises InputError saying what it should be."""
    advice = f"it is {what}: check the folder and --part"
    yield from (text for _, text in read_lines(path, advice, lost.append))


def pairs(path: Path, what: str, lost: Lost) -> Iterator[tuple[str, str]]:
    """The first word of each line and the rest."""
    for line in lines(path, what, lost):
        parts = line.split(maxsplit=1)
        yield parts[0], parts[1].strip() if len(parts) > 1 else ""


def rows(path: Path, what: str, needed: tuple[str, ...], lost: Lost) -> Iterator[Mapping[str, str]]:
    """The rows of a csv or tsv by the names of its columns.

    Raises InputError where a needed column is missing.
    """
    if path.suffix == ".tsv":           # there a quotation mark is a letter like any other
        reader = csv.DictReader(lines(path, what, lost), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines(path, what, lost))
    missing = set(needed) - set(reader.fieldnames or ())
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}; it is {what}")
    for row in reader:
        if None in row or None in row.values():
            lost.append(f"{path}: {list(row.values())}: not a cell for each column")
        else:
            yield row


def only(root: Path, pattern: str, what: str) -> Path:
    """The one path that fits below a folder. Raises InputError for none or several."""
    paths = sorted(root.glob(pattern))
    if len(paths) != 1:
        raise InputError(f"{root}: {len(paths)} places like {pattern}, need one: {what}")
    return paths[0]


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


@dataclass(frozen=True, slots=True)
class Corpus:
    """A layout. labels: what its lists ask for by default, beside the words where it has any."""

    find: Callable[[Path, str, Lost], Iterator[Found]]
    labels: tuple[str, ...] = ()
    words: bool = True

    @property
    def task(self) -> str:
        return understanding_tag(self.labels, self.words)


CORPORA: Mapping[str, Corpus] = {
    "aishell1": Corpus(aishell_1),
    "aishell2": Corpus(aishell_2),
    "librispeech": Corpus(librispeech),
    "wenetspeech": Corpus(wenetspeech),
    "common_voice": Corpus(common_voice, ("age", "gender")),
    "sphinx": Corpus(sphinx),
    "vocalsound": Corpus(vocalsound, ("event",), words=False),
    "meld": Corpus(meld, ("emotion",)),
    "mer2023": Corpus(mer_2023, ("emotion",), words=False),
}


def make(corpus: str, root: Path, /, part: str, out: Path, task: str | None = None) -> Report:
    """Write the list of a part of a corpus. Raises InputError where nothing can be used."""
    if corpus not in CORPORA:
        raise InputError(f"{corpus}: no corpus that is known; they are {', '.join(CORPORA)}")
    tag = task_for(task or CORPORA[corpus].task)
    if tag.name != "understand":
        raise InputError(f"--task {task}: not a task of understanding")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the unpacked corpus")
    return write_list(out, logs.progress(found_rows(corpus, absolute(root), part, tag), corpus))


def found_rows(
    corpus: str, root: Path, part: str, task: Task
) -> Iterator[dict[str, Any] | Dropped]:
    """The lines of the list, and why utterances are left out."""
    lost: Lost = []
    for one in CORPORA[corpus].find(root, part, lost):
        labels = asdict(one.labels)
        if not one.audio.is_file():
            yield Dropped("no sound", str(one.audio))
        elif any(labels[field] is None for field in task.labels):
            yield Dropped("no label", f"{one.key}: asked for {', '.join(task.labels)}")
        else:
            yield row(one, task.tag, task.labels, task.transcript)
    yield from (Dropped("line that cannot be used", told) for told in lost)


def row(one: Found, task: str, labels: tuple[str, ...], words: bool) -> dict[str, Any]:
    """An utterance as a line of a raw list: the words, then the labels that are asked for."""
    known = {name: value for name, value in asdict(one.labels).items() if value}
    text = (one.text if words else "") + "".join(f"<{known[name]}>" for name in labels)
    extra = {LIST_KEYS[name]: value for name, value in known.items()}
    if one.text:
        extra["q_txt"] = one.text
    made: dict[str, Any] = {"key": one.key, "wav": str(one.audio), "txt": text, "task": task}
    if one.segment_s is not None:
        made["start"], made["end"] = one.segment_s
    return made | {"extra": extra}


__doc__ += "\nlayouts:\n" + "\n".join(      # for --help
    f"  {name:<13}{' '.join(str(one.find.__doc__).split())}" for name, one in CORPORA.items()
)
main = command(
    make, corpus="one of the layouts above", root="its folder", out="the raw list to write",
    part="the set: test, test-clean, TEST_NET, te ...",
    task="what to ask, such as '<TRANSCRIBE> <GENDER>' (default: the corpus's own labels)",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
