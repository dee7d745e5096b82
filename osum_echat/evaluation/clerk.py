"""One process of a batch job: its share of the list, answered in batches of like length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Protocol

from osum_echat import audio, logs
from osum_echat import device as devices
from osum_echat.data.sources import Dropped
from osum_echat.data.targets import ANSWER_START
from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation.job import Job, Rank
from osum_echat.evaluation.lists import UtteranceList
from osum_echat.evaluation.parts import Part, Record, find_results
from osum_echat.evaluation.predictions import of_reply
from osum_echat.inference.reply import Reply
from osum_echat.records import Utterance
from osum_echat.tasks import Task, task_for
from osum_echat.thinking import read_labels, without_labels

LOG = logs.logger(__name__)
FAULTS_IN_A_ROW = 8  # answers that failed for no reason of the data: the machine is at fault then


class Assistant(Protocol):
    """What answers: `osum_echat.EChat`."""

    def reply_many(
        self, sources: Sequence[Utterance], *, task: str | None = None,
        thinking: str | None = None, greedy: bool = False, seed: int | None = None,
        speak: bool = True, batch_size: int = 8,
    ) -> Sequence[Reply | OsumError]:  # fmt: skip
        """A reply or an error for each utterance, in their order."""
        ...


Load = Callable[[Job], Assistant]


def load_assistant(job: Job) -> Assistant:
    """The model of a job. Raises CheckpointError."""
    from osum_echat.inference.assistant import EChat

    return EChat.load(
        job.model, job.device, job.seed, speaks=_may_speak(job), config=job.config,
        tokenizer=job.tokenizer, token2wav=job.token2wav, voice=job.voice, dtype=job.dtype,
        keep_lora=job.keep_lora,
    )  # fmt: skip


def _may_speak(job: Job) -> bool:
    return job.speak and (job.task is None or task_for(job.task).speaks)


@dataclass(frozen=True, slots=True)
class Asked:
    """An utterance by its number in the list, with the task that it is asked."""

    index: int
    utterance: Utterance
    task: Task
    listed: Task | None  # the task that its own text belongs to; None: no task that is known

    def facts(self) -> Record:
        """What is known of it before it is answered."""
        user = self.utterance.user
        text = user.reply_text
        labels, heard = asdict(self.utterance.labels), user.text
        if self.listed is not None and self.listed.name == "understand" and text:
            told = asdict(read_labels(text, self.listed.labels))
            labels |= {name: label for name, label in told.items() if label}
            heard = transcript(text) if self.listed.transcript else heard
        return {
            "index": self.index, "key": self.utterance.key, "task": self.task.tag,
            "reference": text, "reference_heard": heard, "reference_labels": labels,
        }  # fmt: skip


def transcript(text: str) -> str:
    """The words of an understanding answer: before the mark of a reply, and without labels."""
    return without_labels(text.partition(ANSWER_START)[0])


def answer(job: Job, rank: Rank, load: Load) -> Iterator[Record]:
    """Answer what is left of this process's share; each record is on disk when it is given.

    The shares of all ranks together are the whole list, whatever was done before. Raises an
    OsumError for what ends the whole job.
    """
    utterances = job.utterances()
    with Part(job.parts, rank.number) as part:
        windows = list(shares(len(utterances), rank, job.window))
        done = {index for index, place in find_results(job.parts).items()
                if not (job.retry and place.failed)}  # fmt: skip
        if all(index in done for window in windows for index in window):
            return
        clerk = _Clerk(job, load(job))
        for window in windows:
            for records in clerk.window(utterances, [one for one in window if one not in done]):
                part.write(records)
                yield from records


def shares(length: int, rank: Rank, window: int) -> Iterator[range]:
    """The stretches of the list that one rank answers: every world-th one, of like size."""
    size = max(1, min(window, -(-length // rank.world)))
    for start in range(rank.number * size, length, rank.world * size):
        yield range(start, min(start + size, length))


class _Clerk:
    """Asks the assistant, and writes down what comes."""

    def __init__(self, job: Job, assistant: Assistant) -> None:
        self.job, self.assistant = job, assistant
        self._faults = 0

    def window(self, utterances: UtteranceList, indexes: Sequence[int]) -> Iterator[list[Record]]:
        """The records of some utterances, a batch at a time; first of those that cannot be read."""
        asked, unread = [], []
        for index in indexes:
            one = utterances.read(index)
            if isinstance(one, Dropped):
                unread.append(_unread(index, one))
                continue
            try:
                asked.append(self._asked(index, one))
            except InputError as error:
                unread.append(_failed({"index": index, "key": one.key, "task": one.task}, error))
        if unread:
            yield unread
        for batch in batches(asked, self.job.batch_size):
            yield self._answered(batch)

    def _asked(self, index: int, utterance: Utterance) -> Asked:
        """The utterance with its task settled. Raises InputError for an unknown one."""
        try:
            listed = task_for(utterance.task)
        except InputError:
            if self.job.task is None:
                raise
            listed = None
        task = task_for(self.job.task) if self.job.task else listed
        assert task is not None
        return Asked(index, replace(utterance, task=task.tag), task, listed)

    def _answered(self, batch: Sequence[Asked]) -> list[Record]:
        """A record for each of a batch; what breaks the whole batch is looked for one by one."""
        try:
            replies = self._replies(batch)
        except Exception as error:  # whatever one utterance breaks, the others are answered
            if len(batch) > 1:
                LOG.warning("%d utterances together: %s; each by itself now", len(batch), error)
                return [record for one in batch for record in self._answered([one])]
            self._faults += 1
            if self._faults >= FAULTS_IN_A_ROW and not devices.is_out_of_memory(error):
                raise
            replies = [InputError(f"{type(error).__name__}: {error}")]
        else:
            self._faults = 0
        return [self._record(one, reply) for one, reply in zip(batch, replies, strict=True)]

    def _replies(self, batch: Sequence[Asked]) -> Sequence[Reply | OsumError]:
        job = self.job
        return self.assistant.reply_many(
            [one.utterance for one in batch], greedy=job.greedy, seed=job.seed, speak=job.speak,
            thinking=job.thinking if batch[0].task.thinks else None, batch_size=len(batch),
        )  # fmt: skip

    def _record(self, asked: Asked, reply: Reply | OsumError) -> Record:
        if isinstance(reply, OsumError):
            return _failed(asked.facts(), reply)
        name = f"{asked.index:06d}-{asked.utterance.key}"
        kept = of_reply(reply, self.job.out, name, "wav")
        return {**asked.facts(), **kept, "task": asked.task.tag, "error": None}


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Utterances of one task and of like length together, the longest first."""

    def rank(one: Asked) -> tuple[Any, ...]:
        return one.task.tag, -_length(one.utterance, one.task), one.index

    for _, same in groupby(sorted(asked, key=rank), key=lambda one: one.task.tag):
        every = list(same)
        for start in range(0, len(every), size):
            yield every[start : start + size]


def _length(utterance: Utterance, task: Task) -> int:
    """What an utterance's cost grows with: samples that are heard, or characters that are read."""
    if not task.hears:
        return len(utterance.user.reply_text or "") + len(utterance.prompt or "")
    length = 0
    for turn in (*utterance.history, utterance.user):
        if turn.audio is not None:
            try:
                length += audio.length(turn.audio, audio.SAMPLE_RATE_HZ, turn.segment_s)
            except InputError:  # told when it is answered
                continue
    return length


def _failed(facts: Record, error: Exception) -> Record:
    LOG.warning("utterance %d (%s): %s", facts["index"] + 1, facts["key"] or "no key", error)
    return {**facts, "error": " ".join(str(error).split())}


def _unread(index: int, dropped: Dropped) -> Record:
    """A record without an utterance: broken, or taken out of its list on purpose."""
    facts = {"index": index, "key": None, "task": None}
    reason = f"{dropped.reason}: {dropped.detail}"
    if dropped.file is None:
        return {**facts, "left_out": reason}
    return _failed(facts, InputError(reason))
