"""Claims about the pools of prompts."""

import random
from pathlib import Path

import pytest

from osum_echat.errors import ConfigError
from osum_echat.tasks import Prompts, task_for

SHIPPED = Path(__file__).parents[1] / "conf" / "prompt_config.yaml"


def test_every_shipped_pool_has_thirty_different_prompts() -> None:
    for tag, pool in Prompts.from_file(SHIPPED).pools.items():
        assert len(set(pool)) == len(pool) >= 30, tag


def test_every_shipped_tag_is_an_understanding_task_named_as_the_task_names_itself() -> None:
    for tag in Prompts.from_file(SHIPPED).pools:
        assert task_for(tag).name in ("understand", "s2t")
        assert task_for(tag).tag == tag


def test_all_languages_are_both() -> None:
    both = Prompts.from_file(SHIPPED).pools["<AGE>"]
    one = [Prompts.from_file(SHIPPED, name).pools["<AGE>"] for name in ("english", "chinese")]
    assert both == one[0] + one[1]


def test_a_plain_list_belongs_to_every_language(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("<AGE>: [how old]\n")
    prompts = Prompts.from_file(path, "chinese")
    assert prompts.first("<AGE>") == prompts.draw("<AGE>", random.Random(0)) == "how old"
    assert prompts.draw("<GENDER>", random.Random(0)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a", "a mapping"), ("<AGE>: {english: []}", "<AGE> has no list")],
)  # fmt: skip
def test_a_wrong_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Prompts.from_file(path)
