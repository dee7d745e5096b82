"""What the page shows of a conversation, as plain values: turns, replies, pieces of sound."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from osum_echat.serving import pictures
from osum_echat.tasks import task_for
from osum_echat.thinking import without_labels

if TYPE_CHECKING:
    from torch import Tensor

    from osum_echat.inference.reply import Event, Reply
    from osum_echat.records import Labels

WORKING, DONE, STOPPED, FAILED = "working", "done", "stopped", "failed"
LABEL_FIELDS = ("emotion", "age", "gender", "event", "style")
NO_EVENT = ("event", "OTHER")   # what the lists write where nothing is heard beside the words


@dataclass(slots=True)
class ReplyView:
    """One column's answer while it grows. `key` is unique in the page; `pcm` is what it says."""

    key: str
    model: str
    manner: str
    speaks: bool
    state: str = WORKING
    heard: str | None = None
    labels: list[tuple[str, str]] = field(default_factory=list)
    thought: str = ""
    text: str = ""
    raw: str | None = None          # what the model wrote, where it is not the text
    problem: str | None = None
    seconds: float | None = None
    bars: list[float] = field(default_factory=list)
    mel: str | None = None
    timings: list[tuple[str, float]] = field(default_factory=list)

    def take(self, event: "Event") -> None:
        """Add what an event tells."""
        from osum_echat.inference import reply

        match event:
            case reply.Heard(text=text):
                self.heard = text
            case reply.LabelsFound(labels=labels):
                self.labels = chips(labels)
            case reply.ThoughtPiece(text=text):
                self.thought += text
            case reply.TextPiece(text=text):
                self.text += text
            case reply.Done(reply=done):
                self._finish(done)

    def _finish(self, reply: "Reply") -> None:
        self.heard, self.labels = reply.heard, chips(reply.labels)
        self.thought, self.text = reply.thought or "", reply.text
        if task_for(reply.task).understands:
            self.text, self.raw = without_labels(reply.text), reply.text
            if self.text == reply.heard:
                self.text = ""
        self.state = STOPPED if reply.stopped_by == "interrupt" else DONE
        self.timings = [
            (name.removesuffix("_s"), round(seconds, 2))
            for name, seconds in asdict(reply.timings).items()
            if seconds is not None and name != "load_s"
        ]
        if reply.wave is not None and reply.sample_rate_hz:
            self.seconds = reply.audio_out_s
            self.bars = pictures.bars(reply.wave)
            self.mel = pictures.spectrogram(reply.wave, reply.sample_rate_hz)

    def fail(self, problem: str) -> None:
        """The reply ended with an error."""
        self.state, self.problem = FAILED, problem


@dataclass(slots=True)
class TurnView:
    """A question and the answers to it."""

    task: str                       # of the menu
    text: str = ""
    clip: str | None = None         # path of the sound file
    name: str = ""
    seconds: float | None = None
    bars: list[float] = field(default_factory=list)
    mel: str | None = None
    replies: list[ReplyView] = field(default_factory=list)

    def hear(self, samples: "Tensor", rate_hz: int) -> None:
        """Draw the user's sound: (samples,)."""
        self.seconds = len(samples) / rate_hz
        self.bars = pictures.bars(samples)
        self.mel = pictures.spectrogram(samples, rate_hz)

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def chips(labels: "Labels") -> list[tuple[str, str]]:
    """Field and value of each label that tells something."""
    found = [(name, getattr(labels, name)) for name in LABEL_FIELDS]
    return [(name, label.lower()) for name, label in found if label and (name, label) != NO_EVENT]


def piece(key: str, samples: "Tensor", rate_hz: int) -> dict[str, Any]:
    """Sound for the page to play: (samples,) as 16-bit samples in base64."""
    import torch

    pcm = (samples.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().astype("<i2")
    return {"reply": key, "rate": rate_hz, "pcm": base64.b64encode(pcm.tobytes()).decode()}


def player(run: str, pieces: Sequence[dict[str, Any]], ended: Sequence[str]) -> dict[str, Any]:
    """All sound of a run so far: the page plays what it has not played yet."""
    return {"run": run, "pieces": list(pieces), "ended": list(ended)}
