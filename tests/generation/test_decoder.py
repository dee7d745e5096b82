"""Claims about the loop: the cache changes nothing, phases turn in place, no state stays."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from osum_echat.errors import ConfigError, InputError
from osum_echat.generation import decoder, kv_cache, step_graph
from osum_echat.generation.decoder import Answer, Limits, Phases, Token
from osum_echat.generation.kv_cache import CachedLLM, Prefill
from osum_echat.generation.sampling import AllowedAfter, EndsAtCue, NoLoops, Sampling
from osum_echat.generation.step_graph import StepGraph
from osum_echat.models import int8
from osum_echat.models.echat import build_llm
from osum_echat.models.lora import Change, LoraSettings, add_layers
from osum_echat.sequence import interleave
from osum_echat.tasks import TASKS
from tests.models.test_echat import made_of_four_bits
from tests.parity.upstream_rules import NoLongRuns
from tests.tiny_network import LLM, VOCAB, network, row

GREEDY = Sampling(greedy=True)
EDGE, END = VOCAB.speech_edge, VOCAB.text_end


def script(name: str, ids: list[int]) -> list[bool]:
    """The phase in which each id would be read; all of them, and no more, make an answer."""
    phases, read = Phases(TASKS[name], VOCAB), []
    for place, number in enumerate(ids):
        read.append(phases.in_speech)
        assert phases.advance(number) == (place == len(ids) - 1)
    return read


@pytest.mark.parametrize("words", [3, 5, 6, 7, 11, 12, 13])
@pytest.mark.parametrize("name", ["s2s_streaming", "tts_streaming"])
def test_interleaved_phases_follow_the_trained_layout(words: int, name: str):
    text, speech = [1] * words + [END], [EDGE, *[7] * 45, EDGE]
    mixed = interleave([-1 - number for number in text], speech)
    ids = [number if number >= 0 else -1 - number for number in mixed]
    assert script(name, ids) == [number >= 0 for number in mixed]


def answer_to(name: str, **options) -> Answer:
    options = {"sampling": GREEDY, "limits": Limits(40, 60)} | options
    return Answer(TASKS[name], VOCAB, **options)


def started(model, name: str, answer: Answer, interrupt=None):
    (prompt,) = decoder.embed_prompts(model, [row(name, answered=False)], VOCAB)
    return (token for _, token in decoder.decode(model, [prompt], [answer], interrupt))


def run(model, name: str, interrupt=None, **options) -> tuple[list[Token], str]:
    """All tokens, and what stopped the run."""
    answer = answer_to(name, **options)
    return list(started(model, name, answer, interrupt)), answer.stopped_by


def scripted(monkeypatch: pytest.MonkeyPatch, wanted: list[int]) -> None:
    """Let the sampling say these ids, whatever the logits."""
    ids = iter(wanted)
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, generator: next(ids))


def test_the_end_mark_is_read_as_text_and_ids_hold_no_marks(monkeypatch):
    model, answer = network(), answer_to("s2s")
    scripted(monkeypatch, [3, 4, END, EDGE, 9, EDGE])
    tokens = list(started(model, "s2s", answer))
    assert tokens == [(3, False), (4, False), (END, False), (EDGE, True), (9, True), (EDGE, True)]
    assert (answer.text.ids, answer.speech.ids, answer.stopped_by) == ([3, 4], [9], "end")


@pytest.mark.parametrize(("ids", "limits", "count"), [
    ([3] * 9, Limits(5, 60), 5), ([3, END, EDGE, *[4] * 9], Limits(5, 8), 8),
    ([3, END, EDGE, *[4] * 9], Limits(2, 9), 9),  # the text ended within its limit
])  # fmt: skip
def test_a_run_without_an_end_stops_at_its_limit(monkeypatch, ids, limits, count):
    model = network()
    scripted(monkeypatch, ids)
    tokens, stopped_by = run(model, "s2s", limits=limits)
    assert len(tokens) == count and stopped_by == "limit"


def side_by_side(model, answers: dict[str, Answer]) -> list[list[Token]]:
    """The tokens of each row of one batch."""
    prompts = decoder.embed_prompts(model, [row(name, answered=False) for name in answers], VOCAB)
    given: list[list[Token]] = [[] for _ in answers]
    for number, token in decoder.decode(model, prompts, list(answers.values())):
        given[number].append(token)
    return given


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=2.0, repetition_penalty=1.3)])
def test_rows_of_a_batch_answer_as_if_alone(sampling: Sampling):
    model, names = network(1), ("s2s", "t2t", "tts", "s2s_streaming", "understand")

    def options(number: int) -> dict:
        return {"sampling": sampling, "limits": Limits(5 * number + 3, 9 * number + 6),
                "generator": torch.Generator().manual_seed(number),
                "rules": [AllowedAfter([7], [77]), NoLongRuns(2)]}  # fmt: skip

    alone = [run(model, name, **options(number)) for number, name in enumerate(names)]
    answers = {name: answer_to(name, **options(number)) for number, name in enumerate(names)}
    assert side_by_side(model, answers) == [tokens for tokens, _ in alone]
    assert [one.stopped_by for one in answers.values()] == [stopped for _, stopped in alone]
    assert len({len(tokens) for tokens, _ in alone}) > 2  # they left the batch one by one


def test_a_row_that_fills_the_models_positions_has_met_its_limit(monkeypatch):
    model = network(1)
    (prompt,) = decoder.embed_prompts(model, [row("tts", answered=False)], VOCAB)
    monkeypatch.setattr(model.llm.config, "max_position_embeddings", len(prompt) + 4)
    tokens, stopped_by = run(model, "tts")
    assert len(tokens) == 5 and stopped_by == "limit"
    monkeypatch.setattr(model.llm.config, "max_position_embeddings", len(prompt) - 1)
    with pytest.raises(InputError, match="give shorter audio"):
        run(model, "tts")


# Choosing the next id, and about what may not come next.

@pytest.mark.parametrize(("kind", "wrong"), [
    (Sampling, {"temperature": 0.0}), (Sampling, {"top_k": -1}), (Sampling, {"top_p": 0.0}),
    (Sampling, {"top_p": 1.5}), (Sampling, {"repetition_penalty": 0}),
    (NoLoops, {"times": 1}), (NoLoops, {"longest": 0}),
])  # fmt: skip
def test_a_setting_out_of_range_is_refused(kind, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.7), (0, 1e-6), (50, 1.0), (15, 0.8)])
def test_draws_are_those_of_multinomial(top_k: int, top_p: float):
    """So that top-p counts what top-k left, keeps one id at least, and none that is impossible."""
    sampling = Sampling(temperature=1.2, top_k=top_k, top_p=top_p)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    logits[logits.argmax()] = -torch.inf
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    scores, ids = logits.topk(top_k or 50)
    chances = (scores / 1.2).softmax(0)
    chances[chances.cumsum(0) - chances >= top_p] = 0.0
    for _ in range(100):
        drawn = ids[torch.multinomial(chances, 1, generator=theirs)]
        assert sampling.choose(logits, ours) == int(drawn)


def blocked(rule, history: list[int]) -> list[int]:
    return torch.nonzero(rule(history, torch.zeros(50)).isinf())[:, 0].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_a_phrase_that_came_three_times_may_not_begin_again(size: int):
    phrase = list(range(10, 10 + size))
    assert blocked(NoLoops(), [1, *phrase * 2]) == []
    assert blocked(NoLoops(), [1, *phrase * 3]) == [10] and blocked(NoLoops(), phrase * 3) == [10]
    assert blocked(NoLoops(), [*phrase * 3, 5]) == []
    assert blocked(NoLoops(4), [1, *phrase * 3]) == blocked(NoLoops(), []) == []
    assert blocked(NoLoops(longest=3), [4, 5, 6, 7] * 5) == []


@pytest.mark.parametrize(("history", "likeliest", "ends"), [
    ([9, 9, 4, 1], 2, True),        # behind the thought, the cue
    ([9, 9, 4, 1], 3, False),       # another word
    ([9, 9, 4, 5], 2, False),       # behind another word
    ([9, 4, 4, 1], 2, False),       # within the thought
])  # fmt: skip
def test_a_reply_ends_where_a_label_thought_would_begin_again(history, likeliest, ends):
    logits = torch.zeros(10)
    logits[likeliest] = 1.0
    found = EndsAtCue((1, 2), (9, 9), 0)(history, logits)
    assert found.isfinite().nonzero().flatten().tolist() == ([0] if ends else [*range(10)])


# Claims about rows that grow: each step is what the stock model says, whatever stands beside.

LENGTHS = (7, 1, 4)
STEPS = 9


def llm(kind: str = "qwen2", seed: int = 0, **changes) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = build_llm(LLM | {"model_type": kind, "head_dim": 4} | changes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def rows_of(lengths) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(length + STEPS, 16, generator=generator) for length in lengths]


def whole(model, row: torch.Tensor) -> torch.Tensor:
    """The stock model's states on the whole row at once: (tokens, width)."""
    return model.model(inputs_embeds=row[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize(("lengths", "leaving"), [
    ((5,), {}), ((4, 4), {}), (LENGTHS, {}), (LENGTHS, {2: [1, 2], 5: [1]}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@torch.inference_mode()
def test_every_step_says_what_the_stock_model_says(kind, lengths, leaving, monkeypatch):
    """Whoever leaves, at a step of `leaving`: the places of those that stay."""
    monkeypatch.setattr(kv_cache, "ROOM_TOKENS", 4)  # room is made on the way
    model, rows = llm(kind), rows_of(lengths)
    live = list(zip(rows, map(partial(whole, model), rows), lengths, strict=True))
    growing = CachedLLM(model, [row[:-STEPS] for row in rows])
    for step in range(STEPS + 1):
        for state, (_, want, length) in zip(growing.state, live, strict=True):
            torch.testing.assert_close(state, want[length - 1 + step], atol=2e-5, rtol=1e-4)
        if step in leaving:
            growing.keep(leaving[step])
            live = [live[place] for place in leaving[step]]
        if step < STEPS:
            growing.step(torch.stack([row[length + step] for row, _, length in live]))


@torch.inference_mode()
def test_a_row_goes_on_after_a_start_that_was_read_before():
    model, (row, other) = llm(), rows_of((7, 6))
    start = Prefill(model, [torch.cat((row[:4], other[:2]))])     # goes on in another way
    start.advance(6)
    growing = CachedLLM(model, [row[:-1]], start)
    growing.step(row[-1:])
    torch.testing.assert_close(growing.state[0], whole(model, row)[-1], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_lora_layers_take_part():
    model, (row,) = llm(), rows_of((5,))
    add_layers(model, LoraSettings(rank=2, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.add_(0.5)
    model.eval()
    growing = CachedLLM(model, [row[:-1]])
    growing.step(row[-1:])
    torch.testing.assert_close(growing.state[0], whole(model, row)[-1], atol=2e-5, rtol=1e-4)


def test_a_window_of_attention_bounds_the_row():
    model = llm(use_sliding_window=True, sliding_window=32, max_window_layers=1)
    assert kv_cache.longest_row(model.config) == 32
    assert kv_cache.longest_row(llm().config) == LLM["max_position_embeddings"]


# The graph of one row's steps: what torch says of the same 4-bit weights

SIZES = {"model_type": "qwen2", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
         "max_position_embeddings": 64}  # fmt: skip
FEW = 6


@pytest.fixture(params=[False, True], ids=["plain", "lora"])
def small(request):
    torch.manual_seed(2)
    made, changes = build_llm(SIZES).eval(), {}
    for name, layer in made.model.layers.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        layer.weight.data = made_of_four_bits(*layer.weight.shape).weight.data
        if layer.bias is not None:
            layer.bias.data.zero_()
        if request.param and name.startswith("1."):
            down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
            change = Change(layer.weight.data.clone(), 0.1 * down, 0.1 * up, 2.0)
            changes[f"llm.model.layers.{name}"] = change
    int8.shrink(SimpleNamespace(llm=made, text_head=None), changes)
    return made


@torch.inference_mode()
def test_the_steps_of_a_row_are_those_of_torch_in_memory_that_moves(small, monkeypatch):
    monkeypatch.setattr(kv_cache, "ROOM_TOKENS", 2)
    prompt, tokens = torch.randn(5, 64), torch.randn(FEW, 1, 64)
    assert step_graph.fits(small)

    def states(growing):
        found = []
        for token in tokens:
            growing.step(token)
            found.append(growing.state)
        return torch.cat(found)

    wanted = states(CachedLLM(small, [prompt]))
    small.step_graph = StepGraph(small)
    growing = CachedLLM(small, [prompt])
    made = states(growing)
    assert growing.bound is not None and (made - wanted).norm() < 0.02 * wanted.norm()
    growing.step(torch.randn(1, 64))
    beside = CachedLLM(small, [prompt, prompt[:3]])       # several rows: by torch
    beside.step(tokens[0].expand(2, -1))
    assert beside.bound is None and (beside.state[0] - made[0]).norm() < 0.02 * made[0].norm()
