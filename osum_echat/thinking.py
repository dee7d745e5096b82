"""Thoughts before the answer and labels in a text: written, read back, and made plain.

The Chinese template is that of the published label-thinking model, the English one the tiny
world's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from osum_echat.errors import ConfigError
from osum_echat.records import Labels, canonical_label
from osum_echat.vocab import UNKNOWN

THINK_START, THINK_END = "<think>", "<think end>"
ANSWER_START = "<开始回答>"      # parts transcript and reply in `<TRANSCRIBE> <S2TCHAT>`
FIELDS = ("age", "gender", "emotion", "event", "style")       # of a label thought, in its order
VALUES = {                                                  # of each field of a voice
    "age": frozenset({"CHILD", "ADULT", "OLD"}),
    "gender": frozenset({"MALE", "FEMALE"}),
    "emotion": frozenset(
        {"SAD", "ANGER", "NEUTRAL", "HAPPY", "SURPRISE", "FEAR", "DISGUST", "OTHER"}),
    "event": frozenset(
        {"LAUGH", "COUGH", "CRY", "SCREAMING", "SIGH", "GROAN", "THROAT CLEARING", "SNEEZE",
         "OTHER"}),
}
# A voice that nothing special is known of; a new field of VALUES may have one or not.
DEFAULT_LABELS = {"age": "ADULT", "gender": "MALE", "emotion": "NEUTRAL", "event": "OTHER"}
LABEL = re.compile(r"<([^<>]+)>")
LABEL_BETWEEN = re.compile(r"(?<=[A-Za-z0-9,.;!?'])(?:<[^<>]+>)+(?=[A-Za-z0-9])")  # English words
_NOT_IN_WORDS = re.compile(r"[^a-z0-9' ]+")
_UPPER_LABEL = re.compile(r"<([A-Z ]+)>")
_CJK_SPACES = re.compile(r"\s+(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])\s+")
_BRACKET_SPACES = re.compile(r"\s+(?=[<>])|(?<=[<>])\s+")
THINK_END_MARK = re.compile(r"<\s*/?think end>|</think>")
LEADING_TAG = re.compile(r"\s*<([^<>]+)>\s*")


@dataclass(frozen=True, slots=True)
class LabelTemplate:
    """The fixed words of a label thought: before what was heard, before each label, at the end."""

    name: str
    heard: str
    cues: tuple[str, str, str, str, str]        # in the order of FIELDS; a label in <> follows each
    closing: str = ""


CHINESE = LabelTemplate(
    "chinese", "用户说的话是:",
    (",年龄为:", ",性别为:", ",情感为:", ",声音事件为:", ",推测使用的回复情感为:"),
    ",我应该综合用户的语义和副语言信息给出专业且对应的回答",
)
ENGLISH = LabelTemplate(
    "english", "The user said: ",
    (", age: ", ", gender: ", ", emotion: ", ", sound event: ", ", reply emotion: "),
)
TEMPLATES = {template.name: template for template in (CHINESE, ENGLISH)}
_NATURAL_STARTS = {"chinese": "", "english": "I hear"}


def template_named(name: str) -> LabelTemplate:
    """The label template of that name; ConfigError lists those there are."""
    if name not in TEMPLATES:
        raise ConfigError(f"template {name!r}: not one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def label_thought(template: LabelTemplate, heard: str, labels: Labels) -> str:
    """The label thought with its marks; the answer follows it. An unknown label is `<&&>`."""
    words = "".join(f"{cue}<{getattr(labels, field) or UNKNOWN}>"
                    for cue, field in zip(template.cues, FIELDS, strict=True))
    return f"{THINK_START}{template.heard}{heard}{words}{template.closing}{THINK_END}"


def natural_thought(thought: str) -> str:
    """A thought in plain words with its marks; the answer follows it."""
    return f"{THINK_START}{thought}{THINK_END}"


def opening(kind: str, template: LabelTemplate) -> str:
    """The first words that make a model of both kinds think in this one; kind: label or natural."""
    if kind not in ("label", "natural"):
        raise ConfigError(f"thinking {kind!r}: choose label or natural")
    words = template.heard.rstrip() if kind == "label" else _NATURAL_STARTS[template.name]
    return THINK_START + words


def read_thought(thought: str, template: LabelTemplate | None) -> tuple[str | None, Labels]:
    """What was heard, and every label that stands after its own cue.

    template: the one that the thought is in if it has labels; None tries each.
    """
    tried = (template,) if template else TEMPLATES.values()
    found = next((one for one in tried if thought.startswith(one.heard.strip())), None)
    if found is None:
        return None, Labels()
    labels: dict[str, str | None] = {}
    first = len(thought)
    for cue, field in zip(found.cues, FIELDS, strict=True):
        place = thought.rfind(cue.rstrip())
        label = LEADING_TAG.match(thought, place + len(cue.rstrip())) if place >= 0 else None
        if label:
            labels[field] = canonical_label(label[1])
            first = min(first, place)
    heard = thought[len(found.heard.strip()) : first].strip()
    return heard or None, Labels(**labels)


def voice_tags(labels: Mapping[str, str | None]) -> str:
    """The labels of a voice as they stand before its words, e.g. `<CHILD><MALE>`.

    labels: by the names of VALUES, in whose order they stand; what is unknown is left out.
    """
    return "".join(f"<{labels[field]}>" for field in VALUES if labels.get(field))


def read_labels(text: str, fields: tuple[str, ...]) -> Labels:
    """The labels of an understanding answer, e.g. `i lost my kite<CHILD><MALE>`.

    fields: those asked for, in order. A label goes to the field it belongs to by its value; one
    that no list knows goes to the next open field.
    """
    found: dict[str, str | None] = {}
    for name in map(canonical_label, LABEL.findall(text)):
        unfilled = [field for field in fields if field not in found]
        own = [field for field in unfilled if name in VALUES.get(field, ())]
        is_known = any(name in values for values in VALUES.values())
        for field in (own or ([] if is_known else unfilled))[:1]:
            found[field] = name
    return Labels(**found)


def without_labels(text: str) -> str:
    """The words of a text; English ones stay apart where a label stood between them."""
    return LABEL.sub("", LABEL_BETWEEN.sub(" ", text)).strip()


def transcript(text: str) -> str:
    """What was heard by an understanding answer: its words before the mark of a reply."""
    return without_labels(text.partition(ANSWER_START)[0])


def clean(text: str) -> str:
    """One line, no spaces around Chinese characters or angle brackets.

    A bracket that opens a tag keeps no space before it; `<think end>` keeps the one inside.
    """
    text = _CJK_SPACES.sub("", text.replace("\n", " "))
    return _BRACKET_SPACES.sub("", text).strip()


def as_heard(text: str) -> str:
    """A text as one hears it: lower case, letters, digits and apostrophes, without marks."""
    return " ".join(_NOT_IN_WORDS.sub(" ", text.lower().replace("’", "'")).split())


def as_words(text: str) -> str:
    """Labels as words, no sound event as nothing, and a space before each word."""
    plain = _UPPER_LABEL.sub(
        lambda found: "" if found[1] == "OTHER" else f" {found[1].lower()} ", text
    )
    return "".join(f" {word}" for word in plain.split())
