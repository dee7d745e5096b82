"""Everything the model sees is one row of tokens: how it is laid out, for training and for use.

Training composes with the answer, inference without it, so that the two cannot differ: the row
without the answer is always the beginning of the row with it.
"""
from collections.abc import Iterable, Sized
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from osum_echat.errors import DataError
from osum_echat.records import Turn
from osum_echat.tasks import SWITCH, TURN_END, USER_START, Task
from osum_echat.vocab import UNKNOWN, Vocab

IGNORED = -100                  # the target of a token without loss
TEXT_CHUNK, SPEECH_CHUNK = 6, 18
NEXT_CLAUSE = f"{TURN_END}{USER_START}"     # between the clauses of one text to speak


@dataclass(frozen=True, slots=True)
class Span:
    """Where a clip's steps go in its sequence."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """Where a clip's steps go in a batch: `length` tokens of row `row`, from `start`."""

    row: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a row: ids of the joint space; those of a clip (frames, mels) are fillers."""

    ids: tuple[int, ...]
    clip: Tensor | None = None
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """One laid-out row. A clip's places hold a filler id; `spans` says where they are."""

    key: str
    task: str
    ids: list[int]
    trained: list[bool]
    clips: list[Tensor]
    spans: list[Span]
    joint: bool
    ctc_targets: list[tuple[int, ...]] = field(default_factory=list)  # each clip's text; () unknown

    def __len__(self) -> int:
        return len(self.ids)


Clip = Tensor | tuple[int, ...]     # a mel (frames, mels), or text ids that stand in for audio


