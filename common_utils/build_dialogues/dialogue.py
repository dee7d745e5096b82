"""A dialogue on its way from the plan to the corpus, and how a step makes portions of them.

OUT/plan.jsonl, written.jsonl, checked.jsonl, spoken.jsonl and heard.jsonl hold one dialogue a line;
each step reads the file before its own. OUT/calls/STEP/ keeps every answer that was paid for, a
file for each portion, so that no call is made twice, whenever the work is stopped.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from common_utils import jobs
from common_utils.jobs import Made, Piece, digest
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.evaluation.endpoint import DEFAULT_URL, ContentRefusedError, Endpoint, EndpointError
from osum_echat.files import KeyedJournal, read_journal
from osum_echat.records import Labels
from osum_echat.settings import check_numbers, parse

PROMPTS = Path(__file__).parent / "prompts"
LANGUAGES = {"en": "english", "zh": "chinese"}  # as metrics and templates call them
PORTION = 32  # dialogues that a process works on in one go
FAULTS_IN_A_ROW = 8  # calls without an answer: the endpoint is down
NO_EVENT = "OTHER"
CHANGE_NOTHING = ("url", "key", "parallel", "timeout_s", "tries", "prices", "assets")
FILES = {  # of the steps but the last, each of which reads what the one before it has written
    "plan": "plan.jsonl", "write": "written.jsonl", "check": "checked.jsonl",
    "speak": "spoken.jsonl", "listen": "heard.jsonl",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its reply; None is what no step has made yet."""

    question: str | None = None
    reply: str | None = None
    thought: str | None = None  # in plain words
    label_thought: str | None = None  # in the words of the label template
    recording: str | None = None  # whose words the question is
    wav: str | None = None  # of the question, seen from OUT
    reply_wav: str | None = None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One planned conversation. cues: the labels that the reply must show to have been heard.

    labels.style is that of the reply. The sound event is in the last turn.
    """

    key: str
    category: str  # emotion age gender event multi
    language: str
    topic: str
    cues: tuple[str, ...]
    explicit: bool  # the words may tell the cue; else the voice alone does
    labels: Labels
    turns: tuple[Exchange, ...]

    @property
    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @property
    def last(self) -> Exchange:
        return self.turns[-1]

    def labels_at(self, number: int) -> Labels:
        """Those of a turn, counted from 0."""
        is_last = number == len(self.turns) - 1
        return self.labels if is_last else replace(self.labels, event=NO_EVENT)


def dialogues_of(portion: Piece) -> list[Dialogue]:
    """The dialogues of some lines. Raises ConfigError for a line of another form."""
    return [parse(Dialogue, raw if isinstance(raw, dict) else None, where)
            for where, raw in jobs.records(portion)]  # fmt: skip


def read_dialogues(path: Path) -> list[Dialogue]:
    """All of a file. Raises DataError where it is not there, or empty."""
    return [one for portion in jobs.pieces(path, PORTION) for one in dialogues_of(portion)]


@dataclass(frozen=True, slots=True)
class Prices:
    """What calls cost, in any currency."""

    input: float = 0.0  # a million tokens
    output: float = 0.0
    characters: float = 0.0  # a million, of speech
    minutes: float = 0.0  # one, of transcription


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """A server of OpenAI's interface. key: the environment variable that holds its key."""

    model: str
    url: str = DEFAULT_URL
    key: str = "OPENAI_API_KEY"
    temperature: float = 0.9
    seed: int = 0
    rounds: int = 3  # most answers asked for until one can be read
    parallel: int = 8  # calls at a time, of each process
    timeout_s: float = 60.0
    tries: int = 6  # of a call, with growing pauses
    prices: Prices = field(default_factory=Prices)

    def __post_init__(self) -> None:
        check_numbers(self, "endpoint", "rounds parallel tries", 1)


