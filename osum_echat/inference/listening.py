"""Lets the ear speak beside the LLM where an answer writes words or labels of a voice down."""

from functools import lru_cache

import torch
from torch import Tensor

from osum_echat.generation.ctc_prefix import CtcPrefixScorer
from osum_echat.inference.load import Parts
from osum_echat.inference.request import Asked, Request
from osum_echat.thinking import VALUES
from osum_echat.vocab import Vocab

VOCABULARIES = 4                # whose words are remembered


def read_along(parts: Parts, asked: Asked, prompt: Tensor) -> None:
    """Add the rule that reads along, where the model is made for it and words or labels are due.

    prompt: (tokens, width), the row as embedded: the steps of its last clip are the user's.
    """
    request = asked.request
    writes_words = request.task.name == "understand" or _is_label(request)
    if not parts.manner.ctc_weight or not writes_words:
        return
    span = asked.row.spans[-1]
    with torch.inference_mode():
        steps = prompt[span.start : span.start + span.length]
        log_probs = parts.network.ctc_log_probs(steps).cpu()
    asked.answer.text.rules.append(CtcPrefixScorer(
        log_probs, *spoken_ids(parts.vocab), label_ids(parts.vocab), weight=parts.manner.ctc_weight,
        begins=request.task.transcript or (_is_label(request) and request.opening is not None),
    ))


def _is_label(request: Request) -> bool:
    return request.kind == "label"


@lru_cache(maxsize=VOCABULARIES)
def spoken_ids(vocab: Vocab) -> tuple[Tensor, Tensor]:
    """Which ids are words or parts of words, (ids,); and for each the id of it without its space.

    The steps spell a clip's first word without one.
    """
    texts = [vocab.decode([number]) for number in range(vocab.text_rows)]
    numbers = {text: number for number, text in reversed(list(enumerate(texts)))}
    words = torch.tensor([text.strip().isalnum() for text in texts])
    first = [numbers.get(text.lstrip() or text, number) for number, text in enumerate(texts)]
    return words, torch.tensor(first)


@lru_cache(maxsize=VOCABULARIES)
def label_ids(vocab: Vocab) -> Tensor:
    """Which ids are a whole label of a voice, such as <CHILD>: (ids,)."""
    found = torch.zeros(vocab.text_rows, dtype=torch.bool)
    for name in set().union(*VALUES.values()):
        ids = vocab.encode(f"<{name}>")
        if len(ids) == 1:
            found[ids[0]] = True
    return found
