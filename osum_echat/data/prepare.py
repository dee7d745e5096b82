"""From an utterance to its row of tokens: target text, prompt, thought and sound, by task.

Source of the rules: OSUM-EChat's data pipeline (label spelling, spaces, label-only variants, reply
tags, unknown labels). Chance comes from the `rng` handed in, so that a visit can be repeated.
"""

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from osum_echat import audio
from osum_echat.data.prompts import Prompts
from osum_echat.data.sources import Dropped
from osum_echat.errors import ConfigError, DataError, InputError
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.sequence import Clip, Sequence, compose
from osum_echat.tasks import Task, fix_labels, task_for
from osum_echat.thinking import (
    CHINESE,
    LabelTemplate,
    label_thought,
    natural_thought,
    opening,
    template_named,
    without_labels,
)
from osum_echat.vocab import Vocab

THINKING = ("label", "natural", "both")
FRAME_MS = 10
ALL_UNKNOWN_CHANCE = 0.85  # missing labels are all unknown, or else all defaults
DEFAULT_LABELS = {"age": "ADULT", "gender": "MALE", "emotion": "NEUTRAL", "event": "OTHER"}
ANSWER_START = "<开始回答>"  # parts transcript and reply in `<TRANSCRIBE> <S2TCHAT>`
TRANSCRIPT_AND_REPLY = "<TRANSCRIBE> <S2TCHAT>"
NEUTRAL_STYLE = "中立"
REPLY_STYLES = frozenset("愉悦 抱歉 开心 愤怒 惊讶 厌恶 悲伤 害怕 哭腔 安慰鼓励 中立".split())
OTHER_ASSISTANTS = (
    "MOSS Assistant", "MOSS助手", "QWEN", "Qwen助手", "ChatGPT", "chatgpt", "ChatBot", "chatbot",
    "Chat Bot", "chat bot", "AI Agent", "AI agent", "virtual assistant", "VirtualAssistant李娜",
    "小智机器人", "小智助手", "小智AI助手", "小智Bot", "Assistant小智", "AI小智", "小红小助手",
    "小刚AI", "晓明助手", "小明助手", "MOSS小助手", "ChatBot小明", "阿强Bot", "阿丽小助手",
    "王磊AI助手", "李娜AI", "张伟助手", "赵敏Bot", "刘洋AI小助手", "陈晨智能助手", "大型语言模型",
)  # fmt: skip
_TAG = re.compile(r"<[^<>]+>")
_LEADING_TAG = re.compile(r"^\s*<([^<>]+)>\s*")
_CJK_SPACES = re.compile(r"\s*([\u4e00-\u9fff])\s*")
_BRACKET_SPACES = re.compile(r"\s*([<>])\s*")


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """How records become rows; the published values are the defaults."""

    thinking: str = "label"  # label | natural | both (a draw at each visit)
    template: str = "chinese"  # words of a label thought: chinese | english
    prompts: str | None = "conf/prompt_config.yaml"  # prompts of understanding tasks; null = none
    prompt_language: str = "all"  # all | english | chinese
    labels_only: float = 0.5  # chance that a task of words and labels asks for the labels alone
    audio_as_text: bool = False  # words and labels in place of sound: pre-training of a small LLM
    audio_as_text_noise: float = 0.1  # chance of a stand-in token to be lost or mistaken
    speech_answers: bool = True  # false: spoken answers are cut off after their text
    speech_per_text: float = 0.8  # least speech tokens for a text token of the answer; 0 = any
    min_frames: int = 20  # of the user's own audio, 10 ms each
    max_frames: int = 20_000
    max_tokens: int = 2000  # longer rows are dropped
    time_masks: int = 0  # stretches of a clip set to zero, of up to 50 frames (upstream: 2)
    band_masks: int = 0  # bands of a clip set to zero, of up to 10 mel bins (upstream: 2)
    other_names: tuple[str, ...] = OTHER_ASSISTANTS  # replies that name one of these are dropped
    name_heard: bool = False  # rows tell labels and words of their clips, for engine.hearing
    cache_mb: int = 0  # features kept in memory in half precision; 0 = none, full precision

    def __post_init__(self) -> None:
        if self.thinking not in THINKING:
            known = ", ".join(THINKING)
            raise ConfigError(f"prepare.thinking: {self.thinking!r} is not one of {known}")
        template_named(self.template)
        for name in ("labels_only", "audio_as_text_noise"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"prepare.{name}: {getattr(self, name)}, need 0 to 1")


