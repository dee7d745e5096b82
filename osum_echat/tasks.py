"""What can be asked of the model: one row for each task, and the names it goes by."""

import random
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import ConfigError, InputError
from osum_echat.records import LIST_KEYS, canonical_label
from osum_echat.settings import check_word, read_mapping

USER_START = "<|im_start|>user\n"
TURN_END = "<|im_end|>\n"
UNDERSTAND = "understand"
SWITCH = "<|im_end|>\n<|im_start|>assistant\n"
_HEARS = "You understand both the meaning and paralinguistic cues in speech"
_THINKS = (
    f"{_HEARS}. Before responding, first output your reasoning inside <think>...</think end>, "
    "analyzing the user\u2019s words and vocal cues. Then generate a reply with appropriate text "
    "and emotionally matched synthetic speech."
)


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of row. `system` is the sentence after "You are OSUM-chat, " as it was trained."""

    name: str
    system: str
    preset: str                         # of generation/sampling.py: how its tokens are drawn
    hears: bool                         # the user's turn holds a clip
    speaks: bool                        # the answer ends in speech tokens
    thinks: bool = False                # the answer begins with a thought
    interleaved: bool = False           # text and speech of the answer alternate
    joint: bool = False                 # the loss runs over text and speech ids together
    user_text: bool = False             # the user's turn holds a prompt, question or words to speak
    answers_text: bool = True           # the answer holds text
    transcript: bool = False            # understanding: the words are asked for
    labels: tuple[str, ...] = ()        # understanding: the labels asked for, in this order
    tag: str = ""                       # the name in data lists
    is_styled: bool = False             # the answer may begin with the tag of a style
    in_menu: bool = False               # offered by the web page and by the tour of infer_runtime

    @property
    def understands(self) -> bool:
        """Whether it writes the words and labels of a clip down, and answers nothing."""
        return self.name == UNDERSTAND

    @property
    def is_dialogue(self) -> bool:
        """Whether its turns follow from each other: spoken questions that are answered."""
        return self.hears and not self.understands

    @property
    def takes_prompt(self) -> bool:
        """Whether the user's turn may hold a prompt beside its clip."""
        return self.hears and self.user_text

    @property
    def kind(self) -> str:
        """What goes in and what comes out, speech or text: s2t, t2s, s2s or t2t."""
        return f"{'s' if self.hears else 't'}2{'s' if self.speaks else 't'}"

    @property
    def opening(self) -> str:
        """The row's first string: the system prompt and the start of the user's turn."""
        return f"<|im_start|>system\nYou are OSUM-chat, {self.system}{TURN_END}{USER_START}"


