"""What a corpus looks like to the model: the first batch of each list, its statistics, pictures."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from common_utils.jobs import in_order
from osum_echat import audio, logs
from osum_echat.data.loader import DataSettings, ListSettings, Loader
from osum_echat.data.manifest import OfKind, open_source, read_manifest
from osum_echat.data.prepare import Preparer, PrepareSettings
from osum_echat.data.sources import Dropped, Noted, Source
from osum_echat.errors import InputError, OsumError
from osum_echat.files import Files, whole_file
from osum_echat.logs import progress
from osum_echat.models.pretrained import find
from osum_echat.models.settings import read_settings
from osum_echat.paths import FAKE_DATA, PUBLISHED_PROMPTS, TINY
from osum_echat.records import Labels, Utterance
from osum_echat.sequence import IGNORED, Batch
from osum_echat.settings import read_mapping
from osum_echat.tasks import PROMPTS_FILE, Prompts, task_for
from osum_echat.training import experiment
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


def look(
    config: Path | None = None, model: str = str(TINY), stats: bool = False,
    plot: int | None = None, out: Path = Path("build") / "corpus", workers: int = 1,
) -> None:  # fmt: skip
    """Print and draw what is asked for: by default the first batches.

    Raises InputError at the end where no list can be used.
    """
    for name, value in (("workers", workers), ("plot", plot)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: give 1 or more")
    corpus, bad, lost = corpus_of(config, model), list[str](), 0
    for name, entry in corpus.lists.items():
        logs.out(f"== {name}: {entry.path}")
        try:
            if stats:
                tally = scan(name, entry, workers, corpus.data.schemes)
                bad += (f"{name}\t{one.reason}\t{' '.join(one.detail.split())}\n"
                        for one in tally.bad)  # fmt: skip
                _tell(_lines(tally))
                if not tally.utterances:
                    raise InputError("no utterance is whole; what is wrong stands above")
            if plot is not None:
                _tell(draw_items(name, entry, plot, out, corpus.data.schemes))
            if not stats and plot is None:
                _tell(_first_batch(corpus, name, entry))
        except OsumError as error:
            lost += 1
            _tell([f"cannot be used: {error}"])
        logs.out("")
    if stats:
        with whole_file(out / BAD_FILE) as file:
            file.writelines(line.encode() for line in bad)
        logs.out(f"bad members: {out / BAD_FILE}")
    if lost == len(corpus.lists):
        raise InputError(f"none of {lost} lists can be used; what is wrong stands above")


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        logs.out(f"   {line}")


OPTIONS = {
    "config": "your own experiment, or a data yaml (names with `path` and `weight`); default: the "
    "fake data in its three forms",
    "model": "whose vocabulary a data yaml is read with (default: the tiny model)",
    "stats": "scan everything: hours, labels, lengths, bad members",
    "plot": "draw mel and speech tokens of so many utterances a list",
    "out": "where pictures and bad_members.txt go", "workers": "processes",
}  # fmt: skip


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
    settings = experiment.model_settings(loaded)
    vocab = experiment.vocabulary(loaded, settings)
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


def _first_batch(corpus: Corpus, name: str, entry: ListSettings) -> Iterator[str]:
    """A table of what the first batch holds, and what was dropped on the way."""
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
    yield f"{len(source)} utterances; first batch after {took_ms:.0f} ms"
    shapes = {"ids": batch.ids, "valid": batch.valid, "mels": batch.mels}
    words = [f"{each} {tuple(one.shape)}" for each, one in shapes.items() if one is not None]
    padding = 1.0 - batch.valid.float().mean().item()
    yield f"{', '.join(words)}; {padding:.1%} padding"
    yield from _table(batch, corpus.preparer.vocab)
    drops = ", ".join(
        f"{reason} {count}" for (_, reason), count in loader.drops.counts.most_common()
    )
    yield f"dropped: {drops or 'none'}"
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
            text = " ".join(vocab.decode(answer).split())
            frames = [
                str(length) for span, length in clips
                if span.row == number and first <= span.start < last
            ]  # fmt: skip
            rows.append((
                str(number), key, batch.tasks[number][place], str(last - first),
                "+".join(frames) or "-", str(sum(map(vocab.is_speech, answer))),
                text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 1]}…",
            ))  # fmt: skip
    # Longest first, as rows are packed; those of one length by key, whatever form they came in.
    rows[1:] = sorted(rows[1:], key=lambda cells: (int(cells[0]), -int(cells[3]), cells[1]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


PORTION = 100  # units that a process reads in one go
TOKENS_PER_S = 25
SHOWN_BAD, SHOWN_LABELS = 5, 12
BAD_FILE = "bad_members.txt"
UNHEARD = "-"


@dataclass(slots=True)
class Tally:
    """What was counted so far. Lengths are whole tenths of a second."""

    utterances: int = 0
    heard_s: float = 0.0  # of the users, earlier turns included
    reply_tokens: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    bad: list[Dropped] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another portion in."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


def scan(name: str, entry: ListSettings, workers: int = 1, schemes: tuple[str, ...] = ()) -> Tally:
    """Read and decode every utterance of a list. Raises DataError for one that cannot be opened."""
    units = len(_source(entry.path, entry.task, schemes))
    starts, whole = range(0, units, PORTION), Tally()
    work = partial(count, entry.path, entry.task, schemes)
    for tally in progress(in_order(work, starts, workers), name, len(starts)):
        whole.add(tally)
    return whole


def count(path: str, task: str | None, schemes: tuple[str, ...], start: int) -> Tally:
    """What a portion of a list's units holds, from unit `start` on."""
    tally, source = Tally(), _source(path, task, schemes)
    for unit in range(start, min(start + PORTION, len(source))):
        utterance = source.read(unit)
        fault = utterance if isinstance(utterance, Dropped) else _count(utterance, tally)
        if fault is not None:
            tally.bad.append(fault)
    return tally


