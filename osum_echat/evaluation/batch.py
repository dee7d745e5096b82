"""Answer a whole list and score the answers: python -m osum_echat.evaluation.batch --help.

    OUT/settings.json    what the answers depend on; other settings are refused
    OUT/parts/           what each process has written so far, a journal each
    OUT/wav/             what the model said
    OUT/results.jsonl    all results in the order of the list, when the last one is there
    OUT/text.scp         the same as `key text`
    OUT/scores.json      error rates, label accuracy
"""

import argparse
import json
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.files import Journal, locked, read_journal, whole_file, write_json
from osum_echat.tasks import Task, task_for

if TYPE_CHECKING:
    from osum_echat.evaluation.understanding import Asked, Grade, UtteranceList
    from osum_echat.inference.assistant import EChat
    from osum_echat.inference.reply import Reply
    from osum_echat.records import Utterance

NAME = "osum_echat.evaluation.batch"
DESCRIPTION = (
    "Answer every utterance of a list, in text and speech, and score the answers. Stopped at any "
    "point, the same command goes on where it was; it asks again what failed, and what has "
    "another sound now."
)
EPILOG = (
    "Several machines share a list under torchrun (-m osum_echat.evaluation.batch ...), or when "
    "each process has RANK and WORLD_SIZE in its environment; OUT must be a directory that all of "
    "them see. Exit code: 0 all answered; 1 some failed, or the list is not done; 2 wrong use, or "
    "nothing could be answered."
)
WINDOW_BATCHES = 8                      # read together and sorted by length
FINAL = 3                               # tries of what is not asked again
TELL_S = 60.0                           # between two lines of progress where no bar is watched
LOCKED_S = 600.0                        # that another rank may take to put all together
# What may change from one run of a job to the next.
FREE = "out device batch_size limit language retry processes overwrite ray".split()
OF_RUN = ("sounds", "tries", "asked")   # of a record, for this command alone
SPOKEN, PARTS = re.compile(r"\d{6,}-.*\.wav"), "parts/part-*.jsonl"

