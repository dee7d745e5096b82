"""A batch of a suite's items, put to the assistant at once; what cannot be asked harms no other."""

from collections.abc import Callable, Sequence
from typing import Any

from osum_echat.errors import OsumError
from osum_echat.evaluation.predictions import Prediction, seed_of
from osum_echat.evaluation.runner import Item
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import Reply
from osum_echat.inference.request import Source


def ask(
    assistant: EChat, items: Sequence[Item], seed: int, source: Callable[[Item], Source],
    kept: Callable[[Item, Reply], Prediction], **options: Any,
) -> list[Prediction | OsumError]:  # fmt: skip
    """What is kept of the reply to each item, or why there is none.

    source: what is asked; kept: what is written down of a reply. Either may raise an OsumError for
    its item. seed: each item draws from it and its key; options: those of `EChat.reply_many`.
    """
    found: dict[int, Prediction | OsumError] = {}
    sources: dict[int, Source] = {}
    for number, item in enumerate(items):
        try:
            sources[number] = source(item)
        except OsumError as error:
            found[number] = error
    replies = assistant.reply_many(
        list(sources.values()), seed=[seed_of(seed, items[number].key) for number in sources],
        batch_size=len(items), **options,
    )  # fmt: skip
    for number, reply in zip(sources, replies, strict=True):
        try:
            found[number] = kept(items[number], reply) if isinstance(reply, Reply) else reply
        except OsumError as error:
            found[number] = error
    return [found[number] for number in range(len(items))]