TASKS = {task.name: task for task in (
    Task(UNDERSTAND, "an audio understanding assistant by ASLP Lab. You can transcribe speech "
         "accurately and analyze paralinguistic cues to provide precise text responses.",
         preset="understand", hears=True, speaks=False, user_text=True),
    Task("s2t", f"a speech-to-text dialogue assistant by ASLP Lab. {_HEARS} then respond "
         "exclusively with appropriate text.", preset="chat", hears=True, speaks=False,
         tag="<S2TCHAT>", is_styled=True, in_menu=True),
    Task("s2t_fake", f"a speech-to-speech dialogue assistant by ASLP Lab. {_THINKS}",
         preset="chat", hears=True, speaks=False, tag="<S2TCHAT_FAKE>"),
    Task("s2t_think", "a thinking-enabled speech-to-text dialogue assistant by ASLP Lab. You not "
         "only comprehend the semantic meaning and paralinguistic cues in speech but also engage "
         "in deliberate reasoning to process such information. Based on this thinking process, you "
         "then respond exclusively with appropriate text.",
         preset="chat", hears=True, speaks=False, thinks=True,
         tag="<S2TCHAT> <THINKER>", is_styled=True, in_menu=True),
    Task("t2t", "a text-to-text dialogue assistant by ASLP Lab. You understand user input in text "
         "then respond exclusively with appropriate text.",
         preset="greedy", hears=False, speaks=False, user_text=True,
         tag="<TEXT2TEXT>", in_menu=True),
    Task("s2s", f"a speech-to-speech dialogue assistant by ASLP Lab. {_HEARS} then respond with "
         "appropriate text and emotionally matching synthetic speech.",
         preset="speak", hears=True, speaks=True, joint=True,
         tag="<S2TCHAT> <TEXT2TOKEN>", is_styled=True, in_menu=True),
    Task("s2s_think", f"a speech-to-speech dialogue assistant by ASLP Lab. {_THINKS}",
         preset="speak", hears=True, speaks=True, thinks=True, joint=True,
         tag="<S2TCHAT> <TEXT2TOKEN> <THINK>", is_styled=True, in_menu=True),
    Task("s2s_history", f"a speech-to-speech dialogue assistant by ASLP Lab. {_HEARS} then respond "
         "with appropriate text and emotionally matching synthetic speech.",
         preset="speak", hears=True, speaks=True, joint=True,
         tag="<S2TCHAT> <TEXT2TOKEN> <HISTORY>", is_styled=True),
    Task("s2s_streaming", "a speech-to-speech dialogue assistant by ASLP Lab. You analyze speech "
         "(content + paralinguistic cues) and respond with interleaved text and "
         "emotionally-matched synthetic speech.",
         preset="speak", hears=True, speaks=True, interleaved=True, joint=True,
         tag="<S2TCHAT> <TEXT2TOKEN> <STREAMING>"),
    Task("tts", "a speech synthesis assistant by ASLP Lab. You generate natural and fluent "
         "speech from text input.",
         preset="tts", hears=False, speaks=True, joint=True, user_text=True, answers_text=False,
         tag="<TEXT2TOKEN>", in_menu=True),
    Task("tts_streaming", "a speech synthesis assistant by ASLP Lab. You generate natural "
         "speech from text input and output both audio and the original text in interleaved "
         "format.",
         preset="tts", hears=False, speaks=True, interleaved=True, joint=True, user_text=True,
         tag="<TEXT2TOKEN> <STREAMING>"),
)}
LABEL_TAGS = {                          # of the fields of records.Labels, in the lists' order
    "CAPTION": "event", "AGE": "age", "GENDER": "gender", "EMOTION": "emotion", "STYLE": "style",
}
LABEL_TAGS |= {one.upper(): one for one in LIST_KEYS if one not in LABEL_TAGS.values()}
_ALIASES = {
    "TEXT2TOKEN": "tts",
    "<Speech2TEXTandTOKEN>": "s2s",
    "<S2TCHAT> <TEXT2TOKEN> <EMOTION>": "s2s",
    "<TEXT2TOKEN> <S2TCHAT>": "s2s",
    **{task.tag: task.name for task in TASKS.values() if task.tag},
}
_OTHER_UNDERSTANDING = {                # tag -> (transcript, labels)
    "<TRANSCRIBE> <ALIGN>": (True, ()),
    "<TRANSCRIBE> <PUNCTUATION>": (True, ()),
    "<TRANSCRIBE> <S2TCHAT>": (True, ()),
    "<CAPTION> <AUDIO>": (False, ("event",)),
}
_SHORT_NAMES = {
    "asr": "<TRANSCRIBE>",
    "understand": "<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION>",
}
_STYLES = {                             # old names of speaking styles -> the eight kept
    "朗读": "新闻科普", "科普百科": "新闻科普", "悬疑恐怖": "恐怖故事", "童话": "童话故事",
    "诗歌": "诗歌散文", "散文": "诗歌散文", "武侠评书": "有声书", "小说": "有声书",
    "历史": "有声书", "科幻": "有声书", "对话": "日常口语", "口语": "日常口语", "幽默": "其他",
}
_TAG = re.compile(r"<([^<>]+)>")


def understanding_tag(labels: tuple[str, ...], transcript: bool = True) -> str:
    """The tag that asks for these labels (fields of records.Labels), in the lists' usual order."""
    asked = [f"<{tag}>" for tag, field in LABEL_TAGS.items() if field in labels]
    return " ".join((["<TRANSCRIBE>"] if transcript or not asked else []) + asked)


