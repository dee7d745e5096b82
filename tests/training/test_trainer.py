"""Claims about a whole training: it learns, stops, and goes on as if it had never stopped."""

import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml

from osum_echat import files
from osum_echat.errors import CheckpointError, ConfigError, DataError, InputError
from osum_echat.models import checkpoint
from osum_echat.records import Turn, Utterance
from osum_echat.sequence import collate, compose
from osum_echat.settings import read_mapping
from osum_echat.tasks import task_for
from osum_echat.training import experiment, state, trainer, validation
from osum_echat.training.engine import StepReport
from osum_echat.training.metric_logger import QUIET_STEPS, WARM_STEPS, EarlyWarnings
from osum_echat.training.scheduler import learning_rate
from osum_echat.training.stages import group_of
from osum_echat.training.validation import Question
from osum_echat.vocab import Vocab
from tests.tiny_network import VOCAB, network
from tests.training.experiment import are_same, losses, metrics, result, write_experiment


def run(path: Path, *overrides: str) -> trainer.Outcome:
    return trainer.train(experiment.load(path, overrides))


@pytest.fixture
def path(tmp_path):
    return write_experiment(tmp_path)


@pytest.fixture
def log(caplog):
    logger = logging.getLogger("osum_echat")
    logger.propagate = True
    logger.setLevel(logging.INFO)
    return caplog


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """An experiment that ran its six steps at once, with a running mean of the weights."""
    path = write_experiment(tmp_path_factory.mktemp("unbroken"), run={"average": 0.9})
    assert run(path) == trainer.Outcome(6, None)
    return path


def test_the_loss_falls_every_task_is_told_and_what_is_finished_is_left(unbroken, monkeypatch):
    assert losses(unbroken)[-1] < losses(unbroken)[0] - 0.1
    line = metrics(unbroken)[0]
    assert set(line["tasks"]) <= {"understand", "tts", "s2s_think", "t2t"}
    assert sum(one["tokens"] for one in line["tasks"].values()) > 0
    assert 0 <= line["padding"] < 1 and line["tokens_per_s"] > 0
    assert "s2s_think" in metrics(unbroken)[-1]["held_out"]
    before = losses(unbroken)
    monkeypatch.setattr(trainer, "Trainer", None)
    assert run(unbroken) == trainer.Outcome(6, None) and losses(unbroken) == before


@pytest.mark.parametrize("stop", [1, 4])
def test_after_a_stop_every_loss_and_weight_is_the_same(unbroken, tmp_path, stop):
    path = write_experiment(tmp_path, run={"average": 0.9})
    run(path, f"run.steps={stop}")
    assert run(path) == trainer.Outcome(6, None) and losses(path) == losses(unbroken)
    assert are_same(result(path), result(unbroken))
    drops = [(one.parent / "out" / "drops.json").read_text() for one in (path, unbroken)]
    assert drops[0] == drops[1]


def test_the_result_is_a_model_directory_that_a_later_stage_starts_from(unbroken, tmp_path):
    final = unbroken.parent / "out" / trainer.FINAL_FOLDER
    model = checkpoint.load(final)
    vocab = Vocab.from_directory(final, model.settings.llm["vocab_size"], 32)
    assert vocab.encode("<|im_end|>") == (vocab.text_end,)
    raw = read_mapping(final / "model.yaml")
    assert (raw["thinking"], raw["template"]) == ("both", "english")
    assert (final / "prompts.yaml").is_file()
    path = write_experiment(tmp_path, stage={"train": ["adapter"]})
    loaded = replace(experiment.load(path), init=str(final), model=None, tokenizer=None)
    assert are_same(dict(trainer.Trainer(loaded).engine.model.state_dict()), result(unbroken))


def test_only_the_newest_checkpoints_are_kept(path, tmp_path):
    folder = tmp_path / "out" / state.FOLDER
    state.half_done(tmp_path / "out", 9).mkdir(parents=True)        # by a kill
    run(path, "run.steps=4", "run.save_minutes=1e-9")
    assert not [*folder.glob(".step_*")]
    assert sorted(one.name for one in folder.glob("step_*")) == ["step_00000003", "step_00000004"]
    assert (folder / state.LATEST_FILE).read_text() == "step_00000004\n"


