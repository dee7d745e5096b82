"""Claims about held-out questions that a model answers by generation while it trains."""

from dataclasses import replace

import torch

from osum_echat.records import Turn, Utterance
from osum_echat.sequence import collate, compose
from osum_echat.tasks import task_for
from osum_echat.training import experiment, validation
from osum_echat.training.validation import Question
from tests.tiny_network import VOCAB, network
from tests.training.experiment import losses, metrics, write_experiment

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
        experiment.train(experiment.load(paths[name], ["run.steps=4", *overrides]))
    assert losses(paths["plain"]) == losses(paths["asked"])
    told = [one["answers"] for one in metrics(paths["asked"]) if "answers" in one]
    assert len(told) == 2  # steps 2 and 4, which is the end
    assert all(set(one) == {"wer", "age", "gender"} for one in told)
    assert not any("answers" in one for one in metrics(paths["plain"]))
