"""Claims about engines that many callers share: each gets what it would get alone.

Where vLLM is not installed, all but its absence is skipped of it: `make test-vllm` runs the whole
file.
"""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice

import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.generation import batch_engine, decoder, vllm_engine
from osum_echat.generation.batch_engine import BatchEngine
from osum_echat.generation.decoder import Answer, Limits, Token
from osum_echat.generation.sampling import NoLoops, Sampling
from osum_echat.generation.vllm_engine import VllmEngine
from osum_echat.inference.assistant import EChat
from osum_echat.models.echat import EChatModel
from osum_echat.paths import TINY
from osum_echat.tasks import TASKS
from tests import tiny_network
from tests.tiny_network import VOCAB, row

with_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is installed apart")
GREEDY = Sampling(greedy=True)
NAMES = ("s2s", "t2t", "tts", "s2t", "s2s_streaming", "s2s_think")
BATCH = [NAMES[number % len(NAMES)] for number in range(16)]
LENGTHS = [3 + 5 * number for number in range(16)]
Engine = BatchEngine | VllmEngine


# vLLM's attention on a CPU knows heads of 32 and some wider ones.
SIZES = {**tiny_network.LLM, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def network(tokens: int = 2048) -> EChatModel:
    """Random weights that matter to each other; room for so many tokens a row."""
    llm = {**SIZES, "max_position_embeddings": tokens}
    return tiny_network.network(settings=replace(tiny_network.SETTINGS, llm=llm), scale=4.0)


def answer_to(name: str, tokens: int = 40, sampling: Sampling = GREEDY, rules=()) -> Answer:
    generator = torch.Generator().manual_seed(tokens)
    return Answer(TASKS[name], VOCAB, sampling, rules, Limits(tokens, tokens), generator)


def prompts(model, names=NAMES) -> list[torch.Tensor]:
    rows = [row(name, 24 + 8 * place, answered=False) for place, name in enumerate(names)]
    return decoder.embed_prompts(model, rows, VOCAB)


def alone(model, prompt, answer: Answer) -> tuple[list[Token], str]:
    """By our own loop."""
    tokens = [token for _, token in decoder.decode(model, [prompt], [answer])]
    return tokens, answer.stopped_by


def told(engine: Engine, prompts, answers, interrupt=None) -> list[list[Token]]:
    """The tokens of each row of one call."""
    tokens: list[list[Token]] = [[] for _ in prompts]
    for place, token in engine.decode(prompts, answers, interrupt):
        tokens[place].append(token)
    return tokens


KINDS = ("own", "own in pieces", pytest.param("vllm", marks=with_vllm))


@pytest.fixture(scope="module", params=KINDS)
def engine(request) -> Iterator[Engine]:
    """In pieces: prompts of three tokens at a time, and callers that wait for one of two rows."""
    if request.param == "vllm":
        yield VllmEngine(network(), most_rows=16)
        return
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "own":
            patch.setattr(batch_engine, "PIECE_TOKENS", 3)
        made = BatchEngine(network(), most_rows=16 if request.param == "own" else 2)
        yield made
        made.close()


@pytest.fixture
def own() -> Iterator[BatchEngine]:
    made = BatchEngine(network())
    yield made
    made.close()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, top_k=5, top_p=0.9,
                                                       repetition_penalty=1.1)])  # fmt: skip
def test_sixteen_rows_side_by_side_get_what_each_would_get_alone(engine, sampling: Sampling):
    given, rules = prompts(engine.model, BATCH), (NoLoops(),)
    answers = [answer_to(*one, sampling, rules) for one in zip(BATCH, LENGTHS, strict=True)]
    tokens = told(engine, given, answers)
    for place, (name, length) in enumerate(zip(BATCH, LENGTHS, strict=True)):
        wanted = alone(engine.model, given[place], answer_to(name, length, sampling, rules))
        assert (tokens[place], answers[place].stopped_by) == wanted
    assert any(token.is_speech for row in tokens for token in row)


def test_callers_in_many_threads_get_what_each_would_get_alone(engine):
    given = prompts(engine.model, BATCH)

    def ask(one) -> list[Token]:
        prompt, name, length = one
        return told(engine, [prompt], [answer_to(name, length)])[0]

    asked = list(zip(given, BATCH, LENGTHS, strict=True))
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(ask, asked))
    for tokens, (prompt, name, length) in zip(found, asked, strict=True):
        assert tokens == alone(engine.model, prompt, answer_to(name, length))[0]


