"""A tiny seeded network over the letters of tests.letters, and rows for it."""

import re
from pathlib import Path

import torch

from osum_echat import weights
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.sequence import Sequence, compose
from osum_echat.tasks import TASKS
from tests.letters import ROWS, letter_vocab

VOCAB = letter_vocab()
LLM = {
    "vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 2048,
}  # fmt: skip
SETTINGS = EChatSettings(EncoderSettings(mels=6, width=8, heads=2, units=16, blocks=1),
                         AdapterSettings(heads=2, units=12, blocks=1), LLM,
                         VOCAB.speech_codes)  # fmt: skip


def network(seed: int = 0, settings: EChatSettings = SETTINGS, scale: float = 8.0) -> EChatModel:
    """In eval mode. scale: of the weights, large enough that tokens matter to each other."""
    torch.manual_seed(seed)
    model = EChatModel(settings).eval()
    with torch.no_grad():
        for parameter in model.llm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
        model.speech_embedding.weight.mul_(scale)
    return model


def save_published(path: Path, model: EChatModel) -> None:
    """Write a .pt with the published key names, all aliases of the text table among them."""
    named = checkpoint.published(checkpoint.own_weights(model), model.settings.tied)
    if model.settings.lora is not None:     # as peft names them
        named = [([re.sub(r"^llama_model\.(?!speech)", "llama_model.base_model.model.", name)
                   for name in names], value) for names, value in named]  # fmt: skip
    weights.write_torch_file(path, named)


def row(
    name: str, frames: int = 40, text: str = "hi you", answered: bool = True,
    speech: range = range(5, 50),
) -> Sequence:  # fmt: skip
    """A row of a task, with its answer unless told otherwise."""
    task = TASKS[name]
    generator = torch.Generator().manual_seed(frames)
    asked = {"clips": [torch.randn(frames, 6, generator=generator)] if task.hears else [],
             "user_text": "words" if task.user_text else None}  # fmt: skip
    if not answered:
        return compose(task, VOCAB, **asked)
    return compose(task, VOCAB, **asked, answer_text=text if task.answers_text else None,
                   answer_speech=speech if task.speaks else None)  # fmt: skip
