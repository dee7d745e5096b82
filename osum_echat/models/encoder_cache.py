"""The outputs of a frozen encoder, kept: epochs repeat, the encoder need not."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.models.encoder import Encoder, padded
from osum_echat.weights import write_safetensors_file

WARP = 0.12                     # of the clip: how far its middle may move
BIAS, SCALE, GRAIN = 0.15, 0.1, 0.1     # of a dimension's deviation
LONGEST_GAP = 12                # steps without anything: a quarter of a second


def fingerprint(encoder: Encoder) -> str:
    """Tells an encoder by its weights."""
    digest = blake2b(digest_size=16)
    for name, part in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(part.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class EncoderCache:
    """Stands in for a frozen encoder. Keeps outputs by the content of their clip, up to a limit.

    Each clip is encoded alone and passed through half precision, kept or not, so that neither its
    neighbours nor a restart changes its numbers.
    """

    def __init__(self, encoder: Encoder, limit_bytes: int, vary: float = 0.0) -> None:
        """vary: how much clips are varied in training, 0 to 1; their length stays."""
        self.encoder = encoder
        self.vary = vary
        self._free_bytes = limit_bytes
        self._kept: dict[bytes, Tensor] = {}

    def save(self, path: Path) -> None:
        """Write what is kept, and whose it is, for a later stage with the same encoder."""
        kept = {name.hex(): steps for name, steps in self._kept.items()}
        write_safetensors_file(path, kept, {"encoder": fingerprint(self.encoder)})

    def load(self, path: Path) -> bool:
        """Take over what `save` wrote; False if there is none or another encoder made it.

        path: the file, or a folder of such files. What is kept stays mapped to it. Raises
        CheckpointError for a damaged file.
        """
        if path.is_dir():
            found = sorted(path.glob("*.safetensors"))
            return bool(found) and all(self.load(one) for one in found)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("encoder") != fingerprint(self.encoder):
                    return False
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    self._keep(bytes.fromhex(name), file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); remove it, and it is made again"
            ) from error
        return True

    def _keep(self, name: bytes, steps: Tensor) -> None:
        if steps.nbytes <= self._free_bytes:
            self._kept[name] = steps
            self._free_bytes -= steps.nbytes

    @torch.no_grad()
    def __call__(
        self, mels: Tensor, lengths: Tensor, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """mels: (clips, frames, mel), right-padded; lengths: (clips,) in frames.

        Returns (clips, steps, width), right-padded with zeros, and lengths (clips,) in steps.
        """
        encoded = [
            self._encoded(mel[:frames]) for mel, frames in zip(mels, lengths.tolist(), strict=True)
        ]
        if training and self.vary:
            encoded = [augmented(steps.float(), self.vary) for steps in encoded]
        steps, counts = padded(encoded)
        return steps.to(mels.device, mels.dtype), counts.to(lengths.device)

    @torch.no_grad()
    def fill(self, mels: Sequence[Tensor]) -> None:
        """Keep what the encoder makes of clips of like length, together; (frames, mel) each.

        It differs from what it makes of one at a time in the last digits only.
        """
        encoded, counts = self.encoder(*padded(mels), alone=True)
        for mel, steps, count in zip(mels, encoded, counts.tolist(), strict=True):
            self._keep(_name(mel), steps[:count].half().cpu())

    def _encoded(self, mel: Tensor) -> Tensor:
        """mel: (frames, mel) of one clip. Returns (steps, width) in half precision."""
        name = _name(mel)
        steps = self._kept.get(name)
        if steps is None:
            made, _ = self.encoder.eval()(mel[None], torch.tensor([len(mel)], device=mel.device))
            steps = made[0].half().cpu()
            self._keep(name, steps)
        return steps


def _name(mel: Tensor) -> bytes:
    return blake2b(mel.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def augmented(steps: Tensor, much: float) -> Tensor:
    """As another voice in another room might have made them: (steps, width), the same shape out.

    Time bends around its middle, every dimension gets a constant and a factor of its own, a gap
    falls somewhere (after SpecAugment, Park 2019, on an encoder's output). Draws from torch's
    own stream.
    """
    count, width = steps.shape
    chance = torch.rand(4)
    middle, last = 0.25 + 0.5 * chance[0], max(1, count - 1)
    moved = middle + much * WARP * (2 * chance[1] - 1)
    places = torch.arange(count) / last
    places = torch.where(
        places < moved, places * middle / moved,
        middle + (places - moved) * (1 - middle) / (1 - moved),
    ) * (count - 1)
    before = places.floor().long().clamp(0, count - 1)
    after, share = (before + 1).clamp(max=count - 1), (places - before)[:, None]
    bent = steps[before] * (1 - share) + steps[after] * share
    deviation = steps.std(0, correction=0)
    bent = bent * (1 + much * SCALE * torch.randn(width))
    bent = bent + much * deviation * (BIAS * torch.randn(width) + GRAIN * torch.randn(count, width))
    gap = int(chance[2] * (LONGEST_GAP + 1) * much)
    start = int(chance[3] * max(1, count - gap))
    bent[start : start + gap] = steps.mean(0)
    return bent
