"""Answer a whole list and score the answers: python -m osum_echat.evaluation.batch --help."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from osum_echat import logs
from osum_echat.cli import add_model
from osum_echat.errors import InputError, OsumError

if TYPE_CHECKING:
    from osum_echat.evaluation.grading import Grade
    from osum_echat.evaluation.job import Job

NAME = "osum_echat.evaluation.batch"
SOME_FAILED, BAD_INPUT, STOPPED = 1, 2, 130
DESCRIPTION = (
    "Answer every utterance of a list, in text and speech, and score the answers. Stopped at any "
    "point, the same command goes on where it was."
)
EPILOG = (
    "Several machines share a list under torchrun (-m osum_echat.evaluation.batch ...), or when "
    "each process has RANK and WORLD_SIZE in its environment; OUT must be a directory that all of "
    "them see. Exit code: 0 all answered; 1 some failed, or the list is not done; 2 wrong use."
)

LOG = logs.logger(__name__)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog=NAME, description=DESCRIPTION, epilog=EPILOG)
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
        help="on this machine (default: one for each card, 1 on a CPU)")
    add("--limit", type=int, metavar="N", help="only the first N utterances")
    add("--language", default="auto", metavar="NAME", help="of the words that are compared: "
        "english, chinese or auto (default: auto, after each reference)")
    add("--retry", action="store_true", help="answer those again that failed before")
    add("--overwrite", action="store_true", help="forget what is in --out")
    add_model(made.add_argument_group("model"))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all answered, 1 some not, 2 wrong use, 130 stopped by Ctrl-C."""
    arguments = parser().parse_args(argv)
    logs.setup()
    try:
        return run(arguments)
    except OsumError as error:
        sys.stderr.write(f"{NAME}: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{NAME}: stopped; the same command goes on from here\n")
        return STOPPED


def run(arguments: argparse.Namespace) -> int:
    """Answer, put together, score. Returns the exit code; raises an OsumError for wrong use."""
    from osum_echat.evaluation.job import Job, Rank

    given = vars(arguments)
    given["out"] = arguments.out or _default_out(arguments.data)
    job = Job(**{field.name: given[field.name] for field in fields(Job)})
    rank = Rank.from_environment()
    if rank.world > 1 and (arguments.overwrite or arguments.processes):
        raise InputError(
            "--overwrite and --processes: not under torchrun, where each rank is one process; "
            "remove --out by hand, and give torchrun --nproc_per_node"
        )
    utterances = job.utterances()
    if arguments.overwrite:
        job.clear()
    job.settle(utterances)
    from osum_echat.evaluation import workers  # the heavy part: by now the options are known good

    lost = workers.answer_all(job, rank, len(utterances), arguments.processes)
    graded = finish(job, len(utterances))
    if graded is None:
        return _unfinished(job, rank.world, lost)
    return SOME_FAILED if graded.failed or lost else 0


def _default_out(data: str) -> Path:
    place = Path(data)
    return Path("exp", "batch", "-".join(name for name in (place.parent.name, place.stem) if name))


def _unfinished(job: "Job", world: int, lost: int) -> int:
    """Not all is there: under torchrun the last rank to end puts all together."""
    if world > 1 and not lost:
        LOG.info("%s: this rank is done; the last one puts all together", job.out)
        return 0
    sys.stderr.write(f"{NAME}: {job.out}: not all is answered; the same command goes on\n")
    return SOME_FAILED


def finish(job: "Job", length: int) -> "Grade | None":
    """Put the results in list order, score and print them; None while some are missing."""
    from osum_echat.evaluation.grading import grade, table
    from osum_echat.evaluation.parts import find_results, read_results
    from osum_echat.files import whole_file, write_json

    found = find_results(job.parts)
    if any(index not in found for index in range(length)):
        return None
    with whole_file(job.results) as file:
        for record in read_results(found, length):
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    with whole_file(job.out / "text.scp") as file:
        for record in read_results(found, length):
            if record["key"] is not None:
                text = " ".join((record.get("text") or "").split())
                file.write(f"{record['key']} {text}".rstrip().encode() + b"\n")
    graded = grade(read_results(found, length), job.language)
    scores = {"data": job.data, "model": job.model, **graded.to_json()}
    write_json(job.out / "scores.json", scores)
    logs.out(table(graded))
    logs.out(f"{graded.answered} answered, {graded.failed} failed: {job.results}")
    return graded


if __name__ == "__main__":
    sys.exit(main())
