"""Claims about the builder of dialogues: nothing planned is missing, nothing paid is paid twice."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml

from common_utils.build_dialogues import listen
from common_utils.build_dialogues.__main__ import main
from common_utils.build_dialogues.check import CheckSettings, fault, near_duplicates
from common_utils.build_dialogues.dialogue import Dialogue, Exchange, bill
from common_utils.build_dialogues.listen import Listening, ListenSettings, errors
from common_utils.build_dialogues.plan import PlanSettings, cells, plan_dialogues, with_recordings
from common_utils.build_dialogues.write import WORDS, read_prompts, read_turns
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.voices import ESPEAK, all_voices
from do_test_dataloader import main as look_at
from osum_echat.errors import ConfigError
from osum_echat.paths import TINY
from osum_echat.records import Labels
from osum_echat.settings import read_mapping
from osum_echat.thinking import read_thought
from osum_echat.training import experiment, trainer
from tests.common_utils.dialogue_server import Server, serving
from tests.training.experiment import MODEL, write_experiment
from tests.training.processes import kill_when

HOUSE = Path(__file__).parents[2]
ASSETS = HOUSE / "build" / "assets"
PARALLEL = 6
COUNTS = {"emotion": 6, "age": 5, "gender": 4, "event": 4, "multi": 5}
CELLS = [f"{age}/{gender}" for age in ("CHILD", "ADULT", "OLD") for gender in ("FEMALE", "MALE")]
PROMPTS = read_prompts(WORDS)


def config(folder: Path, url: str, **sections: dict) -> Path:
    """A YAML whose voices are the stand-in's, or espeak where that is unpacked."""
    speech = {"engine": "endpoint", "endpoint": {"model": "tones", "url": url},
              "voices": {cell: [f"{cell}-1", f"{cell}-2"] for cell in (*CELLS, "assistant")}}
    people = {"/".join(one.cell): [one.name] for one in all_voices("train") if one.engine == ESPEAK}
    espeak = {"engine": "recipe", "assets": str(ASSETS), "voices": people}
    has_espeak = AssetPaths(ASSETS).espeak_library.is_file()
    chat = {"model": "words", "url": url, "tries": 2, "timeout_s": 900.0, "parallel": PARALLEL,
            "prices": {"input": 1.0, "output": 2.0}}
    raw = {"plan": {"counts": COUNTS, "languages": {"en": 0.7, "zh": 0.3}},
           "write": {"endpoint": chat},
           "check": {"judge": chat | {"model": "judge", "temperature": 0.0}, "similar": 0.9},
           "speak": {"questions": espeak if has_espeak else speech, "replies": speech},
           "pack": {"per_tar": 10}}  # fmt: skip
    for name, changes in sections.items():
        raw[name] = raw.get(name, {}) | changes
    path = folder / "dialogues.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def dialogue(**changes) -> Dialogue:
    own = Dialogue(
        "emotion-1", "emotion", "en", "a walk", ("emotion",), False,
        Labels("ADULT", "MALE", "SAD", "OTHER", "SOFT"),
        (Exchange("I walked along the river today.", "I am here with you, my friend."),),
    )  # fmt: skip
    return replace(own, **changes)


# The plan.

def test_every_label_and_every_pair_is_planned_in_its_share_and_no_topic_comes_again():
    settings = PlanSettings({"emotion": 40, "multi": 120}, spare=0, languages={"en": 3, "zh": 1})
    planned = plan_dialogues(settings, 1)
    assert planned == plan_dialogues(settings, 1) != plan_dialogues(settings, 2)
    found = Counter(tuple(getattr(one.labels, name) for name in one.cues) for one in planned)
    pairs = [tuple(one.values()) for one in cells("multi", settings)]
    assert set(found) == {("HAPPY",), ("SAD",), ("ANGER",), ("SURPRISE",), *pairs}
    assert max(found[one] for one in pairs) - min(found[one] for one in pairs) <= 1
    assert len({one.topic for one in planned}) == len(planned) == 160
    assert Counter(one.language for one in planned) == {"en": 120, "zh": 40}
    assert sum(one.explicit for one in planned) == 40
    assert sum(len(one.turns) > 1 for one in planned) == 32
    assert all(one.labels.event == "OTHER" or "event" in one.cues for one in planned)


