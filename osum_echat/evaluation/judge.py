"""Judges of replies: a chat model asked over the network, its answers kept; see also rules_judge.

Every answer goes to a jsonl as it comes, so that a second run asks for nothing twice. An answer
that cannot be read is counted and asked for again with another seed; an item without any readable
answer is failed, never 0.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from osum_echat import logs
from osum_echat.errors import InputError
from osum_echat.evaluation.endpoint import Endpoint, EndpointError
from osum_echat.evaluation.predictions import Lines
from osum_echat.evaluation.rubric import Exhibit, Rubric, Verdict

LOG = logs.logger(__name__)
PER_PRICE_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Bill:
    """What a judge has cost, over all runs. cost: None without prices."""

    calls: int = 0
    unparsable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge made of some exhibits. failed: key -> why there is no verdict."""

    verdicts: Mapping[str, Verdict]
    failed: Mapping[str, str] = field(default_factory=dict)
    bill: Bill = field(default_factory=Bill)


class Judge(Protocol):
    """Scores exhibits on the dimensions of a rubric."""

    name: str
    rubric: Rubric

    def __call__(self, exhibits: Sequence[Exhibit], out: Path) -> Judged:
        """Verdicts of all; what must be remembered goes to the folder `out`."""

    def settings(self) -> dict[str, Any]: """What its scores depend on, for the report."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a chat model is asked. n: readable answers an item; rounds: most requests for them.

    prices: money for a million prompt and completion tokens.
    """

    model: str
    temperature: float = 0.0
    n: int = 1
    seed: int = 0
    rounds: int = 3
    workers: int = 8
    prices: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if min(self.n, self.rounds, self.workers) < 1:
            raise InputError(f"judge: n {self.n}, rounds {self.rounds}, workers {self.workers}; "
                             "give 1 or more of each")


class ChatJudge:
    """A chat model behind an endpoint."""

    def __init__(self, endpoint: Endpoint, settings: ChatSettings, rubric: Rubric) -> None:
        self.endpoint, self.chat, self.rubric = endpoint, settings, rubric
        self.name = settings.model

    def settings(self) -> dict[str, Any]:
        chat = self.chat
        return {"judge": chat.model, "rubric": self.rubric.version, "n": chat.n,
                "temperature": chat.temperature, "judge seed": chat.seed,
                "judge url": self.endpoint.url}  # fmt: skip

    def __call__(self, exhibits: Sequence[Exhibit], out: Path) -> Judged:
        """Ask for all, several at a time.

        Raises InputError where the endpoint refuses for good (a wrong key, no such model).
        """
        verdicts: dict[str, Verdict] = {}
        lost: dict[str, str] = {}
        used: list[dict[str, Any]] = []
        equal = self._equal(exhibits)
        with Lines(out / "judgements.jsonl") as kept, ThreadPoolExecutor(self.chat.workers) as pool:
            waiting = {pool.submit(self._judge, asked, equal[asked][0], kept): asked
                       for asked in equal}
            try:
                for done in logs.progress(as_completed(waiting), "judge", len(waiting)):
                    keys = [one.key for one in equal[waiting[done]]]
                    try:
                        verdict, answers = done.result()
                    except EndpointError as error:
                        lost |= dict.fromkeys(keys, str(error))
                        continue
                    used += answers
                    if verdict is None:
                        why = f"none of {len(answers)} answers holds the scores"
                        lost |= dict.fromkeys(keys, why)
                    else:
                        verdicts |= dict.fromkeys(keys, verdict)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        in_order = [one.key for one in exhibits]
        return Judged(
            {key: verdicts[key] for key in in_order if key in verdicts},
            {key: lost[key] for key in in_order if key in lost},
            self._bill(used),
        )

    def _equal(self, exhibits: Sequence[Exhibit]) -> dict[str, list[Exhibit]]:
        """Exhibits by what would be asked: one question serves all that are alike."""
        equal: dict[str, list[Exhibit]] = {}
        for one in exhibits:
            equal.setdefault(self._digest(self.rubric.messages(one)), []).append(one)
        return equal

    def _judge(
        self, asked: str, exhibit: Exhibit, kept: Lines
    ) -> tuple[Verdict | None, list[dict[str, Any]]]:
        """The mean of n readable answers (fewer, where rounds run out), and all that was said."""
        messages = self.rubric.messages(exhibit)
        read: list[Verdict] = []
        answers: list[dict[str, Any]] = []
        for number in range(self.chat.rounds):
            if len(read) >= self.chat.n:
                break
            key = f"{asked}:{number}"
            if key not in kept.found:
                wanted = self.chat.n - len(read)
                seed = self.chat.seed + number
                got = self.endpoint.ask(
                    self.chat.model, messages, self.chat.temperature, wanted, seed
                )
                kept.add({
                    "key": key, "item": exhibit.key, "model": self.chat.model, "seed": seed,
                    "answers": list(got.texts), "tries": got.tries,
                    "prompt_tokens": got.prompt_tokens, "completion_tokens": got.completion_tokens,
                })  # fmt: skip
            answers.append(kept.found[key])
            found = map(self.rubric.read, kept.found[key]["answers"])
            read += [verdict for verdict in found if verdict is not None]
        return (self._mean(read[: self.chat.n]) if read else None), answers

    def _digest(self, messages: Iterable[dict[str, str]]) -> str:
        chat = self.chat
        asked = [chat.model, chat.temperature, chat.n, chat.seed, list(messages)]
        return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]

    def _mean(self, read: Sequence[Verdict]) -> Verdict:
        """The mean of each dimension over those that decided it."""
        scores: dict[str, float | None] = {}
        for name in self.rubric.names:
            known = [value for one in read if (value := one.scores[name]) is not None]
            scores[name] = sum(known) / len(known) if known else None
        return self.rubric.verdict(scores, read[0].reason)

    def _bill(self, used: Sequence[dict[str, Any]]) -> Bill:
        texts = [text for one in used for text in one["answers"]]
        bill = Bill(
            calls=len(used),
            unparsable=sum(self.rubric.read(text) is None for text in texts),
            prompt_tokens=sum(one["prompt_tokens"] for one in used),
            completion_tokens=sum(one["completion_tokens"] for one in used),
        )
        if self.chat.prices is None:
            return bill
        first, second = self.chat.prices
        cost = bill.prompt_tokens * first + bill.completion_tokens * second
        return replace(bill, cost=cost / PER_PRICE_TOKENS)
