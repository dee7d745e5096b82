"""A whole model directory with tiny random weights, as the tiny model's directory is laid out."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from common_utils.tiny_world.text_tokenizer import train
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.records import Labels
from osum_echat.tasks import TASKS
from osum_echat.thinking import ENGLISH, label_thought
from osum_echat.token2wav.estimator import EstimatorSettings
from osum_echat.token2wav.flow import FlowSettings
from osum_echat.token2wav.layers import ConformerSettings
from osum_echat.token2wav.model import Token2Wav, Token2WavSettings
from osum_echat.token2wav.nsf_vocos import NsfVocosSettings
from osum_echat.token2wav.voice import VoicePrompt
from osum_echat.vocab import Vocab

CODES = 32
PROMPTS = {
    "<TRANSCRIBE>": ["Write down the words."],
    "<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION>": ["Write down the words and all labels."],
}


def write_model(directory: Path, seed: int = 3) -> Path:
    """Everything that `EChat.load` reads."""
    torch.manual_seed(seed)
    labels = Labels("CHILD", "MALE", "SAD", "OTHER", "SOFT")
    thought = label_thought(ENGLISH, "i lost my kite", labels)
    texts = [*(task.opening for task in TASKS.values()), thought, "I hear a boy who cries."]
    rows = train(texts * 3, directory, 400)
    settings = EChatSettings(
        EncoderSettings(mels=80, width=16, heads=2, units=32, blocks=1),
        AdapterSettings(heads=2, units=16, blocks=1),
        {
            "model_type": "qwen2", "vocab_size": rows, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48,
            "max_position_embeddings": 4096, "tie_word_embeddings": True,
        },
        CODES,
    )  # fmt: skip
    notes = {"thinking": "both", "template": "english",
             "sampling": {"text": {"greedy": True}, "speech": {"temperature": 0.8, "top_k": 20}}}
    model = EChatModel(settings)
    end_soon(model, Vocab.from_directory(directory).text_end)
    checkpoint.save(directory, model, notes=notes)
    (directory / "prompts.yaml").write_text(yaml.safe_dump(PROMPTS))
    write_token2wav(directory / "token2wav")
    return directory


@torch.no_grad()
def end_soon(model: EChatModel, text_end: int) -> None:
    """Random weights that answer with no words, and then a few codes."""
    attention = model.llm.model.layers[-1].self_attn
    attention.v_proj.bias.fill_(4.0)
    always_there = attention.o_proj.weight.sum(1)
    model.llm.get_input_embeddings().weight[text_end] = always_there / always_there.norm()
    model.speech_head.bias[CODES] += 1.5


def changed_model(source: Path, copy: Path, **settings: object) -> Path:
    """A copy of a model's directory, with other values in its model.yaml."""
    shutil.copytree(source, copy)
    path = copy / "model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return copy


def write_token2wav(directory: Path) -> None:
    directory.mkdir(parents=True)
    settings = Token2WavSettings(
        vocoder="nsf_vocos",
        flow=FlowSettings(
            codes=CODES, conformer=ConformerSettings(16, 16, 2, 32, 1),
            estimator=EstimatorSettings((16,), 2, 8, 1, 1), regulator_convs=1, steps=2,
        ),
        nsf_vocos=NsfVocosSettings(width=16, blocks=1, pitch_width=8, pitch_blocks=1),
    )  # fmt: skip
    raw = asdict(settings)
    raw = {name: raw[name] for name in ("vocoder", "flow", "nsf_vocos")}
    (directory / "token2wav.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(raw))))
    whole = Token2Wav(settings, VoicePrompt.absent())
    save_file(whole.flow.state_dict(), directory / "flow.safetensors")
    save_file(whole.vocoder.state_dict(), directory / "vocoder.safetensors")
    VoicePrompt.absent(torch.randn(1, 192)).save(directory / "voice.safetensors")