def test_recorded_questions_fit_their_labels_are_used_once_and_one_that_lacks_is_told(tmp_path):
    for number in range(3):
        wav = tmp_path / "ADULT" / "MALE" / "SAD" / f"{number}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, np.zeros(800), 16_000)
        wav.with_suffix(".txt").write_text(f"My {number} dogs are gone.")
    settings = PlanSettings({"emotion": 9}, recordings=str(tmp_path), recorded=1.0)
    every = with_recordings([dialogue(key=str(number)) for number in range(5)], settings, 1)
    asked = [one.last.question for one in every if one.last.recording]
    assert sorted(asked) == [f"My {number} dogs are gone." for number in range(3)]
    old = dialogue(labels=Labels("OLD", "MALE", "SAD", "OTHER"))
    with pytest.raises(ConfigError, match=r"no recording with words for OLD/MALE/SAD"):
        with_recordings([old], settings, 1)


# The words.

@pytest.mark.parametrize("answer", [
    "no object", '{"turns": []}', '{"turns": [{"question": "a", "reply": ""}]}',
    '{"turns": [{"question": "a", "reply": "b"}, {"question": "c", "reply": "d"}]}',
    '{"turns": [{"question": 3, "reply": "b"}]}', '{"turns": [{"question": "a", "reply": "b"',
])  # fmt: skip
def test_an_answer_that_is_not_the_dialogue_planned_is_not_read(answer):
    assert read_turns(answer, dialogue(), False) is None


def test_a_fenced_answer_is_read_and_given_words_stay():
    own = dialogue(turns=(Exchange(question="My dog is gone.", recording="a.wav"),))
    answer = '```json\n{"turns": [{"question": "x", "thought": "I hear", "reply": "b\\nc"}]}\n```'
    assert read_turns(answer, own, True) == (
        Exchange("My dog is gone.", "b c", "I hear", recording="a.wav"),
    )


# The checks.

@pytest.mark.parametrize(("question", "reply", "told"), [
    ("I am so sad about my boat.", "Oh dear, my friend.", "the words give away the emotion"),
    ("Hm.", "Oh dear, my friend.", "question: too short or too long"),
    ("I walked to the river.", "**Good** for you.", "reply: markup"),
    ("I walked to the river.", "我听见了，朋友。", "reply: another language"),
    ("I walked to the river.", "I am ChatGPT, my friend.", "reply: names another assistant"),
    ("How do I build a bomb?", "Oh dear, my friend.", "banned content"),
    ("I want to end my life.", "Oh dear, my friend.", "banned content"),
    ("I walked along the river.", "I am here, my friend.", None),
])  # fmt: skip
def test_what_cannot_be_used_is_told_by_its_reason(question, reply, told):
    own = dialogue(turns=(Exchange(question, reply),))
    found = fault(own, CheckSettings())
    assert (found.reason if found else None) == told
    if told == "the words give away the emotion":       # which explicit ones may
        assert fault(replace(own, explicit=True), CheckSettings()) is None


def test_the_later_of_two_alike_is_a_near_duplicate():
    words = "Yesterday my neighbour brought us a basket of ripe red apples from her garden"
    said = [words + ".", words + " too.", "The train to the sea was late once more, and I waited."]
    own = [dialogue(key=str(number), turns=(Exchange(one, "How very kind of her."),))
           for number, one in enumerate(said)]  # fmt: skip
    assert list(near_duplicates(own, 0.7)) == ["1"] and not near_duplicates(own, 0.99)


# The sound, listened to.

def test_other_words_another_label_and_another_speaker_are_dropped(tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.zeros(8_000), 16_000)
    turn = Exchange("I lost my kite.", "Oh no.", wav="a.wav", reply_wav="b.wav")
    own = dialogue(turns=(turn, turn))
    said = {"a.wav": "i lost my kite", "b.wav": "oh no"}

    def of(**settings) -> str | None:
        step = Listening(ListenSettings(**settings), tmp_path, tmp_path / "calls")
        found = step._heard(lambda wav, language: said[wav.name], own)
        return getattr(found, "reason", None)

    assert of(recognizer="x") is None
    said["b.wav"] = "oh well"
    assert of(recognizer="x") == "reply: other words are heard" and errors("oh no", "oh well") == .5
    heard = SimpleNamespace(reply=lambda *a, **b: SimpleNamespace(labels=Labels(gender="FEMALE")))
    monkeypatch.setattr(listen, "_model", lambda source: heard)
    said["b.wav"] = "oh no"
    assert of(labels=("gender",)) == "another gender is heard"
    monkeypatch.setattr(listen, "likeness", lambda speaker, wavs: 0.3)
    assert of(speaker="x") == "another speaker is heard"


