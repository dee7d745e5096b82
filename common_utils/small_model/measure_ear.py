"""How well the ear hears: word errors, gender and events of lists, by the best path of the CTC.

    python -m common_utils.small_model.measure_ear --model build/ear/run --out build/ear/curve.jsonl
        --features build/ear/features asterisk=build/asterisk.list dev=build/ear/people/dev.list

--model: a directory of a model, or of a training whose newest checkpoint is taken.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common_utils.small_model.pieces import KINDS
from osum_echat import cli
from osum_echat import device as devices
from osum_echat.data.clips import ClipReader, ClipSettings
from osum_echat.data.manifest import open_source
from osum_echat.data.sources import Dropped
from osum_echat.metrics import error_rate, errors_of_each, interval, normalised_pair
from osum_echat.models import checkpoint, ctc
from osum_echat.models.echat import EChatModel
from osum_echat.models.encoder_cache import EncoderCache
from osum_echat.records import Utterance
from osum_echat.training import state
from osum_echat.training.engine import compute_dtype
from osum_echat.vocab import Vocab

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip. log_probs: (steps, pieces + 1), the blank last."""

    utterance: Utterance
    log_probs: Tensor


def open_model(place: Path, start: Path) -> tuple[EChatModel, dict[str, Any]]:
    """The model, and where its training is."""
    newest = state.newest(place)
    if newest is None:
        return checkpoint.load(place), {}
    saved, model = state.load(newest, CPU, mapped=True), checkpoint.load(start)
    model.load_state_dict(saved["engine"]["model"])
    return model.eval(), dict(saved["progress"])


def utterances(path: Path, most: int) -> Iterator[Utterance]:
    """The first so many of a list."""
    source = open_source(path.stem, str(path))
    for unit in range(min(most, len(source))):
        one = source.read(unit)
        if not isinstance(one, Dropped):
            yield one


def clips(path: Path, mels: int, most: int = sys.maxsize) -> Iterator[tuple[Utterance, Tensor]]:
    """The same with the features of each clip as training reads them: (frames, mels)."""
    reader = ClipReader(ClipSettings(cache_mb=1), mels)  # as with a cache: half precision
    for utterance in utterances(path, most):
        yield utterance, reader.read(reader.draft(utterance.user, random.Random(0)))[0]


@torch.inference_mode()
def hear(model: EChatModel, cache: EncoderCache, path: Path, most: int) -> Iterator[Heard]:
    """Each clip of a list alone."""
    for utterance, mel in clips(path, model.settings.encoder.mels, most):
        with devices.autocast(CPU, compute_dtype("auto", CPU)):
            steps, _ = model.adapter(*cache(mel[None], torch.tensor([len(mel)])))
        yield Heard(utterance, model.ctc_log_probs(steps[0].float()))


def best_path(log_probs: Tensor, vocab: Vocab) -> str:
    """What the likeliest class of each step spells, labels among it."""
    return vocab.decode(ctc.best_path(log_probs))


def label(log_probs: Tensor, vocab: Vocab, kind: str) -> tuple[str, float]:
    """The likeliest label of a kind at its surest step, and its log probability there."""
    surest = log_probs[:, :-1].amax(0)
    scores = {name: float(surest[vocab.encode(f"<{name}>")[0]]) for name in KINDS[kind]}
    name = max(scores, key=lambda one: scores[one])
    return name, scores[name]


def word_errors(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """pairs: (reference, heard). Word error rate with its interval, by Whisper's normaliser."""
    plain = [normalised_pair(*pair, "english") for pair in pairs]
    errors, totals = errors_of_each(plain)
    rate = error_rate(plain)
    low, high = interval(errors, totals)
    return {
        "wer": round(100 * rate.rate, 2), "low": round(100 * low, 1), "high": round(100 * high, 1),
        "n": len(pairs), "words": rate.total, "substitutions": rate.substitutions,
        "deletions": rate.deletions, "insertions": rate.insertions,
    }  # fmt: skip


def figures(found: list[Heard], vocab: Vocab) -> dict[str, Any]:
    """Word errors of the clips with words; of each kind of label the share that is right."""
    spoken = [one for one in found if one.utterance.user.text]
    made: dict[str, Any] = {}
    if spoken:
        made |= word_errors([
            (one.utterance.user.text or "", best_path(one.log_probs, vocab)) for one in spoken
        ])
    for kind in KINDS:
        right = [
            label(one.log_probs, vocab, kind)[0] == getattr(one.utterance.labels, kind)
            for one in found if getattr(one.utterance.labels, kind)
        ]  # fmt: skip
        if right:
            made[kind] = {"right": round(100 * sum(right) / len(right), 1), "n": len(right)}
    return made


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=Path("build/ear/start"))
    parser.add_argument("--features", type=Path, help="folder of the encoder's caches")
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON is added")
    parser.add_argument("--most", type=int, default=60, help="clips of each list")
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("lists", nargs="+", metavar="NAME=LIST")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, progress = open_model(chosen.model, chosen.start)
    vocab = Vocab.from_directory(chosen.start, None, model.settings.speech_codes)
    cache = EncoderCache(model.encoder, 0)
    if chosen.features:
        cache = EncoderCache(model.encoder, 1 << 40)
        cache.load(chosen.features)
    line: dict[str, Any] = {"time": time.strftime("%H:%M"), **progress}
    for entry in chosen.lists:
        name, _, path = entry.partition("=")
        found = list(hear(model, cache, Path(path), chosen.most))
        line[name] = figures(found, vocab)
        for one in found[: chosen.examples]:
            heard = best_path(one.log_probs, vocab)
            line.setdefault("examples", []).append([one.utterance.user.text, heard])
    with chosen.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run("measure_ear", main))
