"""What a frozen encoder made of the clips it has heard: epochs repeat, the encoder need not."""

from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
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

    def save(self, path: Path) -> None:
        """Write what is kept, and whose it is, for a later stage with the same encoder."""
        part = path.with_name(f".{path.name}.part")
        kept = {name.hex(): steps for name, steps in self._kept.items()}
        save_file(kept, part, metadata={"encoder": self._fingerprint()})
        part.rename(path)

    def load(self, path: Path) -> bool:
        """Take over what `save` wrote; False if there is none or another encoder made it."""
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("encoder") != self._fingerprint():
                return False
            for name in file.keys():  # noqa: SIM118 (no mapping)
                self._keep(bytes.fromhex(name), file.get_tensor(name))
        return True

    def _fingerprint(self) -> str:
        digest = blake2b(digest_size=16)
        for name, part in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(part.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _keep(self, name: bytes, steps: Tensor) -> None:
        if steps.nbytes <= self._free_bytes:
            self._kept[name] = steps
            self._free_bytes -= steps.nbytes

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
            self._keep(name, steps)
        return steps
