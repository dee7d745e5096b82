"""How well the acoustic measure of reply emotion tells manners that are known: prints a table.

    python -m benchmarks.reply_emotion --train build/world/train --test build/world/test

The tiny world's reply voice speaks calmly, cheerfully, softly or briskly, and the corpus tells
which. The shifts of the training recordings are what the table in evaluation/reply_emotion.py is
taken from; the test recordings are told by it. With --model also the model's own speech is told:
the same sentences, synthesised.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osum_echat import audio, cli, logs
from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation.echat_eval import WORLD_FILE
from osum_echat.evaluation.reply_emotion import (
    MANNERS,
    Acoustic,
    Delivery,
    delivery,
    middle,
    read_neutral,
    shifts,
)  # fmt: skip
from osum_echat.evaluation.report import share
from osum_echat.evaluation.runner import read_objects
from osum_echat.inference.assistant import EChat
from osum_echat.metrics import Confusion

EACH = 150                              # training recordings of a manner
ASKED_AT_ONCE = 16
CALM = "CALM"


@dataclass(frozen=True, slots=True)
class Recording:
    """One reply of the corpus."""

    manner: str
    text: str
    wav: Path


def recordings(folder: Path, each: int) -> list[Recording]:
    """Up to `each` of every manner, drawn by a fixed seed. Raises InputError without any."""
    found: dict[str, dict[str, Recording]] = {manner: {} for manner in MANNERS}
    for raw in read_objects(folder / WORLD_FILE, lambda raw, _: raw)[0]:
        for turn in (raw, *raw["turns"]):
            wav = folder / turn["reply_wav"]
            if wav.exists():
                one = Recording(turn["reply_style"], turn["reply_text"], wav)
                found[one.manner][wav.name] = one
    drawn = [one for names in found.values()
             for one in random.Random(0).sample([names[name] for name in sorted(names)],
                                                min(each, len(names)))]  # fmt: skip
    if not drawn:
        raise InputError(f"{folder}: no replies of known manner; make the corpus by "
                         "python -m common_utils.tiny_world.make")  # fmt: skip
    return drawn


def measured(found: Sequence[Recording]) -> list[Delivery]:
    """How each is delivered."""
    return [delivery(audio.load(one.wav).numpy(), one.text)
            for one in logs.progress(found, "recordings", len(found))]  # fmt: skip


def synthesised(assistant: EChat, found: Sequence[Recording]) -> list[Delivery | None]:
    """The same sentences as the model speaks them; None where it does not."""
    replies = assistant.reply_many([f"<{one.manner}>{one.text}" for one in found], task="tts",
                                   batch_size=ASKED_AT_ONCE)  # fmt: skip
    made: list[Delivery | None] = []
    for one, reply in zip(found, replies, strict=True):
        if isinstance(reply, OsumError) or reply.wave is None or reply.sample_rate_hz is None:
            made.append(None)
            continue
        samples = audio.resample(reply.wave, reply.sample_rate_hz, audio.SAMPLE_RATE_HZ)
        made.append(delivery(samples.numpy(), one.text))
    return made


def told(
    name: str, found: Sequence[Recording], made: Sequence[Delivery | None], neutral: Delivery
) -> Iterator[str]:
    """Lines: right labels in all and by manner, and which label was told for which."""
    hear = Acoustic(neutral)
    pairs = []
    for one, how in zip(found, made, strict=True):
        emotion = hear.of(how) if how is not None else None
        pairs.append((MANNERS[one.manner], emotion.label if emotion else None))
    yield f"{name}: right {share([wanted == label for wanted, label in pairs])}"
    for manner, meant in MANNERS.items():
        own = [label for wanted, label in pairs if wanted == meant]
        if own:
            yield f"  {manner:<9} as {meant:<9} {share([label == meant for label in own])}"
    confusion = Confusion.of([(wanted, label) for wanted, label in pairs if label])
    width = max(map(len, confusion.labels)) + 2
    yield " " * 12 + "".join(f"{label:>{width}}" for label in confusion.labels)
    for label, row in zip(confusion.labels, confusion.counts, strict=True):
        yield f"  {label:<10}" + "".join(f"{count:>{width}}" for count in row)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the report. Raises an OsumError."""
    train = recordings(arguments.train, EACH)
    ways = measured(train)
    neutral = middle([way for one, way in zip(train, ways, strict=True) if one.manner == CALM])
    yield f"training recordings: {len(train)}; shifts from {CALM}, medians in steps"
    yield f"  {'':<9} {'pitch':>7}{'range':>7}{'rate':>7}{'level':>7}"
    for manner in MANNERS:
        steps = [shifts(way, neutral) for one, way in zip(train, ways, strict=True)
                 if one.manner == manner]  # fmt: skip
        yield f"  {manner:<9} " + "".join(f"{one:>7.2f}" for one in np.nanmedian(steps, axis=0))
    yield from told("training recordings", train, ways, neutral)
    test = recordings(arguments.test, sys.maxsize)
    yield from told("test recordings", test, measured(test), neutral)
    if arguments.model:
        assistant = EChat.load(arguments.model)
        spoken = recordings(arguments.test, arguments.spoken)
        own = read_neutral(assistant, "en", CALM)
        yield from told("the model's speech", spoken, synthesised(assistant, spoken), own)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 2 for what the user can put right."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--train", type=Path, default=Path("build/world/train"), metavar="DIR")
    add("--test", type=Path, default=Path("build/world/test"), metavar="DIR")
    add("--model", metavar="SOURCE", help="also tell the speech of this model")
    add("--spoken", type=int, default=15, metavar="N", help="of its sentences, of each manner")
    arguments = parser.parse_args(argv)

    def work() -> None:
        for line in run(arguments):
            logs.out(line)

    return cli.run("reply_emotion", work)


if __name__ == "__main__":
    sys.exit(main())
