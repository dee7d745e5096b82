"""What several test files share: a tiny random model directory, and a second of sound."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.tiny_model import write_model


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """A door sets logging up for its process, a training how tiny numbers are computed; the next
    test must not inherit that."""
    root = logging.getLogger("osum_echat")
    handlers, propagate, level = root.handlers[:], root.propagate, root.level
    yield
    root.handlers[:], root.propagate = handlers, propagate
    root.setLevel(level)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model with random weights; tests that change it work on a copy."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def question_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of noise at 16 kHz."""
    path = tmp_path_factory.mktemp("sound") / "question.wav"
    noise = np.random.default_rng(5).normal(0, 0.1, 16_000)
    soundfile.write(path, noise.astype(np.float32), 16_000)
    return path