LOG = logs.logger(__name__)
Record = dict[str, Any]
Load = Callable[[Namespace], "EChat"]
Unit = tuple[list[Record], list["Asked"]]       # what cannot be asked, and what is


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = cli.OneLineParser(prog=NAME, description=DESCRIPTION, epilog=EPILOG)
    add = made.add_argument
    add("--data", required=True, metavar="LIST", help="raw jsonl, list of tars (shard, combine), "
        "tar, folder of these, or a data yaml")
    add("--out", type=Path, metavar="DIR", help="for results.jsonl, text.scp, scores.json and wav/ "
        "(default: exp/batch/NAME, after the list)")
    add("--task", metavar="NAME", help="for all utterances, in place of their own: asr, "
        "understand, s2t, s2t_think, s2s, s2s_think, t2t, tts, or a tag")
    add("--thinking", choices=("label", "natural"), help="the kind of thought of thinking tasks")
    add("--speak", action=argparse.BooleanOptionalAction, default=True,
        help="make speech where the task has any (default: yes)")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--seed", type=int, default=0, metavar="N", help="of the sampling (default: 0)")
    add("--batch-size", type=int, default=8, metavar="N", help="utterances at once (default: 8)")
    add("--processes", type=int, metavar="N",
        help="on this machine (default: one for each card, 1 on a CPU); with --ray its workers")
    cli.add_ray(made)
    add("--limit", type=int, metavar="N", help="only the first N utterances")
    add("--language", default="auto", choices=("auto", "english", "chinese"), help="of the words "
        "that are compared (default: auto, after each reference)")
    add("--retry", action="store_true", help="answer those again, too, that failed three times")
    add("--overwrite", action="store_true", help="forget what is in --out")
    cli.add_model(made.add_argument_group("model"))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all answered, 1 some not, 2 wrong use, 130 stopped by Ctrl-C."""
    job = parser().parse_args(argv)
    return cli.run(NAME, lambda: cli.importable(run)(job))


def run(job: Namespace) -> int:
    """Answer, put together, score. Returns the exit code; raises an OsumError for wrong use."""
    rank = Rank.from_environment()
    check(job, rank)
    named = [name for name in (Path(job.data).parent.name, Path(job.data).stem) if name]
    job.out = job.out or Path("exp", "batch", "-".join(named))
    from osum_echat.evaluation import runner, understanding  # heavy: the options are known good
    from osum_echat.ray_pool import LostError

    utterances = understanding.UtteranceList(job.data, job.limit)
    if job.overwrite:
        spoken = [path for path in job.out.glob("wav/*.wav") if SPOKEN.fullmatch(path.name)]
        names = ("results.jsonl", "text.scp", "scores.json", runner.SETTINGS)
        own = [*job.out.glob(PARTS), *(job.out / name for name in names)]
        runner.clear(job.out, [*own, *spoken])
    depends = {name: value for name, value in vars(job).items() if name not in FREE}
    depends |= {"model files": runner.digest_of(job.model), "lists": utterances.identity()}
    parts, alone = job.out.glob(PARTS), partial(locked, job.out / ".lock", LOCKED_S)
    with alone():                       # ranks that begin, or end, at the same time
        runner.settle(job.out, depends | {"tars": utterances.tars()}, answers=parts)
    try:
        for _ in answer(job, rank, utterances):
            pass
    except LostError as error:
        LOG.error("%s", error)
    with alone():
        graded = finish(job, len(utterances))
    if graded is None and rank.world > 1:
        LOG.info("%s: this rank is done; the last one puts all together", job.out)
        return 0
    if graded is None:
        sys.stderr.write(f"{NAME}: {job.out}: not all is answered; the same command goes on\n")
        return cli.SOME_FAILED
    if not graded.answered:
        raise InputError(f"{job.data}: nothing was answered: {graded.failed} failed, "
                         f"{graded.left_out} are left out by the list; see {job.out}/results.jsonl")
    return cli.SOME_FAILED if graded.failed or utterances.lost else 0


def check(job: Namespace, rank: "Rank") -> None:
    """Raises InputError for options that cannot be used."""
    for name in ("batch_size", "processes", "limit"):
        value = getattr(job, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give 1 or more")
    if job.task is not None:
        task_for(job.task)
    if not job.data:
        raise InputError("--data: name a list; see --help")
    if rank.world > 1 and (job.overwrite or job.processes or job.ray):
        raise InputError(
            "--overwrite, --processes, --ray: not under torchrun, where each rank is one process; "
            "remove --out by hand, and give torchrun --nproc_per_node"
        )


def find_results(out: Path) -> dict[int, Record]:
    """The results in all parts by the number of their utterance.

    Where there are several of one, that counts which was asked last, and of those that were asked
    as often one that did not fail.
    """
    found: dict[int, Record] = {}

    def worth(one: Record) -> tuple[int, bool, int]:
        return one.get("asked", 1), one.get("error") is None, one.get("tries", 1)

    for path in sorted(out.glob(PARTS)):
        for number, one in read_journal(path):
            if not isinstance(one.get("index"), int):
                raise InputError(f"{path} line {number}: no result; remove the line")
            if worth(one) >= worth(found.get(one["index"], one)):
                found[one["index"]] = one
    return found


def finish(job: Namespace, length: int) -> "Grade | None":
    """Put the results in list order, score and print them; None while some are missing."""
    from osum_echat.evaluation.understanding import grade

    found = find_results(job.out)
    if any(index not in found for index in range(length)):
        return None
    records = [{name: value for name, value in found[index].items() if name not in OF_RUN}
               for index in range(length)]  # fmt: skip
    results = job.out / "results.jsonl"
    with whole_file(results) as file:
        for one in records:
            file.write(json.dumps(one, ensure_ascii=False).encode(errors="replace") + b"\n")
    with whole_file(job.out / "text.scp") as file:
        for one in records:
            if one["key"] is not None:
                line = " ".join(f"{one['key']} {one.get('text') or ''}".split())
                file.write(line.encode(errors="replace") + b"\n")
    graded = grade(records, job.language)
    write_json(job.out / "scores.json", {"data": job.data, "model": job.model, **graded.to_json()})
    logs.out(table(graded))
    logs.out(f"{graded.answered} answered, {graded.failed} failed: {results}")
    return graded


def table(graded: "Grade") -> str:
    """A grade for people."""
    lines = []
    for name, task in graded.tasks.items():
        failed = f", {task.failed} failed" if task.failed else ""
        lines.append(f"{name}: {task.answered} answered{failed}")
        lines += [f"  {score}" for score in task.words.values()]
        lines += [f"  {label}  {score}" for label, score in task.labels.items()]
    if graded.unread:
        lines.append(f"{graded.unread} records could not be read")
    if graded.left_out:
        lines.append(f"{graded.left_out} records are left out by their list")
    return "\n".join(lines)


# Answering


def load_assistant(job: Namespace) -> "EChat":
    """The model of a job. Raises CheckpointError."""
    from osum_echat.inference.assistant import EChat

    speaks = job.speak and (job.task is None or task_for(job.task).speaks)
    return EChat.load(job.model, seed=job.seed, speaks=speaks, **cli.loading(job))


def answer(job: Namespace, rank: "Rank", utterances: "UtteranceList") -> Iterator[Record]:
    """Answer what is left of this rank's share; each record is on disk when it is given.

    The shares of all ranks together are the whole list. Raises an OsumError that ends the job.
    """
    from osum_echat.ray_pool import Pool, as_done

    with Journal(job.out / "parts" / f"part-{rank.number:05d}.jsonl") as part:
        windows = left_of(job, rank, utterances)
        left = {index for window in windows for index in window}
        LOG.info("%s: %d to answer", job.out, len(left))
        if not left:
            return
        before = {index: one for index, one in find_results(job.out).items() if index in left}
        start, units = partial(answerer, job, load_assistant), _units(job, utterances, windows)
        pool = Pool(job.ray, job.processes, job.device) if rank.world == 1 else None

        def written() -> Iterator[Record]:
            for _, made in as_done(pool, start, units):
                records = [_counted(one, before.get(one["index"])) for one in made]
                part.write(records)
                yield from records

        yield from _watched(written(), len(left))


def _counted(one: Record, before: Record | None) -> Record:
    """A record with how often its utterance was asked and has failed, where that is not once."""
    if before is None:
        return one
    failed = before.get("tries", 1) if before.get("error") is not None else 0
    tries = {"tries": one["tries"] + failed} if "tries" in one else {}
    return one | tries | {"asked": before.get("asked", 1) + 1}


def answerer(job: Namespace, load: Load) -> Callable[["Unit"], list[Record]]:
    """Load the model, and give what answers a unit with it."""
    from osum_echat.evaluation.runner import Isolated

    replies = Isolated(partial(_replies, job, load(job)))

    def work(unit: Unit) -> list[Record]:
        unread, asked = unit
        told = zip(asked, replies(asked) if asked else (), strict=True)
        return [*unread, *(_record(job, one, reply) for one, reply in told)]

    return work


def _units(
    job: Namespace, utterances: "UtteranceList", windows: Sequence[Sequence[int]]
) -> Iterator["Unit"]:
    """What is answered together, and records of what cannot be asked."""
    for window in windows:
        unread, asked = _read(job, utterances, window)
        for batch in (*alike(asked, job.batch_size), *([] if asked else [[]])):
            yield unread, batch
            unread = []


def left_of(job: Namespace, rank: "Rank", utterances: "UtteranceList") -> list[list[int]]:
    """What of a rank's share is to be answered, or once more, by stretches of the list."""
    from osum_echat.evaluation.runner import MOST_TRIES, is_left, stamp

    found, tries = find_results(job.out), sys.maxsize if job.retry else MOST_TRIES
    windows = [
        [index for index in window if index not in found
         or is_left(found[index], stamp(utterances.files(index)), tries)]
        for window in shares(len(utterances), rank, job.batch_size)
    ]  # fmt: skip
    return [window for window in windows if window]


