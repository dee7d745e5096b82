"""Claims about the stock LLM directory: stock generation gives upstream's ids."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.convert import convert
from osum_echat.models.llm_export import PhaseMask
from tests.tiny_network import VOCAB, network

GOLDEN = Path(__file__).parents[1] / "goldens" / "model"
RUNS = {"t2t_0": (False, False), "tts_1": (True, True), "s2s_think_short": (True, False),
        "multiturn_2": (True, False)}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock directory of upstream's small random model, without a tokenizer."""
    directory = tmp_path_factory.mktemp("export") / "hf"
    convert(GOLDEN, directory, "hf")
    return directory


@torch.inference_mode()
@pytest.mark.parametrize("name", RUNS)
def test_stock_generation_with_one_processor_gives_upstreams_ids(exported: Path, name: str):
    from transformers import AutoModelForCausalLM

    record = json.loads((GOLDEN / "generate.json").read_text())[name]
    embedded = torch.from_numpy(np.load(GOLDEN / "generate.npz")[f"{name}/inputs_embeds"])[None]
    speaks, from_speech = RUNS[name]
    end = json.loads((GOLDEN / "token_ids.json").read_text())["<|im_end|>\n"][0]
    mask = PhaseMask.from_directory(exported, speaks, from_speech, end)
    stock = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    ids = stock.generate(inputs_embeds=embedded, logits_processor=[mask], do_sample=False,
                         max_new_tokens=record["n"] + 1)[0].tolist()  # fmt: skip
    wanted = [number if place < record["n_text_steps"] else mask.text_rows + number
              for place, number in enumerate(record["ids"])]  # fmt: skip
    assert ids[: record["n"]] == wanted
    if record["stopped_by"] == "criterion":
        assert ids[record["n"]] == mask.end == stock.config.eos_token_id


def test_the_mask_is_read_from_the_directory(tmp_path: Path):
    model = network()
    settings = replace(model.settings, llm={**model.settings.llm, "eos_token_id": VOCAB.text_end})
    checkpoint.save(tmp_path / "ours", model, settings)
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    mask = PhaseMask.from_directory(tmp_path / "hf", speaks=False)
    assert torch.equal(mask.bias, model.speech_head.bias)
    assert (mask.text_rows, mask.text_end) == (VOCAB.text_rows, VOCAB.text_end)
    with pytest.raises(CheckpointError, match=r"speech\.json: cannot be read"):
        PhaseMask.from_directory(tmp_path)


def test_the_mask_opens_one_half_at_a_time():
    mask = PhaseMask(10, torch.arange(5.0), text_end=7)
    scores = torch.zeros(1, 17)

    def opened(*ids: int) -> list[int]:
        tokens = torch.tensor([ids], dtype=torch.long)
        return torch.isfinite(mask(tokens, scores))[0].nonzero()[:, 0].tolist()

    assert opened() == opened(3) == list(range(10))
    assert opened(3, 7) == opened(7, 14, 11) == list(range(10, 15))
    assert opened(7, 14, 11, 14) == [16]
    assert mask(torch.tensor([[7]]), scores)[0, 10:15].tolist() == [0, 1, 2, 3, 4]
