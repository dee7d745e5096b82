"""Where the time of one spoken exchange goes, and how soon the first sound comes.

Each turn is streamed once cold (the first after loading) or warm. Parts of a turn, in seconds:
decode and features are measured by themselves on the same clip; all else are the assistant's own
timings.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from osum_echat import audio
from osum_echat import device as devices
from osum_echat.evaluation import echat_eval, report, runner
from osum_echat.evaluation.echat_eval import EChatItem, Query
from osum_echat.evaluation.report import Measure, Outcome, percentile
from osum_echat.evaluation.runner import Prediction, Run, Suite, limited
from osum_echat.inference.reply import Done

TASK = "s2s_think"
COLD, WARM = "cold", "warm"
TURNS = 20
PARTS = ("decode", "features", "encoder", "prefill", "to first text", "to first speech token",
         "to first audio")  # fmt: skip
POINTS = {"first text": "first_text_s", "first speech token": "first_speech_token_s",
          "first audio": "first_audio_s", "whole reply": "total_s"}  # fmt: skip
UNITS = {"real-time factor": "x", "peak memory": "MB"}      # else s


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
    return {"cold": is_cold, "peak_mb": peak_mb} | timed


def _exchange(run: Run, item: EChatItem) -> Prediction:
    assistant = run.model.assistant
    start = time.perf_counter()
    samples = audio.load(item.wav)
    decoded = time.perf_counter()
    audio.log_mel(samples, assistant.network.settings.encoder.mels)
    measured = time.perf_counter()
    events = assistant.stream(item.wav, task=TASK, greedy=run.options.greedy,
                              seed=runner.seed_of(run.options.seed, item.key))  # fmt: skip
    reply = next(event.reply for event in events if isinstance(event, Done))
    devices.synchronize(assistant.network.device)
    return {"decode_s": decoded - start, "features_s": measured - decoded,
            "audio_in_s": reply.audio_in_s, "audio_out_s": reply.audio_out_s,
            **asdict(reply.timings)}  # fmt: skip


def parts_of(one: Prediction) -> dict[str, float]:
    """How a turn's time up to the first sound divides; the parts add up to it."""
    heard = one["encode_s"] or 0.0
    marks = [heard, heard + (one["prefill_s"] or 0.0)]
    for name in ("first_text_s", "first_speech_token_s", "first_audio_s"):
        marks.append(max(marks[-1], one[name] if one[name] is not None else marks[-1]))
    encoder = max(0.0, heard - one["decode_s"] - one["features_s"])
    steps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return dict(zip(PARTS, (one["decode_s"], one["features_s"], encoder, *steps), strict=True))


def _figures(group: Sequence[Prediction]) -> dict[str, list[float]]:
    """Each figure's values over some turns."""
    parts = [parts_of(one) for one in group]
    points = {point: [one[name] for one in group if one[name] is not None]
              for point, name in POINTS.items()}  # fmt: skip
    factors = [one["total_s"] / one["audio_out_s"] for one in group if one["audio_out_s"]]
    return {part: [one[part] for one in parts] for part in PARTS} | points | {
        "real-time factor": factors, "peak memory": [one["peak_mb"] for one in group]}


def score(found: Sequence[Prediction], out: Path) -> Outcome:
    """Percentiles of every part, cold and warm apart."""
    made = runner.made(found)
    groups = {name: own for name in (COLD, WARM)
              if (own := [one for one in made if one["cold"] is (name == COLD)])}  # fmt: skip
    ways = [(name, percent) for name in groups for percent in (50, 90)]
    timings = {
        f"{name}/{what} p{percent}": Measure(
            percentile(values, percent), UNITS.get(what, "s"), len(values))
        for name, group in groups.items() for what, values in _figures(group).items()
        for percent in (50, 90)
    }  # fmt: skip
    cells: dict[str, list[float | None]] = {
        what: [timings[f"{name}/{what} p{percent}"].value for name, percent in ways]
        for what in (*PARTS, *POINTS, *UNITS)
    }
    times_ms = [[what, *(None if one is None else 1000 * one for one in cells[what])]
                for what in (*PARTS, *POINTS)]  # fmt: skip
    longest_ms = 1000 * max((one or 0.0 for one in cells["whole reply"]), default=0.0)
    counts = ", ".join(f"{len(group)} {name}" for name, group in groups.items())
    columns = ("what", *(f"{name} p{percent}" for name, percent in ways))
    return Outcome({}, [
        f"Task {TASK}, streamed; {counts} turns. Times from the call to the event; cold is the "
        "first turn after loading. Percentiles of parts need not add up.",
        report.Table("Parts up to the first sound, and milestones, in ms", columns, times_ms,
                     whole=longest_ms),
        report.Table("Other figures", columns,
                     [[f"{what}, {unit}", *cells[what]] for what, unit in UNITS.items()]),
    ], timings)  # fmt: skip