@dataclass(frozen=True, slots=True)
class Target:
    """What the model shall answer: the task as drawn, the whole text, its forced first words."""

    task: Task
    text: str
    opening: str | None = None


class Preparer:
    """Utterances to sequences, for one vocabulary and one size of features."""

    def __init__(
        self, settings: PrepareSettings, vocab: Vocab, mels: int, prompts: Prompts | None = None
    ) -> None:
        self.settings = settings
        self.vocab = vocab
        self.template = template_named(settings.template)
        self.clips = ClipReader(settings, mels)
        if prompts is None and settings.prompts is not None:
            prompts = Prompts.from_file(Path(settings.prompts), settings.prompt_language)
        self.prompts = prompts or Prompts({})

    def __call__(self, utterance: Utterance, rng: random.Random) -> Sequence | Dropped:
        """The row of an utterance at one visit, or why it has none. Sound is read last."""
        try:
            target = make_target(utterance, self.settings, self.template, rng)
            if isinstance(target, Dropped):
                return target
            task = self._spoken_or_not(target.task)
            user_text = self._user_text(utterance, target, rng)
            fault = self._fault(utterance, task, target, user_text)
            if fault is not None:
                return fault
            clips = self._clips(utterance, task, rng)
            if isinstance(clips, Dropped):
                return clips
            row = compose(
                task,
                self.vocab,
                clips=clips,
                history=utterance.history if task.hears else (),
                user_text=user_text,
                answer_text=target.text if task.answers_text else None,
                answer_speech=utterance.user.reply_speech if task.speaks else None,
                opening=target.opening,
                key=utterance.key,
            )
        except InputError as error:
            return Dropped("audio or task cannot be used", f"{utterance.key}: {error}")
        except DataError as error:
            return Dropped("parts do not fit the task", str(error))
        if len(row) > self.settings.max_tokens:
            return Dropped("too long", f"{utterance.key}: {len(row)} tokens")
        return replace(row, heard=self._heard(utterance)) if row.clips else row

    def _heard(self, utterance: Utterance) -> list[tuple[int, ...]]:
        """The text ids that each clip says, history first; none where that is not asked for."""
        if not self.settings.name_heard:
            return []
        texts = [turn.text or "" for turn in utterance.history if turn.audio is not None]
        return [self.vocab.encode(text) for text in (*texts, _labels_and_words(utterance))]

    def _spoken_or_not(self, task: Task) -> Task:
        """The task without its speech where speech answers are off."""
        if self.settings.speech_answers or not task.speaks or not task.answers_text:
            return task
        return replace(task, speaks=False, joint=False, interleaved=False)

    def _fault(
        self, utterance: Utterance, task: Task, target: Target, user_text: str | None
    ) -> Dropped | None:
        """What makes an utterance useless before its sound is looked at."""
        if task.name == "t2t" and not user_text:
            return Dropped("no question", utterance.key)
        if not task.speaks:
            return None
        if not self.settings.speech_answers:
            return Dropped("speech answers are off", utterance.key)
        codes = len(utterance.user.reply_speech)
        if not codes:
            return Dropped("no speech tokens", utterance.key)
        words = len(self.vocab.encode(target.text)) + 1
        if self.settings.speech_per_text * words >= codes:
            return Dropped("speech too short for its text", utterance.key)
        return None

    def _user_text(self, utterance: Utterance, target: Target, rng: random.Random) -> str | None:
        """The prompt, question or words to speak; None for tasks without."""
        task = target.task
        if not task.user_text:
            return None
        if task.hears:
            return utterance.prompt or self.prompts.draw(task.tag, rng)
        if not task.speaks:
            return clean(utterance.prompt or utterance.user.text or "")
        return target.text

    def _clips(
        self, utterance: Utterance, task: Task, rng: random.Random
    ) -> list[Clip] | Dropped:
        """What is heard, history first: features, or text standing in for them."""
        if not task.hears:
            return []
        if self.settings.audio_as_text:
            return self._stand_ins(utterance, rng)
        if utterance.user.audio is None:
            return Dropped("no audio", utterance.key)
        heard = [turn for turn in utterance.history if turn.audio is not None]
        clips: list[Clip] = [self.clips(turn, rng) for turn in (*heard, utterance.user)]
        frames = len(clips[-1])
        if not self.settings.min_frames <= frames <= self.settings.max_frames:
            return Dropped("audio too short or too long", f"{utterance.key}: {frames} frames")
        return clips

    def _stand_ins(self, utterance: Utterance, rng: random.Random) -> list[Clip] | Dropped:
        """Text ids in the places of clips."""
        clips: list[Clip] = []
        for turn in utterance.history:
            if turn.audio is not None:
                if not turn.text:
                    return Dropped("no words to stand in for audio", utterance.key)
                clips.append(self._stretch(turn.text, rng))
        clips.append(self._stretch(_labels_and_words(utterance), rng))
        return clips

    def _stretch(self, text: str, rng: random.Random) -> tuple[int, ...]:
        """As the adapter's steps read under the hearing loss: each id a step or two, then blanks.

        The mark before a clip is the blank. Some ids are lost, some mistaken for another.
        """
        ids = self.vocab.encode(text)
        noise, blank = self.settings.audio_as_text_noise, self.vocab.joint(self.vocab.audio_begin)
        steps: list[int] = []
        for number in ids:
            chance = rng.random()
            if chance < noise / 2:
                continue
            heard = rng.randrange(self.vocab.text_rows) if chance < noise else number
            steps += [heard] * rng.randint(1, 2) + [blank] * rng.randint(0, 2)
        return tuple(steps or ids)


