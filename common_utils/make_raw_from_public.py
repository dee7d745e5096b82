"""Public corpora as they are unpacked to raw lists: python -m common_utils.make_raw_from_public -h.

    python -m common_utils.make_raw_from_public librispeech LibriSpeech --part test-clean \
        --out data/librispeech_test_clean.list
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common_utils import public_corpora
from common_utils.public_corpora import Found, Lost
from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.files import absolute, whole_file
from osum_echat.records import LIST_KEYS
from osum_echat.tasks import task_for, understanding_tag

NAME = "make_raw_from_public.py"
LOG = logs.logger(__name__)
TOLD = 5                                # files that are missing, by name


@dataclass(frozen=True, slots=True)
class Corpus:
    """A layout. labels: what its lists ask for by default, beside the words where it has any."""

    find: Callable[[Path, str, Lost], Iterator[Found]]
    labels: tuple[str, ...] = ()
    words: bool = True

    @property
    def task(self) -> str:
        return understanding_tag(self.labels, self.words)


CORPORA: Mapping[str, Corpus] = {
    "aishell1": Corpus(public_corpora.aishell_1),
    "aishell2": Corpus(public_corpora.aishell_2),
    "librispeech": Corpus(public_corpora.librispeech),
    "wenetspeech": Corpus(public_corpora.wenetspeech),
    "common_voice": Corpus(public_corpora.common_voice, ("age", "gender")),
    "sphinx": Corpus(public_corpora.sphinx),
    "vocalsound": Corpus(public_corpora.vocalsound, ("event",), words=False),
    "meld": Corpus(public_corpora.meld, ("emotion",)),
    "mer2023": Corpus(public_corpora.mer_2023, ("emotion",), words=False),
}


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    layouts = "\n".join(f"  {name:<13}{' '.join((one.find.__doc__ or '').split())}"
                        for name, one in CORPORA.items())  # fmt: skip
    about = "Turn a public corpus, as it is unpacked, into a raw list of labels and words."
    made = cli.parser(f"{about}\n\nlayouts:\n{layouts}", NAME)
    add = made.add_argument
    add("corpus", choices=tuple(CORPORA))
    add("root", type=Path, help="its folder; see above")
    add("--part", required=True, help="the set: test, test-clean, TEST_NET, te ...")
    add("--out", type=Path, required=True, metavar="LIST", help="the raw list to write")
    add("--task", metavar="TAG", help="what to ask, such as '<TRANSCRIBE> <GENDER>' "
        "(default: the corpus's own labels)")
    return made


def run(arguments: argparse.Namespace) -> str:
    """Write the list; what came of it. Raises InputError where nothing can be used."""
    corpus = CORPORA[arguments.corpus]
    task = task_for(arguments.task or corpus.task)
    if task.name != "understand":
        raise InputError(f"--task {arguments.task}: not a task of understanding")
    written, unlabelled, missing = 0, 0, []
    lost: Lost = []
    root = absolute(arguments.root)
    if not root.is_dir():
        raise InputError(f"{arguments.root}: no such folder; give the unpacked corpus")
    with whole_file(arguments.out) as file:
        for one in logs.progress(corpus.find(root, arguments.part, lost), arguments.corpus):
            wanted = asdict(one.labels)
            if not one.audio.is_file():
                missing.append(str(one.audio))
            elif any(wanted[field] is None for field in task.labels):
                unlabelled += 1
            else:
                made = row(one, task.tag, task.labels, task.transcript)
                try:
                    file.write(json.dumps(made, ensure_ascii=False).encode() + b"\n")
                    written += 1
                except UnicodeEncodeError as error:
                    lost.append(f"{one.audio!a}: half a character or bytes, no text: {error}")
        if not written:
            first = f", the first {missing[0]}" if missing else ""
            raise InputError(
                f"{arguments.root}: no utterance of {arguments.part!r} can be used; "
                f"{len(missing)} sounds are missing{first}, {unlabelled} lack a label, {len(lost)} "
                f"lines cannot be used{f', the first {lost[0]}' if lost else ''}"
            )
    for problem, those in (("not there", missing), ("left out", lost)):
        for told in those[:TOLD]:
            LOG.warning("%s: %s", problem, told)
    return (f"{arguments.out}: {written} utterances, {task.tag}; left out: {len(missing)} without "
            f"sound, {unlabelled} without a label, {len(lost)} lines")  # fmt: skip


def row(one: Found, task: str, labels: tuple[str, ...], words: bool) -> dict[str, Any]:
    """An utterance as a line of a raw list: the words, then the labels that are asked for."""
    known = {name: value for name, value in asdict(one.labels).items() if value}
    text = (one.text if words else "") + "".join(f"<{known[name]}>" for name in labels)
    extra = {LIST_KEYS[name]: value for name, value in known.items()}
    if one.text:
        extra["q_txt"] = one.text
    made: dict[str, Any] = {"key": one.key, "wav": str(one.audio), "txt": text, "task": task}
    if one.segment_s is not None:
        made["start"], made["end"] = one.segment_s
    return made | {"extra": extra}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = parser().parse_args(argv)
    return cli.run(NAME, lambda: logs.out(run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
