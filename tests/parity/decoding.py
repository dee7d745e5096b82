"""Greedy runs and processors: prompts, every step's scores, the ids of whole answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.generation import decoder
from osum_echat.generation.logits_rules import AllowedAfter, NoLongRuns, Rule, WindowLimit
from osum_echat.generation.sampling import Sampling
from osum_echat.sequence import compose
from osum_echat.tasks import Task, task_for
from tests.parity.fixture import Fixture
from tests.parity.hearing import ACTIVATIONS, SURE_GAP
from tests.parity.rows import OTHERWISE, Row, close, exact, not_compared

PUBLISHED_HEAD_ROWS = 4097  # what upstream's processor takes for speech, whatever the model
AGE_CUE = "年龄为:<"
MODES = (                   # start of a run's name -> task, and why its prompt is not ours
    ("understanding", "<TRANSCRIBE>", "the system prompt as it was trained, not the damaged one"),
    ("s2t_chat_think", "s2t_think", "the start of the user's turn as it was trained"),
    ("s2t_chat", "s2t", None),
    ("s2s_think", "s2s_think", None),
    ("s2s", "s2s", None),
    ("t2t", "t2t", None),
    ("tts", "tts", None),
    ("multiturn", "s2s_history", "earlier turns in the layout of training"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One stored generation: its record, arrays, task and why its prompt differs (or None)."""

    name: str
    record: dict[str, Any]
    arrays: dict[str, np.ndarray]
    task: Task
    otherwise: str | None

    @classmethod
    def read(cls, name: str, record: dict[str, Any], whole: dict[str, np.ndarray]) -> "Run":
        for start, tag, otherwise in MODES:
            if name.startswith(start):
                arrays = {key.removeprefix(f"{name}/"): values for key, values in whole.items()
                          if key.startswith(f"{name}/")}
                return cls(name, record, arrays, task_for(tag), otherwise)
        raise CheckpointError(f"generate.json: run {name!r} begins with no known mode")

    @property
    def embedded(self) -> Tensor:
        """The stored prompt: (1, tokens, width)."""
        return torch.from_numpy(self.arrays["inputs_embeds"])[None]

    @property
    def sampling(self) -> Sampling:
        penalty = self.record.get("generate_kwargs", {}).get("repetition_penalty", 1.0)
        return Sampling(greedy=True, repetition_penalty=float(penalty))

    def rules(self, fixture: Fixture) -> list[Rule]:
        """Those that upstream's run had: the age rule for spoken answers, run limits if said."""
        rules: list[Rule] = []
        if self.task.speaks and self.task.answers_text:
            rules += [rule for rule in (age_rule(fixture),) if rule]
        return rules + ([NoLongRuns(), WindowLimit()] if self.record.get("ngram") else [])


def rows(fixture: Fixture) -> list[Row]:
    """All rows of generate.json with its arrays, and of processors.json."""
    found = []
    if fixture.has("generate.json"):
        whole = fixture.arrays("generate.npz")
        for name, record in fixture.json("generate.json").items():
            found += _run(fixture, Run.read(name, record, whole))
    if fixture.has("processors.json"):
        tables = fixture.json("processors.json")
        found.append(_run_limits(fixture, tables["ngram_phase_on"]))
        found.append(_age_choice(fixture, tables["age_tag_sequence_of_calls_without_reset"]))
    return found


def age_rule(fixture: Fixture) -> AllowedAfter | None:
    """The age rule, its cue from token_ids.json; the ids it leaves are those of processors.json."""
    if not fixture.has("processors.json"):
        return None
    calls = fixture.json("processors.json")["age_tag_sequence_of_calls_without_reset"]
    left = [call["finite"] for call in calls if call["finite"] != "all"]
    return AllowedAfter(fixture.vocab.encode(AGE_CUE), left[0]) if left else None


def _run(fixture: Fixture, run: Run) -> list[Row]:
    name = f"generate {run.name}"
    if run.otherwise:
        found = [not_compared(f"{name} inputs_embeds", OTHERWISE + run.otherwise)]
        embedded = run.embedded
    else:
        embedded = _prompt(fixture, run)
        found = [close(f"{name} inputs_embeds", embedded[0], run.embedded[0], ACTIVATIONS)]
    found += _steps(fixture, run, name)
    gap = run.record["min_top2_gap"]
    if gap < SURE_GAP:
        return [*found, not_compared(f"{name} ids", f"smallest gap {gap:.1e}: rounding decides")]
    limits = decoder.Limits(run.record["limit_tokens"], run.record["limit_tokens"])
    answer = decoder.Answer(run.task, fixture.vocab, run.sampling, run.rules(fixture), limits)
    tokens = decoder.stream_embedded(fixture.network, embedded[0], answer)
    return [*found, exact(f"{name} ids", [token.id for token in tokens], run.record["ids"])]


