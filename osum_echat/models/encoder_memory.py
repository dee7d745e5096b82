"""What a frozen encoder made of the clips it has heard: epochs repeat, the encoder need not."""

from hashlib import blake2b

import torch
from torch import Tensor

from osum_echat.models.encoder import Encoder


class EncoderMemory:
    """Stands in for a frozen encoder. Keeps outputs by the content of their clip, up to a limit.

    Each clip is heard alone and passed through half precision, kept or not, so that neither its
    neighbours nor a restart changes its numbers.
    """

    def __init__(self, encoder: Encoder, limit_bytes: int) -> None:
        self.encoder = encoder
        self._free_bytes = limit_bytes
        self._kept: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def __call__(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mels: (clips, frames, mel), right-padded; lengths: (clips,) in frames.

        Returns (clips, steps, width), right-padded with zeros, and lengths (clips,) in steps.
        """
        heard = [
            self._heard(mel[:frames]) for mel, frames in zip(mels, lengths.tolist(), strict=True)
        ]
        counts = torch.tensor([len(steps) for steps in heard], device=lengths.device)
        padded = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True)
        return padded.to(mels.device, mels.dtype), counts

    def _heard(self, mel: Tensor) -> Tensor:
        """mel: (frames, mel) of one clip. Returns (steps, width) in half precision."""
        content = mel.cpu().contiguous().numpy().tobytes()
        name = blake2b(content, digest_size=16).digest()
        steps = self._kept.get(name)
        if steps is None:
            encoded, _ = self.encoder(mel[None], torch.tensor([len(mel)], device=mel.device))
            steps = encoded[0].half().cpu()
            if steps.nbytes <= self._free_bytes:
                self._kept[name] = steps
                self._free_bytes -= steps.nbytes
        return steps
