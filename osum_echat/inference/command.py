"""What `infer_runtime.py` understands: options, the requests they make, what is printed of them."""

import argparse
import io
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat import cli, logs
from osum_echat.cli import add_model
from osum_echat.errors import InputError
from osum_echat.files import check_apart, whole_file
from osum_echat.inference import reply as events
from osum_echat.paths import TINY
from osum_echat.records import Labels
from osum_echat.tasks import TASKS, UNDERSTAND, task_for

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat
    from osum_echat.records import Utterance

LOG = logs.logger(__name__)
SAMPLE_WAV, SAMPLE_QUESTION = "samples/question.wav", "who are you?"
SAMPLE_WORDS = "<CHEERFUL>That is wonderful news."
SAMPLE_REPLIES = Path("exp/replies")
TOUR = ("asr", UNDERSTAND, *(task.name for task in sorted(
    (task for task in TASKS.values() if task.in_menu),
    key=lambda task: (task.speaks, task.speaks and task.hears),
)))  # fmt: skip
FORMATS = {                     # by the end of a file's name: what libsndfile calls it
    "": ("WAV", "PCM_16"), ".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"), ".ogg": ("OGG", "VORBIS"),
}  # fmt: skip
EVENTS = {
    events.Heard: "heard", events.LabelsFound: "labels", events.ThoughtPiece: "thought",
    events.TextPiece: "text", events.AudioPiece: "audio",
}  # fmt: skip
Shown = (                       # all events but the last
    events.Heard | events.LabelsFound | events.ThoughtPiece | events.TextPiece | events.AudioPiece
)
WIDTH = 8                       # of the names in a printed reply
DESCRIPTION = (
    "Ask the model once: a wav or a text goes in, a reply comes out; several wavs are answered "
    "together. Without options it goes through every task once on the samples of the tiny world."
)


@dataclass(frozen=True, slots=True)
class Job:
    """One task, what it answers (a sound file or a text), and where its speech goes."""

    task: str
    source: Path | str
    out: Path | None


def parser() -> argparse.ArgumentParser:
    """The options of the door."""
    made = cli.OneLineParser(prog="infer_runtime.py", description=DESCRIPTION)
    add = made.add_argument
    add_model(made)
    add("--task", metavar="NAME", help="s2s, s2s_think, s2t, s2t_think, asr, understand, t2t, tts, "
        "or a tag such as '<TRANSCRIBE> <AGE> <GENDER>' (default with --wav: s2s_think)")
    add("--wav", type=Path, nargs="+", metavar="FILE", help="what the user says; several files are "
        "several questions, answered in batches")
    add("--text", help="the question of t2t, the words of tts")
    add("--labels", metavar="LIST", default=(), type=_names,
        help="what understand is asked for: " + ",".join(events.LABEL_FIELDS))  # fmt: skip
    add("--prompt", help="the text prompt of an understanding task")
    add("--thinking", choices=("label", "natural"), help="the kind of thought of a thinking task")
    add("--history", type=Path, metavar="JSON", help="the conversation so far: a list of turns, "
        '[{"wav": FILE or "text": WORDS, "reply": WORDS}, ...], oldest first')
    add("--out", type=Path, metavar="FILE", help="write the spoken reply to this file, .wav, "
        ".flac, .mp3 or .ogg (of several wavs: to wavs of their names in this directory)")
    add("--stream", action="store_true", help="print everything as soon as it is known")
    add("--batch-size", type=int, default=8, metavar="N", help="of several wavs (default: 8)")
    add("--hear", action="store_true", help="ask again for the words where the task tells none")
    add("--json", action="store_true", help="print one JSON object")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--seed", type=int, default=0, metavar="N", help="of the sampling (default: 0)")
    return made


