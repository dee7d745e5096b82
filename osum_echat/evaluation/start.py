"""From parsed options to a suite that runs: the model, the judge, one suite or all."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from osum_echat.errors import DataError, InputError
from osum_echat.evaluation import runner
from osum_echat.evaluation.endpoint import Endpoint
from osum_echat.evaluation.judge import ChatJudge, ChatSettings, Judge
from osum_echat.evaluation.options import SUITES
from osum_echat.evaluation.results import Outcome
from osum_echat.evaluation.rubric import Rubric
from osum_echat.evaluation.rules_judge import NAME as RULES
from osum_echat.evaluation.rules_judge import RulesJudge
from osum_echat.evaluation.runner import Model, Run
from osum_echat.inference.assistant import EChat
from osum_echat.logs import logger

LOG = logger(__name__)
Item = TypeVar("Item")
WIDEST = 46


def run(arguments: Namespace) -> str:
    """Do what the options ask for; what to print in the end. Raises an OsumError."""
    if arguments.command == "all":
        return run_all(arguments)
    if arguments.command in SUITES:
        return run_suite(arguments.command, arguments, model_of(arguments))
    module = {"human": "listening_test"}.get(arguments.command, arguments.command)
    done: str = import_module(f"osum_echat.evaluation.{module}").run(arguments)
    return done


def run_suite(name: str, arguments: Namespace, model: Model) -> str:
    """One suite; its measures as a table of text."""
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit {arguments.limit}: give 1 or more")
    module = import_module(f"osum_echat.evaluation.{name}")
    suite = module.build(arguments, model)
    # The judge and the look of the report may change between runs: answers do not depend on them.
    fixed = {
        "suite": name, "model": model.source, "fingerprint": model.fingerprint(),
        "data": str(Path(arguments.data).resolve()), "seed": arguments.seed,
        "greedy": arguments.greedy, "voice": arguments.voice and str(arguments.voice),
        **suite.fixed,
    }  # fmt: skip
    shown = {"device": arguments.device, "dtype": arguments.dtype,
             "limit": arguments.limit, **suite.shown}  # fmt: skip
    outcome = runner.run(suite, Run(arguments.out, fixed, shown, arguments.overwrite))
    return f"{summary(outcome)}\n{arguments.out / 'report.html'}"


def run_all(arguments: Namespace) -> str:
    """Every suite that finds its data; which ones did not, and why."""
    places = _places(arguments.data)
    model = model_of(arguments)
    said, out = [], arguments.out
    for name in SUITES:
        place = places.get(name, places.get(""))
        if place is None:
            said.append(f"{name}: left out, no --data {name}=PATH")
            continue
        own = Namespace(**vars(arguments) | {"data": Path(place), "out": out / name})
        try:
            said.append(f"{name}\n{run_suite(name, own, model)}")
        except (InputError, DataError) as error:
            LOG.warning("%s: %s", name, error)
            said.append(f"{name}: left out: {error}")
    return "\n\n".join(said)


def _places(given: Sequence[str]) -> dict[str, str]:
    """SUITE=PATH by suite; a path alone stands under ''."""
    places: dict[str, str] = {}
    for one in given:
        name, sign, path = one.partition("=")
        is_named = bool(sign) and name in SUITES
        places[name if is_named else ""] = path if is_named else one
    return places


def model_of(arguments: Namespace) -> Model:
    """The model that the options name, not loaded yet."""
    source = str(arguments.model)

    def load() -> EChat:
        return EChat.load(
            source, device=arguments.device, seed=arguments.seed, config=arguments.config,
            tokenizer=arguments.tokenizer, token2wav=arguments.token2wav, voice=arguments.voice,
            dtype=arguments.dtype, keep_lora=arguments.keep_lora,
        )  # fmt: skip

    return Model(source, load)


def judge_of(arguments: Namespace) -> Judge:
    """The judge that the options name. Raises InputError for what it lacks."""
    rubric = Rubric.load()
    if arguments.judge == RULES:
        return RulesJudge(rubric)
    return ChatJudge(endpoint_of(arguments), chat_of(arguments), rubric)


def endpoint_of(arguments: Namespace) -> Endpoint:
    return Endpoint.from_environment(arguments.judge_timeout, arguments.judge_tries)


def chat_of(arguments: Namespace) -> ChatSettings:
    """How the chat judge is asked. Raises InputError without a model's name."""
    if not arguments.judge_model:
        raise InputError("--judge chat: name the judge by --judge-model, such as gpt-4o")
    return ChatSettings(
        arguments.judge_model, arguments.judge_temperature, arguments.judge_n,
        arguments.judge_seed, arguments.judge_rounds, arguments.judge_workers,
        tuple(arguments.judge_prices) if arguments.judge_prices else None,
    )  # fmt: skip


def limited(items: Sequence[Item], limit: int | None, kind: Callable[[Item], Any]) -> list[Item]:
    """The first `limit` items, taken by turns from each kind so that none is left out."""
    if limit is None or limit >= len(items):
        return list(items)
    queues: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        queues.setdefault(kind(item), []).append(place)
    turns = [places[turn] for turn in range(len(items)) for places in queues.values()
             if turn < len(places)]  # fmt: skip
    return [items[place] for place in sorted(turns[:limit])]


def summary(outcome: Outcome) -> str:
    """The measures, one a line."""
    both = {**outcome.measures, **outcome.timings}
    return "\n".join(f"{name:<{WIDEST}} {one}  n={one.count}" for name, one in both.items())
