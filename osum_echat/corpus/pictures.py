"""Pictures of a corpus: how long its utterances are, and what some of them look like."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from osum_echat import audio
from osum_echat.data.files import Files
from osum_echat.data.loader import ListSettings
from osum_echat.data.manifest import open_source
from osum_echat.errors import InputError, OsumError
from osum_echat.files import whole_file
from osum_echat.records import Utterance

DOTS_PER_INCH = 100
BINS = 50


def draw_lengths(lengths: Mapping[str, Counter[int]], path: Path) -> Path:
    """Histograms of lengths in tenths of a second, one curve a list, as a PNG."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    longest_s = max((max(one) for one in lengths.values() if one), default=1) / 10
    for name, counts in lengths.items():
        seconds = [tenths / 10 for tenths in counts]
        weights = list(counts.values())
        axes.hist(seconds, BINS, range=(0, longest_s), weights=weights, histtype="step", label=name)
    axes.set(xlabel="seconds heard", ylabel="utterances", title="Lengths")
    axes.legend()
    return _save(figure, path)


def draw_items(
    lists: Mapping[str, ListSettings], count: int, out: Path, schemes: tuple[str, ...] = ()
) -> Iterator[Path]:
    """Mel and speech tokens of the first usable utterances of each list, as PNGs."""
    if count < 1:
        raise InputError(f"{count} utterances to draw: give 1 or more")
    for name, entry in lists.items():
        source = open_source(name, entry.path, entry.task, Files(schemes))
        found = (one for unit in range(len(source)) for one in source.read(unit))
        items = list(islice((one for one in found if isinstance(one, Utterance)), count))
        figure = _figure(12, 2.5 * max(len(items), 1))
        grid = figure.subplots(max(len(items), 1), 2, squeeze=False)
        for row, item in zip(grid, items, strict=False):
            _draw_item(row, item)
        yield _save(figure, out / f"{_file_name(name)}_items.png")


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


def _file_name(name: str) -> str:
    return "".join(one if one.isalnum() else "_" for one in name)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "pictures need one more package: pip install matplotlib (or -r requirements-train.txt)"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> Path:
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return path