class ClipReader:
    """Features of a turn's audio, kept in memory up to a limit, masked at random by setting.

    With a cache every clip goes through half precision, kept or not, so that a training that was
    stopped sees the same numbers as one that was not.
    """

    def __init__(self, settings: PrepareSettings, mels: int) -> None:
        self.settings = settings
        self.mels = mels
        self._kept: dict[tuple[Path, tuple[float, float] | None], Tensor] = {}
        self._free_bytes = settings.cache_mb * 2**20

    def __call__(self, turn: Turn, rng: random.Random) -> Tensor:
        """(frames, mels) float32. Raises InputError for audio that cannot be used."""
        mask = random.Random(rng.random()) if self._masks else None
        name = (turn.audio, turn.segment_s) if isinstance(turn.audio, Path) else None
        kept = self._kept.get(name) if name else None
        if kept is None:
            kept = self._read(turn)
            if name and kept.nbytes <= self._free_bytes:
                self._kept[name] = kept
                self._free_bytes -= kept.nbytes
        features = kept.float()
        return features if mask is None else self._masked(features, mask)

    @property
    def _masks(self) -> int:
        return self.settings.time_masks + self.settings.band_masks

    def _read(self, turn: Turn) -> Tensor:
        assert turn.audio is not None, "asked for the clip of a turn without audio"
        samples = audio.load(turn.audio, audio.SAMPLE_RATE_HZ, turn.segment_s)
        features = audio.log_mel(samples, self.mels)
        return features.half() if self.settings.cache_mb else features

    def _masked(self, features: Tensor, rng: random.Random) -> Tensor:
        """SpecAugment as upstream has it: stretches and bands set to zero."""
        masked = features.clone()
        frames, mels = masked.shape
        for _ in range(self.settings.time_masks):
            start = rng.randrange(frames)
            masked[start : start + rng.randint(1, 50)] = 0.0
        for _ in range(self.settings.band_masks):
            start = rng.randrange(mels)
            masked[:, start : start + rng.randint(1, 10)] = 0.0
        return masked


def _labels_and_words(utterance: Utterance) -> str:
    """What the user's clip holds: the labels of the voice, then the words."""
    labels = utterance.labels
    known = (labels.age, labels.gender, labels.emotion, labels.event)
    words = utterance.user.text or without_labels(utterance.user.reply_text or "")
    return "".join(f"<{label}>" for label in known if label) + words


