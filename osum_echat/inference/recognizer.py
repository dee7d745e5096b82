"""What a model whose CTC spells hears in a clip: the words, and labels of the voice and of sounds.

The CTC's best texts are weighed by the LLM, all in one batch: a word that it doubts is mended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osum_echat.errors import ConfigError
from osum_echat.generation.ctc_beam import Weights, beam_search, llm_scores, total, without
from osum_echat.models.echat import EChatModel
from osum_echat.thinking import VALUES
from osum_echat.vocab import Vocab

OPENING = "<|im_start|>user\n"  # what the LLM reads before the words
SURE = -2.3  # log probability: a label less sure than one in ten is not told
WEIGHTS = Weights()
NO_VOICE = "NOISE"  # the label of a clip in which nobody speaks


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was heard. words: lower case, "" for none; labels: by the names of thinking.VALUES."""

    words: str
    labels: dict[str, str]


@torch.inference_mode()
def recognize(
    network: EChatModel, vocab: Vocab, mel: Tensor, weights: Weights = WEIGHTS
) -> Recognition:
    """The words and labels of one clip; mel: (frames, mel).

    Raises ConfigError for a model whose CTC has no classes of its own (model.yaml: ctc).
    """
    settings = network.settings.ctc
    if settings is None:
        raise ConfigError("ctc: missing in model.yaml; this model does not spell what it hears")
    lengths = torch.tensor([len(mel)], device=mel.device)
    steps, _ = network.encode_audio_alone(mel[None], lengths)
    log_probs = network.ctc_log_probs(steps[0]).cpu()
    names = {name: settings.pieces + place for place, name in enumerate(settings.labels)}
    found = labels(log_probs, names)
    if is_without_voice(log_probs, names):
        return Recognition("", {name: value for name, value in found.items() if name == "event"})
    return Recognition(words(network, vocab, without(log_probs, [*names.values()]), weights), found)


def words(network: EChatModel, vocab: Vocab, log_probs: Tensor, weights: Weights) -> str:
    """The text that CTC and LLM together like best; log_probs: (steps, pieces + 1)."""
    texts = [(one, vocab.decode(one.ids).strip()) for one in beam_search(log_probs)]
    spoken = [(one, text) for one, text in texts if text]
    if not spoken or not texts[0][1]:
        return ""
    rows = [vocab.encode(f" {text}") for _, text in spoken]
    scores = llm_scores(network.llm, vocab.encode(OPENING), rows)
    worth = [
        total(one.score, score, len(text.split()), weights)
        for (one, text), score in zip(spoken, scores, strict=True)
    ]
    return spoken[worth.index(max(worth))][1]


def labels(log_probs: Tensor, names: dict[str, int]) -> dict[str, str]:
    """Of each kind the label that some step is surest of, where that is sure enough.

    log_probs: (steps, classes + 1); names: the class of each label.
    """
    return {kind: name for kind, name, score in _surest(log_probs, names) if score > SURE}


def is_without_voice(log_probs: Tensor, names: dict[str, int]) -> bool:
    """Whether a step is sure that nobody speaks."""
    place = names.get(NO_VOICE)
    return place is not None and float(log_probs[:, place].max()) > -0.7


def _surest(log_probs: Tensor, names: dict[str, int]) -> Iterator[tuple[str, str, float]]:
    best = log_probs.amax(0)
    for kind, values in VALUES.items():
        known: Sequence[str] = sorted(values & names.keys())
        if known:
            name = max(known, key=lambda one: float(best[names[one]]))
            yield kind, name, float(best[names[name]])
