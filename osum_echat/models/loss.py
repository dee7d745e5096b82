"""Cross-entropy over text and speech heads whose logits never exist whole.

The joint vocabulary of the published model has 156,033 columns: the logits of 4,096 tokens alone
take 2.56 GB in float32, and their gradient as much again. Here a chunk of tokens at a time gets its
logits, loss and gradient while they are at hand; what is kept is the gradient of the hidden states
and of the heads, which backward only has to scale.

Liger's fused kernel does the same, but for one head: one weight, (columns, width), and one bias.
Ours are two tables, of which the text one is tied to the embedding; joined at each step they would
be copied (1.1 GB of the published model in bf16, and the gradient as much again), so that it is not
used. Its other kernels patch the LLM, which stays stock here.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 40 * 2**20  # logits at a time: 160 MB in float32
CHUNK_TOKENS = 4096  # and not more tokens than this: small vocabularies stay near the processor
BLOCK_COLUMNS = 2**15  # of a head's gradient that are added at a time where types differ


@dataclass(frozen=True, slots=True)
class Score:
    """Summed loss, trained tokens and rightly guessed tokens."""

    loss_sum: float = 0.0
    tokens: int = 0
    correct: int = 0

    def __add__(self, more: "Score") -> "Score":
        return Score(self.loss_sum + more.loss_sum, self.tokens + more.tokens,
                     self.correct + more.correct)  # fmt: skip

    @property
    def loss(self) -> float:
        """Mean loss of a token."""
        return self.loss_sum / max(1, self.tokens)

    @property
    def accuracy(self) -> float:
        """Share of tokens guessed rightly from the true ones before them."""
        return self.correct / max(1, self.tokens)


class LossReport(NamedTuple):
    """`total` is the sum over `tokens` trained tokens and carries the gradient."""

    total: Tensor
    tokens: int
    by_task: dict[str, Score]


class TokenLosses(NamedTuple):
    """`total`, (), carries the gradient; losses, (tokens,), and right, (tokens,) bool, do not."""

    total: Tensor
    losses: Tensor
    right: Tensor


def cross_entropy(
    states: Tensor, targets: Tensor, joint: Tensor, text: Tensor, speech: Tensor,
    speech_bias: Tensor, whole: bool = False, chunk_logits: int = CHUNK_LOGITS,
) -> TokenLosses:  # fmt: skip
    """The loss of each token over the text columns, or over text and speech columns together.

    states: (tokens, width); targets: (tokens,) long, a speech column counted on from the last text
    column; joint: (tokens,) bool, the loss runs over both heads; text: (text columns, width);
    speech: (speech columns, width); speech_bias: (speech columns,). Under autocast the products
    are made in its type; softmax and sums are float32. The total can be differentiated once.
    whole: heads that no token asked for get a gradient of zeros rather than none.
    """
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = text.dtype
    with_gradient = torch.is_grad_enabled()
    made = _ChunkedCrossEntropy.apply(
        states, text, speech, speech_bias, targets, joint, dtype, whole, chunk_logits, with_gradient
    )
    return TokenLosses(*made)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward makes the gradients as well: made again in backward, they would cost a product."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, text: Tensor, speech: Tensor, speech_bias: Tensor,
        targets: Tensor, joint: Tensor, dtype: torch.dtype, whole: bool, chunk_logits: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        needed = ctx.needs_input_grad[:4] if with_gradient else (False,) * 4
        spoken = whole or bool(joint.any())
        wanted = [needed[0], needed[1], needed[2] and spoken, needed[3] and spoken]
        with torch.autocast(states.device.type, enabled=False):
            work = _Work(states, text, speech, speech_bias, dtype, wanted)
            for both in (False, True):
                columns = len(text) + len(speech) * both
                size = max(1, min(CHUNK_TOKENS, chunk_logits // columns))
                for at in torch.nonzero(joint == both)[:, 0].split(size):
                    if len(at):
                        work.add(at, targets[at], both)
        ctx.gradients = work.gradients
        ctx.mark_non_differentiable(work.losses, work.right)
        return work.losses.sum(), work.losses, work.right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the total was differentiated before"
        for one in gradients:
            if one is not None:
                one.mul_(of_total)
        return (*gradients, None, None, None, None, None, None)


class _Work:
    """Sums over the chunks of one loss."""

    def __init__(
        self, states: Tensor, text: Tensor, speech: Tensor, speech_bias: Tensor,
        dtype: torch.dtype, wanted: list[bool],
    ) -> None:  # fmt: skip
        self.states = states
        self.heads = [text.to(dtype), speech.to(dtype)]
        self.speech_bias = speech_bias
        self.losses = states.new_zeros(len(states), dtype=torch.float32)
        self.right = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        self.gradients = [
            torch.zeros_like(one) if asked else None
            for one, asked in zip((states, text, speech, speech_bias), wanted, strict=True)
        ]

    def add(self, at: Tensor, targets: Tensor, both: bool) -> None:
        """at: (chunk,), the tokens' places; targets: (chunk,); both: over both heads."""
        own = self.states[at].to(self.heads[0].dtype)
        heads = self.heads[: 1 + both]
        logits = [(own @ head.T).float() for head in heads]
        if both:
            logits[1] += self.speech_bias
        shift, guess = logits[0].max(-1)
        if both:
            top, place = logits[1].max(-1)
            guess = torch.where(top > shift, place + len(heads[0]), guess)
            shift = torch.maximum(shift, top)
        starts = (0, len(heads[0]))
        inside = [_inside(targets - start, one) for start, one in zip(starts, logits, strict=False)]
        hit = torch.zeros_like(shift)
        for one, (row, column) in zip(logits, inside, strict=True):
            one.sub_(shift[:, None])
            hit[row] = one[row, column]
        mass = sum(one.exp_().sum(-1) for one in logits)
        assert isinstance(mass, Tensor)
        self.losses[at] = mass.log() - hit
        self.right[at] = guess == targets
        if any(one is not None for one in self.gradients):
            for one, (row, column) in zip(logits, inside, strict=True):
                one.div_(mass[:, None])  # the probabilities
                one[row, column] -= 1.0  # and now the gradient of the logits
            self._add_gradients(at, own, logits)

    def _add_gradients(self, at: Tensor, own: Tensor, of_logits: list[Tensor]) -> None:
        of_states, *of_heads, of_bias = self.gradients
        cast = [one.to(own.dtype) for one in of_logits]
        if of_states is not None:
            parts = (one @ head for one, head in zip(cast, self.heads, strict=False))
            of_states[at] = sum(part.to(of_states.dtype) for part in parts)
        for one, total in zip(cast, of_heads, strict=False):
            if total is not None:
                _add_product(total, one, own)
        if of_bias is not None and len(of_logits) > 1:
            of_bias += of_logits[1].sum(0)


def _inside(columns: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each target that this head holds."""
    row = torch.nonzero((columns >= 0) & (columns < logits.shape[-1]))[:, 0]
    return row, columns[row]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total: (columns, width) gains left.T @ right; left: (tokens, columns), right: (.., width)."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
        return
    for part, own in zip(total.split(BLOCK_COLUMNS), left.split(BLOCK_COLUMNS, 1), strict=True):
        part += own.T @ right


def by_task(
    losses: Tensor, right: Tensor, task_of: Tensor, names: list[str]
) -> dict[str, Score]:
    """losses, right, task_of: (tokens,): loss, whether it was guessed, number of its task."""
    count = len(names)
    sums = torch.zeros(count, device=losses.device).index_add_(0, task_of, losses).tolist()
    tokens = torch.bincount(task_of, minlength=count).tolist()
    hits = torch.bincount(task_of[right], minlength=count).tolist()
    return {
        name: Score(*row) for name, *row in zip(names, sums, tokens, hits, strict=True) if row[1]
    }