def _prompt(fixture: Fixture, run: Run) -> Tensor:
    """Our prompt, composed from the run's wav and text."""
    clips = [fixture.wavs[run.record["wav"]]] if run.task.hears else []
    sequence = compose(run.task, fixture.vocab, clips=clips, user_text=run.record.get("text"))
    return decoder.embed(fixture.network, [sequence], fixture.vocab)[0][None]


@torch.inference_mode()
def _steps(fixture: Fixture, run: Run, name: str) -> list[Row]:
    """The scores of every step, from the stored prompt and the stored ids before it."""
    network, vocab = fixture.network, fixture.vocab
    ids, text_steps = run.record["ids"], run.record["n_text_steps"]
    joint = [number if place < text_steps else vocab.joint(number)
             for place, number in enumerate(ids)]
    before = network.embed_ids(torch.tensor(joint[:-1], dtype=torch.long))
    embedded = torch.cat((run.embedded, before[None]), dim=1)
    places = torch.arange(embedded.shape[1])[None]
    hidden = network.run(embedded, torch.zeros_like(places), places)[0, -len(ids):]
    found, best, scores = [], [], []
    rules = run.rules(fixture)
    for step, state in enumerate(hidden):
        in_speech = step >= text_steps
        logits = network.logits_speech(state) if in_speech else network.logits_text(state)
        if step == 0:
            found += _first_logits(fixture, run, name, logits)
        history = ids[text_steps:step] if in_speech else ids[:step]
        seen = torch.tensor(sorted(set(history)), dtype=torch.long)
        logits = run.sampling.penalise(seen, logits)
        for rule in rules:
            if rule.in_speech == in_speech:
                logits = rule(history, logits)
        top = logits.topk(2)
        scores.append(top.values)
        best.append(top.indices)
    if "step_top_scores" in run.arrays:
        theirs = run.arrays["step_top_scores"]
        sure = theirs[:, 0] - theirs[:, 1] >= SURE_GAP
        found.append(close(f"{name} step_top_scores", torch.stack(scores), theirs, ACTIVATIONS))
        found.append(exact(f"{name} step_top best ids", torch.stack(best)[sure, 0],
                           run.arrays["step_top"][sure, 0]))
    return found


def _first_logits(fixture: Fixture, run: Run, name: str, logits: Tensor) -> list[Row]:
    ours = {"first_logits": logits, "first_logits_max": logits.max()}
    if run.task.answers_text:
        ours["first_logits_cols"] = logits[fixture.columns["text_cols"]]
    return [close(f"{name} {key}", values, run.arrays[key], ACTIVATIONS)
            for key, values in ours.items() if key in run.arrays]


def _run_limits(fixture: Fixture, cases: list[dict[str, Any]]) -> Row:
    """Which speech ids the two run limits forbid, for every history of the table."""
    size = max(fixture.vocab.speech_head_rows, PUBLISHED_HEAD_ROWS)
    wrong = 0
    for case in cases:
        logits = torch.zeros(size)
        for rule in (NoLongRuns(), WindowLimit()):
            logits = rule(case["ids"], logits)
        wrong += torch.isinf(logits).nonzero()[:, 0].tolist() != sorted(case["blocked"])
    return Row("processors ngram_phase_on", float(wrong), 0.0, f"of {len(cases)} histories")


def _age_choice(fixture: Fixture, calls: list[dict[str, Any]]) -> Row:
    """What the age rule leaves possible, over calls of one run."""
    rule, wrong = age_rule(fixture), 0
    for call in calls:
        logits = torch.zeros(fixture.vocab.text_rows)
        finite = (~torch.isinf(rule(call["ids"], logits) if rule else logits)).nonzero()[:, 0]
        left = "all" if len(finite) == len(logits) else finite.tolist()
        same = left == "all" if call["finite"] == "all" else left == sorted(call["finite"])
        wrong += not same or len(logits) - len(finite) != call["n_inf"]
    return Row("processors age_tag_sequence", float(wrong), 0.0, f"of {len(calls)} calls")
