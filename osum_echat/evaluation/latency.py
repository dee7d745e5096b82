"""Where the time of one spoken exchange goes, and how soon the first sound comes.

Each turn is streamed once cold (the first after loading) or warm. Parts of a turn, in seconds:
decode and features are measured by themselves on the same clip; encoder, prefill and the first
tokens are the assistant's own timings; the sound is timed as its pieces arrive.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from osum_echat import audio
from osum_echat import device as devices
from osum_echat.errors import InputError
from osum_echat.evaluation import echat_eval, report, runner
from osum_echat.evaluation.echat_eval import EChatItem, Query
from osum_echat.evaluation.report import Measure, Outcome, percentile
from osum_echat.evaluation.runner import Prediction, Run, Suite, limited
from osum_echat.inference.reply import AudioPiece, Done, TextPiece

TASK = "s2s_think"
COLD, WARM = "cold", "warm"
TURNS = 20
PARTS = ("decode", "features", "encoder", "prefill", "to first text", "to first speech token",
         "to first audio")  # fmt: skip
POINTS = ("first text", "first speech token", "first audio", "whole reply")
UNITS = {"real-time factor": "x", "peak memory": "MB"}      # else s
Made = TypeVar("Made")


def build(run: Run) -> Suite[Query]:
    """The suite that the options ask for: the first item cold, then all of them warm."""
    options = run.options
    every, lost = echat_eval.read(options.data)
    single = [one for one in every if not one.earlier]
    items = limited(single, options.limit or TURNS, lambda one: one.category)
    turns = [Query(item, COLD) for item in items[:1]] + [Query(item, WARM) for item in items]
    return Suite(
        "Latency of a spoken exchange", turns,
        lambda turns, out: [timed_turn(run, turn) for turn in turns], score,
        kind=lambda turn: None, sounds=Query.sounds, lost=lost,
        fixed={"device": options.device},
    )  # fmt: skip


def timed_turn(run: Run, turn: Query) -> Prediction:
    """An exchange by itself, as one user would ask; its sound is thrown away."""
    assistant, is_cold = run.model.assistant, turn.way == COLD
    if not is_cold and not run.model.is_warm:
        _exchange(run, turn.item)       # a run that goes on begins cold again
    timed = _exchange(run, turn.item)
    run.model.is_warm = True
    peak_mb = devices.peak_memory_bytes(assistant.network.device) / 2**20
    return {"cold": is_cold, "peak_mb": peak_mb, "load_s": assistant.load_s} | timed


def _exchange(run: Run, item: EChatItem) -> Prediction:
    assistant = run.model.assistant
    try:
        data = item.wav.read_bytes()
    except OSError as error:
        raise InputError(f"{item.wav}: {error.strerror}; give a sound file") from error
    decode_s, samples = _timed(partial(audio.load, data))
    mels = assistant.network.settings.encoder.mels
    features_s, _ = _timed(partial(audio.log_mel, samples, mels))
    firsts: dict[str, float] = {}
    start = time.perf_counter()
    reply = None
    seed = runner.seed_of(run.options.seed, item.key)
    for event in assistant.stream(data, task=TASK, greedy=run.options.greedy, seed=seed):
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
        "decode_s": decode_s, "features_s": features_s, "encode_s": reply.timings.encode_s,
        "prefill_s": reply.timings.prefill_s, "first_text_s": firsts.get("first text"),
        "first_speech_token_s": reply.timings.first_speech_token_s,
        "first_audio_s": firsts.get("first audio"), "total_s": time.perf_counter() - start,
        "audio_in_s": reply.audio_in_s, "audio_out_s": reply.audio_out_s,
    }  # fmt: skip


def _timed(work: Callable[[], Made]) -> tuple[float, Made]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


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


def score(found: Sequence[Prediction], out: Path) -> Outcome:
    """Percentiles of every part, cold and warm apart."""
    made = runner.made(found)
    groups = {name: own for name in (COLD, WARM)
              if (own := [one for one in made if one["cold"] is (name == COLD)])}  # fmt: skip
    ways = [(name, percent) for name in groups for percent in (50, 90)]
    timings = {
        f"{name}/{what} p{percent}": Measure(
            percentile(values, percent), UNITS.get(what, "s"), len(values))
        for name, group in groups.items() for what, values in _figures(group)
        for percent in (50, 90)
    }  # fmt: skip
    rows: list[list[report.Cell]] = []
    for what in (*PARTS, *POINTS, *UNITS):
        cells = (timings[f"{name}/{what} p{percent}"] for name, percent in ways)
        rows.append([what, *(None if cell.value is None else
                             f"{cell.value:.3f} {cell.unit}" for cell in cells)])  # fmt: skip
    counts = ", ".join(f"{len(group)} {name}" for name, group in groups.items())
    columns = [f"{name} p{percent}" for name, percent in ways]
    stacks = {f"{name} p{percent}": [timings[f"{name}/{part} p{percent}"].value or 0.0
                                     for part in PARTS] for name, percent in ways}  # fmt: skip
    return Outcome({}, [
        report.Words(f"Task {TASK}, streamed; {counts} turns. Times from the call to the event; "
                     "cold is the first turn after loading. Percentiles of parts need not add up."),
        report.Table("Parts and milestones", ("what", *columns), rows),
        report.Stack("Up to the first sound", PARTS, stacks),
    ], timings)  # fmt: skip
