"""The items of EChat-eval in the forms they come in, read into one.

Told apart by what is there:
- a folder with exchanges.jsonl: the tiny world's test split;
- jsonl whose objects have `turns` with roles, or `dialogue`: HumDial-like conversations, of which
  the last user turn is answered with the turns before it as history;
- any other jsonl: EChat-eval style, one query a line. The raw lists of training do too.

EChat-eval style fields (the first that is there counts):
    key | id | utt                     wav | audio | query_wav | path
    transcript | q_txt | question | query | text
    labels {emotion, age, gender, event}, or these fields themselves or in `extra` (q_emotion,
    caption)                           category | task_category | type: emotion age gender event
    multi; others keep their name; without one: `multi` where several cues are known.
HumDial-like: {"id", "category"?, "turns": [{"role": "user", "audio", "text", "emotion" ...},
{"role": "assistant", "text", "audio"?}, ...]}
Relative paths start at the folder of the jsonl.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osum_echat.errors import DataError, InputError
from osum_echat.records import Labels, Turn, canonical_label

WORLD_FILE = "exchanges.jsonl"
CUES = ("emotion", "age", "gender", "event")
MULTI, MULTI_TURN, IDENTITY = "multi", "multi-turn", "identity"
KEYS = ("key", "id", "utt")
SOUNDS = ("wav", "audio", "query_wav", "path")
TRANSCRIPTS = ("transcript", "q_txt", "question", "query", "text")
CATEGORY = ("category", "task_category", "type")
LABELS = {"emotion": ("emotion", "q_emotion"), "age": ("age",), "gender": ("gender",),
          "event": ("event", "caption", "sound_event")}  # fmt: skip
# The tiny world's single turns go round these, by what their labels make interesting.
WORLD_CATEGORIES = ("emotion", "age", "gender", "event", MULTI)


@dataclass(frozen=True, slots=True)
class EChatItem:
    """One query. earlier: the turns before, whose reply speech is a sound file where known."""

    key: str
    category: str
    wav: Path
    transcript: str
    labels: Labels
    earlier: tuple[Turn, ...] = ()
    earlier_replies: tuple[Path | None, ...] = ()
    real: bool | None = None            # a recording of a person; None: not told


def read(data: Path) -> list[EChatItem]:
    """The items of a folder or jsonl. Raises InputError or DataError: where, what."""
    if data.is_dir():
        place = data / WORLD_FILE
        if not place.exists():
            found = sorted(data.glob("*.jsonl"))
            if len(found) != 1:
                raise InputError(f"--data {data}: no {WORLD_FILE} and {len(found)} other jsonl "
                                 "files in it; name the jsonl itself")
            return read(found[0])
        return _of_world(place)
    items = [_item(raw, where, data.parent) for where, raw in objects(data)]
    if not items:
        raise InputError(f"--data {data}: no items; one JSON object a line is needed")
    return items


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line of a jsonl stands, and its object. Raises InputError, DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data {path}: cannot be read ({error}); give a jsonl") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(raw, dict):
            raise DataError(f"{where}: a JSON {type(raw).__name__}, need an object")
        yield where, raw


def _of_world(path: Path) -> list[EChatItem]:
    """The tiny world's exchanges: dialogues, identity, and single turns by category."""
    items: list[EChatItem] = []
    singles = 0
    for where, raw in objects(path):
        try:
            labels = Labels(**raw["labels"])
            kind = raw["kind"]
            category = {"dialogue": MULTI_TURN, "identity": IDENTITY}.get(kind)
            if category is None:
                category, singles = _world_category(labels, singles), singles + 1
            turns = tuple(
                Turn(path.parent / turn["wav"], turn["user_text"], turn["reply_text"])
                for turn in raw["turns"]
            )
            replies = tuple(path.parent / turn["reply_wav"] for turn in raw["turns"])
            items.append(EChatItem(raw["key"], category, path.parent / raw["wav"],
                                   raw["user_text"], labels, turns, replies, real=False))
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: no exchange of the tiny world ({error!r}); make the split "
                            "again") from error
    return items


