"""An experiment of a second or two: a tiny network, a handful of records."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from osum_echat.models import checkpoint
from osum_echat.training import trainer
from tests.data.world import CODES, write_tokenizer, write_world

MODEL = {
    "speech_codes": CODES,
    "encoder": {"mels": 80, "width": 8, "heads": 2, "units": 16, "blocks": 1, "dropout": 0.1},
    "adapter": {"heads": 2, "units": 12, "blocks": 1, "dropout": 0.1},
    "llm": {
        "model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_experiment(folder: Path, **sections: dict[str, Any]) -> Path:
    """A YAML of speech and text tasks in `folder`; `sections` change its settings."""
    lists = write_world(folder)
    (folder / "model.yaml").write_text(yaml.safe_dump(MODEL))
    (folder / "prompts.yaml").write_text("<TRANSCRIBE> <AGE> <GENDER>: [all?]\n")
    raw: dict[str, Any] = {
        "output": str(folder / "out"),
        "model": str(folder / "model.yaml"),
        "tokenizer": str(write_tokenizer(folder / "tokenizer")),
        "stage": {"train": ["encoder", "adapter", "llm", "speech"]},
        "schedule": {"kind": "cosine", "rate": 0.01, "warmup_steps": 2, "total_steps": 20},
        "run": {"steps": 6, "log_steps": 1, "save_minutes": 0, "keep": 2},
        "prepare": {
            "thinking": "both", "template": "english", "speech_per_text": 0,
            "prompts": str(folder / "prompts.yaml"), "cache_mb": 1, "time_masks": 1,
        },
        "data": {
            "row_tokens": 700, "rows": 2, "window": 9, "prefetch": 1,
            "lists": {name: {"path": str(lists[name])}
                      for name in ("understand", "tts", "s2s_think", "t2t")},
            "held_out": {"s2s_think": {"path": str(lists["s2s_think"])}},
            "held_out_utterances": 2,
        },
    }  # fmt: skip
    for name, changes in sections.items():
        raw[name] = {**raw.get(name, {}), **changes} if isinstance(changes, dict) else changes
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines that the training of an experiment has written."""
    lines = (path.parent / "out" / trainer.METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in metrics(path) if "loss" in line]


def result(path: Path, folder: str = trainer.FINAL_FOLDER) -> dict[str, torch.Tensor]:
    """The weights that the training of an experiment has exported."""
    return dict(checkpoint.load(path.parent / "out" / folder).state_dict())


def are_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())
