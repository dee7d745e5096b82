"""Claims about one process of a batch job: like lengths together, parts equal the whole."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from osum_echat.evaluation.clerk import FAULTS_IN_A_ROW, answer, shares
from osum_echat.evaluation.job import Job, Rank
from osum_echat.evaluation.parts import find_results, read_results
from tests.evaluation.answers import Answers, job_of, write_mixed_list, write_texts

ALONE = Rank()


def records(job: Job) -> list[dict[str, Any]]:
    return list(read_results(find_results(job.parts), len(job.utterances())))


def finish(job: Job, rank: Rank = ALONE) -> Answers:
    """Answer a share to its end; the assistant that was asked."""
    used = Answers()
    assert all(answer(job, rank, lambda job: used))
    return used


def test_every_utterance_has_one_record_and_bad_ones_tell_why(tmp_path: Path) -> None:
    job = job_of(write_mixed_list(tmp_path), tmp_path / "out", batch_size=4)
    finish(job)
    found = records(job)
    assert [one["index"] for one in found] == list(range(19))
    errors = {one["key"]: one["error"] for one in found if one["error"] is not None}
    assert list(errors) == ["bad-u2", None, "crash-u1"]
    assert errors["bad-u2"] == "bad-u2: not audio"
    assert errors["crash-u1"] == "RuntimeError: the kernel gave up"
    assert errors[None].startswith("not JSON") and "record 5" in errors[None]


def test_a_record_holds_what_was_asked_and_what_came(tmp_path: Path) -> None:
    job = job_of(write_mixed_list(tmp_path), tmp_path / "out")
    finish(job)
    heard, spoken = records(job)[0], records(job)[9]
    assert heard["reference"] == "i lost my kite<CHILD><MALE>"
    assert heard["reference_heard"] == "i lost my kite" and heard["wav"] is None
    assert heard["reference_labels"]["age"] == "CHILD" == heard["labels"]["age"]
    assert heard["timings"]["total_s"] == 0.2 and heard["task"] == "<TRANSCRIBE> <AGE> <GENDER>"
    assert (spoken["task"], spoken["speech_tokens"]) == ("<TEXT2TOKEN>", 3)
    samples, rate = soundfile.read(job.out / spoken["wav"])
    assert spoken["wav"] == "wav/000009-k8-u2.wav"
    assert rate == 22_050 and len(samples) == 100 + len(spoken["text"])


def test_no_speech_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    job = job_of(write_mixed_list(tmp_path), tmp_path / "out", speak=False)
    finish(job)
    assert not any(one.get("wav") for one in records(job)) and not (job.out / "wav").exists()


def test_another_task_can_be_asked_of_all(tmp_path: Path) -> None:
    job = job_of(write_mixed_list(tmp_path), tmp_path / "out", task="asr")
    finish(job)
    found = [one for one in records(job) if one["key"]]
    assert {one["task"] for one in found} == {"<TRANSCRIBE>"}
    # the words of an understanding record stand in its text, those of a dialogue beside it
    assert found[0]["reference_heard"] == "i lost my kite"
    assert found[-1]["reference_heard"] == "we won" and found[-1]["reference"] == "Well done."


def test_an_unknown_task_is_told_unless_another_is_asked(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.list", 2)
    path.write_text(path.read_text().replace("<TEXT2TEXT>", "<SING>", 1))
    job = job_of(path, tmp_path / "out")
    finish(job)
    assert "task '<SING>': not one of" in records(job)[0]["error"]
    other = job_of(path, tmp_path / "other", task="t2t")
    finish(other)
    assert [one["error"] for one in records(other)] == [None, None]


def test_batches_hold_one_task_and_like_lengths(tmp_path: Path) -> None:
    data = write_mixed_list(tmp_path, 8)
    asked = finish(job_of(data, tmp_path / "out", batch_size=4, limit=30)).asked
    full = [batch for batch in asked if len(batch) > 1]
    assert all(len(batch) <= 4 for batch in asked)
    tasks = [{int(key.split("-")[0].strip("k")) // 8 for key in batch if key[0] == "k"}
             for batch in full]  # fmt: skip
    assert all(len(one) == 1 for one in tasks)
    heard = [int(key[-1]) for batch, task in zip(full, tasks, strict=True) if task == {0}
             for key in batch]  # fmt: skip
    assert heard == [7, 6, 5, 4, 3, 2, 1, 0]    # the longest first


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 80))
def test_shares_are_the_whole_list_once(length: int, world: int, window: int) -> None:
    every = [list(shares(length, Rank(rank, world), window)) for rank in range(world)]
    flat = sorted(index for windows in every for one in windows for index in one)
    assert flat == list(range(length))
    assert all(len(one) <= window for windows in every for one in windows)


@pytest.mark.parametrize("world", [2, 5])
def test_n_parts_equal_one(tmp_path: Path, world: int) -> None:
    data = write_mixed_list(tmp_path)
    whole = job_of(data, tmp_path / "whole", batch_size=3)
    parted = job_of(data, tmp_path / "parted", batch_size=3)
    finish(whole)
    for rank in reversed(range(world)):
        finish(parted, Rank(rank, world))
    assert len(list(parted.parts.iterdir())) == world
    assert records(parted) == records(whole)
    for one in records(whole):
        if one.get("wav"):
            assert (whole.out / one["wav"]).read_bytes() == (parted.out / one["wav"]).read_bytes()


def stopped_after(count: int, steps: Iterator[Any]) -> None:
    for _ in range(count):
        next(steps)


@pytest.mark.parametrize("cut", [0, 1, 40, 200])
def test_a_cut_part_is_answered_again_from_there_and_nothing_twice(
    tmp_path: Path, cut: int
) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 40), tmp_path / "out", batch_size=4)
    stopped_after(10, answer(job, ALONE, lambda job: Answers()))
    part = job.parts / "part-00000.jsonl"
    part.write_bytes(part.read_bytes()[: -cut or None])
    kept = set(find_results(job.parts))
    asked = [key for batch in finish(job).asked for key in batch]
    assert len(asked) == 40 - len(kept) and not {int(key[1:]) for key in asked} & kept
    lines = [json.loads(line)["index"] for line in part.read_bytes().splitlines()]
    assert sorted(lines) == list(range(40))


def test_another_number_of_processes_can_go_on(tmp_path: Path) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 50), tmp_path / "out", batch_size=2)
    for rank in range(3):
        stopped_after(5, answer(job, Rank(rank, 3), lambda job: Answers()))
    before = len(find_results(job.parts))
    asked = [len(batch) for rank in range(2) for batch in finish(job, Rank(rank, 2)).asked]
    assert before >= 15 and sum(asked) == 50 - before
    lines = [line for path in job.parts.iterdir() for line in path.read_bytes().splitlines()]
    assert len(lines) == 50 == len(records(job))


def test_a_finished_share_loads_no_model(tmp_path: Path) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 3), tmp_path / "out")
    finish(job)

    def load(job: Job) -> Answers:
        raise AssertionError("loaded for nothing")

    assert list(answer(job, ALONE, load)) == []


def test_failures_are_answered_again_only_when_asked_to(tmp_path: Path) -> None:
    job = job_of(write_mixed_list(tmp_path), tmp_path / "out")
    finish(job)
    assert finish(job).asked == []
    again = finish(replace(job, retry=True)).asked
    assert sorted(key for batch in again for key in batch) == ["bad-u2", "crash-u1"]
    assert len(records(job)) == 19


def test_a_machine_that_fails_at_everything_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(write_texts(tmp_path / "a.list", 60), tmp_path / "out", batch_size=4)
    monkeypatch.setenv("DEAD", "1")
    with pytest.raises(RuntimeError, match="the kernel gave up"):
        finish(job)
    assert len(find_results(job.parts)) < FAULTS_IN_A_ROW