def test_all_processes_step_at_the_rate_of_the_first_ones_clock(path):
    loaded = experiment.load(path, ["run.log_steps=2", "schedule.budget_minutes=9"])
    training, schedule = trainer.Trainer(loaded), loaded.schedule
    training.ranks = Mock(is_first=False, all_reduce_max=lambda _: (5.0, 0.0, 0.0, 0.0))
    training.engine.step = Mock(return_value=StepReport(1, True, {}))
    training.decide([])
    training.progress.minutes += 2.0        # its own saving took so long
    training.one_step()
    assert training.engine.step.call_args.args[1] == learning_rate(schedule, 0, 5.0)


def test_a_signal_saves_and_ends(path, tmp_path, monkeypatch):
    one_step = trainer.Trainer.one_step

    def with_signal(self: Any) -> None:
        one_step(self)
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.Trainer, "one_step", with_signal)
    assert run(path) == trainer.Outcome(2, signal.SIGTERM)
    assert not (tmp_path / "out" / trainer.FINAL_FOLDER).exists()
    monkeypatch.undo()
    assert run(path) == trainer.Outcome(6, None)


def test_raised_limits_go_on_and_lines_after_the_checkpoint_are_forgotten(path, tmp_path, log):
    run(path, "run.steps=1")
    with (tmp_path / "out" / trainer.METRICS_FILE).open("a") as file:
        file.write('{"step": 99, "loss": 0}\n')
    assert run(path, "run.steps=2") == trainer.Outcome(2, None) and len(losses(path)) == 2
    first = result(path)
    shutil.rmtree(tmp_path / "out" / trainer.FINAL_FOLDER)      # it is written again
    assert run(path, "run.steps=2").step == 2 and are_same(result(path), first)
    assert "the lists have changed" not in log.text
    lines = (tmp_path / "t2t.list").read_text()
    (tmp_path / "t2t.list").write_text(2 * lines)
    os.utime(tmp_path / "t2t.list", (2**31, 2**31))
    assert "after the training ended" not in log.text and run(path, "run.steps=2").step == 2
    assert f"{tmp_path / 't2t.list'}: written after the training ended" in log.text
    assert run(path, "run.steps=3").step == 3
    assert "an epoch here has 40 utterances, not 32;" in log.text


def test_epochs_end_a_training_and_the_last_steps_are_told_once(path, log):
    step = run(path, "run.steps=0", "run.epochs=1", "run.log_steps=50").step
    assert step > 2 and f"finished at step {step} (run.epochs 1)" in log.text
    lines = metrics(path)
    assert [line["step"] for line in lines] == [step, step]
    assert "loss" in lines[0] and "held_out" in lines[1]
    assert run(path, "run.steps=0", "run.epochs=1").step == step


def test_gradients_that_are_not_finite_are_left_out_then_given_up(path, log):
    training = trainer.Trainer(experiment.load(path, ["run.bad_steps=2"]))
    with torch.no_grad():
        training.engine.model.speech_head.bias[0] = float("nan")
    before = training.engine.model.speech_head.weight.clone()
    with pytest.raises(DataError, match=r"lower schedule\.rate"):
        training.train()
    assert torch.equal(training.engine.model.speech_head.weight, before)
    assert "left out: gradient norm nan; utterances u" in log.text


@pytest.mark.parametrize("broken", [
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(28, "No space left on device"), CheckpointError,
     r"No space left.*step_00000001 is as it was"),
])  # fmt: skip
def test_a_stop_or_full_disk_while_saving_leaves_the_one_before(
    path, tmp_path, monkeypatch, broken
):
    error, told, message = broken
    run(path, "run.steps=1")
    save = torch.save

    def half(value: Any, file: Any) -> None:
        save({"a": 1}, file)
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(told, match=message):
        run(path, "run.steps=2")
    monkeypatch.undo()
    assert state.newest(tmp_path / "out").name == "step_00000001"  # type: ignore[union-attr]
    assert run(path, "run.steps=2") == trainer.Outcome(2, None)
    file = tmp_path / "out" / state.FOLDER / "step_00000002" / state.STATE_FILE
    whole = file.read_bytes()
    start = whole.find(b"data.pkl") + 200
    file.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read .*; remove .*step_0"):
        run(path, "run.steps=3")