def test_a_start_that_was_read_ahead_changes_nothing(engine):
    (prompt,) = prompts(engine.model, ("s2s",))
    long = torch.cat((prompt, prompt.flip(0), prompt, prompt.flip(0), prompt))
    wanted = alone(engine.model, long, answer_to("s2s"))[0]
    other = long[: len(long) // 2].clone()
    other[-1] += 1.0
    for start in (long[:3], long[:150], other, long):
        engine.read_ahead(start)
        assert told(engine, [long], [answer_to("s2s")]) == [wanted]
    if isinstance(engine, BatchEngine):
        assert len(engine._starts) <= 2         # what another goes on from is dropped


@dataclass(frozen=True)
class Breaks:
    after: int
    in_speech = False

    def __call__(self, history, logits):
        if len(history) >= self.after:
            raise ArithmeticError("a broken rule")
        return logits


def test_one_that_leaves_or_fails_harms_no_other(engine):
    given = prompts(engine.model, ("t2t",) * 3)
    leaving = engine.decode(given[2:], [answer_to("t2t", 30)])
    next(leaving)
    leaving.close()
    broken = engine.decode(given[:1], [answer_to("t2t", 30, rules=(Breaks(3),))])
    other = engine.decode(given[1:2], [answer_to("t2t", 30)])
    begun = [next(other)[1]]
    with pytest.raises(ArithmeticError, match="a broken rule"):
        list(broken)
    tokens = begun + [token for _, token in other]
    assert tokens == alone(engine.model, given[1], answer_to("t2t", 30))[0]


def test_an_interrupt_ends_an_answer_at_the_next_step(engine):
    stop, answer = threading.Event(), answer_to("t2t", 1900)
    tokens = engine.decode(prompts(engine.model, ("t2t",)), [answer], stop.is_set)
    next(tokens)
    stop.set()
    assert len(list(tokens)) < 1800 and answer.stopped_by == "interrupt"


@pytest.mark.parametrize("kind", [BatchEngine, pytest.param(VllmEngine, marks=with_vllm)])
def test_rows_wait_for_memory_and_end_where_the_longest_row_is_full(monkeypatch, kind):
    monkeypatch.setattr(vllm_engine, "CACHED_TOKENS", 1)
    model = network(256)
    model.speech_head.bias.data[VOCAB.speech_edge] = -1e4       # no answer finds its end
    engine = kind(model, most_rows=6)                           # keys and values of 768 tokens
    given = [one[-90 - place :] for place, one in enumerate(prompts(model, ("tts",) * 6))]
    answers = [answer_to("tts", 500) for _ in given]
    tokens = told(engine, given, answers)
    for place, prompt in enumerate(given):
        wanted = alone(model, prompt, answer_to("tts", 500))
        assert (tokens[place], answers[place].stopped_by) == wanted and wanted[1] == "limit"
    with pytest.raises(InputError, match="the model takes 256"):
        next(engine.decode([given[0].repeat(9, 1)], [answer_to("tts")]))


# Our own

def test_closing_ends_every_answer(own):
    given, answer = prompts(own.model, ("t2t",)), answer_to("t2t", 100_000)
    tokens = own.decode(given, [answer])
    next(tokens)
    own.close()
    list(tokens)
    assert answer.stopped_by in ("interrupt", "limit")
    with pytest.raises(RuntimeError, match="closed"):
        next(own.decode(given, [answer]))


def test_rows_that_come_and_go_for_long_take_no_more_room(own):
    given = prompts(own.model, ("t2t", "t2t"))
    first = own.decode(given[:1], [answer_to("t2t", 600)])
    next(first)
    for _ in range(30):
        second = own.decode(given[1:], [answer_to("t2t", 40)])
        for _ in range(20):
            next(second, None)
            next(first, None)
        first, second = second, first
        second.close()
    assert own._rows.tokens < 1500


# vLLM

@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_how_to_get_it():
    with pytest.raises(InputError, match=r"^engine vllm: vLLM is missing .* make vllm.*$"):
        VllmEngine(network())


@with_vllm
def test_heads_that_vllm_does_not_know_are_refused():
    with pytest.raises(InputError, match=r"^engine vllm: .* this one's are 4; choose engine own$"):
        VllmEngine(tiny_network.network())


@with_vllm
def test_an_interrupt_frees_the_slots_of_its_call_alone():
    engine = VllmEngine(network(), most_rows=2)
    given = prompts(engine.model, ("t2t",) * 3)
    stop: list[bool] = []
    first = [answer_to("t2t", 500), answer_to("t2t", 500)]
    running = engine.decode(given[:2], first, lambda: bool(stop))
    list(islice(running, 4))
    waits, third = engine.decode(given[2:], [answer_to("t2t", 9)]), answer_to("t2t", 9)
    wanted = alone(engine.model, given[2], third)[0]
    assert engine.live == 2
    stop.append(True)
    assert [token for _, token in waits] == wanted          # it steps, so it sees the interrupt
    list(running)                                           # what was made before
    assert [one.stopped_by for one in first] == ["interrupt", "interrupt"]
    left = engine.decode(given[:1], [answer_to("t2t", 500)])
    next(left)
    left.close()
    assert engine.live == 0 and not engine._engine.has_unfinished_requests()


@with_vllm
def test_an_engine_that_is_dropped_leaves_the_others_alone():
    engine = VllmEngine(network(), most_rows=16)
    VllmEngine(network(), most_rows=2)
    gc.collect()
    given = prompts(engine.model, ("s2s",))
    assert told(engine, given, [answer_to("s2s")])[0] == alone(
        engine.model, given[0], answer_to("s2s"))[0]  # fmt: skip


@pytest.fixture(scope="module")
def assistants():
    own = EChat.load(TINY, device="cpu", dtype="fp32")
    return own, EChat.load(TINY, device="cpu", dtype="fp32", engine="vllm", share=own)


@with_vllm
@pytest.mark.parametrize("task", ["asr", "s2t_think", "s2s", "s2s_think"])
def test_the_tiny_model_replies_alike(assistants, task: str):
    question = TINY / "samples" / "question.wav"
    own, other = (one.reply(question, task=task, greedy=True) for one in assistants)
    same = {"wave": other.wave, "timings": other.timings}
    assert replace(own, **same) == other and (own.speech_tokens or not task.startswith("s2s"))