def run(arguments: argparse.Namespace) -> None:
    """Do what the options ask for and print it. Raises an OsumError for what cannot be done."""
    is_tour = not (arguments.task or arguments.wav) and arguments.text is None
    if is_tour and (arguments.out or arguments.history):
        raise InputError("--out, --history: say with --task and --wav which reply is meant")
    several = not is_tour and len(arguments.wav or ()) > 1
    jobs = _tour() if is_tour else _jobs(arguments)
    from osum_echat import audio
    from osum_echat.inference.assistant import EChat

    if arguments.wav and not several:       # what cannot be read is told before a model is loaded
        audio.length(arguments.wav[0])
    speaks = any(task_for(job.task).speaks for job in jobs)
    assistant = EChat.load(
        arguments.model, seed=arguments.seed, speaks=speaks, **cli.loading(arguments)
    )
    if several:
        _answer_together(assistant, jobs, arguments)
        return
    reports = []
    for job in jobs:
        reply = _answer(assistant, job, arguments, is_tour)
        reports.append(report(reply, job.task, _write(reply, job.out)))
        if arguments.stream and arguments.json:
            logs.out_json({"event": "done", "reply": reports[-1]})
        elif not arguments.json:
            logs.out(table(reports[-1], str(job.source)))
    if arguments.json and not arguments.stream:
        logs.out_json({"replies": reports} if is_tour else reports[0])


def _answer(
    assistant: "EChat", job: Job, arguments: argparse.Namespace, is_tour: bool
) -> events.Reply:
    """The reply to one job; with `--stream`, its events are printed on the way."""
    task = task_for(job.task)
    options: dict[str, Any] = {
        "task": job.task, "greedy": arguments.greedy,
        "labels": arguments.labels if task.understands or not is_tour else (),
        "prompt": arguments.prompt if task.takes_prompt or not is_tour else None,
        "thinking": arguments.thinking if task.thinks or not is_tour else None,
        "hear": arguments.hear and (task.hears or not is_tour),
    }  # fmt: skip
    source = _with_history(job, arguments.history)
    if not arguments.stream:
        return assistant.reply(source, **options)
    start = time.perf_counter()
    for event in assistant.stream(source, **options):
        if isinstance(event, events.Done):
            return event.reply
        at_s = time.perf_counter() - start
        if arguments.json:
            logs.out_json(event_report(event, at_s))
        else:
            logs.out(event_line(event, at_s))
    raise AssertionError("a stream ends with Done")


def _answer_together(
    assistant: "EChat", jobs: Sequence[Job], arguments: argparse.Namespace
) -> None:
    """The replies to all jobs, in batches. Raises InputError at the end, naming what failed."""
    results = assistant.reply_many(
        [job.source for job in jobs], task=jobs[0].task, labels=arguments.labels,
        prompt=arguments.prompt, thinking=arguments.thinking, greedy=arguments.greedy,
        batch_size=arguments.batch_size,
    )  # fmt: skip
    reports, faults = [], []
    for job, result in zip(jobs, results, strict=True):
        if not isinstance(result, events.Reply):
            faults.append(str(result))
            reports.append({"asked": str(job.source), "error": str(result)})
            continue
        shown = report(result, job.task, _write(result, job.out))
        reports.append({"asked": str(job.source), **shown})
        if not arguments.json:
            logs.out(table(shown, str(job.source)))
    if arguments.json:
        logs.out_json({"replies": reports})
    if faults:
        raise InputError(f"{len(faults)} of {len(jobs)} not answered: {'; '.join(faults)}")


def _with_history(job: Job, path: Path | None) -> "Path | str | Utterance":
    """What is asked, with the conversation before it."""
    if path is None:
        return job.source
    from osum_echat.records import Turn, Utterance, read_turns

    return Utterance(str(path), job.task, Turn(Path(job.source)), history=read_turns(path))


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """The jobs that the options name: one, or one for each wav."""
    name = arguments.task or ("s2s_think" if arguments.wav else "t2t")
    task = task_for(name)
    wanted, given = ("wav", "text") if task.hears else ("text", "wav")
    if not getattr(arguments, wanted):
        raise InputError(f"task {name}: give what it answers by --{wanted}")
    if getattr(arguments, given) is not None:
        raise InputError(f"task {name}: takes no --{given}; leave it out")
    if arguments.history and (not task.hears or task.understands):
        raise InputError(f"--history: task {name} knows no earlier turns; use s2s or s2t")
    out: Path | None = arguments.out
    if out is not None and not task.speaks:
        LOG.warning("task %s does not speak: no %s is written", name, out)
        out = None
    if task.hears and len(arguments.wav) > 1:
        jobs = _several(arguments, name, out)
    elif out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"--out {out}: not a file in a directory that exists; make it first")
    else:
        jobs = [Job(name, arguments.wav[0] if task.hears else arguments.text, out)]
    files = (*(arguments.wav or ()), arguments.history, arguments.voice)
    inputs = [Path(one) for one in files if one is not None]
    for out in (job.out for job in jobs if job.out is not None):
        if out.suffix.lower() not in FORMATS:
            known = ", ".join(filter(None, FORMATS))
            raise InputError(f"--out {out}: {out.suffix} is not written; choose one of {known}")
        check_apart(out, inputs)
    return jobs