def test_a_step_without_tokens_moves_nothing_and_one_without_memory_is_told(path, monkeypatch):
    training = trainer.Trainer(experiment.load(path))
    batch = next(training.batches)
    empty = replace(batch, targets=torch.full_like(batch.targets, -100))
    report = training.engine.step([empty], 0.1)
    assert not report.applied and report.norm == 0.0
    monkeypatch.setattr(training.engine, "step", Mock(side_effect=MemoryError))
    with pytest.raises(ConfigError, match=r"step 1: out of memory.*lower data\.rows"):
        training.train()


def test_the_best_model_so_far_is_kept_and_later_worse_ones_do_not_replace_it(tmp_path):
    path = write_experiment(tmp_path, schedule={"kind": "constant", "warmup_steps": 0})
    run(path, "run.steps=2", "run.check_steps=2", "run.best=true")
    first = result(path, trainer.BEST_FOLDER)
    run(path, "run.steps=4", "run.check_steps=2", "run.best=true", "schedule.rate=30",
        "run.changed=true")  # fmt: skip
    held_out = [line["held_out"]["s2s_think"]["loss"] for line in metrics(path)
                if "held_out" in line]  # fmt: skip
    assert held_out[-1] > held_out[0] and are_same(result(path, trainer.BEST_FOLDER), first)


def test_a_stage_with_lora_trains_it_and_its_result_is_merged_when_read(tmp_path):
    lora = {"rank": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]}
    path = write_experiment(tmp_path, stage={"train": ["llm"], "lora": lora})
    run(path, "run.steps=2")
    final = tmp_path / "out" / trainer.FINAL_FOLDER
    plain, with_layers = checkpoint.load(final), checkpoint.load(final, keep_lora=True)
    with pytest.raises(ConfigError, match=r"lora\.targets: qproj: the LLM has down_proj"):
        run(path, f"output={tmp_path / 'next'}", "stage.lora.targets=[qproj, down_proj]")
    assert plain.settings.lora is None and with_layers.settings.lora is not None
    names = [name for name, _ in with_layers.named_parameters() if "lora_" in name]
    assert len(names) == 4 and not any("lora_" in name for name, _ in plain.named_parameters())
    ones, segments = torch.ones(1, 3, 16), torch.zeros(1, 3, dtype=torch.long)
    hidden = [model.eval().run(ones, segments, torch.arange(3)[None])
              for model in (plain, with_layers)]  # fmt: skip
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)


# An output that was trained in before, or that cannot be written

def test_other_settings_are_told_and_go_on_only_where_wanted(path, tmp_path, log):
    run(path, "run.steps=1")
    said = r"schedule\.rate 0\.01, now 0\.5; seed 777, now 3\. Begin in another.*run\.changed=true"
    with pytest.raises(ConfigError, match=said):
        run(path, "run.steps=2", "schedule.rate=0.5", "seed=3")
    with pytest.raises(ConfigError, match=r"data\.lists\.t2t\.path '.*', now None"):
        raw = yaml.safe_load(path.read_text())
        del raw["data"]["lists"]["t2t"]
        (tmp_path / "fewer.yaml").write_text(yaml.safe_dump(raw))
        run(tmp_path / "fewer.yaml", "run.steps=2")
    said = r"step_00000001: of another model, or of other trained parts .*init=.*out/final"
    with pytest.raises(CheckpointError, match=said) as caught:
        run(path, "run.steps=2", "stage.train=[llm]", "run.changed=true")
    assert "\n" not in str(caught.value) and run(path, "run.steps=2", "data.workers=1").step == 2
    assert "goes on with other settings: data.workers 0, now 1; run.steps 1, now 2" in log.text
    assert run(path, "run.steps=3", "schedule.rate=0.5", "run.changed=true").step == 3
    assert run(path, "run.steps=3", "schedule.rate=0.5").step == 3


