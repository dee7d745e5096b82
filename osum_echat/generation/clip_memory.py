"""What was heard of late: earlier turns of a conversation are not heard again for each answer."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from osum_echat.models.echat import EChatModel

MOST_CLIPS = 64


class ClipMemory:
    """What one model made of its last clips, by their features. For any number of threads."""

    def __init__(self, most: int = MOST_CLIPS) -> None:
        self.most, self._made = most, OrderedDict[bytes, Any]()
        self._lock = threading.Lock()

    def recall(self, clip: Tensor, hear: Callable[[Tensor], Any]) -> Any:
        """What `hear` makes of a clip, (frames, mel), or made of an equal one before."""
        key = blake2b(clip.contiguous().cpu().numpy().tobytes()).digest()
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = hear(clip)
        with self._lock:
            self._made[key] = made
            while len(self._made) > self.most:
                self._made.popitem(last=False)
        return made

    def encode(self, network: EChatModel, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `EChatModel.encode_audio_alone`."""

        def hear(mel: Tensor) -> Tensor:
            length = torch.tensor([len(mel)], device=mel.device)
            return network.encode_audio_alone(mel[None], length)[0][0]

        steps = [
            self.recall(mel[:length], hear)
            for mel, length in zip(mels, lengths.tolist(), strict=True)
        ]
        counts = torch.tensor([len(one) for one in steps], device=lengths.device)
        return pad_sequence(steps, batch_first=True), counts
