"""What tells emotion, age, gender and sounds from a clip (osum_echat/models/voice_labels.py).

    python -m common_utils.small_model.voice_labels --model build/ear/start --out build/ear/export
        --kept build/ear/statistics --lists build/ear/people build/ear/made
        --people build/ear/people/train_0.list

Writes voice_labels.safetensors. The statistics of each list's clips are kept, and not made again
where they are newer than it and of the same encoder. Lists named *dev.list are not learnt from:
what is right of them is told. Who reads words without a feeling named is calm; a sound without a
name is OTHER.

The feeling of people who speak is told by how they speak alone (`Manner`): it is learnt from the
recordings of --people as if acted (acted.py). What else there is in the statistics only adds to it
for made voices and for sounds without words: it tells people from made voices too well.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from common_utils.command import command
from common_utils.small_model import acted
from common_utils.small_model.waves import clips, lists_in
from osum_echat import audio, thinking, weights
from osum_echat.errors import DataError
from osum_echat.logs import logger
from osum_echat.models import checkpoint
from osum_echat.models.encoder import Encoder
from osum_echat.models.encoder_cache import fingerprint
from osum_echat.models.voice_labels import BIAS, CENTER, HIDDEN, NO_EVENT, SCALE, statistics
from osum_echat.records import Labels, Utterance

FILE = "voice_labels.safetensors"
KINDS = {
    "emotion": ("NEUTRAL", "HAPPY", "SAD", "ANGER", "SURPRISE", "FEAR", "DISGUST"),
    "age": ("CHILD", "ADULT", "OLD"),
    "gender": ("MALE", "FEMALE"),
    "event": (NO_EVENT, "LAUGH", "SIGH", "GROAN", "CRY", "SNEEZE"),
}
FEELINGS = KINDS["emotion"]
UNKNOWN = -1
UNITS, DROPOUT = 128, 0.3
BATCH, EPOCHS, RATE, DECAY = 64, 20, 1e-3, 1e-2
ADJUSTMENT = 0.5                # of the scores of rare labels, 1: as if all were met alike
RIDGE = 6000.0                  # of the figures' regression
MANNER_UNITS, MANNER_BATCH, MANNER_EPOCHS, MANNER_RATE = 24, 256, 25, 3e-3
MANNER_NOISE = 0.25             # added to the figures while they are learnt from
SHARES = {"people": 0.3, "made": 0.2}   # that a clip counts for, beside an acted one

log = logger(__name__)


def targets(one: Utterance) -> list[int]:
    """Of each kind the number of its label, UNKNOWN where nobody knows."""
    is_spoken = bool(one.user.text and one.user.text.strip())
    return numbers(one.labels, "NEUTRAL" if is_spoken else None)


def numbers(labels: Labels, feeling: str | None) -> list[int]:
    """feeling: where none is named."""
    plain = {"emotion": feeling, "event": NO_EVENT}
    told = {kind: getattr(labels, kind) or plain.get(kind) for kind in KINDS}
    if told["event"] not in thinking.VALUES["event"]:       # a noise
        told = {kind: NO_EVENT if kind == "event" else None for kind in KINDS}
    return [
        names.index(told[kind]) if told[kind] in names else UNKNOWN
        for kind, names in KINDS.items()
    ]  # fmt: skip


def kept_statistics(
    encoder: Encoder, mels: int, path: Path, folder: Path, most: int | None = None
) -> dict[str, Tensor]:
    """Of a list's clips: statistics (clips, statistics) float16, targets (clips, kinds).

    most: so many of its clips as they are and as if acted, with figures (clips, figures) too.
    """
    name = f"{path.parent.name}_{path.stem}{'' if most is None else f'_acted_{most}'}"
    target, owner = folder / f"{name}.safetensors", fingerprint(encoder)
    if target.is_file() and target.stat().st_mtime > path.stat().st_mtime:
        with safe_open(target, framework="pt") as file:
            if file.metadata().get("encoder") == owner:
                return weights.read(target)
    rows, known, figures = [], [], []
    if most is None:
        for one, mel in clips(path, mels):
            rows.append(statistics(encoder, mel.float()).half())
            known.append(targets(one))
    else:
        for wave, labels, sound in acted.spoken(path, most):
            rows.append(statistics(encoder, audio.log_mel(wave, mels)).half())
            known.append(numbers(labels, None))
            figures.append(sound)
    if not rows:
        raise DataError(f"{path}: no clip can be heard; leave it out")
    made = {"statistics": torch.stack(rows), "targets": torch.tensor(known)}
    if figures:
        made["figures"] = torch.stack(figures)
    weights.write_safetensors_file(target, made, {"encoder": owner})
    log.info("%s: %d clips", target, len(rows))
    return made


class Manner(nn.Module):
    """Feelings by a few figures of how somebody speaks, which are found in the statistics.

    (clips, statistics), about 0 and of size 1 -> (clips, figures) -> (clips, feelings).
    """

    def __init__(self, rows: Tensor, figures: Tensor) -> None:
        """Finds the figures by ridge regression, NaN where one is not known."""
        super().__init__()
        found = []
        for one in figures.T:
            has = ~one.isnan()
            size = rows[has].T @ rows[has] + RIDGE * torch.eye(rows.shape[1])
            found.append(torch.linalg.solve(size, rows[has].T @ (one[has] - one[has].mean())))
        probe = torch.stack(found)
        scale = (rows @ probe.T).std(0)[:, None] + 1e-6
        self.probe = nn.Parameter(probe / scale, requires_grad=False)
        self.hidden = nn.Linear(len(probe), MANNER_UNITS)
        self.out = nn.Linear(MANNER_UNITS, len(FEELINGS))

    def forward(self, rows: Tensor) -> Tensor:
        figures = rows @ self.probe.T
        if self.training:
            figures = figures + MANNER_NOISE * torch.randn_like(figures)
        scores: Tensor = self.out(functional.relu(self.hidden(figures)))
        return scores


def learn_manner(
    manner: Manner, rows: Tensor, known: Tensor, share: Tensor, epochs: int = MANNER_EPOCHS
) -> None:
    """rows: (clips, statistics); known: (clips,) feelings; share: (clips,) that each counts for."""
    often = torch.zeros(len(FEELINGS)).index_add_(0, known, share) + 1.0
    often = (often / often.sum()).log()
    optimizer = torch.optim.AdamW(manner.parameters(), MANNER_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(MANNER_BATCH):
            scores = manner(rows[batch]) + ADJUSTMENT * often
            losses = functional.cross_entropy(scores, known[batch], reduction="none")
            optimizer.zero_grad()
            ((losses * share[batch]).sum() / share[batch].sum()).backward()
            optimizer.step()
        schedule.step()
    manner.eval()


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


def train(
    rows: Tensor, known: Tensor, is_person: Tensor, told: Tensor, epochs: int, seed: int = 0
) -> Network:
    """rows: (clips, statistics); known: (clips, kinds); is_person: (clips,), where feelings are
    those that are told already: (clips, feelings).

    Rare labels are told less for being rare by half: how often each is met is added to the scores
    while they are learnt (logit adjustment, Menon et al. 2021).
    """
    torch.manual_seed(seed)
    known = known.clone()
    known[is_person, 0] = UNKNOWN
    network, often = Network(rows.shape[1]), priors(known)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(rows)).split(BATCH):
            first, *others = network(rows[batch])
            loss = (first.square().mean(1) * is_person[batch]).mean()
            for place, scores in enumerate((first + told[batch], *others)):
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
def right(network: Network, manner: Manner, rows: Tensor, known: Tensor) -> str:
    """Of each kind, how many of those known are told right."""
    told = []
    first, *others = network(rows)
    for kind, scores, own in zip(KINDS, (first + manner(rows), *others), known.T, strict=True):
        has = own >= 0
        if bool(has.any()):
            hits = int((scores.argmax(1) == own)[has].sum())
            told.append(f"{kind} {hits}/{int(has.sum())}")
    return ", ".join(told)


def tensors(
    network: Network, manner: Manner, center: Tensor, scale: Tensor
) -> Mapping[str, Tensor]:
    """As VoiceLabels.load reads them, in half precision: the units of both side by side."""
    labels = [f"{kind}.{name}" for kind, names in KINDS.items() for name in names]
    hidden = torch.cat((network.hidden.weight, manner.hidden.weight @ manner.probe))
    bias = torch.cat((network.hidden.bias, manner.hidden.bias))
    added = functional.pad(
        torch.cat((manner.out.weight, manner.out.bias[:, None]), 1),
        (0, 0, 0, len(labels) - len(FEELINGS)),
    )
    ends = network.out.bias[:, None] + added[:, -1:]
    rows = torch.cat((network.out.weight, added[:, :-1], ends), 1)
    found = {CENTER: center, SCALE: scale, HIDDEN: hidden, BIAS: bias,
             **dict(zip(labels, rows, strict=True))}  # fmt: skip
    return {name: one.detach().half().contiguous() for name, one in found.items()}


def learn(
    model: Path, out: Path, kept: Path, lists: tuple[Path, ...], people: Path,
    most: int = 1000, epochs: int = EPOCHS,
) -> None:  # fmt: skip
    """Write what is learnt from the lists, and tell what is right of those not learnt from."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = checkpoint.load(model)
    for folder in (kept, out):
        folder.mkdir(parents=True, exist_ok=True)
    mels = start.settings.encoder.mels
    found = {path: kept_statistics(start.encoder, mels, path, kept) for path in lists_in(lists)}
    learnt = {path: one for path, one in found.items() if not path.stem.endswith("dev")}
    if not learnt:
        raise DataError(f"--lists: no list to learn from in {', '.join(map(str, lists))}")
    played = kept_statistics(start.encoder, mels, people, kept, most)
    every = [played, *learnt.values()]
    rows = torch.cat([one["statistics"] for one in every]).float()
    known = torch.cat([one["targets"] for one in every])
    # people who read, of all lists beside --people; what has no words is no speech
    sizes = torch.tensor([len(one["targets"]) for one in every])
    paths = (people, *learnt)
    of_people = torch.tensor([path.parent == people.parent for path in paths])
    shares = torch.where(of_people, SHARES["people"], SHARES["made"])
    shares[0] = 1.0
    is_speech = torch.tensor([not path.stem.startswith("bursts") for path in paths])
    is_speech = is_speech.repeat_interleave(sizes) & (known[:, 0] != UNKNOWN)
    is_person = is_speech & of_people.repeat_interleave(sizes)
    share = shares.repeat_interleave(sizes)
    center, scale = rows.mean(0), rows.std(0) + 1e-3
    rows = (rows - center) / scale
    manner = Manner(rows[: len(played["targets"])], played["figures"])
    learn_manner(manner, rows[is_speech], known[is_speech, 0], share[is_speech])
    with torch.inference_mode():
        told = manner(rows)
    network = train(rows, known, is_person, told.clone(), epochs)
    for path, one in found.items():
        if path.stem.endswith("dev"):
            own = (one["statistics"].float() - center) / scale
            log.info("%s: %s", path, right(network, manner, own, one["targets"]))
    weights.write_safetensors_file(out / FILE, tensors(network, manner, center, scale))


main = command(learn, model="whose encoder hears", kept="folder of statistics",
               lists="folders of lists", people="list of people who read, to be heard as if acted",
               most="so many of its clips")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