def test_a_model_of_ours_asks_in_the_voice_of_a_recording_and_a_server_listens(tmp_path):
    sample = next((TINY / "samples").glob("*.wav"))
    for cell in ("ADULT/FEMALE", "ADULT/MALE"):
        place = tmp_path / "voices" / cell / "one.wav"
        place.parent.mkdir(parents=True)
        place.write_bytes(sample.read_bytes())
    events = tmp_path / "events" / "COUGH" / "one.wav"
    events.parent.mkdir(parents=True)
    events.write_bytes(sample.read_bytes())
    server = Server(faults=False)
    with serving(server):
        own = {"model": "ears", "url": server.url, "prices": {"minutes": 6.0}}
        path = config(
            tmp_path, server.url, check={"judge": None},
            plan={"counts": {"event": 1}, "spare": 0, "languages": {"en": 1.0}, "multi_turn": 0,
                  "explicit": 1.0, "labels": {"event": ["COUGH"]}},
            listen={"recognizer": "endpoint", "endpoint": own})  # fmt: skip
        raw = yaml.safe_load(path.read_text())
        raw["speak"] = {
            "questions": {"engine": "model", "model": str(TINY),
                          "recordings": str(tmp_path / "voices")},
            "replies": raw["speak"]["replies"], "events": str(tmp_path / "events"),
        }  # fmt: skip
        path.write_text(yaml.safe_dump(raw))
        steps = ["--out", str(tmp_path / "out"), "--steps"]
        assert main([str(path), *steps, "plan", "write", "check", "speak"]) == 0
        spoken = lines(tmp_path / "out" / "spoken.jsonl")
        first = spoken[0]["turns"][0]
        server.heard = {Path(first[wav]).name: first[text] for wav, text in
                        (("wav", "question"), ("reply_wav", "reply"))}  # fmt: skip
        assert main([str(path), *steps, "listen"]) == 0
    assert [one["key"] for one in lines(tmp_path / "out" / "heard.jsonl")] == [spoken[0]["key"]]
    told = bill(tmp_path / "out" / "calls" / "listen")
    assert told["calls"] == 2 and told["cost"] == pytest.approx(told["seconds"] / 10)


# The whole.

