"""What a corpus looks like to the model: the first batch of each list, its statistics, pictures."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from osum_echat import logs
from osum_echat.corpus import pictures, statistics
from osum_echat.data.files import Files
from osum_echat.data.loader import DataSettings, ListSettings, Loader
from osum_echat.data.manifest import OfKind, open_source, read_manifest
from osum_echat.data.prepare import Preparer, PrepareSettings
from osum_echat.data.sources import Source
from osum_echat.errors import OsumError
from osum_echat.inference.load import PROMPTS_FILE
from osum_echat.models.pretrained import find
from osum_echat.models.settings import read_settings
from osum_echat.paths import FAKE_DATA, PUBLISHED_PROMPTS
from osum_echat.sequence import IGNORED, Batch
from osum_echat.settings import read_mapping
from osum_echat.tasks import Prompts
from osum_echat.training import build, experiment
from osum_echat.vocab import Vocab

FORMS = {"raw": "data.list", "shard": "shards_list.txt", "combine": "combines_list.txt"}
SEED = 777
TEXT_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Corpus:
    """Lists, and how a training would read them."""

    lists: dict[str, ListSettings]
    data: DataSettings
    preparer: Preparer
    kinds: dict[str, str] = field(default_factory=dict)  # s2t ... of the lists of a manifest


def run_arguments(chosen: argparse.Namespace) -> None:
    """Print and draw what parsed arguments ask for."""
    corpus = corpus_of(chosen.config, chosen.model)
    if chosen.stats:
        for line in statistics.report(
            corpus.lists, chosen.out, chosen.workers, corpus.data.schemes
        ):
            logs.out(line)
    if chosen.plot:
        for path in pictures.draw_items(corpus.lists, chosen.plot, chosen.out, corpus.data.schemes):
            logs.out(f"drawn: {path}")
    if not chosen.stats and not chosen.plot:
        for line in first_batches(corpus):
            logs.out(line)


def corpus_of(path: Path | None, model: str) -> Corpus:
    """The corpus of an experiment or data yaml; of none: the fake data. Raises OsumError."""
    if path is not None and "stage" in read_mapping(path):
        return _of_experiment(experiment.load(path))
    if path is None:
        lists = {form: ListSettings(str(FAKE_DATA / form / name)) for form, name in FORMS.items()}
    else:
        lists = _entries(str(path))
    return Corpus(lists, DataSettings(lists=lists), _preparer(model))


def _of_experiment(loaded: experiment.Experiment) -> Corpus:
    settings = build.model_settings(loaded)
    vocab = build.vocabulary(loaded, settings)
    preparer = Preparer(loaded.prepare, vocab, settings.encoder.mels)
    data, kinds = loaded.data, {}
    lists = dict(data.lists)
    for kind, place in data.manifests.items():
        for name, entry in _entries(place, data.schemes).items():
            lists[f"{kind} {name}"], kinds[f"{kind} {name}"] = entry, kind
    return Corpus(lists, data, preparer, kinds)


def _entries(place: str, schemes: tuple[str, ...] = ()) -> dict[str, ListSettings]:
    """The lists of a data yaml that are read at all."""
    entries = read_manifest(place, Files(schemes))
    return {one.name: ListSettings(one.path) for one in entries if one.weight > 0}


def _preparer(model: str) -> Preparer:
    """As the model itself was trained: its vocabulary, thoughts and prompts."""
    found = find(model)
    settings, raw = read_settings(found.settings), found.settings_yaml()
    vocab = Vocab.from_directory(
        found.tokenizer(), settings.llm["vocab_size"], settings.speech_codes
    )
    own = found.home / PROMPTS_FILE
    prompts = Prompts.from_file(own if own.exists() else PUBLISHED_PROMPTS)
    prepare = PrepareSettings(
        thinking=raw.get("thinking", "label"), template=raw.get("template", "chinese"), prompts=None
    )
    return Preparer(prepare, vocab, settings.encoder.mels, prompts)


def first_batches(corpus: Corpus) -> Iterator[str]:
    """A table for each list: what its first batch holds, and what was dropped on the way."""
    for name, entry in corpus.lists.items():
        yield f"== {name}: {entry.path}"
        try:
            yield from _first_batch(name, entry, corpus)
        except OsumError as error:
            yield f"   cannot be used: {error}"
        yield ""


def _first_batch(name: str, entry: ListSettings, corpus: Corpus) -> Iterator[str]:
    start = time.perf_counter()
    settings = replace(
        corpus.data, lists={name: entry}, manifests={}, held_out=None, prefetch=0, workers=0
    )
    source: Source = open_source(name, entry.path, entry.task, Files(corpus.data.schemes))
    if name in corpus.kinds:
        source = OfKind(source, corpus.kinds[name])
    loader = Loader([(source, 1.0)], corpus.preparer, settings, SEED)
    batch = next(loader)
    took_ms = 1000 * (time.perf_counter() - start)
    yield f"   {len(source)} utterances; first batch after {took_ms:.0f} ms"
    shapes = {"ids": batch.ids, "valid": batch.valid, "mels": batch.mels}
    words = [f"{each} {tuple(one.shape)}" for each, one in shapes.items() if one is not None]
    padding = 1.0 - batch.valid.float().mean().item()
    yield f"   {', '.join(words)}; {padding:.1%} padding"
    yield from _table(batch, corpus.preparer.vocab)
    drops = ", ".join(
        f"{reason} {count}" for (_, reason), count in loader.drops.counts.most_common()
    )
    yield f"   dropped: {drops or 'none'}"
    loader.close()


def _table(batch: Batch, vocab: Vocab) -> Iterator[str]:
    """A line for each sequence, behind the names of the columns."""
    rows = [("row", "key", "task", "tokens", "frames", "speech", "answer")]
    clips = list(zip(batch.spans, batch.mel_lengths.tolist(), strict=True))
    for number, keys in enumerate(batch.keys):
        for place, key in enumerate(keys):
            inside = batch.segments[number] == place
            first = int(inside.nonzero()[0])
            last = first + int(inside.sum())
            targets = batch.targets[number][inside]
            answer = targets[targets != IGNORED].tolist()
            frames = [
                str(length) for span, length in clips
                if span.row == number and first <= span.start < last
            ]  # fmt: skip
            rows.append((
                str(number), key, batch.tasks[number][place], str(last - first),
                "+".join(frames) or "-", str(sum(map(vocab.is_speech, answer))),
                _short(vocab.decode(answer)),
            ))  # fmt: skip
    # Longest first, as rows are packed; those of one length by key, whatever form they came in.
    rows[1:] = sorted(rows[1:], key=lambda cells: (int(cells[0]), -int(cells[3]), cells[1]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield f"   {'  '.join(cells).rstrip()}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_WIDTH else f"{line[: TEXT_WIDTH - 1]}…"
