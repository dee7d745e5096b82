"""Claims about experiments in YAML."""

from pathlib import Path

import pytest

from osum_echat import config
from osum_echat.errors import ConfigError
from tests.training.experiment import write_experiment

SHIPPED = sorted((Path(__file__).parents[1] / "conf" / "tiny").glob("stage*.yaml"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda one: one.stem)
def test_the_shipped_stages_are_read(shipped: Path) -> None:
    assert config.load(shipped).data.lists


def test_overrides_reach_any_depth_and_are_read_as_yaml(path: Path) -> None:
    overrides = ["run.steps=7", "data.lists.t2t.weight=0.5", "stage.train=[llm]", "init=null",
                 "schedule.rate=1e-4"]  # fmt: skip
    experiment = config.load(path, overrides)
    assert experiment.run.steps == 7
    assert experiment.data.lists["t2t"].weight == 0.5
    assert experiment.stage.train == ("llm",)
    assert experiment.schedule.rate == 1e-4


def test_what_is_written_beside_a_checkpoint_reads_the_same(path: Path, tmp_path: Path) -> None:
    experiment = config.load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.dump(experiment))
    assert config.load(copy) == experiment


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
        ("model=null", "give `init`, or both `model` and `tokenizer`"),
    ],
)
def test_a_wrong_setting_is_told(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(path, [override])


def test_a_missing_setting_without_a_default_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("output: x\n")
    with pytest.raises(ConfigError, match=r"a\.yaml\.data: missing"):
        config.load(path)


@pytest.mark.parametrize(
    ("text", "message"), [("- a", "holds no settings"), ("a: [", "not YAML")]
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "gone.yaml")
