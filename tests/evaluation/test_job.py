"""Claims about a job's options and its directory: other settings are refused, its own goes on."""

from dataclasses import replace
from pathlib import Path

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.job import Job, Rank
from tests.evaluation.answers import job_of, write_texts


def settled(job: Job) -> None:
    job.settle(job.utterances())


def test_what_does_not_change_answers_may_change_between_runs(tmp_path: Path) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 3), tmp_path / "out")
    settled(job)
    before = (job.out / "settings.json").read_bytes()
    settled(replace(job, batch_size=1, limit=2, device="cpu", language="english", retry=True))
    assert (job.out / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "exp/other"}, r"another model \(\".*tiny\", not \"exp/other\"\)"),
        ({"seed": 2}, r"another seed \(0, not 2\)"),
        ({"greedy": True, "task": "t2t"}, "another task, greedy"),
        ({"speak": False}, "another speak"),
    ],
)
def test_another_job_does_not_go_on_in_the_same_place(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 3), tmp_path / "out")
    settled(job)
    with pytest.raises(InputError, match=named):
        settled(replace(job, **change))  # type: ignore[arg-type]


def test_a_list_that_has_changed_is_another_job(tmp_path: Path) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 3), tmp_path / "out")
    settled(job)
    write_texts(tmp_path / "a.list", 4)
    with pytest.raises(InputError, match=r"another lists .*choose another --out, or --overwrite"):
        settled(job)
    (job.out / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json: not read"):
        settled(job)


def test_clearing_removes_what_a_job_made_and_nothing_else(tmp_path: Path) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 3), tmp_path / "out")
    own = ("settings.json", "results.jsonl", "text.scp", "scores.json",
           "parts/part-00001.jsonl", "wav/000001-a.wav")  # fmt: skip
    others = ("notes.txt", "wav/mine.wav", "parts/other.txt")
    for name in (*own, *others):
        (job.out / name).parent.mkdir(parents=True, exist_ok=True)
        (job.out / name).touch()
    job.clear()
    left = {str(path.relative_to(job.out)) for path in job.out.rglob("*") if path.is_file()}
    assert left == set(others)
    job.clear()


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")       # so that what `enter` sets is taken back
        monkeypatch.delenv(name)
    assert Rank.from_environment() == Rank(0, 1, 0)
    Rank(3, 4, 1).enter()
    assert Rank.from_environment() == Rank(3, 4, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(InputError, match="RANK 4 of WORLD_SIZE 4"):
        Rank.from_environment()
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(InputError, match="RANK=two: a whole number is needed"):
        Rank.from_environment()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0"),
        ({"language": "dutch"}, "--language 'dutch': not one of auto"),
        ({"task": "s2x"}, "task 's2x': not one of"),
        ({"data": ""}, "--data: name a list"),
    ],
)
def test_an_option_that_cannot_be_used_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Job(**{"data": "a", "out": Path("b"), **options})  # type: ignore[arg-type]
