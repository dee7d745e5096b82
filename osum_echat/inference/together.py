"""Many utterances answered side by side: padded batches through the whole network."""

from collections.abc import Sequence

from torch import Tensor

from osum_echat.errors import InputError, OsumError
from osum_echat.generation import decoder
from osum_echat.inference.answering import Watch, reply_to, speak
from osum_echat.inference.listening import read_along
from osum_echat.inference.load import Parts
from osum_echat.inference.reply import Reply
from osum_echat.inference.request import Asked, Options, Source, lay_out, settle


def reply_many(
    parts: Parts, sources: Sequence[Source], options: Options, seeds: Sequence[int],
    batch_size: int, load_s: float,
) -> list[Reply | OsumError]:  # fmt: skip
    """Answer all; see EChat.reply_many."""
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: must be 1 or more")
    if len(seeds) != len(sources):
        raise InputError(f"{len(seeds)} seeds for {len(sources)} sources; give one for each")
    watch = Watch(load_s)
    results: dict[int, Reply | OsumError] = {}
    asked: dict[int, Asked] = {}
    for number, (source, seed) in enumerate(zip(sources, seeds, strict=True)):
        try:
            asked[number] = lay_out(parts, settle(parts, source, options), seed)
        except OsumError as error:
            results[number] = error
    # Like beside like: little padding, and rows of a task end at about the same time.
    order = sorted(asked, key=lambda number: (asked[number].row.task, len(asked[number].row)))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        batch = [(asked[number], seeds[number]) for number in numbers]
        replies = _answer(parts, batch, watch)
        results |= zip(numbers, replies, strict=True)
    return [results[number] for number in range(len(sources))]


def _answer(
    parts: Parts, batch: Sequence[tuple[Asked, int]], watch: Watch
) -> list[Reply | OsumError]:
    """One batch and its seeds. Its replies share the times at which its parts were ready."""
    prompts = decoder.embed(parts.network, [one.row for one, _ in batch], parts.vocab)
    for (one, _), prompt in zip(batch, prompts, strict=True):
        read_along(parts, one, prompt)
    watches = [watch.copy() for _ in batch]
    for each in watches:
        each.mark("ready")
    for row, token in decoder.grow(parts.network, prompts, [one.answer for one, _ in batch]):
        watches[row].mark("token")
        watches[row].mark("speech" if token.is_speech else "text")
    waves = _spoken(parts, batch)
    return [_finish(parts, one, wave, each)
            for (one, _), wave, each in zip(batch, waves, watches, strict=True)]  # fmt: skip


def _spoken(
    parts: Parts, batch: Sequence[tuple[Asked, int]]
) -> list[Tensor | OsumError | None]:
    """The speech of answers that have ended, (samples,) each; None where there is none."""
    speaking = [(row, asked.answer.speech.ids, seed) for row, (asked, seed) in enumerate(batch)
                if asked.request.speaks and asked.answer.speech.ids]  # fmt: skip
    waves: list[Tensor | OsumError | None] = [None] * len(batch)
    if not speaking:
        return waves
    assert parts.voice is not None, "a task that speaks has a voice"
    rows, codes, seeds = zip(*speaking, strict=True)
    made: Sequence[Tensor | OsumError]
    try:
        made = parts.voice.many(codes, seeds=seeds)
    except OsumError:
        made = [_alone(parts, own, seed) for own, seed in zip(codes, seeds, strict=True)]
    for row, wave in zip(rows, made, strict=True):
        waves[row] = wave
    return waves


def _alone(parts: Parts, codes: Sequence[int], seed: int) -> Tensor | OsumError:
    """One answer's speech: what is wrong with it is told of it alone."""
    try:
        return speak(parts, codes, seed)
    except OsumError as error:
        return error


def _finish(
    parts: Parts, asked: Asked, wave: Tensor | OsumError | None, watch: Watch
) -> Reply | OsumError:
    """The words of an answer that has ended, with its speech."""
    if isinstance(wave, OsumError):
        return wave
    request, answer = asked.request, asked.answer
    opened = parts.vocab.encode(request.opening) if request.opening else ()
    asked.reading.push(parts.vocab.decode((*opened, *answer.text.ids)))
    asked.reading.finish()
    if wave is not None:
        watch.mark("audio")
    return reply_to(asked, wave, parts.voice.sample_rate_hz if parts.voice else 0, watch)
