"""What `infer_runtime.py` understands and prints: options, the requests they make, the tables."""

import argparse
import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from osum_echat import logs
from osum_echat.errors import InputError
from osum_echat.tasks import task_for

if TYPE_CHECKING:
    from osum_echat.assistant import Reply

LOG = logs.logger(__name__)
LABEL_FIELDS = ("emotion", "age", "gender", "event")
TINY = Path(__file__).resolve().parents[1] / "pretrained" / "tiny"
SAMPLE_WAV, SAMPLE_QUESTION = "samples/question.wav", "who are you?"
SAMPLE_WORDS = "<CHEERFUL>That is wonderful news."
SAMPLE_REPLIES = Path("exp/replies")
TOUR = ("asr", "understand", "s2t", "s2t_think", "t2t", "tts", "s2s", "s2s_think")
DESCRIPTION = (
    "Ask the model once: a wav or a text goes in, a reply comes out. Without options it goes "
    "through every task once on the samples of the small model."
)
WIDTH = 8                               # of the names in a printed reply


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


@dataclass(frozen=True, slots=True)
class Job:
    """One task, what it answers (a sound file or a text), and where its speech goes."""

    task: str
    source: Path | str
    out: Path | None


def parser() -> argparse.ArgumentParser:
    """The options of the door."""
    made = _Parser(prog="infer_runtime.py", description=DESCRIPTION)
    add = made.add_argument
    add("--model", default=str(TINY), metavar="SOURCE", help="a model directory, a published .pt, "
        "a DeepSpeed directory or hub:OWNER/NAME[/FILE] (default: the small model)")
    add("--config", metavar="YAML", help="the model's settings (default: beside the weights)")
    add("--tokenizer", metavar="DIR", help="of the model's LLM (default: beside the weights)")
    add("--token2wav", metavar="SOURCE", help="the model of speech: a directory or .tar of ours or "
        "of CosyVoice-300M-25Hz, or hub: (default: beside the weights)")
    add("--voice", metavar="FILE", help="a recording or a saved voice to speak in")
    add("--task", metavar="NAME", help="s2s, s2s_think, s2t, s2t_think, asr, understand, t2t, tts, "
        "or a tag such as '<TRANSCRIBE> <AGE> <GENDER>' (default with --wav: s2s_think)")
    add("--wav", type=Path, metavar="FILE", help="what the user says")
    add("--text", help="the question of t2t, the words of tts")
    add("--labels", metavar="LIST", help="what understand is asked for: " + ",".join(LABEL_FIELDS))
    add("--prompt", help="the text prompt of an understanding task")
    add("--thinking", choices=("label", "natural"), help="the kind of thought of a thinking task")
    add("--out", type=Path, metavar="FILE", help="write the spoken reply to this wav")
    add("--hear", action="store_true", help="ask again for the words where the task tells none")
    add("--json", action="store_true", help="print one JSON object")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--seed", type=int, default=0, metavar="N", help="of the sampling (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, npu (default: auto)")
    add("--dtype", default="auto", help="auto, bf16, fp32 (default: auto)")
    add("--keep-lora", action="store_true", help="leave LoRA layers as they are, do not merge them")
    return made


def run(arguments: argparse.Namespace) -> None:
    """Do what the options ask for and print it. Raises an OsumError for what cannot be done."""
    is_tour = not (arguments.task or arguments.wav or arguments.text)
    if is_tour and arguments.out:
        raise InputError("--out: say with --task and --wav which reply goes there")
    jobs = _tour() if is_tour else [_job(arguments)]
    labels = _labels(arguments.labels)
    from osum_echat.assistant import EChat

    assistant = EChat.load(
        arguments.model, device=arguments.device, seed=arguments.seed,
        speaks=any(task_for(job.task).speaks for job in jobs), config=arguments.config,
        tokenizer=arguments.tokenizer, token2wav=arguments.token2wav, voice=arguments.voice,
        dtype=arguments.dtype, keep_lora=arguments.keep_lora,
    )  # fmt: skip
    reports = []
    for job in jobs:
        task = task_for(job.task)
        reply = assistant.reply(
            job.source, task=job.task, greedy=arguments.greedy,
            labels=labels if task.name == "understand" or not is_tour else (),
            prompt=arguments.prompt if task.name == "understand" or not is_tour else None,
            thinking=arguments.thinking if task.thinks or not is_tour else None,
            hear=arguments.hear and (task.hears or not is_tour),
        )  # fmt: skip
        reports.append(report(reply, job.task, _write(reply, job.out)))
        if not arguments.json:
            logs.out(table(reports[-1], str(job.source)))
    if arguments.json:
        logs.out(json.dumps({"replies": reports} if is_tour else reports[0], ensure_ascii=False))


def _job(arguments: argparse.Namespace) -> Job:
    """The one job that the options name."""
    name = arguments.task or ("s2s_think" if arguments.wav else "t2t")
    task = task_for(name)
    wanted, given = ("wav", "text") if task.hears else ("text", "wav")
    source = getattr(arguments, wanted)
    if source is None or source == "":
        raise InputError(f"task {name}: give what it answers by --{wanted}")
    if getattr(arguments, given) is not None:
        raise InputError(f"task {name}: takes no --{given}; leave it out")
    out: Path | None = arguments.out
    if out is not None and not task.speaks:
        LOG.warning("task %s does not speak: no %s is written", name, out)
        out = None
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"--out {out}: not a file in a directory that exists; make it first")
    return Job(name, source, out)