def _several(arguments: argparse.Namespace, name: str, out: Path | None) -> list[Job]:
    """A job for each wav; their replies go to files of the same names."""
    for option in ("stream", "history", "hear"):
        if getattr(arguments, option):
            raise InputError(f"--{option}: for one --wav; {len(arguments.wav)} were given")
    if out is not None and not out.is_dir():
        raise InputError(f"--out {out}: for several wavs, a directory that exists; make it first")
    if out is not None and len({path.stem for path in arguments.wav}) < len(arguments.wav):
        raise InputError("--out: two of the wavs have one name; rename one")
    return [Job(name, path, out / f"{path.stem}.wav" if out else None) for path in arguments.wav]


def _tour() -> list[Job]:
    """Every task once on the samples of the tiny world."""
    jobs = []
    for name in TOUR:
        task = task_for(name)
        words = SAMPLE_QUESTION if task.answers_text else SAMPLE_WORDS
        out = SAMPLE_REPLIES / f"{name}.wav" if task.speaks else None
        jobs.append(Job(name, TINY / SAMPLE_WAV if task.hears else words, out))
    SAMPLE_REPLIES.mkdir(parents=True, exist_ok=True)
    return jobs


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(","))


def _write(reply: events.Reply, path: Path | None) -> Path | None:
    """Write the reply's wave; the path it went to."""
    if path is None or reply.wave is None or reply.sample_rate_hz is None:
        return None
    import soundfile

    kind, subtype = FORMATS[path.suffix.lower()]
    sound = io.BytesIO()
    wave = reply.wave.clamp(-1, 1).numpy()
    try:
        soundfile.write(sound, wave, reply.sample_rate_hz, subtype=subtype, format=kind)
        if path.exists() and not path.is_file():        # a pipe or /dev/null
            path.write_bytes(sound.getvalue())
        else:
            with whole_file(path) as file:
                file.write(sound.getvalue())
    except (OSError, InputError, soundfile.SoundFileError) as error:
        raise InputError(f"--out {path}: not written ({error}); choose another path") from error
    return path


def report(reply: events.Reply, task: str, wav: Path | None) -> dict[str, Any]:
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


def event_report(event: Shown, at_s: float) -> dict[str, Any]:
    """An event as plain values: what `--stream --json` prints, an object a line."""
    shown: dict[str, Any] = {"event": EVENTS[type(event)], "at_s": round(at_s, 3)}
    if isinstance(event, events.LabelsFound):
        return shown | {"labels": _labels(event.labels)}
    if isinstance(event, events.AudioPiece):
        return shown | {"samples": len(event.samples), "sample_rate_hz": event.sample_rate_hz}
    return shown | {"text": event.text}


def event_line(event: Shown, at_s: float) -> str:
    """An event for people: when, what, and its words."""
    shown = event_report(event, at_s)
    if "labels" in shown:
        words = _named(shown["labels"])
    elif "samples" in shown:
        words = f"{shown['samples'] / shown['sample_rate_hz']:.2f} s"
    else:
        words = repr(shown["text"]) if shown["event"] in ("thought", "text") else shown["text"]
    return f"{at_s:7.2f} s  {shown['event']:<{WIDTH}} {words}"


def _labels(labels: Labels) -> dict[str, str | None]:
    found = {field: getattr(labels, field) for field in events.LABEL_FIELDS}
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
        "heard": "(nothing)" if shown["heard"] == "" else shown["heard"],
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
