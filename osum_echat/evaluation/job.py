"""A batch job: its options, and the directory that its results go to.

    OUT/settings.json    what the answers depend on; other settings are refused
    OUT/parts/           what each process has written so far
    OUT/wav/             what the model said
    OUT/results.jsonl    all results in the order of the list, when the last one is there
    OUT/text.scp         the same as `key text`
    OUT/scores.json      error rates, label accuracy
"""

import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from osum_echat.errors import InputError
from osum_echat.evaluation import kept_settings
from osum_echat.evaluation.lists import UtteranceList
from osum_echat.evaluation.parts import part_files
from osum_echat.metrics import LANGUAGES
from osum_echat.paths import TINY
from osum_echat.tasks import task_for

WINDOW_BATCHES = 8
_SPOKEN = re.compile(r"\d{6,}-.*\.wav")
# What may change from one run of a job to the next.
_FREE = {"out", "device", "batch_size", "limit", "language", "retry"}


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, of which model, and where the answers go. None: the model's own."""

    data: str
    out: Path
    model: str = str(TINY)
    config: str | None = None
    tokenizer: str | None = None
    token2wav: str | None = None
    voice: str | None = None
    dtype: str = "auto"
    keep_lora: bool = False
    device: str = "auto"
    task: str | None = None  # in place of each utterance's own
    thinking: str | None = None
    greedy: bool = False
    seed: int = 0
    speak: bool = True
    batch_size: int = 8
    limit: int | None = None
    language: str = "auto"  # of the texts that are compared
    retry: bool = False  # answer those again that failed

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: give 1 or more")
        if self.language not in LANGUAGES:
            raise InputError(f"--language {self.language!r}: not one of {', '.join(LANGUAGES)}")
        if self.task is not None:
            task_for(self.task)
        if not self.data:
            raise InputError("--data: name a list; see --help")

    @property
    def parts(self) -> Path:
        return self.out / "parts"

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def window(self) -> int:
        """Utterances that are read together and sorted by length."""
        return self.batch_size * WINDOW_BATCHES

    def utterances(self) -> UtteranceList:
        """The list, opened."""
        return UtteranceList(self.data, self.limit)

    def settle(self, utterances: UtteranceList) -> None:
        """Compare with the settings that OUT was made with, or write them down.

        Raises InputError naming those that differ.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {name: value for name, value in own.items() if name not in _FREE}
        kept_settings.settle(self.out, own | {"lists": utterances.identity()})

    def clear(self) -> None:
        """Remove what an earlier job has left in OUT, and nothing else."""
        own = [*part_files(self.parts), self.results, *self.out.glob("text.scp"),
               self.out / "scores.json", self.out / kept_settings.FILE]  # fmt: skip
        spoken = [path for path in self.out.glob("wav/*.wav") if _SPOKEN.fullmatch(path.name)]
        try:
            for path in (*own, *spoken):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.out}: not cleared ({error}); remove it") from error


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those that share a list; `local`: its number on this machine."""

    number: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.world:
            raise InputError(
                f"RANK {self.number} of WORLD_SIZE {self.world}: ranks go from 0 to the size less 1"
            )

    @classmethod
    def from_environment(cls) -> "Rank":
        """As torchrun sets it; alone without. Raises InputError for what is no number."""
        names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        given = {name: os.environ.get(name, usual) for name, usual in names.items()}
        for name, value in given.items():
            if not value.isdigit():
                raise InputError(f"{name}={value}: a whole number is needed, as torchrun sets it")
        return cls(*map(int, given.values()))

    def enter(self) -> None:
        """Tell the rest of this process who it is: `logs` and `device` read the environment."""
        for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), asdict(self).values(),
                               strict=True):  # fmt: skip
            os.environ[name] = str(value)