def clip_steps(frames: int) -> int:
    """Tokens that a clip of so many frames takes: halved three times, rounded up (80 ms each)."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def compose(
    task: Task, vocab: Vocab, *, clips: Items[Clip] = (), history: Items[Turn] = (),
    user_text: str | None = None, answer_text: str | None = None,
    answer_speech: Items[int] | None = None, speech_starts: Items[int] = (),
    opening: str | None = None, key: str = "",
) -> Sequence:  # fmt: skip
    """Lay out one conversation up to the answer, or with it.

    clips: those of earlier turns that have audio, then the user's own; user_text: the prompt,
    question or words to speak; answer_text: thought included; answer_speech: codes without edges;
    speech_starts: of an interleaved answer, the codes before each piece of its text, where that is
    known; then earlier turns are earlier clauses of the text to speak; opening: the answer's forced
    first words. Raises DataError when the parts do not fit the task.
    """
    waiting = list(clips)
    segments = [Segment(vocab.encode(task.opening))]
    if any(turn.speech_starts for turn in history):
        segments += _clauses(task, vocab, history, key)
    else:
        segments += _history(vocab, history, waiting, key)
    if user_text is not None:
        if not task.user_text:
            raise DataError(f"{key}: task {task.name} takes no text from the user; leave it out")
        segments.append(Segment(vocab.encode(user_text)))
    if task.hears:
        if not waiting:
            raise DataError(f"{key}: task {task.name} needs the user's audio")
        segments += [Segment((vocab.joint(vocab.audio_begin),)),
                     _clip_segment(vocab, waiting.pop(0)), Segment((vocab.joint(vocab.audio_end),))]
    if waiting:
        raise DataError(f"{key}: {len(waiting)} clips more than task {task.name} and its history "
                        "take")
    segments.append(Segment(vocab.encode(SWITCH)))
    segments += _answer(task, vocab, answer_text, answer_speech, speech_starts, opening, key)
    return _lay(task, vocab, segments, key)


def _clip_segment(vocab: Vocab, clip: Clip) -> Segment:
    if isinstance(clip, Tensor):
        return Segment((vocab.joint(vocab.audio_begin),) * clip_steps(len(clip)), clip)
    return Segment(tuple(clip))


def _history(vocab: Vocab, history: Items[Turn], waiting: list[Clip], key: str) -> list[Segment]:
    """Earlier turns as trained: no marks around audio, the end mark doubled, none of it trained."""
    segments = []
    for turn in history:
        if turn.audio is not None:
            if not waiting:
                raise DataError(f"{key}: fewer clips than earlier turns with audio")
            segments.append(_clip_segment(vocab, waiting.pop(0)))
        elif turn.text is not None:
            segments.append(Segment(vocab.encode(turn.text)))
        else:
            raise DataError(f"{key}: an earlier turn has neither audio nor text")
        words = vocab.encode(turn.reply_text or "")
        speech = _speech_ids(vocab, turn.reply_speech, key) if turn.reply_speech else ()
        segments += [Segment(vocab.encode(part)) for part in (TURN_END, SWITCH)]
        segments += [Segment(words + speech), Segment(vocab.encode(TURN_END)),
                     Segment(vocab.encode(USER_START))]
    return segments


def _clauses(task: Task, vocab: Vocab, history: Items[Turn], key: str) -> list[Segment]:
    """Earlier clauses of a text to speak: laid out as the last one is, and trained as it is."""
    segments: list[Segment] = []
    for turn in history:
        text = turn.reply_text or ""
        segments += [Segment(vocab.encode(text)), Segment(vocab.encode(SWITCH))]
        segments += _answer(task, vocab, text, turn.reply_speech, turn.speech_starts, None, key)
        segments.append(Segment(vocab.encode(NEXT_CLAUSE)))
    return segments


def _speech_ids(vocab: Vocab, codes: Items[int], key: str) -> tuple[int, ...]:
    """Edge, codes, edge in the joint space."""
    wrong = [code for code in {*codes} if not 0 <= code < vocab.speech_codes]
    if wrong:
        raise DataError(f"{key}: speech code {wrong[0]}, need 0 to {vocab.speech_codes - 1}")
    first, edge = vocab.joint(0), vocab.joint(vocab.speech_edge)  # codes are hundreds: no calls
    return (edge, *[first + code for code in codes], edge)


def _answer(
    task: Task, vocab: Vocab, text: str | None, speech: Items[int] | None, starts: Items[int],
    opening: str | None, key: str,
) -> list[Segment]:  # fmt: skip
    """The answer as trained; without one, what the decoder starts from."""
    if not task.answers_text and text is not None:
        raise DataError(f"{key}: task {task.name} answers in speech only; "
                        "give its words as user_text")
    if text is None and speech is None:
        if not task.answers_text:
            return [Segment((vocab.joint(vocab.speech_edge),))]
        return [Segment(vocab.encode(opening))] if opening else []
    if task.answers_text and text is None:
        raise DataError(f"{key}: task {task.name} needs answer_text")
    if task.speaks != (speech is not None):
        need = "needs" if task.speaks else "takes no"
        raise DataError(f"{key}: task {task.name} {need} answer_speech")
    words = _text_ids(vocab, text, opening, task.speaks, key) if text is not None else ()
    codes = _speech_ids(vocab, speech, key) if speech is not None else ()
    if not task.interleaved:
        return [Segment(words + codes, trained=True)]
    if starts:
        return [Segment(tuple(aligned(words, codes, starts, key)), trained=True)]
    if 3 * len(words) > len(codes):
        raise DataError(f"{key}: {len(words)} text tokens to interleave with {len(codes)} speech "
                        "tokens, need three times as many")
    return [Segment(tuple(interleave(list(words), list(codes))), trained=True)]


def _text_ids(
    vocab: Vocab, text: str, opening: str | None, speaks: bool, key: str
) -> tuple[int, ...]:
    """The answer's words and the end mark.

    What would follow an unknown label at the end is not known, so that no end is taught after it.
    """
    first = opening or ""
    if not text.startswith(first):
        raise DataError(f"{key}: the answer does not begin with {first!r}")
    words = (vocab.encode(first) if first else ()) + vocab.encode(text[len(first):])
    is_open = text.endswith(f"<{UNKNOWN}>") and not speaks
    return words if is_open else (*words, vocab.text_end)


def interleave(text: list[int], speech: list[int]) -> list[int]:
    """Alternate chunks of text and speech; the rest of the speech comes last."""
    mixed = []
    while text:
        mixed += text[:TEXT_CHUNK] + speech[:SPEECH_CHUNK]
        text, speech = text[TEXT_CHUNK:], speech[SPEECH_CHUNK:]
    return mixed + speech


def aligned(text: Items[int], speech: Items[int], starts: Items[int], key: str) -> list[int]:
    """Each piece of text before its own speech, the end mark after all codes.

    text: with the end mark; speech: with its edges; starts: the codes before each piece of text.
    """
    codes = speech[1:-1]
    if len(starts) != len(text) - 1:
        raise DataError(f"{key}: {len(starts)} speech_starts for {len(text) - 1} pieces of text; "
                        "make the list with the model's own tokenizer")
    if list(starts) != sorted(starts) or starts[-1] > len(codes):
        raise DataError(f"{key}: speech_starts must rise from 0 to {len(codes)} codes")
    edges = (0, *starts, len(codes))
    mixed = [speech[0]]
    for piece, begin, end in zip(text, edges, edges[1:], strict=False):
        mixed += [*codes[begin:end], piece]
    return [*mixed, speech[-1]]


def _lay(task: Task, vocab: Vocab, segments: Iterable[Segment], key: str) -> Sequence:
    row = Sequence(key, task.name, [], [], [], [], task.joint)
    for segment in segments:
        if segment.clip is not None:
            row.clips.append(segment.clip)
            row.spans.append(Span(len(row.ids), len(segment.ids)))
        row.ids.extend(segment.ids)
        row.trained.extend(segment.trained and number != vocab.unknown_label
                           for number in segment.ids)  # fmt: skip
    return row


Row = TypeVar("Row", bound=Sized)


def pack(sequences: Items[Row], limit_tokens: int) -> list[list[Row]]:
    """Share rows of `limit_tokens` among sequences, longest first, each where it first fits.

    A sequence longer than the limit gets a row of its own.
    """
    rows: list[list[Row]] = []
    free: list[int] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        for number, room in enumerate(free):
            if len(sequence) <= room:
                rows[number].append(sequence)
                free[number] -= len(sequence)
                break
        else:
            rows.append([sequence])
            free.append(limit_tokens - len(sequence))
    return rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows right-padded to one length. All tensors but mels are (rows, tokens)."""

    keys: list[list[str]]       # of each row, in the order of their places
    tasks: list[list[str]]
    ids: Tensor                 # long, joint space
    targets: Tensor             # long, joint space, not shifted; IGNORED where there is no loss
    valid: Tensor               # bool, False on padding
    positions: Tensor           # long, from 0 in every sequence
    joint: Tensor               # bool, the loss runs over text and speech ids
    segments: Tensor            # long, number of the sequence in its row, -1 on padding
    mels: Tensor | None         # (clips, frames, mels) zero-padded
    mel_lengths: Tensor         # (clips,) long
    spans: list[ClipSpan]       # one a clip
    ctc_targets: list[tuple[int, ...]] = field(default_factory=list)  # text ids of each clip

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on that device."""
        moved: dict[str, Any] = {
            each.name: getattr(self, each.name).to(device, non_blocking=True)
            for each in fields(self) if isinstance(getattr(self, each.name), Tensor)
        }
        return replace(self, **moved)


def collate(rows: Items[Items[Sequence]], vocab: Vocab) -> Batch:
    """Lay rows of one or more sequences side by side; padding holds the text end mark."""
    lengths = [sum(map(len, row)) for row in rows]
    shape = (len(rows), max(lengths))
    ids = torch.full(shape, vocab.text_end)
    targets, segments = torch.full(shape, IGNORED), torch.full(shape, -1)
    positions = torch.zeros(shape, dtype=torch.long)
    joint = torch.zeros(shape, dtype=torch.bool)
    spans, clips, ctc_targets = [], [], []
    for number, row in enumerate(rows):
        start = 0
        for place, sequence in enumerate(row):
            part = slice(start, start + len(sequence))
            own = torch.tensor(sequence.ids)
            ids[number, part] = own
            targets[number, part] = own.where(torch.tensor(sequence.trained), IGNORED)
            positions[number, part] = torch.arange(len(sequence))
            joint[number, part], segments[number, part] = sequence.joint, place
            spans += [ClipSpan(number, start + span.start, span.length) for span in sequence.spans]
            clips += sequence.clips
            ctc_targets += sequence.ctc_targets or [()] * len(sequence.clips)
            start += len(sequence)
    mels = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True) if clips else None
    return Batch(
        keys=[[sequence.key for sequence in row] for row in rows],
        tasks=[[sequence.task for sequence in row] for row in rows],
        ids=ids, targets=targets, valid=segments >= 0, positions=positions, joint=joint,
        segments=segments, mels=mels,
        mel_lengths=torch.tensor([len(clip) for clip in clips], dtype=torch.long), spans=spans,
        ctc_targets=ctc_targets,
    )
