"""Judges of replies: a rubric, word rules that need no network, and a chat model asked over it.

Every answer of a chat model goes to a jsonl as it comes, so that a second run asks for nothing
twice. An answer that cannot be read is counted and asked for again with another seed; an item
without any readable answer is failed, never 0.
"""

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from osum_echat import logs
from osum_echat.errors import ConfigError, InputError
from osum_echat.evaluation.endpoint import DEFAULT_URL, Endpoint, EndpointError, objects_in
from osum_echat.evaluation.runner import JUDGEMENTS
from osum_echat.files import KeyedJournal
from osum_echat.metrics import HANZI
from osum_echat.records import Labels
from osum_echat.settings import read_mapping

LOG = logs.logger(__name__)
RUBRICS = Path(__file__).parent / "rubrics"
EMPATHY, OPEN = RUBRICS / "empathy-v1.yaml", RUBRICS / "open-v1.yaml"
LANGUAGES = ("en", "zh")
RULES = "rules-v1"
ENOUGH_TAKEN_UP = 1 / 3
FEWEST_WORDS, MOST_WORDS = 3, 80
PER_PRICE_TOKENS = 1_000_000
NO_BILL: Mapping[str, float | None] = {
    "calls": 0, "unparsable": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": None}
_WORD = re.compile(r"[a-z0-9']+|[\u4e00-\u9fff]")
_MARKUP = re.compile(r"<[^<>]*>|\*\*|^#+ |^[-*] |\|.*\|", re.MULTILINE)
_END = (".", "!", "?", "。", "！", "？", "~", "…", '"', "”")


@dataclass(frozen=True, slots=True)
class Exhibit:
    """What a judge sees of one reply. earlier: (user, assistant) of the turns before."""

    key: str
    category: str
    transcript: str
    labels: Labels
    reply: str
    reply_emotion: str | None
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def language(self) -> str:
        """zh where the words of the user or the reply hold Chinese."""
        return "zh" if HANZI.search(self.transcript + self.reply) else "en"

    @property
    def cues(self) -> dict[str, str]:
        """What is known of the user's voice; an event of OTHER is none."""
        known = {name: value for name, value in asdict(self.labels).items() if value}
        known.pop("style", None)
        if known.get("event", "").upper() == "OTHER":
            known.pop("event")
        return known


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's scores. An undecided one is None; `overall` is the weighted mean of all else."""

    scores: Mapping[str, float | None]
    overall: float


@dataclass(frozen=True, slots=True)
class Rubric:
    """What is scored from 0 to 100, and the words around it.

    wording: of each dimension, language -> what is asked.
    """

    version: str
    weights: Mapping[str, float]
    wording: Mapping[str, Mapping[str, str]]
    words: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @classmethod
    def load(cls, path: Path = EMPATHY) -> "Rubric":
        """Read a rubric. Raises ConfigError naming what is missing."""
        raw = read_mapping(path)
        try:
            weights = {one["name"]: float(one["weight"]) for one in raw["dimensions"]}
            wording = {one["name"]: {own: one[own] for own in LANGUAGES}
                       for one in raw["dimensions"]}  # fmt: skip
            words = {name: raw[name] for name in ("anchors", "system", "answer", "fields")}
            return cls(str(raw["version"]), weights, wording, words)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"rubric {path}: {error!r}; its form: {EMPATHY.name}") from error

    def verdict(self, scores: Mapping[str, float | None]) -> Verdict:
        """The scores with their weighted mean."""
        known = [(self.weights[name], one) for name, one in scores.items() if one is not None]
        overall = sum(weight * one for weight, one in known) / sum(weight for weight, _ in known)
        return Verdict(scores, overall)

    def messages(self, exhibit: Exhibit) -> list[dict[str, str]]:
        """The chat that asks a judge for its scores."""
        language = exhibit.language
        told = [self.words["system"][language], ""]
        told += [f"- {name}: {own[language]}" for name, own in self.wording.items()]
        shape = ", ".join(f'"{name}": 0-100' for name in self.names)
        asked = self.words["answer"][language].replace("DIMENSIONS", shape)
        told += ["", self.words["anchors"][language], "", asked]
        shown = "\n".join(self._shown(exhibit, self.words["fields"][language]))
        return [{"role": "system", "content": "\n".join(told)}, {"role": "user", "content": shown}]

    def _shown(self, exhibit: Exhibit, field: Mapping[str, str]) -> Iterator[str]:
        cues = ", ".join(f"{name} {value}" for name, value in exhibit.cues.items())
        yield f"{field['category']}: {exhibit.category}"
        if exhibit.earlier:
            yield f"<{field['earlier']}>"
            for user, assistant in exhibit.earlier:
                yield f"{field['user']}: {user}"
                yield f"{field['assistant']}: {assistant}"
            yield f"</{field['earlier']}>"
        for name, value in (
            ("transcript", exhibit.transcript), ("labels", cues or field["none"]),
            ("reply", exhibit.reply), ("reply_emotion", exhibit.reply_emotion or field["none"]),
        ):  # fmt: skip
            yield f"<{field[name]}>{value}</{field[name]}>"

    def read(self, answer: str) -> Verdict | None:
        """The verdict in a judge's answer; None where it holds no complete one.

        Takes the first JSON object with usable `scores`: each dimension a number from 0 to 100, or
        null; at least one a number. Words and code fences around it do no harm.
        """
        for found in objects_in(answer):
            scores = found.get("scores")
            if not isinstance(scores, dict) or set(self.names) - set(scores):
                continue
            values = {name: scores[name] for name in self.names}
            if all(map(_is_score, values.values())) and any(v is not None for v in values.values()):
                kept = {name: None if one is None else float(one) for name, one in values.items()}
                return self.verdict(kept)
        return None


