"""What tells emotion, age, gender and sounds from a clip (osum_echat/models/voice_labels.py).

    python -m common_utils.small_model.voice_labels --model build/ear/start --out build/ear/export
        --kept build/ear/statistics --lists build/ear/people build/ear/made

Writes voice_labels.safetensors. The statistics of each list's clips are kept, and not made again
where they are newer than it and of the same encoder. Lists named *dev.list are not learnt from:
what is right of them is told. Who reads words without a feeling named is calm; a sound without a
name is OTHER.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from common_utils.command import command
from common_utils.small_model.waves import clips, lists_in
from osum_echat import thinking, weights
from osum_echat.errors import DataError
from osum_echat.logs import logger
from osum_echat.models import checkpoint
from osum_echat.models.encoder import Encoder
from osum_echat.models.encoder_cache import fingerprint
from osum_echat.models.voice_labels import BIAS, CENTER, HIDDEN, NO_EVENT, SCALE, statistics
from osum_echat.records import Utterance

FILE = "voice_labels.safetensors"
KINDS = {
    "emotion": ("NEUTRAL", "HAPPY", "SAD", "ANGER", "SURPRISE", "FEAR", "DISGUST"),
    "age": ("CHILD", "ADULT", "OLD"),
    "gender": ("MALE", "FEMALE"),
    "event": (NO_EVENT, "LAUGH", "SIGH", "GROAN", "CRY", "SNEEZE"),
}
UNKNOWN = -1
UNITS, DROPOUT = 128, 0.3
BATCH, EPOCHS, RATE, DECAY = 64, 20, 1e-3, 1e-2
ADJUSTMENT = 0.5                # of the scores of rare labels, 1: as if all were met alike

log = logger(__name__)


def targets(one: Utterance) -> list[int]:
    """Of each kind the number of its label, UNKNOWN where nobody knows."""
    is_spoken = bool(one.user.text and one.user.text.strip())
    plain = {"emotion": "NEUTRAL" if is_spoken else None, "event": NO_EVENT}
    told = {kind: getattr(one.labels, kind) or plain.get(kind) for kind in KINDS}
    if told["event"] not in thinking.VALUES["event"]:       # a noise
        told = {kind: NO_EVENT if kind == "event" else None for kind in KINDS}
    return [
        names.index(told[kind]) if told[kind] in names else UNKNOWN
        for kind, names in KINDS.items()
    ]  # fmt: skip


def kept_statistics(encoder: Encoder, mels: int, path: Path, folder: Path) -> dict[str, Tensor]:
    """Of a list's clips: statistics (clips, statistics) float16, targets (clips, kinds)."""
    target, owner = folder / f"{path.parent.name}_{path.stem}.safetensors", fingerprint(encoder)
    if target.is_file() and target.stat().st_mtime > path.stat().st_mtime:
        with safe_open(target, framework="pt") as file:
            if file.metadata().get("encoder") == owner:
                return weights.read(target)
    rows, known = [], []
    for one, mel in clips(path, mels):
        rows.append(statistics(encoder, mel.float()).half())
        known.append(targets(one))
    if not rows:
        raise DataError(f"{path}: no clip can be heard; leave it out")
    made = {"statistics": torch.stack(rows), "targets": torch.tensor(known)}
    weights.write_safetensors_file(target, made, {"encoder": owner})
    log.info("%s: %d clips", target, len(rows))
    return made


class Network(nn.Module):
    """(clips, statistics), about 0 and of size 1 -> (clips, all labels), kind after kind."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(DROPOUT)
        self.hidden = nn.Linear(count, UNITS)
        self.out = nn.Linear(UNITS, sum(map(len, KINDS.values())))

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        scores = self.out(self.drop(functional.relu(self.hidden(self.drop(rows)))))
        return tuple(scores.split([len(names) for names in KINDS.values()], 1))


def priors(known: Tensor) -> list[Tensor]:
    """Of each kind the logarithm of how often each label is met; known: (clips, kinds)."""
    counts = [
        torch.bincount(column[column >= 0], minlength=len(names)) + 1.0
        for column, names in zip(known.T, KINDS.values(), strict=True)
    ]
    return [(one / one.sum()).log() for one in counts]


def train(rows: Tensor, known: Tensor, epochs: int, seed: int = 0) -> Network:
    """rows: (clips, statistics); known: (clips, kinds).

    Rare labels are told less for being rare by half: how often each is met is added to the scores
    while they are learnt (logit adjustment, Menon et al. 2021).
    """
    torch.manual_seed(seed)
    network, often = Network(rows.shape[1]), priors(known)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(rows)).split(BATCH):
            loss = torch.zeros(())
            for place, scores in enumerate(network(rows[batch])):
                own = known[batch, place]
                if bool((own >= 0).any()):
                    adjusted = scores + ADJUSTMENT * often[place]
                    loss = loss + functional.cross_entropy(
                        adjusted, own, ignore_index=UNKNOWN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        log.info("epoch %d of %d: loss %.3f", epoch + 1, epochs, total / len(rows))
    return network.eval()


@torch.inference_mode()
def right(network: Network, rows: Tensor, known: Tensor) -> str:
    """Of each kind, how many of those known are told right."""
    told = []
    for kind, scores, own in zip(KINDS, network(rows), known.T, strict=True):
        has = own >= 0
        if bool(has.any()):
            hits = int((scores.argmax(1) == own)[has].sum())
            told.append(f"{kind} {hits}/{int(has.sum())}")
    return ", ".join(told)


def tensors(network: Network, center: Tensor, scale: Tensor) -> Mapping[str, Tensor]:
    """As VoiceLabels.load reads them, in half precision."""
    labels = [f"{kind}.{name}" for kind, names in KINDS.items() for name in names]
    rows = torch.cat((network.out.weight, network.out.bias[:, None]), 1).detach()
    hidden = network.hidden.weight.detach(), network.hidden.bias.detach()
    found = {CENTER: center, SCALE: scale, **dict(zip((HIDDEN, BIAS), hidden, strict=True)),
             **dict(zip(labels, rows, strict=True))}  # fmt: skip
    return {name: one.half().contiguous() for name, one in found.items()}


def learn(
    model: Path, out: Path, kept: Path, lists: tuple[Path, ...], epochs: int = EPOCHS
) -> None:
    """Write what is learnt from the lists, and tell what is right of those not learnt from."""
    torch.set_num_threads(1)
    start = checkpoint.load(model)
    for folder in (kept, out):
        folder.mkdir(parents=True, exist_ok=True)
    found = {path: kept_statistics(start.encoder, start.settings.encoder.mels, path, kept)
             for path in lists_in(lists)}  # fmt: skip
    learnt = [one for path, one in found.items() if not path.stem.endswith("dev")]
    if not learnt:
        raise DataError(f"--lists: no list to learn from in {', '.join(map(str, lists))}")
    rows = torch.cat([one["statistics"] for one in learnt]).float()
    center, scale = rows.mean(0), rows.std(0) + 1e-3
    known = torch.cat([one["targets"] for one in learnt])
    network = train((rows - center) / scale, known, epochs)
    for path, one in found.items():
        if path.stem.endswith("dev"):
            own = (one["statistics"].float() - center) / scale
            log.info("%s: %s", path, right(network, own, one["targets"]))
    weights.write_safetensors_file(out / FILE, tensors(network, center, scale))


main = command(learn, model="whose encoder hears", kept="folder of statistics",
               lists="folders of lists")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
