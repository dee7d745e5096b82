"""Held-out questions answered by generation while training: what teacher forcing does not show.

Only understanding tasks, whose answers can be right or wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from osum_echat import device as devices
from osum_echat.generation import decoder
from osum_echat.generation.sampling import Sampling
from osum_echat.metrics import Confusion, error_rate, normalised_pair
from osum_echat.models.echat import EChatModel
from osum_echat.records import Utterance
from osum_echat.sequence import Sequence as Row
from osum_echat.sequence import collate
from osum_echat.tasks import Task, task_for
from osum_echat.thinking import read_labels, without_labels
from osum_echat.vocab import Vocab

WORDS = "wer"  # the name of the error rate among the figures; the others are fields of Labels
TOGETHER = 16  # questions that grow side by side
GREEDY = Sampling(greedy=True)


@dataclass(frozen=True, slots=True)
class Question:
    """A row up to its answer, and the answer that is right."""

    row: Row
    task: Task
    answer: str


def questions(rows: Iterable[tuple[Utterance, Row]], vocab: Vocab, limit: int) -> list[Question]:
    """The first `limit` rows of understanding tasks, each cut where its answer begins."""
    found: list[Question] = []
    for utterance, row in rows:
        if len(found) == limit:
            break
        task = task_for(utterance.task)
        if task.understands and row.clips and any(row.trained):
            start = row.trained.index(True)
            asked = replace(row, ids=row.ids[:start], trained=row.trained[:start])
            found.append(Question(asked, task, vocab.decode(row.ids[start:])))
    return found


def answered(
    model: EChatModel, vocab: Vocab, asked: Sequence[Question], most_tokens: int,
    dtype: torch.dtype | None = None,
) -> list[str]:  # fmt: skip
    """The model's greedy answers. dtype: of autocast. Leaves the model in eval mode.

    A model that has learnt nothing yet finds no end: most_tokens ends it.
    """
    model.eval()
    limits = decoder.Limits(most_tokens, most_tokens)
    answers = [decoder.Answer(one.task, vocab, GREEDY, limits=limits) for one in asked]
    for start in range(0, len(asked), TOGETHER):
        part = slice(start, start + TOGETHER)
        rows = [collate([[one.row]], vocab).to(model.device) for one in asked[part]]
        with devices.autocast(model.device, dtype):
            with torch.no_grad():  # not inference mode: what is heard may be kept for training
                prompts = [model.embed(row)[0] for row in rows]
            for _ in decoder.decode(model, prompts, answers[part]):
                pass
    return [vocab.decode(answer.text.ids) for answer in answers]


def figures(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """`wer` of the tasks that ask for words, and the accuracy of each label that is asked for.

    wer: errors over words, or over characters where they are Chinese, of normalised texts.
    """
    pairs = list(zip(asked, answers, strict=True))
    words = [(without_labels(one.answer), without_labels(answer))
             for one, answer in pairs if one.task.transcript]  # fmt: skip
    normalised = [normalised_pair(*pair) for pair in words]
    found = {WORDS: error_rate(normalised, "mixed").rate} if words else {}
    for field in dict.fromkeys(field for one in asked for field in one.task.labels):
        both = [[getattr(read_labels(text, one.task.labels), field) for text in (one.answer, said)]
                for one, said in pairs if field in one.task.labels]  # fmt: skip
        if known := [(right, said) for right, said in both if right is not None]:
            found[field] = Confusion.of(known).accuracy
    return found