def make_target(
    utterance: Utterance, settings: PrepareSettings, template: LabelTemplate, rng: random.Random
) -> Target | Dropped:
    """The task and answer text of an utterance, as drawn at this visit. Raises InputError."""
    text = utterance.user.reply_text or ""
    named = next((name for name in settings.other_names if name in text), None)
    if named is not None:
        return Dropped("names another assistant", f"{utterance.key}: {named!r}")
    task, text = task_for(utterance.task), fix_labels(text.replace("\n", " "))
    if task.name == "s2s" and utterance.history:
        task = task_for("s2s_history")
    if task.name == "understand":
        return _understanding(utterance, task, text, settings, rng)
    kind = settings.thinking
    if kind == "both":
        both = utterance.thought is not None and utterance.user.text is not None
        kind = rng.choice(("label", "natural")) if both else _only_kind(utterance)
    if task.answers_text:
        text = _reply(text, kind, template, settings)
    if not task.thinks:
        return Target(task, clean(text))
    return _with_thought(utterance, task, clean(text), kind, template, settings, rng)


def _only_kind(utterance: Utterance) -> str:
    return "label" if utterance.thought is None else "natural"


def _understanding(
    utterance: Utterance, task: Task, text: str, settings: PrepareSettings, rng: random.Random
) -> Target | Dropped:
    """Transcript and labels as listed, or at random the second half of them alone."""
    two_parts = task.tag == TRANSCRIPT_AND_REPLY or (task.transcript and bool(task.labels))
    if two_parts and rng.random() < settings.labels_only:
        if task.tag == TRANSCRIPT_AND_REPLY:
            parts = text.split(ANSWER_START)
            if len(parts) != 2:
                return Dropped("no single reply mark", utterance.key)
            return Target(task_for("s2t"), clean(parts[1]))
        tags = _TAG.findall(text)
        if len(tags) < len(task.labels):
            return Dropped("fewer labels than asked for", utterance.key)
        task = task_for(task.tag.removeprefix("<TRANSCRIBE>"))
        text = "".join(tags[: len(task.labels)])
    text = clean(text)
    if task.transcript and not task.labels and task.tag == "<TRANSCRIBE>":
        text = text.lower()
    return Target(task, text) if text else Dropped("empty text", utterance.key)


def _reply(text: str, kind: str, template: LabelTemplate, settings: PrepareSettings) -> str:
    """A reply with the leading style tag that the published thinking models learnt, or without.

    Chinese label thinking: always one of the known tags; natural: none. English: as it is.
    """
    if template is not CHINESE:
        return text
    tag = _LEADING_TAG.match(text)
    words = text[tag.end() :] if tag else text
    if kind == "natural":
        return words
    style = tag[1] if tag and tag[1] in REPLY_STYLES else NEUTRAL_STYLE
    return f"<{style}>{words}"


def _with_thought(
    utterance: Utterance, task: Task, text: str, kind: str, template: LabelTemplate,
    settings: PrepareSettings, rng: random.Random,
) -> Target | Dropped:  # fmt: skip
    """The answer behind its thought. A model of both kinds is taught to go on from an opening."""
    forced = opening(kind, template) if settings.thinking == "both" else None
    if kind == "natural":
        if utterance.thought is None:
            return Dropped("no thought", utterance.key)
        return Target(task, natural_thought(clean(utterance.thought)) + text, forced)
    if not utterance.user.text:
        return Dropped("no words of the user for the label thought", utterance.key)
    labels = _filled(utterance.labels, rng)
    tag = _LEADING_TAG.match(text)
    if tag:
        labels = replace(labels, style=tag[1])
    return Target(task, label_thought(template, clean(utterance.user.text), labels) + text, forced)


def _filled(labels: Labels, rng: random.Random) -> Labels:
    """Missing labels: mostly all left unknown (no loss on them), else all at their defaults."""
    missing = {name: value for name, value in DEFAULT_LABELS.items() if not getattr(labels, name)}
    if not missing or rng.random() < ALL_UNKNOWN_CHANCE:
        return labels
    return replace(labels, **missing)


def clean(text: str) -> str:
    """One line, no spaces around Chinese characters or angle brackets.

    A bracket that opens a tag keeps no space before it; `<think end>` keeps the one inside.
    """
    text = _CJK_SPACES.sub(r"\1", text.replace("\n", " "))
    return _BRACKET_SPACES.sub(r"\1", text).strip()