@lru_cache(maxsize=1024)
def task_for(tag: str) -> Task:
    """The task of a tag from a data list, or of our own short name.

    Raises InputError listing the names.
    """
    wanted = " ".join(tag.split())
    name = _ALIASES.get(wanted, wanted)
    if name in TASKS and name != UNDERSTAND:
        return TASKS[name]
    wanted = _SHORT_NAMES.get(wanted, wanted)
    if wanted in _OTHER_UNDERSTANDING:
        transcript, labels = _OTHER_UNDERSTANDING[wanted]
        return replace(TASKS[UNDERSTAND], transcript=transcript, labels=labels, tag=wanted)
    marks = _TAG.findall(wanted)
    fields = [LABEL_TAGS[mark] for mark in marks if mark in LABEL_TAGS]
    transcript = marks[:1] == ["TRANSCRIBE"]
    is_whole = wanted == " ".join(f"<{mark}>" for mark in marks)
    is_known = len(fields) + transcript == len(marks) and len(set(fields)) == len(fields)
    if not marks or not is_whole or not is_known:
        names = tuple(dict.fromkeys((*TASKS, *_SHORT_NAMES)))
        near = get_close_matches(wanted, (*names, *_ALIASES), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"task {tag!r}: not one of {', '.join(names)}, nor a tag such as "
                         f"'<TRANSCRIBE> <AGE>'; {hint}python -m osum_echat.tasks prints all")
    return replace(TASKS[UNDERSTAND], transcript=transcript, labels=tuple(fields), tag=wanted)


def fix_labels(text: str) -> str:
    """Give the labels inside a text one spelling: `<YOUTH>` -> `<ADULT>`, old styles to new."""

    def fixed(found: re.Match[str]) -> str:
        name = found[1]
        if name in _STYLES:
            return f"<{_STYLES[name]}>"
        label = canonical_label(name)
        return f"<{label}>" if label and label != name.upper() else found[0]

    return _TAG.sub(fixed, text)


PROMPTS_FILE = "prompts.yaml"           # of a model
LANGUAGES = ("all", "english", "chinese")


class Prompts:
    """Pools of prompts by task tag."""

    def __init__(self, pools: dict[str, tuple[str, ...]]) -> None:
        self.pools = pools

    @classmethod
    def from_file(cls, path: Path, language: str = "all") -> "Prompts":
        """Read `tag: [prompt, ...]` or `tag: {english: [...], chinese: [...]}`.

        A plain list belongs to every language. Raises ConfigError for anything else.
        """
        check_word("prompt_language", language, LANGUAGES)
        raw = read_mapping(path, advice="see prepare.prompts")
        pools = {}
        for tag, entry in raw.items():
            pool = _pool(entry, language)
            if not pool or not all(isinstance(prompt, str) and prompt for prompt in pool):
                raise ConfigError(f"prompts {path}: {tag} has no list of prompts for {language!r}")
            pools[str(tag)] = tuple(pool)
        return cls(pools)

    def draw(self, tag: str, rng: random.Random) -> str | None:
        """One prompt of the task at random; None for a task without prompts."""
        pool = self.pools.get(tag)
        return rng.choice(pool) if pool else None

    def first(self, tag: str) -> str | None:
        """The task's first prompt, for those who do not want chance."""
        pool = self.pools.get(tag)
        return pool[0] if pool else None


def _pool(entry: object, language: str) -> list[str]:
    if isinstance(entry, list):
        return entry
    if not isinstance(entry, dict):
        return []
    kinds = [language] if language != "all" else [one for one in LANGUAGES if one in entry]
    return [prompt for kind in kinds for prompt in (entry.get(kind) or [])]


def table() -> list[str]:
    """The tasks of data lists, and what each needs in a record, as lines to print."""
    rows = [("task", "tag in lists", "from, to", "needs")]
    for task in TASKS.values():
        needs = {
            "wav": task.hears, "txt": True, "extra.question": task.kind == "t2t",
            "extra.think_str or labels": task.thinks, "extra.speech_token": task.speaks,
        }  # fmt: skip
        needed = ", ".join(name for name, is_needed in needs.items() if is_needed)
        tag = "<TRANSCRIBE> and labels" if task.understands else task.tag
        rows.append((task.name, tag, task.kind, needed))
    labels = ", ".join(f"<{tag}>" for tag in LABEL_TAGS)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    return [*lines, f"labels of understanding: {labels}"]


if __name__ == "__main__":
    for line in table():
        logs.out(line)