def test_wanted_changes_of_the_optimizer_take_hold(path):
    run(path, "run.steps=1")
    before = result(path)
    run(path, "run.steps=2", "stage.rates={llm: 0}", "run.changed=true")
    moved = {group_of(name) for name, value in result(path).items()
             if not torch.equal(value, before[name])}  # fmt: skip
    assert moved == {"encoder", "adapter", "speech"}


def test_a_checkpoint_of_an_earlier_version_goes_on_by_its_old_names(tmp_path):
    path = write_experiment(tmp_path, prepare={"ctc_targets": True}, engine={"ctc_weight": 0.5})
    run(path, "run.steps=1")
    (stored,) = (tmp_path / "out" / state.FOLDER).glob("*/config.yaml")
    text = stored.read_text().replace("ctc_weight", "hearing").replace("ctc_targets", "name_heard")
    stored.write_text(text + "gone: 3\n")
    assert run(path, "run.steps=2").step == 2
    with pytest.raises(ConfigError, match=r"engine\.ctc_weight 0\.5, now 0\.25"):
        run(path, "run.steps=2", "engine.ctc_weight=0.25")


def test_a_second_training_in_one_output_is_refused_in_one_line(path, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.0)
    with (files.locked(tmp_path / "out" / state.LOCK_FILE),
          pytest.raises(InputError, match="another process is writing here")):  # fmt: skip
        run(path, "run.steps=1")
    assert run(path, "run.steps=1").step == 1


