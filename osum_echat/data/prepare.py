"""From an utterance to its row of tokens, in two steps: its length first, its sound when it is due.

A draft knows how many tokens and frames a row will have from text and audio headers alone, so that
rows are laid out before anything is decoded.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from osum_echat import audio
from osum_echat.data.augment import Augmenter, Change, mask, substitute
from osum_echat.data.sources import Dropped, Noted
from osum_echat.data.targets import PrepareSettings, Target, clean, make_target, unknown_labels
from osum_echat.errors import DataError, InputError
from osum_echat.records import Turn, Utterance
from osum_echat.sequence import Clip, Sequence, compose
from osum_echat.tasks import Prompts, Task, task_for
from osum_echat.thinking import template_named, without_labels
from osum_echat.vocab import Pieces, Vocab

_PLAIN = Change()


@dataclass(frozen=True, slots=True)
class PendingClip:
    """A turn's sound at one visit, not decoded yet."""

    turn: Turn
    frames: int  # as its header promises
    change: Change
    mask: float | None  # seed of the masks


class ClipReader:
    """Features of a turn's audio, kept in memory up to a limit, changed at random by setting.

    With a cache every clip goes through half precision, kept or not, so that a training that was
    stopped sees the same numbers as one that was not.
    """

    def __init__(self, settings: PrepareSettings, mels: int) -> None:
        self.settings = settings
        self.mels = mels
        self.augmenter = Augmenter(settings.augment)
        self._kept: dict[tuple[Path, tuple[float, float] | None], Tensor] = {}
        self._free_bytes = settings.cache_mb * 2**20

    def draft(self, turn: Turn, rng: random.Random) -> PendingClip:
        """What a clip will be, without decoding it. Raises InputError for what is no audio."""
        seed = rng.random() if self._masks else None
        change = self.augmenter.draw(rng) if self.settings.augment.changes_sound else _PLAIN
        kept = self._kept.get(self._name(turn)) if change == _PLAIN else None
        if kept is not None:
            return PendingClip(turn, len(kept), change, seed)
        assert turn.audio is not None, "asked for the clip of a turn without audio"
        samples = audio.length(turn.audio, audio.SAMPLE_RATE_HZ, turn.segment_s)
        return PendingClip(turn, change.length(samples) // audio.HOP_SAMPLES, change, seed)

    def read(self, clip: PendingClip) -> tuple[Tensor, tuple[audio.Finding, ...]]:
        """(frames, mels) float32, and what was found when it was decoded.

        Raises InputError for audio that cannot be used.
        """
        name = self._name(clip.turn) if clip.change == _PLAIN else None
        kept = self._kept.get(name) if name else None
        findings: tuple[audio.Finding, ...] = ()
        if kept is None:
            kept, findings = self._features(clip)
            if name and kept.nbytes <= self._free_bytes:
                self._kept[name] = kept
                self._free_bytes -= kept.nbytes
        features = kept.float()
        if clip.mask is None:
            return features, findings
        masked, rng = features.clone(), random.Random(clip.mask)
        mask(masked, rng, self.settings.time_masks, self.settings.band_masks)
        substitute(masked, rng, self.settings.augment.substitutes)
        return masked, findings

    @property
    def _masks(self) -> int:
        settings = self.settings
        return settings.time_masks + settings.band_masks + settings.augment.substitutes

    def _name(self, turn: Turn) -> tuple[Path, tuple[float, float] | None]:
        return (turn.audio if isinstance(turn.audio, Path) else Path()), turn.segment_s

    def _features(self, clip: PendingClip) -> tuple[Tensor, tuple[audio.Finding, ...]]:
        assert clip.turn.audio is not None
        sound = audio.read(clip.turn.audio, segment_s=clip.turn.segment_s)
        samples = sound.samples
        if clip.change != _PLAIN:
            samples = self.augmenter.apply(samples, clip.change)
        features = audio.log_mel(samples, self.mels)
        return features.half() if self.settings.cache_mb else features, sound.findings


# Blank steps after a stand-in for a piece, from and to, and how often: speech pauses now and then.
STAND_IN_GAPS, STAND_IN_GAP_WEIGHTS = ((0, 2), (2, 5), (6, 20)), (6, 3, 1)
SILENT_STEPS = 4  # blanks that stand in for a clip in which nothing was said
_LABEL = re.compile(r"<([A-Z ]+)>")


@dataclass(frozen=True, slots=True)
class Draft:
    """A row whose clips are still to be decoded: `row` holds shapes in their places."""

    row: Sequence
    clips: tuple[PendingClip, ...]
    compose: Callable[[list[Clip]], Sequence]
    notes: tuple[Noted, ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    @property
    def frames(self) -> list[int]:
        """Frames of each clip."""
        return [len(clip) for clip in self.row.clips]


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
        merges = settings.audio_as_text_merges
        self.pieces = Pieces(vocab.tokenizer, merges) if merges else None

    def __call__(self, utterance: Utterance, rng: random.Random) -> Sequence | Dropped:
        """The row of an utterance at one visit, or why it has none."""
        draft = self.draft(utterance, rng)
        return draft if isinstance(draft, Dropped) else self.finish(draft)

    def draft(self, utterance: Utterance, rng: random.Random) -> Draft | Dropped:
        """The row without its sound, or why there is none. All chance is drawn here."""
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
        except InputError as error:
            return Dropped("task cannot be used", f"{utterance.key}: {error}")
        if isinstance(clips, Dropped):
            return clips

        def composed(clips: list[Clip]) -> Sequence:
            row = compose(
                task,
                self.vocab,
                clips=clips,
                history=utterance.history if task.hears or task.interleaved else (),
                user_text=user_text,
                answer_text=target.text if task.answers_text else None,
                answer_speech=utterance.user.reply_speech if task.speaks else None,
                speech_starts=utterance.user.speech_starts,
                opening=target.opening,
                key=utterance.key,
            )
            return replace(row, ctc_targets=self._ctc_targets(utterance)) if row.clips else row

        try:
            row = composed([self._shape(clip) for clip in clips])
        except DataError as error:
            return Dropped("parts do not fit the task", str(error))
        pending = tuple(clip for clip in clips if isinstance(clip, PendingClip))
        notes = unknown_labels(utterance, target)
        return self._too_long(row) or Draft(row, pending, composed, notes)

    def finish(self, draft: Draft, notes: list[Noted] | None = None) -> Sequence | Dropped:
        """The row with its sound decoded, or what is wrong with that; `notes` are added to."""
        if not draft.clips:
            return draft.row
        clips: list[Tensor] = []
        for clip in draft.clips:
            try:
                features, findings = self.clips.read(clip)
            except InputError as error:
                return _broken_audio(draft.row.key, clip.turn, error)
            clips.append(features)
            if notes is not None:
                notes += [Noted(one.kind, f"{draft.row.key}: {one.detail}") for one in findings]
        if [len(clip) for clip in clips] == draft.frames:
            return replace(draft.row, clips=clips)
        row = draft.compose([*clips])  # a header that does not know the exact length, as of mp3
        return self._too_long(row) or row

    def _shape(self, clip: PendingClip | tuple[int, ...]) -> Clip:
        """What `compose` needs to know of a clip: text ids, or a tensor without memory."""
        if isinstance(clip, PendingClip):
            return torch.empty(clip.frames, self.clips.mels, device="meta")
        return clip

    def _too_long(self, row: Sequence) -> Dropped | None:
        if len(row) <= self.settings.max_tokens:
            return None
        return Dropped("too long", f"{row.key}: {len(row)} tokens")

    def _ctc_targets(self, utterance: Utterance) -> list[tuple[int, ...]]:
        """The text ids that each clip says, history first; none where that is not asked for."""
        if not self.settings.ctc_targets:
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
            advice = "make them by common_utils/extract_speech_tokens.py"
            return Dropped("no speech tokens", f"{utterance.key}; {advice}")
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
    ) -> list[PendingClip | tuple[int, ...]] | Dropped:
        """What is heard, history first: sound to decode, or text standing in for it."""
        if not task.hears:
            return []
        share = self.settings.audio_as_text
        if share and rng.random() < share:
            return self._stand_ins(utterance, rng)
        if utterance.user.audio is None:
            return Dropped("no audio", utterance.key)
        clips: list[PendingClip | tuple[int, ...]] = []
        for turn in (*utterance.history, utterance.user):
            if turn.audio is None:
                continue
            try:
                clip = self.clips.draft(turn, rng)
            except InputError as error:
                return _broken_audio(utterance.key, turn, error)
            clips.append(clip)
        if not self.settings.min_frames <= clip.frames <= self.settings.max_frames:
            detail = f"{utterance.key}: {clip.frames} frames"
            return Dropped("audio too short or too long", detail)
        return clips

    def _stand_ins(
        self, utterance: Utterance, rng: random.Random
    ) -> list[PendingClip | tuple[int, ...]] | Dropped:
        """Text ids in the places of clips."""
        clips: list[PendingClip | tuple[int, ...]] = []
        for turn in utterance.history:
            if turn.audio is not None:
                if not turn.text:
                    return Dropped("no words to stand in for audio", utterance.key)
                clips.append(self._stretch(turn.text, rng))
        clips.append(self._stretch(_labels_and_words(utterance), rng))
        return clips

    def _stretch(self, text: str, rng: random.Random) -> tuple[int, ...]:
        """As the adapter's steps read under the CTC loss: each id a step or two, then blanks.

        The mark before a clip is the blank. Some ids are lost, some mistaken for another.
        """
        ids = self.pieces.encode(as_words(text)) if self.pieces else self.vocab.encode(text)
        wrong = self.pieces.ids if self.pieces else range(self.vocab.text_rows)
        most = 2 if self.settings.audio_as_text_gaps else 1
        noise, blank = self.settings.audio_as_text_noise, self.vocab.joint(self.vocab.audio_begin)
        steps: list[int] = []
        for number in ids:
            chance = rng.random()
            if chance < noise / 2:
                continue
            heard = rng.choice(wrong) if chance < noise else number
            gap = rng.choices(STAND_IN_GAPS, weights=STAND_IN_GAP_WEIGHTS)[0]
            pause = round(self.settings.audio_as_text_gaps * rng.randint(*gap))
            steps += [heard] * rng.randint(1, most) + [blank] * pause
        return tuple(steps or ids or (blank,) * SILENT_STEPS)


def _labels_and_words(utterance: Utterance) -> str:
    """What the user's clip holds: the labels of the voice, then the words."""
    labels = utterance.labels
    known = (labels.age, labels.gender, labels.emotion, labels.event)
    words = utterance.user.text or ""
    if not words and task_for(utterance.task).transcript:
        words = without_labels(utterance.user.reply_text or "")
    return "".join(f"<{label}>" for label in known if label) + words


def as_words(text: str) -> str:
    """Labels as words, no sound event as nothing, and a space before each word."""
    words = _LABEL.sub(lambda found: "" if found[1] == "OTHER" else f" {found[1].lower()} ", text)
    return "".join(f" {word}" for word in words.split())


def _broken_audio(key: str, turn: Turn, error: InputError) -> Dropped:
    file = str(turn.audio) if isinstance(turn.audio, Path) else f"audio of {key}"
    return Dropped("audio cannot be used", f"{key}: {error}", file)