@lru_cache(maxsize=1)
def _source(path: str, task: str | None, schemes: tuple[str, ...]) -> Source:
    return open_source(path, path, task, Files(schemes))


def _count(utterance: Utterance, tally: Tally) -> Dropped | None:
    """Count an utterance in, or say why it cannot be used."""
    try:
        task = task_for(utterance.task)
        turns = (*utterance.history, utterance.user) if task.hears else ()
        if task.hears and utterance.user.audio is None:
            return Dropped("no audio", utterance.key)
        sounds = [audio.read(turn.audio, segment_s=turn.segment_s)
                  for turn in turns if turn.audio is not None]  # fmt: skip
    except InputError as error:
        return Dropped("audio or task cannot be used", f"{utterance.key}: {error}")
    lengths = [len(sound.samples) / sound.rate_hz for sound in sounds]
    tally.noted += [Noted(one.kind, f"{utterance.key}: {one.detail}")
                    for sound in sounds for one in sound.findings]  # fmt: skip
    tally.utterances += 1
    tally.tasks[utterance.task] += 1
    tally.reply_tokens += len(utterance.user.reply_speech)
    tally.heard_s += sum(lengths)
    if lengths:
        tally.lengths[round(lengths[-1] * 10)] += 1
    for each in fields(Labels):
        tally.labels[each.name, getattr(utterance.labels, each.name) or UNHEARD] += 1
    return None


def _lines(tally: Tally) -> Iterator[str]:
    """What was counted, in words."""
    yield (
        f"{tally.utterances} utterances, {_time(tally.heard_s)} heard, "
        f"{_time(tally.reply_tokens / TOKENS_PER_S)} of reply tokens, {len(tally.bad)} bad"
    )
    if tally.lengths:
        tenths = sorted(tally.lengths.elements())
        shown = [tenths[0], tenths[len(tenths) // 2], tenths[-1]]
        low, middle, high = (f"{one / 10:.1f} s" for one in shown)
        yield f"lengths: {low} to {high}, half of them up to {middle}"
    for task, number in tally.tasks.most_common():
        yield f"task {task}: {number}"
    for each in fields(Labels):
        found = [(value, number) for (name, value), number in tally.labels.most_common()
                 if name == each.name]  # fmt: skip
        shown_labels = ", ".join(f"{value} {number}" for value, number in found[:SHOWN_LABELS])
        yield f"{each.name}: {shown_labels}" + (" ..." if len(found) > SHOWN_LABELS else "")
    for what, told in (("bad", tally.bad), ("to be looked at", tally.noted)):
        for reason, number in Counter(one.reason for one in told).most_common():
            yield f"{what}: {reason}: {number}"
            examples = [one.detail for one in told if one.reason == reason]
            yield from (f"   {detail}" for detail in examples[:SHOWN_BAD])


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


DOTS_PER_INCH = 100


def draw_items(
    name: str, entry: ListSettings, count: int, out: Path, schemes: tuple[str, ...] = ()
) -> Iterator[str]:
    """Mel and speech tokens of a list's first usable utterances, as a PNG."""
    from matplotlib.figure import Figure

    source = open_source(name, entry.path, entry.task, Files(schemes))
    found = map(source.read, range(len(source)))
    items = list(islice((one for one in found if isinstance(one, Utterance)), count))
    figure = Figure(figsize=(12, 2.5 * max(len(items), 1)), layout="constrained")
    grid = figure.subplots(max(len(items), 1), 2, squeeze=False)
    for row, item in zip(grid, items, strict=False):
        _draw_item(row, item)
    path = out / f"{''.join(one if one.isalnum() else '_' for one in name)}_items.png"
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    yield f"drawn: {path}"


def _draw_item(row: Any, item: Utterance) -> None:
    """The user's mel on the left, the codes of the reply on the right."""
    left, right = row
    left.set_title(f"{item.key}  {item.task}", fontsize=8, loc="left", parse_math=False)
    if item.user.reply_speech:
        right.set(ylabel="speech token", xlabel="25 a second")
        right.plot(item.user.reply_speech, ".", markersize=3)
    else:
        right.text(0.5, 0.5, "no speech tokens", ha="center", transform=right.transAxes)
        right.set_axis_off()
    if item.user.audio is None:
        left.text(0.5, 0.5, "no audio", ha="center", transform=left.transAxes)
        return
    try:
        samples = audio.load(item.user.audio, segment_s=item.user.segment_s)
        mel = audio.log_mel(samples)
    except OsumError as error:
        left.text(0.02, 0.5, str(error)[:80], fontsize=7, transform=left.transAxes)
        return
    left.imshow(mel.T.numpy(), origin="lower", aspect="auto")
    left.set(xlabel="frames of 10 ms", ylabel="mel bin")