def _is_score(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and 0 <= value <= 100)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge made of some exhibits. failed: key -> why there is no verdict.

    bill: calls, unparsable answers, prompt_tokens, completion_tokens and cost, over all runs; cost:
    None without prices.
    """

    verdicts: Mapping[str, Verdict]
    failed: Mapping[str, str] = field(default_factory=dict)
    bill: Mapping[str, float | None] = field(default_factory=lambda: NO_BILL)


class RulesJudge:
    """`rules-v1`: a judge that needs no network and no model, the same on every machine.

    It counts words and is no substitute for a chat model or for people: its figures compare systems
    and versions under the same rules, and do not compare with the paper's. The rules and their word
    lists: rubrics/rules-v1.yaml.
    """

    name = RULES

    def __init__(self) -> None:
        self.rubric = Rubric.load()
        self.rules = read_mapping(RUBRICS / f"{RULES}.yaml")

    def settings(self) -> dict[str, Any]:
        return {"judge": f"{RULES} (word rules, no model)", "rubric": self.rubric.version}

    def __call__(self, exhibits: Sequence[Exhibit], out: Path) -> Judged:
        """Verdicts of all; nothing is written to the folder `out`."""
        return Judged({one.key: self.judge(one) for one in exhibits})

    def judge(self, exhibit: Exhibit) -> Verdict:
        """The verdict on one reply."""
        if not exhibit.reply.strip():
            return self.rubric.verdict(dict.fromkeys(self.rubric.names, 0.0))
        emotion = (exhibit.labels.emotion or "NEUTRAL").upper()
        delivery = self.rules["delivery"].get(emotion)
        scores = {
            "relevance": self._relevance(exhibit),
            "perception": self._perception(exhibit),
            "empathy": self._empathy(exhibit.reply, emotion),
            "delivery": None if exhibit.reply_emotion is None or delivery is None else float(
                delivery.get(exhibit.reply_emotion.upper(), delivery["other"])),
            "naturalness": _naturalness(exhibit.reply),
        }  # fmt: skip
        return self.rubric.verdict(scores)

    def _relevance(self, exhibit: Exhibit) -> float:
        asked = self._content(exhibit.transcript)
        if not asked:
            return 100.0
        taken_up = len(asked & self._content(exhibit.reply)) / len(asked)
        return 50.0 + 50.0 * min(1.0, taken_up / ENOUGH_TAKEN_UP)

    def _content(self, text: str) -> set[str]:
        """The words that tell what a text is about: stems, and pairs of characters."""
        words = _WORD.findall(text.lower())
        pairs = {a + b for a, b in zip(words, words[1:], strict=False)
                 if HANZI.match(a) and HANZI.match(b)}  # fmt: skip
        plain = set(self.rules["plain"])
        return pairs | {_stem(word) for word in words if word not in plain and len(word) > 1}

    def _perception(self, exhibit: Exhibit) -> float:
        cues = exhibit.cues
        tested = {exhibit.category: cues[exhibit.category]} if exhibit.category in cues else cues
        marks = []
        for cue, value in tested.items():
            words = self.rules["cues"].get(cue, {}).get(value.upper())
            if not words:
                continue
            against = self.rules["contrary"].get(cue, {}).get(value.upper(), ())
            noticed = 100.0 if holds(exhibit.reply, words) else 50.0
            marks.append(10.0 if holds(exhibit.reply, against) else noticed)
        return sum(marks) / len(marks) if marks else 100.0

    def _empathy(self, reply: str, emotion: str) -> float:
        suiting = self.rules["cues"]["emotion"].get(emotion) or ()
        score = 40.0 + 30.0 * (not suiting or holds(reply, suiting))
        score += 30.0 * holds(reply, self.rules["care"])
        against = self.rules["contrary"]["emotion"].get(emotion, ())
        return max(0.0, score - 40.0 * holds(reply, against))


def _naturalness(reply: str) -> float:
    words = _WORD.findall(reply.lower())
    pairs = list(zip(words, words[1:], strict=False))
    repeated = 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
    score = 100.0 - 30.0 * repeated
    score -= 40.0 * bool(_MARKUP.search(reply))
    score -= 30.0 * (not FEWEST_WORDS <= len(words) <= MOST_WORDS)
    score -= 10.0 * (not reply.rstrip().endswith(_END))
    return max(0.0, score)


def holds(text: str, words: Sequence[str]) -> bool:
    """Whether any of the words stands in the text."""
    lowered = text.lower()
    return any(word in lowered if HANZI.search(word) else bool(_pattern(word).search(lowered))
               for word in words)  # fmt: skip


@cache
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}(?:s|es|ing|ed)?\b")


def _stem(word: str) -> str:
    """Without the commonest endings: `kites` and `kite` are one."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


