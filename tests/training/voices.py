"""Tiny recordings for the trainings of token to wav: buzzes of a pitch, with a list."""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 22_050


def write_voices(folder: Path, pitches: dict[str, float], rows: int, seconds: float = 0.7) -> Path:
    """`rows` wavs for every voice, a buzz at its pitch; returns the list's path."""
    rng = np.random.default_rng(5)
    lines = []
    for voice, hertz in pitches.items():
        for row in range(rows):
            times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
            wave = sum(np.sin(2 * np.pi * hertz * k * times) / k for k in range(1, 8)) * 0.1
            wave += 0.002 * rng.normal(size=len(wave))
            name = f"{voice}_{row}.wav"
            soundfile.write(folder / name, wave.astype(np.float32), RATE_HZ)
            lines.append(json.dumps({"key": f"{voice}_{row}", "wav": name, "voice": voice}))
    path = folder / "voices.list"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
