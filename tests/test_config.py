"""Claims about experiments in YAML."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from osum_echat.data.manifest import read_manifest
from osum_echat.errors import ConfigError
from osum_echat.training import experiment
from tests.training.experiment import write_experiment

CONF = Path(__file__).parents[1] / "conf"
SHIPPED = sorted(CONF.glob("*/stage*.yaml"))
MANIFESTS = sorted(CONF.glob("osum_echat/data_*.yaml"))
VALUE = re.compile(r"\s*\w+: *[^#\s]")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda one: f"{one.parent.name} {one.stem}")
def test_the_shipped_stages_are_read(shipped: Path) -> None:
    data = experiment.load(shipped).data
    assert data.lists or data.manifests


@pytest.mark.parametrize("shipped", [*SHIPPED, *CONF.glob("*/model.yaml")],
                         ids=lambda one: f"{one.parent.name} {one.stem}")  # fmt: skip
def test_every_shipped_value_is_commented(shipped: Path) -> None:
    lines = shipped.read_text(encoding="utf-8").splitlines()
    bare = [line for before, line in pairwise(lines)
            if VALUE.match(line) and "#" not in line and not before.lstrip().startswith("#")]
    assert bare == []


def test_the_published_mix_is_readable_and_each_kind_has_its_file() -> None:
    assert [one.stem for one in MANIFESTS] == ["data_s2s", "data_s2t", "data_t2s", "data_t2t"]
    for one in MANIFESTS:
        entries = read_manifest(str(one))
        assert all(entry.weight > 0 for entry in entries)
        assert len({entry.path for entry in entries}) == len(entries) > 0


def test_overrides_reach_any_depth_and_are_read_as_yaml(path: Path) -> None:
    overrides = ["run.steps=7", "data.lists.t2t.weight=0.5", "stage.train=[llm]", "init=null",
                 "schedule.rate=1e-4"]  # fmt: skip
    loaded = experiment.load(path, overrides)
    assert loaded.run.steps == 7
    assert loaded.data.lists["t2t"].weight == 0.5
    assert loaded.stage.train == ("llm",)
    assert loaded.schedule.rate == 1e-4


def test_what_is_written_beside_a_checkpoint_reads_the_same(path: Path, tmp_path: Path) -> None:
    loaded = experiment.load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(experiment.dump(loaded))
    assert experiment.load(copy) == loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.step=7", r"stage\.yaml\.run\.step: no such setting; did you mean 'steps'"),
        ("colour=7", r"colour: no such setting; known: output"),
        ("data.lists.t2t.wait=1", r"lists\.t2t\.wait: no such setting; did you mean 'weight'"),
        ("run.steps=many", "'many' where a whole number is needed"),
        ("run.steps=1.5", "1.5 where a whole number is needed"),
        ("run.steps=true", "True where a whole number is needed"),
        ("schedule.rate=high", "'high' where a number is needed"),
        ("prepare.speech_answers=1", "1 where true or false is needed"),
        ("stage.train=llm", "'llm' where a list is needed"),
        ("data.lists=[a]", "where a mapping is needed"),
        ("data=5", "5 where a mapping of settings is needed"),
        ("output.deep=5", "'output' holds no settings"),
        ("steps", "write it as key=value"),
        ("run.steps=[", "not YAML"),
        ("engine.hearing=1", r"engine\.hearing: is named ctc_weight now; rename it"),
        ("model=null", "give `init`, or both `model` and `tokenizer`"),
    ],
)
def test_a_wrong_setting_is_told(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment.load(path, [override])


def test_a_missing_setting_without_a_default_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("output: x\n")
    with pytest.raises(ConfigError, match=r"a\.yaml\.data: missing"):
        experiment.load(path)


@pytest.mark.parametrize(
    ("text", "message"), [("- a", "holds no settings"), ("a: [", "not YAML")]
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        experiment.load(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        experiment.load(tmp_path / "gone.yaml")
