"""Claims about targets against what the published pipeline made of the same input."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from osum_echat.data.sources import Dropped
from osum_echat.data.targets import PrepareSettings, Target, make_target
from osum_echat.errors import InputError
from osum_echat.records import Utterance
from osum_echat.thinking import CHINESE

GOLDENS = Path(__file__).parents[1] / "goldens" / "data"
CASES = json.loads((GOLDENS / "tokenize.json").read_text(encoding="utf-8"))
KINDS = {"language": "natural", "tag": "label"}  # upstream's processor -> prepare.thinking
OUTPUT_TYPES = {
    "text": "understand", "s2t_chat": "s2t", "s2t_chat_think": "s2t_think", "text2text": "t2t",
    "s2t_chat_fake": "s2t_fake", "text2token": "tts", "text2token_streaming": "tts_streaming",
    "speech2text_token": "s2s", "speech2text_token_think": "s2s_think",
    "speech2text_token_streaming": "s2s_streaming", "speech2text_token_history": "s2s_history",
}  # fmt: skip
END = "<|im_end|>"


def stripped_by_upstream(case: dict[str, Any]) -> bool:
    """Natural thinking strips a leading tag of label-only tasks to nothing; we keep the label."""
    return case["out"] is not None and case["out"]["label_text"] == END


def unknown_task(case: dict[str, Any]) -> bool:
    """Upstream takes an unknown task for understanding; we refuse it."""
    return case["in"]["task"] == "<UNKNOWN>"


def without_speech(case: dict[str, Any]) -> bool:
    """Upstream forgets the speech tokens of streaming and history tasks; we keep them."""
    streaming = any(mark in case["in"]["task"] for mark in ("STREAMING", "HISTORY"))
    return case["out"] is not None and streaming and not case["out"]["speech_token"]


EXCEPTIONS = (stripped_by_upstream, unknown_task, without_speech)


def ours(case: dict[str, Any]) -> list[Target | Dropped]:
    """Every target that chance may lead to."""
    raw = {"key": "k", **case["in"]}
    utterance = Utterance.from_json(raw, "golden", Path())
    settings = PrepareSettings(thinking=KINDS[case["processor"]])
    seeds = range(40)
    return [make_target(utterance, settings, CHINESE, random.Random(seed)) for seed in seeds]


@pytest.mark.parametrize("case", CASES, ids=lambda one: f"{one['processor']} {one['in']['task']}")
def test_targets_are_those_of_upstream(case: dict[str, Any]) -> None:
    excepted = [rule.__name__ for rule in EXCEPTIONS if rule(case)]
    if "unknown_task" in excepted:
        with pytest.raises(InputError, match="not one of"):
            ours(case)
        return
    drawn = ours(case)
    if case["out"] is None:
        assert all(isinstance(one, Dropped) for one in drawn)
        return
    wanted = case["out"]["label_text"].removesuffix(END)
    if "stripped_by_upstream" in excepted:
        label = case["in"]["txt"][case["in"]["txt"].index("<") :]
        wanted = {"<YOUTH>": "<ADULT>", "<武侠评书>": "<有声书>"}.get(label, label)
    found = {(one.text, one.task.name) for one in drawn if isinstance(one, Target)}
    assert (wanted, OUTPUT_TYPES[case["out"]["output_type"]]) in found


def test_exceptions_are_few_and_all_are_met() -> None:
    met = {rule.__name__: sum(map(rule, CASES)) for rule in EXCEPTIONS}
    assert len(CASES) == 88
    assert met["unknown_task"] == 4
    assert 0 < met["stripped_by_upstream"] <= 16