def test_an_output_that_cannot_be_written_is_one_line(path, tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/out"):
        with pytest.raises(InputError, match=r"not written \(.*choose another output"):
            run(path, f"output={tmp_path / place}")


@pytest.mark.parametrize("is_there", [True, False])
def test_an_encoder_cache_that_cannot_be_kept_does_not_spoil_the_end(tmp_path, is_there, log):
    path = write_experiment(tmp_path, stage={"train": ["llm"]})
    (tmp_path / "no_folder").touch()
    place = tmp_path / ("new/folder" if is_there else "no_folder") / "cache.safetensors"
    settings = ["run.steps=1", "engine.encoder_cache_mb=1", f"engine.encoder_cache_file={place}"]
    assert run(path, *settings).step == 1 and place.is_file() == is_there
    assert ("the next stage encodes anew" in log.text) != is_there
    assert "finished at step 1 (run.steps 1)" in log.text
    assert run(path, *settings).step == 1 and "already finished at step 1" in log.text
    if is_there:
        place.write_bytes(b"no cache")
        assert run(path, *settings, f"output={tmp_path / 'next'}").step == 1
        assert "cache.safetensors: cannot be read" in log.text


def test_a_full_disk_at_the_result_leaves_nothing_half(path, tmp_path, monkeypatch):

    def full(directory: Path, *_: Any, **__: Any) -> None:
        (directory / "model.safetensors").write_bytes(b"a part")
        raise OSError(28, "No space left on device", str(directory))

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(InputError, match=r"final: not written \(No space left"):
        run(path, "run.steps=1")
    assert not [*(tmp_path / "out").glob("*final*")] and not [*(tmp_path / "out").glob(".final*")]
    monkeypatch.undo()
    assert run(path, "run.steps=1").step == 1


def test_spikes_steps_that_move_nothing_and_untrained_tasks_are_told_once_in_a_while(log):
    warnings = EarlyWarnings()
    warnings.check(["tts"])         # before the first step nothing has trained
    for number, (norm, tasks) in enumerate(((50.0, ["s2s"]), (0.0, []), (-1.0, ["s2s"])), 1):
        warnings.step(number, norm, tasks)
    for number in range(4, WARM_STEPS + 400):
        warnings.step(number, 1.0 + number % 2, ["s2s"])
    assert not log.text and 1.0 < warnings.usual < 2.0
    usual = warnings.usual          # which a spike does not move
    for norm, start in ((100.0, 500), (0.0, 700)):
        for number in (start, start + 1, start + QUIET_STEPS):
            warnings.step(number, norm, ["t2t", "s2s"])
    assert warnings.usual == usual and log.text.count("gradient norm 100") == 2
    assert log.text.count("no gradient: nothing of stage.train had a part in s2s, t2t") == 2
    for _ in range(2):
        warnings.check(["s2s", "tts"])
    assert log.text.count("task tts: scored, but nothing of it was trained") == 1
    assert "task s2s" not in log.text


# Held-out questions that a model answers by generation while it trains

TAG = "<TRANSCRIBE> <AGE> <GENDER>"
ASKED = ("run.check_steps=2", "run.check_answers=3", "run.answer_tokens=12")


def rows(*said: str) -> list:
    """Understanding rows with their answers, each of another clip, behind one of another task."""
    found = [(Utterance("t", "<TEXT2TEXT>", Turn(text="a")),
              compose(task_for("t2t"), VOCAB, user_text="a", answer_text="b"))]  # fmt: skip
    for number, answer in enumerate(said):
        generator = torch.Generator().manual_seed(number)
        row = compose(task_for(TAG), VOCAB, clips=[torch.randn(30, 6, generator=generator)],
                      user_text="all?", answer_text=answer, key=str(number))  # fmt: skip
        found.append((Utterance(str(number), TAG, Turn()), row))
    return found


def question(answer: str, tag: str = TAG) -> Question:
    return replace(validation.questions(rows("x"), VOCAB, 1)[0], answer=answer, task=task_for(tag))


def test_a_model_that_has_learnt_the_answers_gives_them():
    made, model = rows("ab<CHILD><MALE>", "ba<OLD><MALE>"), network()
    asked = validation.questions(made, VOCAB, 2)
    before = validation.answered(model, VOCAB, asked, 20)
    batch = collate([[row] for _, row in made[1:]], VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        report = model.loss(batch)
        (report.total / report.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    said = validation.answered(model, VOCAB, asked, 20)
    assert said == [one.answer for one in asked] != before
    assert validation.figures(asked, said) == {"wer": 0.0, "age": 1.0, "gender": 1.0}


def test_figures_count_words_and_labels_and_an_answer_without_end_is_stopped():
    asked = [question("we won it<CHILD><MALE>"), question("so it is<OLD><FEMALE>"),
             question("<ADULT>", "<AGE>")]  # fmt: skip
    said = ["we won<CHILD><FEMALE>", "so it is", "<ADULT>"]
    assert validation.figures(asked, said) == {"wer": 1 / 6, "age": 2 / 3, "gender": 0.0}
    assert validation.figures([asked[2]], ["<OLD>"]) == {"age": 0.0}
    asked = validation.questions(rows("x"), VOCAB, 1)
    model = network()
    with torch.no_grad():
        model.llm.get_input_embeddings().weight[VOCAB.text_end] = 0.0
    assert len(validation.answered(model, VOCAB, asked, 7)[0]) <= 7


def test_a_training_tells_them_and_is_not_changed_by_asking(tmp_path):
    paths = {}
    for name, overrides in (("plain", []), ("asked", ASKED)):
        (tmp_path / name).mkdir()
        held_out = {"understand": {"path": str(tmp_path / name / "understand.list")}}
        paths[name] = write_experiment(tmp_path / name, data={"held_out": held_out})
        trainer.train(experiment.load(paths[name], ["run.steps=4", *overrides]))
    assert losses(paths["plain"]) == losses(paths["asked"])
    told = [one["answers"] for one in metrics(paths["asked"]) if "answers" in one]
    assert len(told) == 2  # steps 2 and 4, which is the end
    assert all(set(one) == {"wer", "age", "gender"} for one in told)
    assert not any("answers" in one for one in metrics(paths["plain"]))