class ChatJudge:
    """A chat model behind OPENAI_BASE_URL, asked as --judge-... say."""

    def __init__(self, options: Namespace, rubric: Rubric) -> None:
        """Raises InputError for what is missing or cannot be."""
        if not options.judge_model:
            raise InputError("--judge chat: name the judge by --judge-model, such as gpt-4o")
        for name in ("judge_n", "judge_rounds", "judge_workers", "judge_tries"):
            if getattr(options, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: "
                                 "give 1 or more")
        self.options, self.rubric, self.name = options, rubric, str(options.judge_model)
        self.url = os.environ.get("OPENAI_BASE_URL", DEFAULT_URL)
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key and self.url == DEFAULT_URL:
            raise InputError("OPENAI_API_KEY is not set; set it, or OPENAI_BASE_URL of a server "
                             "that needs none, or take --judge rules-v1")
        self._endpoint = Endpoint(
            "judge", self.url, key, options.judge_timeout, options.judge_tries, "OPENAI_BASE_URL",
            "OPENAI_BASE_URL, OPENAI_API_KEY and --judge-model",
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        options = self.options
        return {"judge": self.name, "rubric": self.rubric.version, "n": options.judge_n,
                "temperature": options.judge_temperature, "judge seed": options.judge_seed,
                "judge url": self.url}  # fmt: skip

    def __call__(self, exhibits: Sequence[Exhibit], out: Path) -> Judged:
        """Ask for all, several at a time; one question serves all exhibits that are alike.

        Every answer is kept in the folder `out`.

        Raises InputError where the endpoint refuses for good (a wrong key, no such model).
        """
        alike: dict[str, list[Exhibit]] = {}
        for one in exhibits:
            alike.setdefault(self._digest(one), []).append(one)
        found: dict[str, Verdict | str] = {}
        used: list[dict[str, Any]] = []
        workers = self.options.judge_workers
        with KeyedJournal(out / JUDGEMENTS) as kept, ThreadPoolExecutor(workers) as pool:
            waiting = {pool.submit(self._judge, asked, own[0], kept): own
                       for asked, own in alike.items()}  # fmt: skip
            try:
                for done in logs.progress(as_completed(waiting), "judge", len(waiting)):
                    told, answers = done.result()
                    used += answers
                    found |= {one.key: told for one in waiting[done]}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        both = [(one.key, found[one.key]) for one in exhibits]
        return Judged({key: one for key, one in both if isinstance(one, Verdict)},
                      {key: one for key, one in both if isinstance(one, str)}, self._bill(used))

    def _digest(self, exhibit: Exhibit) -> str:
        options = self.options
        asked = [self.name, options.judge_temperature, options.judge_n, options.judge_seed,
                 self.rubric.messages(exhibit)]  # fmt: skip
        return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]

    def _judge(
        self, asked: str, exhibit: Exhibit, kept: KeyedJournal
    ) -> tuple[Verdict | str, list[dict[str, Any]]]:
        """The mean of n readable answers (fewer, where rounds run out), and all that was said.

        Why there is none, in place of the mean.
        """
        options, most = self.options, self.options.judge_n
        read: list[Verdict] = []
        answers: list[dict[str, Any]] = []
        for number in range(options.judge_rounds):
            if len(read) >= most:
                break
            key, seed = f"{asked}:{number}", options.judge_seed + number
            if key not in kept.found:
                try:
                    got = self._endpoint.chat(
                        model=self.name, messages=self.rubric.messages(exhibit), seed=seed,
                        n=most - len(read), temperature=options.judge_temperature,
                    )  # fmt: skip
                except EndpointError as error:
                    return str(error), answers
                kept.add({"key": key, "item": exhibit.key, "model": self.name, "seed": seed} | got)
            answers.append(kept.found[key])
            found = map(self.rubric.read, kept.found[key]["answers"])
            read += [verdict for verdict in found if verdict is not None]
        if not read:
            return f"none of {len(answers)} answers holds the scores", answers
        scores: dict[str, float | None] = {}
        for name in self.rubric.names:
            known = [value for one in read[:most] if (value := one.scores[name]) is not None]
            scores[name] = sum(known) / len(known) if known else None
        return self.rubric.verdict(scores), answers

    def _bill(self, used: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        unread = sum(self.rubric.read(text) is None for one in used for text in one["answers"])
        asked, said = (sum(one[name] for one in used)
                       for name in ("prompt_tokens", "completion_tokens"))  # fmt: skip
        prices = self.options.judge_prices
        cost = (asked * prices[0] + said * prices[1]) / PER_PRICE_TOKENS if prices else None
        return dict(zip(NO_BILL, (len(used), unread, asked, said, cost), strict=True))


Judge = RulesJudge | ChatJudge


def judge_of(options: Namespace) -> Judge:
    """The judge that the options name. Raises InputError for what it lacks."""
    return RulesJudge() if options.judge == RULES else ChatJudge(options, Rubric.load())