@lru_cache
def endpoint_of(settings: EndpointSettings) -> Endpoint:
    """The server. Raises InputError where its key is missing or its address is none."""
    key = os.environ.get(settings.key, "")
    if not key and settings.url == DEFAULT_URL:
        raise InputError(f"{settings.key} is not set; set it, or give the url of another endpoint")
    return Endpoint(
        "endpoint", settings.url, key, settings.timeout_s, settings.tries, "url",
        f"url, model, quota and the key in {settings.key}; what is made stays",
    )  # fmt: skip


class Calls:
    """The paid calls of one portion: an answer is kept as it comes, and never asked for again."""

    def __init__(self, settings: EndpointSettings, folder: Path, portion: Piece) -> None:
        self.settings, self.endpoint = settings, endpoint_of(settings)
        self._lines = KeyedJournal(folder / f"{portion.first:09d}.jsonl")

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def chat(self, messages: Sequence[dict[str, str]], round_: int) -> str:
        """The answer of a round. Raises InputError, EndpointError."""
        own, prices = self.settings, self.settings.prices
        asked = {"model": own.model, "messages": list(messages), "temperature": own.temperature,
                 "seed": own.seed + round_}  # fmt: skip

        def call() -> dict[str, Any]:
            got = self.endpoint.chat(**asked)
            cost = got["prompt_tokens"] * prices.input + got["completion_tokens"] * prices.output
            return got | {"cost": cost / 1e6}

        return str(self._kept(digest(asked), call)["answers"][0])

    def spoken(self, name: str, characters: int) -> None:
        """Note what a sound has cost, once; the sound itself tells that it was paid for."""
        cost = characters * self.settings.prices.characters / 1e6
        self._kept(name, lambda: {"characters": characters, "cost": cost})

    def transcription(self, wav: Path, seconds: float, language: str) -> str:
        """The words heard in a sound."""
        model = self.settings.model

        def call() -> dict[str, Any]:
            file = (wav.name, wav.read_bytes())
            text = self.endpoint.transcription(model=model, file=file, language=language)
            return {"text": text, "seconds": seconds,
                    "cost": seconds / 60 * self.settings.prices.minutes}  # fmt: skip

        return str(self._kept(digest(model, wav.name), call)["text"])

    def _kept(self, key: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self._lines.found:
            self._lines.add({"key": key, "calls": 1} | call())
        return self._lines.found[key]

    def each(
        self, work: Callable[[Dialogue], Dialogue | Dropped], dialogues: Sequence[Dialogue]
    ) -> list[Dialogue | Dropped]:
        """Work on all, several at a time; a dialogue that gets no answer is dropped.

        Raises InputError where none of several in a row is answered, and what `work` raises.
        """
        found: dict[str, Dialogue | Dropped] = {}
        in_a_row, most = 0, min(FAULTS_IN_A_ROW, len(dialogues))
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            waiting = {pool.submit(work, one): one.key for one in dialogues}
            try:
                for done in as_completed(waiting):
                    key = waiting[done]
                    try:
                        found[key], in_a_row = done.result(), 0
                    except ContentRefusedError as error:
                        found[key] = Dropped("refused by the endpoint", f"{key}: {error}")
                    except EndpointError as error:
                        in_a_row += 1
                        found[key] = Dropped("no answer of the endpoint", f"{key}: {error}")
                        if in_a_row >= most:
                            raise InputError(f"{error}; what is made stays, start again when it "
                                             "answers") from error  # fmt: skip
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [found[one.key] for one in dialogues]


def depends(settings: Any) -> str:
    """A digest of a step's settings, without those that change no answer."""

    def told(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: told(one) for name, one in value.items() if name not in CHANGE_NOTHING}

    return digest(told(asdict(settings)))


def made(found: Iterable[Dialogue | Dropped]) -> Made:
    """What a portion became."""
    return Made.of(one.line if isinstance(one, Dialogue) else one for one in found)


def bill(folder: Path) -> dict[str, float]:
    """What the calls of a step amount to: calls, tokens, characters, seconds, cost."""
    total: dict[str, float] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        for _, line in read_journal(path):
            for name, value in line.items():
                if name != "tries" and isinstance(value, int | float):
                    total[name] = total.get(name, 0) + value
    return total