def _tour() -> list[Job]:
    """Every task once on the samples of the small model."""
    jobs = []
    for name in TOUR:
        task = task_for(name)
        words = SAMPLE_QUESTION if task.answers_text else SAMPLE_WORDS
        out = SAMPLE_REPLIES / f"{name}.wav" if task.speaks else None
        jobs.append(Job(name, TINY / SAMPLE_WAV if task.hears else words, out))
    SAMPLE_REPLIES.mkdir(parents=True, exist_ok=True)
    return jobs


def _labels(text: str | None) -> tuple[str, ...]:
    """The fields of `--labels emotion,age`."""
    if text is None:
        return ()
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if name not in LABEL_FIELDS:
            raise InputError(f"--labels: {name!r} is not one of {', '.join(LABEL_FIELDS)}")
    return names


def _write(reply: "Reply", path: Path | None) -> Path | None:
    """Write the reply's wave; the path it went to."""
    if path is None or reply.wave is None or reply.sample_rate_hz is None:
        return None
    import soundfile

    wave = reply.wave.clamp(-1, 1).numpy()
    try:
        soundfile.write(path, wave, reply.sample_rate_hz, subtype="PCM_16", format="WAV")
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"--out {path}: not written ({error}); choose another path") from error
    return path


def report(reply: "Reply", task: str, wav: Path | None) -> dict[str, Any]:
    """A reply as plain values: what `--json` prints."""
    labels = {field: getattr(reply.labels, field) for field in LABEL_FIELDS}
    return {
        "task": task,
        "heard": reply.heard,
        "thought": reply.thought,
        "labels": {field: label.lower() if label else None for field, label in labels.items()},
        "text": reply.text,
        "wav": str(wav) if wav else None,
        "sample_rate_hz": reply.sample_rate_hz,
        "n_speech_tokens": len(reply.speech_tokens),
        "timings": _rounded(asdict(reply.timings)),
        **_rounded({"audio_in_s": reply.audio_in_s, "audio_out_s": reply.audio_out_s}),
    }


def _rounded(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None else round(value, 3) for name, value in seconds.items()}


def table(shown: Mapping[str, Any], source: str) -> str:
    """A report for people: a name and its words a line; what is absent is left out."""
    labels = [f"{name} {label}" for name, label in shown["labels"].items() if label]
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
        "labels": ", ".join(labels),
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
