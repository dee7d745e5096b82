"""The page's menu of tasks: which of the model's tasks a choice stands for, and what it asks for.

The choices are those of upstream's page: dialogue with and without a thought, listening for words
and labels in any combination, speaking, writing, and a prompt of one's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from osum_echat.errors import InputError
from osum_echat.serving import session
from osum_echat.serving.session import Refused
from osum_echat.tasks import task_for, understanding_tag

WORDS = "words"                 # beside the labels: the transcript
LABELS = ("emotion", "age", "gender", "event", "style")
HEARABLE = (WORDS, *LABELS)


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the menu. `task` is a name or tag; an empty one is made of the labels ticked."""

    name: str
    task: str = ""
    takes_prompt: bool = False  # beside the clip

    @property
    def picks_labels(self) -> bool:
        return not self.task

    @property
    def hears(self) -> bool:
        return self.picks_labels or task_for(self.task).hears

    @property
    def reads(self) -> bool:
        """True where the text box is used."""
        return self.takes_prompt or not self.hears

    @property
    def speaks(self) -> bool:
        return not self.picks_labels and task_for(self.task).speaks


MENU = {choice.name: choice for choice in (
    Choice("s2s_think", "s2s_think"),
    Choice("s2s", "s2s"),
    Choice("s2t_think", "s2t_think"),
    Choice("s2t", "s2t"),
    Choice("listen"),
    Choice("asr_punctuation", "<TRANSCRIBE> <PUNCTUATION>"),
    Choice("asr_align", "<TRANSCRIBE> <ALIGN>"),
    Choice("asr_reply", "<TRANSCRIBE> <S2TCHAT>"),
    Choice("caption", "<CAPTION> <AUDIO>"),
    Choice("free", "<TRANSCRIBE>", takes_prompt=True),
    Choice("tts", "tts"),
    Choice("t2t", "t2t"),
)}  # fmt: skip
FIRST = "s2s_think"


def is_dialogue(name: str) -> bool:
    """True for the choices whose turns follow from each other."""
    return name in MENU and bool(MENU[name].task) and session.is_dialogue(task_for(MENU[name].task))


def tag_of(name: str, ticked: Sequence[str]) -> str:
    """The task tag of a menu choice; ticked: what to listen for, of HEARABLE.

    Raises InputError for a choice that is not there, Refused for nothing ticked.
    """
    if name not in MENU:
        raise InputError(f"task {name!r}: not one of {', '.join(MENU)}")
    if not MENU[name].picks_labels:
        return MENU[name].task
    wanted = tuple(label for label in LABELS if label in ticked)
    if not wanted and WORDS not in ticked:
        raise Refused("no_label", "nothing to listen for; tick the words or a label")
    return understanding_tag(wanted, WORDS in ticked)
