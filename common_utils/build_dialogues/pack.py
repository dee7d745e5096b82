"""The corpus: lists with speech tokens, shards, combine lists, statistics and a data card.

    OUT/corpus/data.yaml        the lists below, as do_test_dataloader.py and a training read them
    OUT/corpus/dialogues.list   spoken questions with thoughts and spoken replies, in several turns
    OUT/corpus/replies.list     every reply as a text to speak
    OUT/corpus/written.list     dialogues that are not spoken, as questions and replies in text
    OUT/corpus/NAME/shard, NAME/combine, statistics.json, README.md
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from common_utils import extract_speech_tokens, make_combine_from_shard, make_shard_from_raw
from common_utils.build_dialogues.dialogue import FILES, LANGUAGES, Dialogue, read_dialogues
from common_utils.jobs import Work
from osum_echat import audio
from osum_echat.data.manifest import COMBINES_LIST, SHARDS_LIST
from osum_echat.data.prepare import REPLY_STYLES
from osum_echat.errors import InputError
from osum_echat.files import read_journal, whole_file, write_json, write_jsonl
from osum_echat.paths import TINY
from osum_echat.records import LIST_KEYS, Labels
from osum_echat.settings import check_numbers

CORPUS, CARD, STATISTICS, DATA_YAML = "corpus", "README.md", "statistics.json", "data.yaml"
DIALOGUES, REPLIES, WRITTEN = "dialogues", "replies", "written"
THINK_TAG, HISTORY_TAG = "<S2TCHAT> <TEXT2TOKEN> <THINK>", "<S2TCHAT> <TEXT2TOKEN> <HISTORY>"
PLAIN_TAG, TTS_TAG, T2T_TAG = "<S2TCHAT> <TEXT2TOKEN>", "<TEXT2TOKEN>", "<TEXT2TEXT>"
CALM = "CALM"
COUNTED = ("rows", "category", "language", "turns", "words", "questions", "age", "gender",
           "emotion", "event", "style", "cues")  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """What the corpus is made of, for its card."""

    name: str
    licence: str
    use: str = ""


@dataclass(frozen=True, slots=True)
class PackSettings:
    """tokenizer: whose speech tokens, see extract_speech_tokens.py; sources: for the data card."""

    tokenizer: str = str(TINY)
    per_tar: int = 1000
    title: str = "Empathetic spoken dialogues"
    licence: str = "not chosen yet"
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(self, "pack", "per_tar", 1)


def pack_corpus(
    settings: PackSettings, counts: Mapping[str, int], folder: Path, work: Work
) -> dict[str, Any]:
    """Make OUT/corpus of what is heard; returns its statistics."""
    corpus = folder / CORPUS
    taken: Counter[str] = Counter()
    kept: list[Dialogue] = []
    for one in read_dialogues(folder / FILES["listen"]):      # the spare ones are left
        taken[one.category] += 1
        if taken[one.category] <= counts.get(one.category, 0):
            kept.append(one)
    spoken = [one for one in kept if one.last.wav]
    made: dict[str, list[Row]] = {
        WRITTEN: [written_row(one) for one in kept if not one.last.wav]
    }
    if spoken:
        untold, coded = corpus / f".{REPLIES}.list", corpus / f"{REPLIES}.list"
        write_jsonl(untold, (row for one in spoken for row in reply_rows(one)))
        extract_speech_tokens.make(untold, coded, work, Path(settings.tokenizer))
        replies = {str(row["key"]): row for _, row in read_journal(coded)}
        codes = {key: row["extra"]["speech_token"] for key, row in replies.items()}
        made[REPLIES] = list(replies.values())
        made[DIALOGUES] = [
            row for one in spoken
            if {_key(one, number) for number in range(len(one.turns))} <= set(codes)
            for row in spoken_rows(one, codes)
        ]  # fmt: skip
    data = {}
    for name, rows in made.items():
        if rows:
            place = corpus / f"{name}.list"
            write_jsonl(place, rows)
            shards, lists = corpus / name / "shard", corpus / name / "combine"
            make_shard_from_raw.make(place, shards, work, settings.per_tar)
            make_combine_from_shard.make(shards / SHARDS_LIST, lists, work)
            data[name] = {"path": f"{name}/combine/{COMBINES_LIST}", "weight": 1}
    if not data:
        raise InputError(f"{folder / FILES['listen']}: nothing to pack")
    with whole_file(corpus / DATA_YAML) as file:
        file.write(yaml.safe_dump(data, sort_keys=False).encode())
    found = statistics(kept, made, folder)
    write_json(corpus / STATISTICS, found)
    return found


def spoken_rows(dialogue: Dialogue, codes: Mapping[str, Sequence[int]]) -> Iterator[Row]:
    """The first turn with its thoughts, and the last one with all that came before it."""
    first = dialogue.turns[0]
    thinks = first.thought or first.label_thought
    yield _chat(dialogue, 0, THINK_TAG if thinks else PLAIN_TAG, codes, "first")
    if len(dialogue.turns) == 1:
        return
    row = _chat(dialogue, len(dialogue.turns) - 1, HISTORY_TAG, codes, "history")
    for number, turn in enumerate(dialogue.turns[:-1], 1):
        row |= {f"wav_{number}": f"../{turn.wav}", f"txt_{number}": turn.reply}
        row["extra"] |= {f"q_txt_{number}": turn.question,
                         f"speech_token_{number}": codes[_key(dialogue, number - 1)]}
    row["extra"]["speech_token_num"] = len(dialogue.turns)
    yield row


def reply_rows(dialogue: Dialogue) -> Iterator[Row]:
    """Every reply as a text to speak; a manner that is not calm is told by a tag."""
    style = dialogue.labels.style or CALM
    for number, turn in enumerate(dialogue.turns):
        yield {"key": _key(dialogue, number), "wav": f"../{turn.reply_wav}", "task": TTS_TAG,
               "txt": str(turn.reply) if style == CALM else f"<{style}>{turn.reply}",
               "lang": dialogue.language, "extra": {"reply_emotion": style}}


def written_row(dialogue: Dialogue) -> Row:
    """The first question and its reply, in text."""
    first = dialogue.turns[0]
    return {"key": f"{dialogue.key}-written", "txt": first.reply, "task": T2T_TAG,
            "lang": dialogue.language,
            "extra": {"question": first.question, **_about(dialogue, 0)}}  # fmt: skip


def _chat(
    dialogue: Dialogue, number: int, tag: str, codes: Mapping[str, Sequence[int]], name: str
) -> Row:
    """A turn as a row. A style of the published models stands before the reply as its tag."""
    turn, style = dialogue.turns[number], dialogue.labels.style
    text = f"<{style}>{turn.reply}" if style in REPLY_STYLES else turn.reply
    own = codes[_key(dialogue, number)]
    return {"key": f"{dialogue.key}-{name}", "wav": f"../{turn.wav}", "txt": text, "task": tag,
            "lang": dialogue.language,
            "extra": _about(dialogue, number) | {"speech_token": list(own)}}  # fmt: skip


def _about(dialogue: Dialogue, number: int) -> Row:
    """What is known of a turn, under the names of the lists."""
    turn = dialogue.turns[number]
    known = {LIST_KEYS[name]: value for name, value in asdict(dialogue.labels_at(number)).items()}
    told = {"q_txt": turn.question, "think_str": turn.thought, "label_think_str":
            turn.label_thought, "a_wav_path": turn.reply_wav and f"../{turn.reply_wav}",
            "category": dialogue.category, "topic": dialogue.topic}  # fmt: skip
    return {name: value for name, value in (known | told).items() if value is not None}


def _key(dialogue: Dialogue, number: int) -> str:
    return f"{dialogue.key}-{number + 1}-reply"


def statistics(
    kept: Sequence[Dialogue], made: Mapping[str, Sequence[Row]], folder: Path
) -> dict[str, Any]:
    """What the corpus holds, counted."""
    wavs = {"questions": [turn.wav for one in kept for turn in one.turns if turn.wav],
            "replies": [turn.reply_wav for one in kept for turn in one.turns if turn.reply_wav]}
    hours = {name: sum(audio.length(folder / wav) for wav in own) / audio.SAMPLE_RATE_HZ / 3600
             for name, own in wavs.items()}  # fmt: skip
    counted = {
        "category": Counter(one.category for one in kept),
        "language": Counter(LANGUAGES[one.language] for one in kept),
        "turns": Counter(str(len(one.turns)) for one in kept),
        "words": Counter("explicit" if one.explicit else "implicit" for one in kept),
        "questions": Counter("recorded" if one.last.recording else "made" if one.last.wav
                             else "written" for one in kept),
        "cues": Counter(" + ".join(str(getattr(one.labels, cue)) for cue in one.cues)
                        for one in kept),
        **{name: Counter(getattr(one.labels, name) for one in kept)
           for name in asdict(Labels())},
    }  # fmt: skip
    return {
        "dialogues": len(kept),
        "rows": {name: len(rows) for name, rows in made.items()},
        "hours": {name: round(value, 3) for name, value in hours.items()},
        **{name: dict(sorted(one.items())) for name, one in counted.items()},
    }


def card(
    settings: PackSettings, found: Mapping[str, Any], made_by: Mapping[str, str],
    steps: Mapping[str, Mapping[str, Any]],
) -> str:  # fmt: skip
    """The data card. made_by: what made which part; steps: kept, dropped and bill of each."""
    from jinja2 import Template

    def told(counts: Mapping[str, int], between: str) -> str:
        return ", ".join(f"{name}{between}{count}" for name, count in counts.items())

    text = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    return Template(text, keep_trailing_newline=True).render(
        settings=settings, found=found, made_by=made_by, steps=steps, told=told, counted=COUNTED
    )
