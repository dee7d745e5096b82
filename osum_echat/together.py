"""Many utterances answered side by side: padded batches through the whole network."""

from collections.abc import Sequence

from osum_echat.answering import Watch, reply_to, speak
from osum_echat.asking import Asked, Options, Source, lay_out, settle
from osum_echat.errors import InputError, OsumError
from osum_echat.generation import decoder
from osum_echat.listening import read_along
from osum_echat.loading import Parts
from osum_echat.replies import Reply


def reply_many(
    parts: Parts, sources: Sequence[Source], options: Options, seed: int, batch_size: int,
    load_s: float,
) -> list[Reply | OsumError]:  # fmt: skip
    """Answer all; see EChat.reply_many."""
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: must be 1 or more")
    watch = Watch(load_s)
    results: dict[int, Reply | OsumError] = {}
    asked: dict[int, Asked] = {}
    for number, source in enumerate(sources):
        try:
            asked[number] = lay_out(parts, settle(parts, source, options), seed)
        except OsumError as error:
            results[number] = error
    # Like beside like: little padding, and rows of a task end at about the same time.
    order = sorted(asked, key=lambda number: (asked[number].row.task, len(asked[number].row)))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        replies = _answer(parts, [asked[number] for number in numbers], seed, watch)
        results |= zip(numbers, replies, strict=True)
    return [results[number] for number in range(len(sources))]


def _answer(
    parts: Parts, batch: Sequence[Asked], seed: int, watch: Watch
) -> list[Reply | OsumError]:
    """One batch. Its replies share the times at which its parts were ready."""
    prompts = decoder.embed(parts.network, [one.row for one in batch], parts.vocab)
    for one, prompt in zip(batch, prompts, strict=True):
        read_along(parts, one, prompt)
    watches = [watch.copy() for _ in batch]
    for each in watches:
        each.mark("ready")
    for row, token in decoder.grow(parts.network, prompts, [one.answer for one in batch]):
        watches[row].mark("token")
        watches[row].mark("speech" if token.is_speech else "text")
    return [_finish(parts, *pair, seed) for pair in zip(batch, watches, strict=True)]


def _finish(parts: Parts, asked: Asked, watch: Watch, seed: int) -> Reply | OsumError:
    """The words of an answer that has ended, and its speech."""
    request, answer = asked.request, asked.answer
    opened = parts.vocab.encode(request.opening) if request.opening else ()
    asked.reading.push(parts.vocab.decode((*opened, *answer.text.ids)))
    asked.reading.finish()
    wave = None
    if request.speaks and answer.speech.ids:
        try:
            wave = speak(parts, answer.speech.ids, seed)
        except OsumError as error:
            return error
        watch.mark("audio")
    return reply_to(asked, wave, parts.voice.sample_rate_hz if parts.voice else 0, watch)
