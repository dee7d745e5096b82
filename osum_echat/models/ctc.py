"""CTC between the adapter's steps, read by a table of embeddings, and what the clips say.

It pulls each step towards the embedding of the piece that sounds there, which is what the LLM knows
how to read (ours, not the paper's).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.errors import ConfigError
from osum_echat.models.loss import LossReport, Score

CTC = "ctc"                     # the name of the CTC loss in reports by task
SHARPNESS = 12.0                # score of a step that equals the embedding of its piece


@dataclass(frozen=True, slots=True)
class CtcSettings:
    """Classes of the CTC, in this order; the blank comes last. Absent: every row of the text table.

    pieces: the first rows of the LLM's text table (the bytes and first merges of its BPE, of which
    all its tokens are made); labels: of a voice or a sound, each with a row of the model's own.
    """

    pieces: int
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pieces < 1 or len(set(self.labels)) < len(self.labels):
            raise ConfigError(
                f"ctc: {self.pieces} pieces, labels {', '.join(self.labels)}: need 1 piece or more,"
                " and each label once"
            )


def log_probs(steps: Tensor, table: Tensor) -> Tensor:
    """How likely each step is each row of the table, by their directions alone.

    steps: (..., steps, width); table: (rows, width), the blank's last. Returns (..., steps, rows),
    log probabilities, float32.
    """
    norms = table.norm(dim=-1, keepdim=True)
    scores = steps @ (table / norms).T * (SHARPNESS / norms.mean())
    return scores.float().log_softmax(-1)


def best_path(scores: Tensor) -> list[int]:
    """The rows on the likeliest path, repeats and blanks taken out; scores: (steps, rows)."""
    blank = scores.shape[-1] - 1
    return [row for row, _ in groupby(scores.argmax(-1).tolist()) if row != blank]


def ctc_loss(scores: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> LossReport:
    """The summed loss; right are the pieces that the best path shares with the targets in order.

    scores: (clips, steps, rows), log probabilities, the blank last; lengths: (clips,) in steps;
    targets: the rows that each clip says. The report's task is `ctc`.
    """
    flat = torch.tensor([row for one in targets for row in one], device=scores.device)
    counts = torch.tensor([len(one) for one in targets], device=scores.device)
    total = functional.ctc_loss(
        scores.transpose(0, 1), flat, lengths, counts,
        blank=scores.shape[-1] - 1, reduction="sum", zero_infinity=True,
    )  # fmt: skip
    right = 0
    for own, length, wanted in zip(scores.detach(), lengths.tolist(), targets, strict=True):
        path = best_path(own[:length])
        blocks = SequenceMatcher(None, path, list(wanted), autojunk=False).get_matching_blocks()
        right += sum(block.size for block in blocks)
    return LossReport(total, len(flat), {CTC: Score(float(total.detach()), len(flat), right)})
