"""Cuts this folder out of the full fixtures: python cut.py TOKEN2WAV_FIXTURE FRONTEND_FIXTURE OUT

Keeps the weights, the token table cut to the rows used, the short cases, and every fourth frame of
the features. What is left is a directory that `python -m tests.parity` accepts.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

TABLE = "input_embedding.weight"
CASES = {
    "flow_tok1": None,
    "flow_tok40": ("mu_in", "cond_in", "spks_in", "flow_cache_out"),
    "flow_train": ("est_mu", "est_cond", "y"),
    "estimator_padded": None,
    "hift_one": None,
}
TOKENS = ("token", "prompt_token")
FRAME_STEP = 4


def main(source: Path, frontend: Path, out: Path) -> None:
    """Write the cut."""
    arrays = {name: dict(np.load(source / f"{name}.npz")) for name in CASES}
    held = [part[key].ravel() for part in arrays.values() for key in TOKENS if key in part]
    used = np.unique(np.concatenate(held))
    weights = torch.load(source / "flow.pt", weights_only=True)
    weights[TABLE] = weights[TABLE][torch.from_numpy(used).long()].clone()
    torch.save(weights, out / "flow.pt")
    for name, part in arrays.items():
        for key in TOKENS:
            if key in part:
                part[key] = np.searchsorted(used, part[key]).astype(part[key].dtype)
        dropped = CASES[name] or ()
        kept = {key: value for key, value in part.items() if key not in dropped}
        np.savez_compressed(out / f"{name}.npz", **kept)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["flow"]["vocab_size"] = len(used)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    norms = json.loads((source / "flow_train.json").read_text(encoding="utf-8"))
    (out / "flow_train.json").write_text(json.dumps(norms) + "\n", encoding="utf-8")
    shutil.copyfile(source / "hift.pt", out / "hift.pt")
    heard = np.load(frontend / "frontend.npz")
    np.savez_compressed(
        out.parent / "token2wav_frontend.npz",
        wav22050=heard["wav22050"][0],
        wav16000=heard["wav16000"][0],
        prompt_mel=heard["prompt_feat"][0, ::FRAME_STEP],
        speaker_features=heard["campplus_input"][0, ::FRAME_STEP],
        log_mel_128=heard["whisper_logmel128"][0].T[::FRAME_STEP],
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
