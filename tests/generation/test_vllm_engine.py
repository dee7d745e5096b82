"""Claims about vLLM in the place of our own loop: the same ids, and nobody disturbs another.

Where vLLM is not installed, all but its absence is skipped: `make test-vllm` runs the whole file.
"""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice

import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.generation import decoder, vllm_engine
from osum_echat.generation.decoder import Answer, Limits, Token
from osum_echat.generation.sampling import NoLoops, Sampling
from osum_echat.generation.vllm_engine import VllmEngine
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import Reply
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


@pytest.fixture(scope="module")
def engine():
    return VllmEngine(network(), most_rows=16)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_how_to_get_it():
    with pytest.raises(InputError, match=r"^engine vllm: vLLM is missing .* make vllm.*$"):
        VllmEngine(network())


@with_vllm
def test_heads_that_vllm_does_not_know_are_refused():
    with pytest.raises(InputError, match=r"^engine vllm: .* this one's are 4; choose engine own$"):
        VllmEngine(tiny_network.network())


@with_vllm
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, top_k=5, top_p=0.9,
                                                       repetition_penalty=1.1)])  # fmt: skip
def test_sixteen_rows_side_by_side_get_what_each_would_get_alone(engine, sampling: Sampling):
    given, rules = prompts(engine.model, BATCH), (NoLoops(),)
    answers = [answer_to(*one, sampling, rules) for one in zip(BATCH, LENGTHS, strict=True)]
    tokens: list[list[Token]] = [[] for _ in BATCH]
    for place, token in engine.decode(given, answers):
        tokens[place].append(token)
    for place, (name, length) in enumerate(zip(BATCH, LENGTHS, strict=True)):
        wanted = alone(engine.model, given[place], answer_to(name, length, sampling, rules))
        assert (tokens[place], answers[place].stopped_by) == wanted
    assert any(token.is_speech for row in tokens for token in row)


@with_vllm
def test_callers_in_many_threads_get_what_each_would_get_alone(engine):
    given = prompts(engine.model, BATCH)

    def ask(one) -> list[Token]:
        prompt, name, length = one
        return [token for _, token in engine.decode([prompt], [answer_to(name, length)])]

    asked = list(zip(given, BATCH, LENGTHS, strict=True))
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(ask, asked))
    for tokens, (prompt, name, length) in zip(found, asked, strict=True):
        assert tokens == alone(engine.model, prompt, answer_to(name, length))[0]


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
def test_an_engine_that_is_dropped_leaves_the_others_alone(engine):
    VllmEngine(network(), most_rows=2)
    gc.collect()
    (prompt,) = prompts(engine.model, ("s2s",))
    tokens = [token for _, token in engine.decode([prompt], [answer_to("s2s")])]
    assert tokens == alone(engine.model, prompt, answer_to("s2s"))[0]


@dataclass(frozen=True)
class Breaks:
    after: int
    in_speech = False

    def __call__(self, history, logits):
        if len(history) >= self.after:
            raise ArithmeticError("a broken rule")
        return logits


@with_vllm
def test_what_a_rule_raises_reaches_its_own_caller_alone(engine):
    given = prompts(engine.model, ("t2t", "t2t"))
    broken = engine.decode(given[:1], [answer_to("t2t", 30, rules=(Breaks(3),))])
    other = engine.decode(given[1:], [answer_to("t2t", 30)])
    begun = [next(other)[1]]
    with pytest.raises(ArithmeticError, match="a broken rule"):
        list(broken)
    tokens = begun + [token for _, token in other]
    assert tokens == alone(engine.model, given[1], answer_to("t2t", 30))[0]


@with_vllm
def test_a_start_that_was_read_ahead_changes_nothing(engine):
    (prompt,) = prompts(engine.model, ("s2s",))
    long = torch.cat((prompt, prompt.flip(0), prompt, prompt.flip(0), prompt))
    engine.read_ahead(long[:150])
    assert engine.live == 0
    tokens = [token for _, token in engine.decode([long], [answer_to("s2s")])]
    assert tokens == alone(engine.model, long, answer_to("s2s"))[0]


@with_vllm
def test_rows_wait_for_memory_and_end_where_the_longest_row_is_full(monkeypatch):
    monkeypatch.setattr(vllm_engine, "CACHED_TOKENS", 1)
    model = network(256)
    model.speech_head.bias.data[VOCAB.speech_edge] = -1e4       # no answer finds its end
    engine = VllmEngine(model, most_rows=6)                     # keys and values of 768 tokens
    given = [one[-90:] for one in prompts(model, ("tts",) * 6)]     # that all fit at first
    answers = [answer_to("tts", 500) for _ in given]
    tokens: list[list[Token]] = [[] for _ in given]
    for place, token in engine.decode(given, answers):
        tokens[place].append(token)
    for place, prompt in enumerate(given):
        wanted = alone(model, prompt, answer_to("tts", 500))
        assert (tokens[place], answers[place].stopped_by) == wanted and wanted[1] == "limit"
    with pytest.raises(InputError, match="the model takes 256"):
        next(engine.decode([given[0].repeat(9, 1)], [answer_to("tts")]))


@pytest.fixture(scope="module")
def assistants():
    own = EChat.load(TINY, device="cpu", dtype="fp32")
    return own, EChat.load(TINY, device="cpu", dtype="fp32", engine="vllm", share=own)


def told(reply: Reply) -> tuple:
    return reply.heard, reply.thought, reply.labels, reply.text, reply.speech_tokens


@with_vllm
@pytest.mark.parametrize("task", ["asr", "s2t_think", "s2s", "s2s_think"])
def test_the_tiny_model_replies_alike(assistants, task: str):
    question = TINY / "samples" / "question.wav"
    own, other = (told(one.reply(question, task=task, greedy=True)) for one in assistants)
    assert other == own and (own[-1] or not task.startswith("s2s"))