def shares(length: int, rank: "Rank", batch_size: int) -> Iterator[range]:
    """The stretches of the list that one rank answers: every world-th one, of like size."""
    size = max(1, min(batch_size * WINDOW_BATCHES, -(-length // rank.world)))
    for start in range(rank.number * size, length, rank.world * size):
        yield range(start, min(start + size, length))


def _read(
    job: Namespace, utterances: "UtteranceList", indexes: Sequence[int]
) -> tuple[list[Record], list["Asked"]]:
    """Records of the utterances that cannot be asked, and those that can."""
    from osum_echat.data.sources import Dropped
    from osum_echat.evaluation.runner import stamp
    from osum_echat.evaluation.understanding import Asked

    asked: list[Asked] = []
    unread: list[Record] = []
    for index in indexes:
        one = utterances.read(index)
        if isinstance(one, Dropped):
            facts: Record = {"index": index, "key": None, "task": None}
            why = f"{one.reason}: {one.detail}"
            unread.append({**facts, "left_out": why} if one.file is None else _failed(facts, why))
            continue
        try:
            asked.append(Asked.of(index, one, job.task, stamp(utterances.files(index))))
        except InputError as error:
            unread.append(_failed({"index": index, "key": one.key, "task": one.task}, str(error)))
    return unread, asked


def _failed(facts: Record, why: str) -> Record:
    """Asked again only by --retry: an equal list gives an equal line."""
    LOG.warning("utterance %d (%s): %s", facts["index"] + 1, facts["key"] or "no key", why)
    return {**facts, "error": " ".join(why.split()), "tries": FINAL}


def _replies(job: Namespace, assistant: "EChat", batch: Sequence["Asked"]) -> Sequence[Any]:
    return assistant.reply_many(
        [one.utterance for one in batch], greedy=job.greedy, seed=job.seed, speak=job.speak,
        thinking=job.thinking if batch[0].task.thinks else None, batch_size=len(batch),
    )  # fmt: skip


def _record(job: Namespace, asked: "Asked", reply: "Reply | Exception") -> Record:
    from osum_echat.evaluation.runner import of_reply, record_of

    facts, key = asked.facts(), asked.utterance.key
    facts |= {"sounds": asked.sounds} if asked.sounds else {}
    if isinstance(reply, Exception):
        name = f"utterance {asked.index + 1} ({key or 'no key'})"
        return facts | record_of(name, reply)
    kept = of_reply(reply, job.out, f"{asked.index:06d}-{key}", "wav")
    return {**facts, **kept, "task": asked.task.tag, "error": None}


def alike(asked: Sequence["Asked"], size: int) -> Iterator[list["Asked"]]:
    """Utterances of one task and of like length together, the longest first."""
    def rank(one: "Asked") -> tuple[Any, ...]:
        return one.task.tag, -_length(one.utterance, one.task), one.index

    for _, same in groupby(sorted(asked, key=rank), key=lambda one: one.task.tag):
        every = list(same)
        for start in range(0, len(every), size):
            yield every[start : start + size]


def _length(utterance: "Utterance", task: Task) -> int:
    """What an utterance's cost grows with: samples that are heard, or characters that are read."""
    from osum_echat import audio

    if not task.hears:
        return len(utterance.user.reply_text or "") + len(utterance.prompt or "")
    sounds = [(turn.audio, turn.segment_s) for turn in (*utterance.history, utterance.user)]
    with suppress(InputError):          # told when it is answered
        return sum(audio.length(sound, audio.SAMPLE_RATE_HZ, segment_s)
                   for sound, segment_s in sounds if sound is not None)  # fmt: skip
    return 0


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those of torchrun that share a list."""

    number: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> "Rank":
        """As torchrun sets it; alone without. Raises InputError for what cannot be."""
        given = [os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")]
        if not all(map(str.isdecimal, given)) or int(given[0]) >= int(given[1]):
            raise InputError(f"RANK {given[0]} of WORLD_SIZE {given[1]}: whole numbers are needed, "
                             "ranks from 0 to the size less 1, as torchrun sets them")
        return cls(*map(int, given))


def _watched(records: Iterator[Record], total: int) -> Iterator[Record]:
    """The records behind a bar; where nobody watches one, a line now and then."""
    start = last = time.monotonic()
    for count, one in enumerate(logs.progress(records, "answered", total), 1):
        yield one
        now = time.monotonic()
        if now - last > TELL_S and not sys.stderr.isatty():
            last, rest = now, (now - start) / count * (total - count)
            LOG.info("%d of %d answered, about %.0f min left", count, total, rest / 60)
    LOG.info("%d answered in %.0f s", total, time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main())
