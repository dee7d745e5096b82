"""The likeliest texts of a clip by its CTC, and the one among them that a language model prefers.

The beam is the prefix search of Hannun et al. 2014 ("First-Pass Large Vocabulary Continuous Speech
Recognition using Bi-Directional Recurrent DNNs"); its best texts are weighed by CTC, language model
and their number of words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.generation.ctc_prefix import log_sum
from osum_echat.generation.ngram import Spelt, WordScorer

NEVER = -math.inf
PER_STEP = 12  # classes that a step may go on with
LEAST = -9.0  # log probability below which a class is not looked at


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text by its pieces, and the log probability that the steps say it."""

    ids: tuple[int, ...]
    score: float


def without(log_probs: Tensor, others: Sequence[int]) -> Tensor:
    """The same steps where some classes count as the blank, which is the last one.

    log_probs: (steps, classes). Returns the same shape; the others are impossible in it.
    """
    kept = log_probs.clone()
    kept[:, -1] = torch.logsumexp(log_probs[:, [*others, log_probs.shape[1] - 1]], dim=1)
    kept[:, list(others)] = NEVER
    return kept


def beam_search(
    log_probs: Tensor, beam: int = 16, best: int = 8, scorer: WordScorer | None = None
) -> list[Hypothesis]:
    """The likeliest texts, likeliest first; with a scorer, by what it adds to the scores told.

    log_probs: (steps, pieces + 1), the blank last. beam: texts kept at each step; best: returned.
    """
    blank = log_probs.shape[1] - 1
    values, classes = log_probs.topk(min(PER_STEP, blank + 1), dim=1)
    blanks: list[float] = log_probs[:, blank].tolist()
    # of each text: log probability that its path ends in a blank, and in its last piece
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    spelt: dict[tuple[int, ...], Spelt] = {} if scorer is None else {(): scorer.empty}
    for step, (scores, numbers) in enumerate(zip(values.tolist(), classes.tolist(), strict=True)):
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        own = dict(zip(numbers, scores, strict=True))
        for ids, (on_blank, on_piece) in kept.items():
            either = log_sum(on_blank, on_piece)
            stay, repeat = either + blanks[step], NEVER
            if ids:
                last = ids[-1]
                at_last = own[last] if last in own else float(log_probs[step, last])
                repeat = on_piece + at_last
            _add(found, ids, stay, repeat)
            for number, score in own.items():
                if number == blank or score < LEAST:
                    continue
                before = on_blank if ids and number == ids[-1] else either
                if before > NEVER:
                    longer = (*ids, number)
                    if scorer is not None and longer not in spelt:
                        spelt[longer] = scorer.extended(spelt[ids], number)
                    _add(found, longer, NEVER, before + score)
        worth = {ids: log_sum(*two) + (spelt[ids].score if spelt else 0.0)
                 for ids, two in found.items()}  # fmt: skip
        kept = {ids: found[ids] for ids in sorted(found, key=lambda ids: -worth[ids])[:beam]}
    made = [Hypothesis(ids, log_sum(*two)) for ids, two in kept.items()]
    if scorer is not None:
        made.sort(key=lambda one: -(one.score + scorer.ended(spelt[one.ids])))
    return made[:best]


def _add(
    found: dict[tuple[int, ...], tuple[float, float]], ids: tuple[int, ...], blank: float,
    piece: float,
) -> None:  # fmt: skip
    old = found.get(ids)
    found[ids] = (blank, piece) if old is None else (log_sum(old[0], blank), log_sum(old[1], piece))


def text_score(log_probs: Tensor, ids: Sequence[int]) -> float:
    """The log probability that the steps say these pieces; log_probs: (steps, pieces + 1)."""
    loss = functional.ctc_loss(
        log_probs[:, None], torch.tensor([list(ids)]), torch.tensor([len(log_probs)]),
        torch.tensor([len(ids)]), blank=log_probs.shape[1] - 1, reduction="sum",
    )  # fmt: skip
    return -float(loss)


@torch.inference_mode()
def llm_scores(
    llm: Any, opening: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log probability of each id of each text after the opening, by a stock causal LM."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), len(opening) + longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(opening) + len(row)] = torch.tensor([*opening, *row])
    hidden = llm.model(inputs_embeds=llm.get_input_embeddings()(ids), use_cache=False)
    states = hidden.last_hidden_state[:, len(opening) - 1 : -1]
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    logits = llm.lm_head(states[real]).float()
    each = logits.log_softmax(-1).gather(1, ids[:, len(opening) :][real][:, None])[:, 0]
    return [row.tolist() for row in each.split([len(row) for row in rows])]
