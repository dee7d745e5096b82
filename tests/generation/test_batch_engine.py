"""Claims about the shared loop: each caller gets what it would get alone, whoever else is there."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.generation import decoder
from osum_echat.generation.batch_engine import MOST_AHEAD, BatchEngine
from osum_echat.generation.decoder import Answer, Limits, Token
from osum_echat.generation.sampling import Sampling
from osum_echat.tasks import TASKS
from tests.tiny_network import VOCAB, network, row

NAMES = ("s2s", "t2t", "tts", "s2t", "s2s_streaming", "s2s")


def answer_to(name: str, tokens: int = 40) -> Answer:
    return Answer(TASKS[name], VOCAB, Sampling(greedy=True), limits=Limits(tokens, tokens))


def prompts(model, names=NAMES) -> list[torch.Tensor]:
    return decoder.embed_prompts(model, [row(name, answered=False) for name in names], VOCAB)


def by_itself(engine: BatchEngine, prompt: torch.Tensor, answer: Answer) -> list[Token]:
    """What the loop of one caller says."""
    return [token for _, token in decoder.decode(engine.model, [prompt], [answer])]


@pytest.fixture
def engine():
    made = BatchEngine(network())
    yield made
    made.close()


@pytest.mark.parametrize(("piece", "rows"), [(1, 8), (3, 2), (64, 8)])
def test_callers_get_the_tokens_that_they_would_get_alone(monkeypatch, piece: int, rows: int):
    """Where there are more callers than rows, they wait for their turn."""
    monkeypatch.setattr("osum_echat.generation.batch_engine.PIECE_TOKENS", piece)
    engine = BatchEngine(network(), most_rows=rows)
    given = prompts(engine.model)
    lengths = [40, 7, 25, 12, 33, 3]
    alone = []
    for prompt, name, length in zip(given, NAMES, lengths, strict=True):
        answer = answer_to(name, length)
        alone.append((by_itself(engine, prompt, answer), answer))
    answers = [answer_to(name, length) for name, length in zip(NAMES, lengths, strict=True)]
    with ThreadPoolExecutor(len(given)) as pool:
        found = list(pool.map(lambda one: list(engine.decode(*one)),
                              zip(given, answers, strict=True)))  # fmt: skip
    engine.close()
    for tokens, answer, (wanted, own) in zip(found, answers, alone, strict=True):
        assert tokens == wanted and answer.stopped_by == own.stopped_by


def test_what_a_prompt_begins_with_may_be_read_ahead(engine):
    (prompt,) = prompts(engine.model, ("s2s",))
    wanted = by_itself(engine, prompt, answer_to("s2s"))
    other = prompt[: len(prompt) // 2].clone()
    other[-1] += 1.0
    for start in (prompt[:3], prompt[: len(prompt) // 3], other, prompt):
        engine.read_ahead(start)
        assert list(engine.decode(prompt, answer_to("s2s"))) == wanted
    assert len(engine._starts) <= 2         # what another goes on from is dropped


def test_an_answer_is_not_made_far_ahead_of_its_caller(engine):
    (prompt,) = prompts(engine.model, ("t2t",))
    answer = answer_to("t2t", 60)
    slow = engine.decode(prompt, answer)
    next(slow)
    list(engine.decode(prompt, answer_to("t2t", 12)))       # meanwhile others are answered
    list(engine.decode(prompt, answer_to("t2t", 5)))
    assert len(answer.text.ids) <= 12 + 5 + 2 * MOST_AHEAD
    assert 1 + len(list(slow)) == len(answer.text.history)


def test_one_that_leaves_or_fails_harms_no_other(engine):
    class Broken:
        in_speech = False

        def __call__(self, history, logits):
            raise InputError("a rule that fails")

    given = prompts(engine.model, ("t2t", "t2t", "t2t"))
    wanted = by_itself(engine, given[0], answer_to("t2t", 60))
    leaving = engine.decode(given[1], answer_to("t2t", 60))
    steady = engine.decode(given[0], answer_to("t2t", 60))
    tokens = [next(steady)]
    next(leaving)
    leaving.close()
    broken = answer_to("t2t", 60)
    broken.text.rules.append(Broken())
    with pytest.raises(InputError, match="a rule"):
        list(engine.decode(given[2], broken))
    assert [*tokens, *steady] == wanted


def test_an_interrupt_ends_an_answer_at_the_next_step(engine):
    stop = threading.Event()
    (prompt,) = prompts(engine.model, ("t2t",))
    answer = answer_to("t2t", 2000)
    tokens = engine.decode(prompt, answer, stop.is_set)
    next(tokens)
    stop.set()
    assert len(list(tokens)) < 1990 and answer.stopped_by == "interrupt"


def test_closing_ends_every_answer():
    engine = BatchEngine(network())
    (prompt,) = prompts(engine.model, ("t2t",))
    answer = answer_to("t2t", 100_000)
    tokens = engine.decode(prompt, answer)
    next(tokens)
    engine.close()
    list(tokens)
    assert answer.stopped_by in ("interrupt", "limit")
    with pytest.raises(RuntimeError, match="closed"):
        next(engine.decode(prompt, answer))


def test_rows_that_come_and_go_for_long_take_no_more_room(engine):
    given = prompts(engine.model, ("t2t", "t2t"))
    first = engine.decode(given[0], answer_to("t2t", 600))
    next(first)
    for _ in range(30):
        second = engine.decode(given[1], answer_to("t2t", 40))
        for _ in range(20):
            next(second, None)
            next(first, None)
        first, second = second, first
        second.close()
    assert engine._rows.tokens < 1500
