"""Claims about rows made from utterances, of targets as published, and of changed sounds."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from osum_echat.data import clips as sounds
from osum_echat.data.clips import AugmentSettings, ClipReader, ClipSettings
from osum_echat.data.prepare import Preparer, PrepareSettings, Target, make_target
from osum_echat.data.sources import Dropped, RawSource
from osum_echat.errors import InputError
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.sequence import Sequence
from osum_echat.tasks import Prompts
from osum_echat.thinking import CHINESE, ENGLISH
from tests.data.world import CODES, write_world
from tests.letters import letter_vocab

VOCAB = letter_vocab(CODES)
PROMPTS = Prompts({"<AGE> <GENDER>": ("who?",), "<TRANSCRIBE> <AGE> <GENDER>": ("all?",)})
TINY = {"thinking": "both", "template": "english", "speech_per_text": 0.0}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def settings(**changes: Any) -> PrepareSettings:
    return PrepareSettings(**{**TINY, **changes})


def first(lists: dict[str, Path], name: str) -> Utterance:
    utterance = RawSource(name, lists[name]).read(0)
    assert isinstance(utterance, Utterance)
    return utterance


def rows_of(utterance: Utterance, seeds: int = 20, **changes: Any) -> list[Sequence | Dropped]:
    preparer = Preparer(settings(**changes), VOCAB, 80, PROMPTS)
    return [preparer(utterance, random.Random(seed)) for seed in range(seeds)]


def row_of(utterance: Utterance, **changes: Any) -> Sequence:
    row = rows_of(utterance, 1, **changes)[0]
    assert isinstance(row, Sequence), row
    return row


def answer(row: Sequence) -> str:
    return VOCAB.decode([one for one, trained in zip(row.ids, row.trained, strict=True) if trained])


def user_words(row: Sequence) -> str:
    text = VOCAB.decode([one for one in row.ids if not VOCAB.is_speech(one)])
    return text.split("user\n")[1]


@pytest.mark.parametrize("name", ["understand", "tts", "s2s", "s2s_think", "s2t", "t2t", "history"])
def test_every_task_makes_a_row(lists, name):
    row = row_of(first(lists, name))
    assert row.task == {"history": "s2s_history"}.get(name, name)
    assert len(row.clips) == {"tts": 0, "t2t": 0, "history": 2}.get(name, 1)


def test_both_kinds_of_thought_are_drawn(lists):
    answers = {answer(row) for row in rows_of(first(lists, "s2t_think"))}
    assert answers == {
        "<think>I hear a boy who said i lost my kite.<think end>Oh no.",
        "<think>The user said: i lost my kite, age: <CHILD>, gender: <MALE>, emotion: <SAD>, "
        "sound event: <OTHER>, reply emotion: <SOFT><think end>Oh no.",
    }


def test_labels_alone_are_asked_for_with_their_own_prompt(lists):
    rows = rows_of(first(lists, "understand"), labels_only=0.5)
    pairs = {(user_words(row).split("assistant")[0].strip(), answer(row)) for row in rows}
    assert pairs == {("who?", "<CHILD><MALE>"), ("all?", "i lost my kite<CHILD><MALE>")}


def test_unknown_labels_of_a_thought_are_all_unknown_or_all_default():
    turn = Turn(text="hi", reply_text="Yo.")
    one = Utterance("k", "<S2TCHAT> <THINKER>", turn, Labels(age="OLD"))
    texts = {make_target(one, settings(thinking="label"), ENGLISH, random.Random(seed)).text
             for seed in range(40)}  # fmt: skip
    start = "<think>The user said: hi, age: <OLD>, gender: "
    end = ", reply emotion: <&&><think end>Yo."
    assert texts == {start + "<&&>, emotion: <&&>, sound event: <&&>" + end,
                     start + "<MALE>, emotion: <NEUTRAL>, sound event: <OTHER>" + end}  # fmt: skip


def test_text_stands_in_for_sound_but_not_by_the_reply_of_a_wordless_clip(lists):
    row = row_of(first(lists, "history"), audio_as_text=1.0, audio_as_text_noise=0.0)
    assert row.clips == []
    words = user_words(row)
    squeezed = "".join(one for place, one in enumerate(words) if words[place - 1 : place] != one)
    assert "helo" in squeezed and len(words) > 2 * len("hello")
    one = first(lists, "s2s")
    silent = replace(one, user=replace(one.user, text=None), labels=Labels())
    row = row_of(silent, audio_as_text=1.0, thinking="natural")
    assert user_words(row).lstrip().startswith("assistant")  # no words of the user


def test_speech_can_be_cut_off(lists):
    row = row_of(first(lists, "s2s"), speech_answers=False)
    assert not row.joint and answer(row) == "Oh no."
    dropped = rows_of(first(lists, "tts"), 1, speech_answers=False)[0]
    assert dropped.reason == "speech answers are off"


def test_features_of_a_cache_are_the_same_again_and_masks_never_reach_it(lists):
    utterance = first(lists, "s2s")
    preparer = Preparer(settings(cache_mb=1), VOCAB, 80, PROMPTS)
    fresh, kept = (preparer(utterance, random.Random(0)).clips[0] for _ in range(2))
    assert torch.equal(fresh, kept)
    assert torch.equal(fresh, row_of(utterance).clips[0].half().float())
    utterance = first(lists, "s2s")
    masked = row_of(utterance, time_masks=1, band_masks=1, cache_mb=1).clips[0]
    assert (masked == 0).any(0).any()
    preparer = Preparer(settings(time_masks=1, cache_mb=1), VOCAB, 80, PROMPTS)
    clips = [preparer(utterance, random.Random(seed)).clips[0] for seed in (0, 1, 0)]
    assert torch.equal(clips[0], clips[2]) and not torch.equal(clips[0], clips[1])


def test_a_cache_tells_sounds_apart_in_files_and_in_tars(lists):
    paths = sorted((lists["s2s"].parent / "audio").glob("*.wav"))[:3]
    plain, cached = (ClipReader(ClipSettings(cache_mb=size), 80) for size in (0, 1))
    for made in (paths, [path.read_bytes() for path in paths]):
        for sound in (*made, *made):
            wanted, found = (reader.read(reader.draft(Turn(sound), random.Random(0)))[0]
                             for reader in (plain, cached))  # fmt: skip
            assert torch.equal(found, wanted.half().float())


@pytest.mark.parametrize(("changes", "reason"), [
    ({"max_tokens": 20}, "too long"), ({"min_frames": 10_000}, "audio too short or too long"),
    ({"speech_per_text": 100.0}, "speech too short for its text"),
    ({"other_names": ("Oh",)}, "names another assistant"),
])  # fmt: skip
def test_what_cannot_be_used_is_dropped_with_a_reason(lists, changes, reason):
    assert rows_of(first(lists, "s2s"), 1, **changes)[0].reason == reason


@pytest.mark.parametrize(("utterance", "reason"), [
    (Utterance("k", "<S2TCHAT>", Turn(reply_text="a")), "no audio"),
    (Utterance("k", "<S2TCHAT>", Turn(Path("/gone.wav"), reply_text="a")), "audio cannot be used"),
    (Utterance("k", "<WHAT>", Turn(reply_text="a")), "task cannot be used"),
    (Utterance("k", "<TEXT2TOKEN>", Turn(reply_text="a")), "no speech tokens"),
    (Utterance("k", "<TEXT2TOKEN>", Turn(reply_text="a", reply_speech=(99,))),
     "parts do not fit the task"),
    (Utterance("k", "<TEXT2TEXT>", Turn(reply_text="a")), "no question"),
])  # fmt: skip
def test_a_record_short_of_something_is_dropped(utterance, reason):
    assert rows_of(utterance, 1)[0].reason == reason


GOLDENS = Path(__file__).parents[1] / "goldens" / "data"
CASES = json.loads((GOLDENS / "tokenize.json").read_text(encoding="utf-8"))
KINDS = {"language": "natural", "tag": "label"}  # upstream's processor -> prepare.thinking
OUTPUT_TYPES = {
    "text": "understand", "s2t_chat": "s2t", "s2t_chat_think": "s2t_think", "text2text": "t2t",
    "s2t_chat_fake": "s2t_fake", "text2token": "tts", "text2token_streaming": "tts_streaming",
    "speech2text_token": "s2s", "speech2text_token_think": "s2s_think",
    "speech2text_token_streaming": "s2s_streaming", "speech2text_token_history": "s2s_history",
}  # fmt: skip
END = "<|im_end|>"


def stripped_by_upstream(case: dict[str, Any]) -> bool:
    """Natural thinking strips a leading tag of label-only tasks to nothing; we keep the label."""
    return case["out"] is not None and case["out"]["label_text"] == END


def unknown_task(case: dict[str, Any]) -> bool:
    """Upstream takes an unknown task for understanding; we refuse it."""
    return case["in"]["task"] == "<UNKNOWN>"


def ours(case: dict[str, Any]) -> list[Target | Dropped]:
    """Every target that chance may lead to."""
    raw = {"key": "k", **case["in"]}
    utterance = Utterance.from_json(raw, "golden", Path())
    settings = PrepareSettings(thinking=KINDS[case["processor"]])
    seeds = range(40)
    return [make_target(utterance, settings, CHINESE, random.Random(seed)) for seed in seeds]


@pytest.mark.parametrize("case", CASES, ids=lambda one: f"{one['processor']} {one['in']['task']}")
def test_targets_are_those_of_upstream(case):
    if unknown_task(case):
        with pytest.raises(InputError, match="not one of"):
            ours(case)
        return
    drawn = ours(case)
    if case["out"] is None:
        assert all(isinstance(one, Dropped) for one in drawn)
        return
    wanted = case["out"]["label_text"].removesuffix(END)
    if stripped_by_upstream(case):
        label = case["in"]["txt"][case["in"]["txt"].index("<") :]
        wanted = {"<YOUTH>": "<ADULT>", "<武侠评书>": "<有声书>"}.get(label, label)
    found = {(one.text, one.task.name) for one in drawn if isinstance(one, Target)}
    assert (wanted, OUTPUT_TYPES[case["out"]["output_type"]]) in found


def test_exceptions_are_few():
    met = [sum(map(rule, CASES)) for rule in (unknown_task, stripped_by_upstream)]
    assert met == [4, 7] and len(CASES) == 88


VOICE = torch.sin(torch.arange(16_000) / 9.0) * 0.3


def test_noise_is_as_far_below_the_voice_as_asked_and_substitutes_come_from_before():
    noise = torch.randn(1_000, generator=torch.Generator().manual_seed(0))
    added = sounds.with_noise(VOICE, noise, 10.0, 0.7) - VOICE
    ratio = float(VOICE.square().mean() / added.square().mean())
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.1)
    features = torch.arange(200.0)[:, None].expand(200, 4).clone()
    sounds.substitute(features, random.Random(1), 3)
    assert torch.all(features[:, 0] <= torch.arange(200.0))


@pytest.mark.parametrize("changes", [
    {"speeds": (0.9, 1.1)}, {"substitutes": 3}, {"noises": "hiss.txt"}, {"rooms": "hiss.txt"},
])  # fmt: skip
def test_a_visit_repeated_is_changed_alike(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    hiss = np.random.default_rng(0).normal(0, 0.1, 3_000)
    soundfile.write("hiss.wav", hiss, 16_000)
    soundfile.write("voice.wav", VOICE.numpy(), 16_000)
    Path("hiss.txt").write_text("hiss.wav\n")
    augment = AugmentSettings(noise_chance=1.0, room_chance=1.0, **changes)
    plain, reader = (ClipReader(PrepareSettings(prompts=None, augment=one), 80)
                     for one in (AugmentSettings(), augment))  # fmt: skip
    turn = Turn(Path("voice.wav"))
    drafts = [reader.draft(turn, random.Random(seed)) for seed in (1, 1, 2)]
    features = [reader.read(draft)[0] for draft in drafts]
    assert [len(one) for one in features] == [draft.frames for draft in drafts]
    assert torch.equal(features[0], features[1])
    bare, _ = plain.read(plain.draft(turn, random.Random(1)))
    assert bare.shape != features[0].shape or not torch.equal(bare, features[0])
