"""Where the time of one spoken exchange goes, and how soon the first sound comes.

Each turn is streamed once cold (the first after loading) or warm. Parts of a turn, in seconds:
decode and features are measured by themselves on the same clip; encoder, prefill and the first
tokens are the assistant's own timings; the sound is timed as its pieces arrive.
"""

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat import audio
from osum_echat import device as devices
from osum_echat.evaluation import echat_items, predictions
from osum_echat.evaluation.echat_items import EChatItem
from osum_echat.evaluation.predictions import Prediction
from osum_echat.evaluation.results import (
    Block,
    Cell,
    Measure,
    Outcome,
    Stack,
    Table,
    Words,
    percentile,
)  # fmt: skip
from osum_echat.evaluation.runner import Model
from osum_echat.evaluation.start import limited
from osum_echat.inference.reply import AudioPiece, Done, TextPiece

TASK = "s2s_think"
COLD = "cold"
TURNS = 20
PARTS = ("decode", "features", "encoder", "prefill", "to first text", "to first speech token",
         "to first audio")  # fmt: skip
POINTS = ("first text", "first speech token", "first audio", "whole reply")


@dataclass(frozen=True, slots=True)
class TimedTurn:
    """One query; the first of a run is the cold one."""

    item: EChatItem
    is_cold: bool

    @property
    def key(self) -> str:
        return f"{self.item.key}/{COLD if self.is_cold else 'warm'}"


@dataclass(frozen=True)
class Latency:
    """The suite."""

    model: Model
    asked: tuple[TimedTurn, ...]
    seed: int
    greedy: bool
    fixed: dict[str, Any]
    shown: dict[str, Any]
    name: str = "latency"
    title: str = "Latency of a spoken exchange"

    def items(self) -> Sequence[TimedTurn]:
        return self.asked

    def kind(self, item: TimedTurn) -> None:
        """Each alone, as one user would ask."""

    def predict(self, items: Sequence[TimedTurn], out: Path) -> list[Prediction]:
        """Exchanges, their sound thrown away."""
        return [self._timed(item) for item in items]

    def _timed(self, item: TimedTurn) -> Prediction:
        assistant = self.model.assistant
        if not item.is_cold and not self.model.is_warm:
            self._turn(item)            # a run that goes on begins cold again
        timed = self._turn(item)
        self.model.is_warm = True
        peak_mb = devices.peak_memory_bytes(assistant.network.device) / 2**20
        return {"cold": item.is_cold, "peak_mb": peak_mb, "load_s": assistant.load_s} | timed

    def _turn(self, item: TimedTurn) -> Prediction:
        assistant = self.model.assistant
        data = item.item.wav.read_bytes()
        decode_s, samples = _timed(lambda: audio.load(data))
        mels = assistant.network.settings.encoder.mels
        features_s, _ = _timed(lambda: audio.log_mel(samples, mels))
        firsts: dict[str, float] = {}
        start = time.perf_counter()
        reply = None
        for event in assistant.stream(
            data, task=TASK, greedy=self.greedy,
            seed=predictions.seed_of(self.seed, item.item.key),
        ):  # fmt: skip
            now = time.perf_counter() - start
            if isinstance(event, TextPiece):
                firsts.setdefault("first text", now)
            elif isinstance(event, AudioPiece):
                firsts.setdefault("first audio", now)
            elif isinstance(event, Done):
                reply = event.reply
        assert reply is not None
        devices.synchronize(assistant.network.device)
        return {
            "decode_s": decode_s, "features_s": features_s,
            "encode_s": reply.timings.encode_s, "prefill_s": reply.timings.prefill_s,
            "first_text_s": firsts.get("first text"),
            "first_speech_token_s": reply.timings.first_speech_token_s,
            "first_audio_s": firsts.get("first audio"),
            "total_s": time.perf_counter() - start,
            "audio_in_s": reply.audio_in_s, "audio_out_s": reply.audio_out_s,
        }  # fmt: skip

    def score(self, found: Sequence[Prediction], out: Path) -> Outcome:
        """Percentiles of every part, cold and warm apart."""
        made = predictions.made(found)
        groups = {name: [one for one in made if one["cold"] is cold]
                  for name, cold in ((COLD, True), ("warm", False))}  # fmt: skip
        groups = {name: group for name, group in groups.items() if group}
        timings: dict[str, Measure] = {}
        for name, group in groups.items():
            for what, values in _figures(group):
                for percent in (50, 90):
                    timings[f"{name}/{what} p{percent}"] = Measure(
                        percentile(values, percent), _unit(what), len(values)
                    )
        return Outcome({}, _blocks(groups, timings), timings)


def _timed(work: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def _unit(what: str) -> str:
    return {"real-time factor": "x", "peak memory": "MB"}.get(what, "s")


def parts_of(one: Prediction) -> dict[str, float]:
    """How a turn's time up to the first sound divides; the parts add up to it."""
    heard = one["encode_s"] or 0.0
    marks = [heard, heard + (one["prefill_s"] or 0.0)]
    for name in ("first_text_s", "first_speech_token_s", "first_audio_s"):
        marks.append(max(marks[-1], one[name] if one[name] is not None else marks[-1]))
    encoder = max(0.0, heard - one["decode_s"] - one["features_s"])
    steps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return dict(zip(PARTS, (one["decode_s"], one["features_s"], encoder, *steps), strict=True))


def _figures(group: Sequence[Prediction]) -> Iterator[tuple[str, list[float]]]:
    """Each figure's values over some turns."""
    for part in PARTS:
        yield part, [parts_of(one)[part] for one in group]
    names = ("first_text_s", "first_speech_token_s", "first_audio_s", "total_s")
    for point, name in zip(POINTS, names, strict=True):
        yield point, [one[name] for one in group if one[name] is not None]
    yield "real-time factor", [one["total_s"] / one["audio_out_s"] for one in group
                               if one["audio_out_s"]]  # fmt: skip
    yield "peak memory", [one["peak_mb"] for one in group]


def _blocks(groups: dict[str, list[Prediction]], timings: dict[str, Measure]) -> list[Block]:
    columns = [f"{name} p{percent}" for name in groups for percent in (50, 90)]
    rows: list[list[Cell]] = []
    for what in (*PARTS, *POINTS, "real-time factor", "peak memory"):
        cells = (timings[f"{name}/{what} p{percent}"] for name in groups for percent in (50, 90))
        rows.append([what, *(None if cell.value is None else
                             f"{cell.value:.3f} {cell.unit}" for cell in cells)])  # fmt: skip
    counts = ", ".join(f"{len(group)} {name}" for name, group in groups.items())
    stacks = {f"{name} p{percent}": [timings[f"{name}/{part} p{percent}"].value or 0.0
                                     for part in PARTS]
              for name in groups for percent in (50, 90)}  # fmt: skip
    return [
        Words(f"Task {TASK}, streamed; {counts} turns. Times from the call to the event; cold is "
              "the first turn after loading. Percentiles of parts need not add up."),
        Table("Parts and milestones", ("what", *columns), rows),
        Stack("Up to the first sound", PARTS, stacks),
    ]  # fmt: skip


def build(arguments: Namespace, model: Model) -> Latency:
    """The suite that the options ask for: the first item cold, then all of them warm."""
    items = [one for one in echat_items.read(arguments.data) if not one.earlier]
    items = limited(items, arguments.limit or TURNS, lambda one: one.category)
    asked = (TimedTurn(items[0], True), *(TimedTurn(item, False) for item in items))
    return Latency(model, asked, arguments.seed, arguments.greedy,
                   {"device": arguments.device, "dtype": arguments.dtype}, {})  # fmt: skip
