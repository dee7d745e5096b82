"""Claims about the loop: the cache changes nothing, phases turn in place, no state stays."""

from collections.abc import Iterator

import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.generation import decoder
from osum_echat.generation.decoder import Answer, ClipMemory, Limits, Phases, Token
from osum_echat.generation.sampling import AllowedAfter, Sampling
from osum_echat.sequence import interleave
from osum_echat.tasks import TASKS
from tests.parity.upstream_rules import NoLongRuns
from tests.tiny_network import VOCAB, network, row

GREEDY = Sampling(greedy=True)
EDGE, END = VOCAB.speech_edge, VOCAB.text_end


def script(name: str, ids: list[int]) -> list[bool]:
    """The phase in which each id would be read; all of them, and no more, make an answer."""
    phases, read = Phases(TASKS[name], VOCAB), []
    for place, number in enumerate(ids):
        read.append(phases.in_speech)
        assert phases.advance(number) == (place == len(ids) - 1)
    return read


def test_phases_end_where_the_task_says():
    assert script("s2s", [1, 2, END, EDGE, 5, END % 64, EDGE]) == [False] * 3 + [True] * 4
    assert script("t2t", [1, EDGE, END]) == [False] * 3
    assert script("tts", [5, 6, EDGE]) == [True] * 3


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
    tokens = list(started(model, name, answer, interrupt))
    return tokens, answer.stopped_by


def scripted(model, monkeypatch: pytest.MonkeyPatch, wanted: list[int]) -> None:
    """Let the sampling say these ids, whatever the logits."""
    ids: Iterator[int] = iter(wanted)
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, generator: next(ids))


def test_the_end_mark_is_read_as_text_and_ids_hold_no_marks(monkeypatch):
    model, answer = network(), answer_to("s2s")
    scripted(model, monkeypatch, [3, 4, END, EDGE, 9, EDGE])
    tokens = list(started(model, "s2s", answer))
    assert tokens == [(3, False), (4, False), (END, False), (EDGE, True), (9, True), (EDGE, True)]
    assert (answer.text.ids, answer.speech.ids, answer.stopped_by) == ([3, 4], [9], "end")


@pytest.mark.parametrize(
    ("ids", "limits", "count"),
    [
        ([3] * 9, Limits(5, 60), 5),
        ([3, END, EDGE, *[4] * 9], Limits(5, 8), 8),
        ([3, END, EDGE, *[4] * 9], Limits(2, 9), 9),  # the text ended within its limit
    ],
)
def test_a_run_without_an_end_stops_at_its_limit(monkeypatch, ids, limits, count):
    model = network()
    scripted(model, monkeypatch, ids)
    tokens, stopped_by = run(model, "s2s", limits=limits)
    assert len(tokens) == count and stopped_by == "limit"


def test_an_interrupt_stops_before_the_next_step():
    asked = []

    def interrupt() -> bool:
        asked.append(True)
        return len(asked) > 3

    tokens, stopped_by = run(network(), "s2s", interrupt=interrupt)
    assert len(tokens) == 3 and stopped_by == "interrupt"
    assert run(network(), "s2s", interrupt=lambda: True) == ([], "interrupt")


def test_each_phase_has_its_own_sampling_and_rules(monkeypatch):
    seen = []

    class Watch(NoLongRuns):
        def __call__(self, history, logits):
            seen.append((len(logits), list(history)))
            return super().__call__(history, logits)

    model = network()
    scripted(model, monkeypatch, [3, END, EDGE, 9, EDGE])
    run(model, "s2s", rules=[Watch()])
    assert seen == [(VOCAB.speech_head_rows, ids) for ids in ([], [EDGE], [EDGE, 9])]


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
        return {
            "sampling": sampling, "limits": Limits(5 * number + 3, 9 * number + 6),
            "generator": torch.Generator().manual_seed(number),
            "rules": [AllowedAfter([7], [77]), NoLongRuns(2)],
        }  # fmt: skip

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


def test_a_clip_that_was_heard_of_late_is_not_heard_again(monkeypatch: pytest.MonkeyPatch):
    model, memory = network(), ClipMemory(most=2)
    rows = [row("s2s", frames, answered=False) for frames in (40, 24, 40)]
    wanted = [decoder.embed_prompts(model, [one], VOCAB)[0] for one in rows]
    heard: list[int] = []
    encode = model.encode_audio_alone

    def counted(mels, lengths):
        heard.append(int(lengths))
        return encode(mels, lengths)

    monkeypatch.setattr(model, "encode_audio_alone", counted)
    found = decoder.embed_prompts(model, rows, VOCAB, memory)
    for one, own in zip(found, wanted, strict=True):
        assert torch.equal(one, own)
    assert heard == [40, 24]
    other = [row("s2s", frames, answered=False) for frames in (32, 40, 24)]
    decoder.embed_prompts(model, other, VOCAB, memory)
    assert heard == [40, 24, 32, 24]        # two are kept, those used last
