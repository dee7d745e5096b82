"""Claims about the benchmark of reply emotion: manners are measured, told, and counted."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import reply_emotion

MANNERS = {"CALM": (120.0, 1.0, 1.0), "CHEERFUL": (141.0, 0.87, 1.58), "SOFT": (112.0, 1.25, 0.4),
           "BRISK": (133.0, 0.95, 1.4)}  # fmt: skip (pitch, length, level of each)
TEXT = "There are four chairs in the room."


def write_split(folder: Path, each: int) -> Path:
    rows = []
    for manner, (pitch_hz, length, level) in MANNERS.items():
        for number in range(each):
            wav = f"replies/{manner}-{number}.wav"
            (folder / "replies").mkdir(parents=True, exist_ok=True)
            times = np.arange(int(1.5 * length * 16_000)) / 16_000
            phase = 2 * np.pi * pitch_hz * (1 + 0.005 * number) * times
            wave = 0.1 * level * sum(np.sin(k * phase) / k for k in range(1, 6))
            soundfile.write(folder / wav, wave.astype(np.float32), 16_000)
            rows.append({"key": wav, "reply_style": manner, "reply_text": TEXT, "reply_wav": wav,
                         "turns": []})  # fmt: skip
    (folder / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_manners_are_measured_and_told(tmp_path, capsys):
    train, test = write_split(tmp_path / "train", 3), write_split(tmp_path / "test", 2)
    assert reply_emotion.main(["--train", str(train), "--test", str(test)]) == 0
    told = capsys.readouterr().out.splitlines()
    shifts = {line.split()[0]: [float(one) for one in line.split()[1:]] for line in told[2:6]}
    assert shifts["CALM"] == pytest.approx([0, 0, 0, 0], abs=0.01)
    assert shifts["CHEERFUL"] == pytest.approx([2.8, 0, 1.5, 2.0], abs=0.2)
    assert shifts["SOFT"] == pytest.approx([-1.2, 0, -2.0, -4.0], abs=0.2)
    assert "test recordings: right 100.00 % [100.00, 100.00]" in told
