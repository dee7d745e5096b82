"""Replies and events as they are shown: plain values for JSON, lines and tables for people."""

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from osum_echat.inference.reply import (
    LABEL_FIELDS,
    AudioPiece,
    Event,
    Heard,
    LabelsFound,
    Reply,
    TextPiece,
    ThoughtPiece,
)
from osum_echat.records import Labels

WIDTH = 8  # of the names in a printed reply


def report(reply: Reply, task: str, wav: Path | None) -> dict[str, Any]:
    """A reply as plain values: what `--json` prints."""
    return {
        "task": task,
        "heard": reply.heard,
        "thought": reply.thought,
        "labels": _labels(reply.labels),
        "text": reply.text,
        "wav": str(wav) if wav else None,
        "sample_rate_hz": reply.sample_rate_hz,
        "n_speech_tokens": len(reply.speech_tokens),
        "timings": _rounded(asdict(reply.timings)),
        **_rounded({"audio_in_s": reply.audio_in_s, "audio_out_s": reply.audio_out_s}),
    }


def event_report(event: Event, at_s: float) -> dict[str, Any]:
    """An event but Done as plain values: what `--stream --json` prints, an object a line."""
    shown: dict[str, Any] = {"event": "audio", "at_s": round(at_s, 3)}
    match event:
        case Heard(text):
            return shown | {"event": "heard", "text": text}
        case LabelsFound(labels):
            return shown | {"event": "labels", "labels": _labels(labels)}
        case ThoughtPiece(text):
            return shown | {"event": "thought", "text": text}
        case TextPiece(text):
            return shown | {"event": "text", "text": text}
        case AudioPiece(samples, rate):
            return shown | {"samples": len(samples), "sample_rate_hz": rate}
    raise TypeError(f"{event}: not an event that is shown by itself")


def event_line(event: Event, at_s: float) -> str:
    """An event but Done for people: when, what, and its words."""
    shown = event_report(event, at_s)
    if "labels" in shown:
        words = _named(shown["labels"])
    elif "samples" in shown:
        words = f"{shown['samples'] / shown['sample_rate_hz']:.2f} s"
    else:
        words = repr(shown["text"]) if shown["event"] in ("thought", "text") else shown["text"]
    return f"{at_s:7.2f} s  {shown['event']:<{WIDTH}} {words}"


def _labels(labels: Labels) -> dict[str, str | None]:
    found = {field: getattr(labels, field) for field in LABEL_FIELDS}
    return {field: label.lower() if label else None for field, label in found.items()}


def _named(labels: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {label}" for name, label in labels.items() if label)


def _rounded(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None else round(value, 3) for name, value in seconds.items()}


def table(shown: Mapping[str, Any], source: str) -> str:
    """A report for people: a name and its words a line; what is absent is left out."""
    speech = (
        f"{shown['wav'] or 'not written (--out FILE)'}, {shown['audio_out_s']} s, "
        f"{shown['n_speech_tokens']} tokens"
    ) if shown["audio_out_s"] else None  # fmt: skip
    timings = [
        f"{name.removesuffix('_s').replace('_', ' ')} {value} s"
        for name, value in shown["timings"].items() if value is not None
    ]  # fmt: skip
    lines = {
        "task": shown["task"],
        "asked": source,
        "heard": shown["heard"],
        "labels": _named(shown["labels"]),
        "thought": shown["thought"],
        "reply": shown["text"],
        "speech": speech,
        "timings": ", ".join(timings),
    }
    indent = "\n" + " " * (WIDTH + 1)
    return "".join(
        f"{name:<{WIDTH}} {indent.join(_wrapped(words))}\n"
        for name, words in lines.items() if words
    )  # fmt: skip


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, 90, break_long_words=False, break_on_hyphens=False)