def _world_category(labels: Labels, number: int) -> str:
    """Go round the categories; one whose cue is absent in this voice makes way for the next."""
    absent = {"emotion": labels.emotion == "NEUTRAL", "event": labels.event == "OTHER",
              MULTI: labels.emotion == "NEUTRAL" and labels.event == "OTHER"}  # fmt: skip
    for step in range(len(WORLD_CATEGORIES)):
        category = WORLD_CATEGORIES[(number + step) % len(WORLD_CATEGORIES)]
        if not absent.get(category):
            return category
    return "gender"


def _item(raw: Mapping[str, Any], where: str, root: Path) -> EChatItem:
    turns = raw.get("turns") or raw.get("dialogue")
    if isinstance(turns, list):
        return _conversation(raw, turns, where, root)
    labels = _labels(raw, where)
    return EChatItem(
        key=_text(raw, KEYS, where), category=_category(raw, labels),
        wav=root / _text(raw, SOUNDS, where),
        transcript=_text(_merged(raw), TRANSCRIPTS, where), labels=labels, real=_real(raw),
    )  # fmt: skip


def _conversation(
    raw: Mapping[str, Any], turns: Sequence[Any], where: str, root: Path
) -> EChatItem:
    """The last user turn, with the exchanges before it as history."""
    last = max((place for place, turn in enumerate(turns) if _role(turn, where) == "user"),
               default=-1)  # fmt: skip
    if last < 0:
        raise DataError(f"{where}: no turn with the role user; one is needed")
    earlier: list[Turn] = []
    replies: list[Path | None] = []
    asked: Mapping[str, Any] | None = None
    for turn in turns[:last]:
        if _role(turn, where) == "user":
            asked = turn
        elif asked is not None:
            said, answered = (_text(one, TRANSCRIPTS, where) for one in (asked, turn))
            earlier.append(Turn(root / _text(asked, SOUNDS, where), said, answered))
            sound = next((turn[name] for name in SOUNDS if turn.get(name)), None)
            replies.append(root / sound if sound else None)
            asked = None
    question = turns[last]
    labels = _labels(question, where)
    named = any(raw.get(name) for name in CATEGORY)
    return EChatItem(
        key=_text(raw, KEYS, where), wav=root / _text(question, SOUNDS, where),
        category=_category(raw, labels) if named or not earlier else MULTI_TURN,
        transcript=_text(question, TRANSCRIPTS, where), labels=labels,
        earlier=tuple(earlier), earlier_replies=tuple(replies), real=_real(raw),
    )  # fmt: skip


def _role(turn: Any, where: str) -> str:
    role = turn.get("role", turn.get("speaker")) if isinstance(turn, dict) else None
    if not isinstance(role, str):
        raise DataError(f"{where}: a turn without a role; need user or assistant")
    return "user" if role.lower() in ("user", "human") else "assistant"


def _merged(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The object with what its `extra` and `labels` hold."""
    merged = dict(raw)
    for name in ("extra", "labels"):
        if isinstance(raw.get(name), dict):
            merged = {**raw[name], **{key: value for key, value in merged.items() if value}}
    return merged


def _labels(raw: Mapping[str, Any], where: str) -> Labels:
    merged = _merged(raw)
    found: dict[str, str | None] = {}
    for cue, names in LABELS.items():
        value = next((merged[name] for name in names if merged.get(name)), None)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {cue} is {value!r}, need a string")
        found[cue] = canonical_label(value)
    return Labels(**found)


def _category(raw: Mapping[str, Any], labels: Labels) -> str:
    named = next((str(raw[name]).lower() for name in CATEGORY if raw.get(name)), None)
    if named is not None:
        return named
    known = [cue for cue in CUES if asdict(labels)[cue]]
    return known[0] if len(known) == 1 else MULTI


def _real(raw: Mapping[str, Any]) -> bool | None:
    """Whether the query is a recording of a person, where the line tells."""
    value = _merged(raw).get("real")
    return value if isinstance(value, bool) else None


def _text(raw: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if isinstance(raw.get(name), str) and raw[name]:
            return str(raw[name])
    raise DataError(f"{where}: none of {', '.join(names)}; one of them is needed")