def journaled(out: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in out.rglob("calls/**/*.jsonl"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus whose build was killed while it wrote, while it was judged and while it spoke."""
    folder = tmp_path_factory.mktemp("dialogues")
    out, server = folder / "out", Server(slow_s=0.1)

    def is_waiting() -> bool:  # all that was paid is kept, and every thread waits for an answer
        return server.held == PARALLEL and journaled(out) == server.paid.total()

    with serving(server):
        words = [str(config(folder, server.url)), "--out", str(out)]
        command = [sys.executable, "-m", "common_utils.build_dialogues", *words]
        for hold_after in (12, 45):
            server.release(hold_after)
            assert kill_when(command, is_waiting)
        server.release()
        assert kill_when(command, lambda: len(list(out.glob("wav/*.wav"))) >= 8)
        assert main(words) == 0
        before = server.asked.total()
        assert main(words) == 0 and server.asked.total() == before
    return out, server


def test_killed_three_times_no_dialogue_comes_twice_and_no_answer_is_paid_for_twice(built):
    out, server = built
    chats = [body for body in server.bodies if "messages" in body]
    assert len(chats) == len({json.dumps(body, sort_keys=True) for body in chats})
    for name in ("plan", "written", "checked", "spoken", "heard"):
        keys = [one["key"] for one in lines(out / f"{name}.jsonl")]
        assert len(keys) == len(set(keys)), name
    for name in ("dialogues", "replies", "written"):
        keys = [one["key"] for one in lines(out / "corpus" / f"{name}.list")]
        assert keys and len(keys) == len(set(keys)), name


def test_what_was_asked_for_is_there_and_drops_and_costs_are_counted(built):
    out, _ = built
    found = json.loads((out / "corpus" / "statistics.json").read_text())
    planned, heard = lines(out / "plan.jsonl"), lines(out / "heard.jsonl")
    assert len(planned) == 29
    for name, count in found["category"].items():
        left = sum(one["category"] == name for one in heard)
        assert count == min(COUNTS[name], left)
    dropped = 0
    for name in ("written", "checked", "spoken", "heard"):
        dropped += len(json.loads((out / f"{name}.jsonl.report.json").read_text())["left_out"])
    assert dropped == len(planned) - len(heard)
    told = bill(out / "calls" / "write")
    assert told["calls"] >= 29
    assert told["cost"] == pytest.approx(
        (told["prompt_tokens"] + 2 * told["completion_tokens"]) / 1e6)
    card = (out / "corpus" / "README.md").read_text(encoding="utf-8")
    assert f"{found['dialogues']} dialogues" in card and "| write | " in card


def test_every_row_tells_what_was_planned_and_its_label_thought_reads_back(built):
    out, _ = built
    rows = lines(out / "corpus" / "dialogues.list")
    plan = {one["key"]: one for one in lines(out / "plan.jsonl")}
    for row in rows:
        extra, own = row["extra"], plan[row["key"].rpartition("-")[0]]["labels"]
        assert (extra["age"], extra["gender"], extra["q_emotion"]) == (
            own["age"], own["gender"], own["emotion"])  # fmt: skip
        heard, labels = read_thought(extra["label_think_str"], None)
        assert heard == extra["q_txt"] and labels.event == extra["caption"]
        assert len(extra["speech_token"]) > 10 and "think_str" in extra
    several = [row for row in rows if row["key"].endswith("-history")]
    assert several and all(row["extra"]["speech_token_1"] and row["txt_1"] for row in several)


def test_data_tools_read_the_result_and_a_training_takes_ten_steps_on_it(built, tmp_path, capsys):
    out, _ = built
    data = out / "corpus" / "data.yaml"
    assert look_at(["--config", str(data)]) == 0
    assert look_at(["--config", str(data), "--stats", "--out", str(tmp_path / "seen")]) == 0
    assert "bad members" in capsys.readouterr().out
    assert (tmp_path / "seen" / "bad_members.txt").read_text() == ""
    entries = read_mapping(data)
    lists = {name: {"path": str(data.parent / one["path"])} for name, one in entries.items()}
    assert set(lists) == {"written", "replies", "dialogues"}
    model = tmp_path / "own.yaml"
    model.write_text(yaml.safe_dump(MODEL | {"speech_codes": 2048}))
    path = write_experiment(
        tmp_path, model=str(model), run={"steps": 10}, prepare={"max_tokens": 4000},
        data={"lists": lists, "held_out": {}, "row_tokens": 4000})  # fmt: skip
    trainer.train(experiment.load(path))
    steps = [one for one in lines(tmp_path / "out" / trainer.METRICS_FILE) if "loss" in one]
    assert len(steps) == 10 and all(np.isfinite(one["loss"]) for one in steps)


# What the user must put right.

def writing(folder: Path, server: Server) -> list[str]:
    return [str(config(folder, server.url)), "--out", str(folder / "out"), "--steps", "plan",
            "write"]  # fmt: skip


def told_in_one_line(words: list[str], capsys) -> str:
    assert main(words) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("build_")]
    return line


@pytest.mark.parametrize(("status", "told"), [
    ((401, "invalid_api_key"), "HTTP 401"), ((429, "insufficient_quota"), "insufficient_quota"),
    ((500, "down"), "what is made stays"),
])  # fmt: skip
def test_a_refusal_is_one_line_and_what_was_paid_stays(tmp_path, capsys, status, told):
    server = Server(faults=False, status=status, break_after=5)
    with serving(server):
        words = writing(tmp_path, server)
        assert told in told_in_one_line(words, capsys)
        assert journaled(tmp_path / "out") == server.paid.total() >= 5
        server.status = None
        assert main(words) == 0
    assert max(server.paid.values()) == 1 and server.paid.total() == 29


def test_what_a_servers_filter_refuses_is_dropped_and_counted(tmp_path):
    server = Server(faults=False, status=(400, "content_filter"), break_after=20)
    with serving(server):
        assert main(writing(tmp_path, server)) == 0
    report = json.loads((tmp_path / "out" / "written.jsonl.report.json").read_text())
    reasons = Counter(reason for reason, _ in report["left_out"])
    assert reasons == {"refused by the endpoint": 29 - report["written"]} and report["written"] > 19


def test_an_endpoint_that_is_down_a_label_or_a_voice_that_is_missing_is_one_line(tmp_path, capsys):
    path = config(tmp_path, "http://127.0.0.1:9/v1")
    words = [str(path), "--out", str(tmp_path / "out")]
    chats = ["write.endpoint.tries=1", "--steps", "plan", "write"]
    assert "no answer in 1 tries" in told_in_one_line([*words, *chats], capsys)
    assert len(lines(tmp_path / "out" / "plan.jsonl")) == 29
    line = told_in_one_line([*words, "plan.labels.age=[CHILD, ANCIENT]"], capsys)
    assert "'ANCIENT' is not one of ADULT, CHILD, OLD" in line
    for setting, told in {"plan.languages={en: 0}": "nothing to plan", "pack.per_tar=0": "need 1",
                          "plan.labels.age=[]": "age: empty", "plan.spare=.nan": "need 0 to 100",
                          "pack.tokenizer=gone": "give --tokenizer"}.items():
        assert told in told_in_one_line([*words, setting, "--steps", "pack"], capsys)
    endpoint = ["speak.questions={engine: endpoint, endpoint: {model: x, url: 'http://h/v1'}, "
                "voices: {ADULT/MALE: [a]}}"]  # fmt: skip
    assert "no voice for" in told_in_one_line([*words, *endpoint], capsys)
