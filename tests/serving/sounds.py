"""Sound files as bytes."""

import io

import numpy as np
import soundfile


def wav(seconds: float = 1.0, rate_hz: int = 16_000) -> bytes:
    """Noise."""
    noise = np.random.default_rng(3).normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, rate_hz, "PCM_16", format="WAV")
    return file.getvalue()
