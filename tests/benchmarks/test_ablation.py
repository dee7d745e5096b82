"""Claims about the ablation: equal updates, nested shares of data, replies judged part by part."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ablation
from benchmarks.ablation import NAMES, VARIANTS
from benchmarks.ablation_world import Part, judged, kept
from common_utils.tiny_world.world import load_world
from osum_echat.records import Labels

WORLD = load_world()
EXCHANGE = {"key": "a", "kind": "single", "situation": "no_milk", "filling": None, "turns": [],
            "user_text": "There is no milk in the fridge.",
            "labels": {"age": "OLD", "gender": "MALE", "emotion": "ANGER",
                       "event": "COUGH"}}  # fmt: skip


def write_split(folder: Path, split: str, size: int) -> Path:
    """Exchanges without their sound, and lists of them."""
    folder.mkdir()
    rows = [one.to_json() | {"wav": f"audio/{one.key}.wav"}
            for one in WORLD.exchanges(split, 1, size)]  # fmt: skip
    rows = [row for row in rows if row["kind"] != "dialogue"]
    (folder / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("understand", "s2t", "s2t_think"):
        lines = [{"key": f"{row['key']}-{name}", "wav": row["wav"], "txt": row["reply_text"]}
                 for row in rows]  # fmt: skip
        (folder / f"{name}.list").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_split(folder / "train", "train", 900)
    write_split(folder / "test", "test", 200)
    for name in ("start", "whisper"):
        (folder / name).mkdir()
    return folder


@pytest.fixture
def part(world: Path) -> Part:
    return Part(world / "train", [world / "test"], 10)


@pytest.mark.parametrize(("reply", "whole", "voice", "words"), [
    ("Bless you, sir. Empty bottles should not go back.", True, True, True),
    ("Bless you, madam. Empty bottles should not go back.", False, False, True),
    ("Bless you, sir. Black coffee is good too.", False, True, False), ("", False, False, False),
])  # fmt: skip
def test_a_reply_is_judged_as_a_whole_and_by_its_parts(reply, whole, voice, words):
    found = judged(WORLD, EXCHANGE, reply)
    assert (found.whole, found.voice, found.words) == (whole, voice, words)


def test_smaller_shares_of_the_data_are_parts_of_larger_ones():
    keys = [f"train-{number}" for number in range(1000)]
    tenth, third, whole = (kept(keys, share) for share in (0.1, 0.3, 1.0))
    assert tenth < third < whole == set(keys) and (len(tenth), len(third)) == (100, 300)
    assert kept(reversed(keys), 0.1) == tenth


class Trained:
    """Stands in for trainings: notes what each was told, and leaves what they leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replies: str = "right") -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        monkeypatch.setattr(ablation.experiment, "build", lambda loaded: loaded)
        monkeypatch.setattr(ablation.trainer, "train", self.train)
        monkeypatch.setattr(ablation.EChat, "load", lambda place, **_: self)

    def train(self, experiment, run, schedule):
        place = Path(experiment.output)
        assert place.name not in self.runs, "trained twice"
        self.runs[place.name] = SimpleNamespace(
            steps=run.steps, total=schedule.total_steps, init=experiment.init,
            encoder=experiment.init_encoder, lists=list(experiment.data.lists),
            ctc_weight=experiment.engine.ctc_weight, minutes=run.minutes,
        )  # fmt: skip
        (place / "final").mkdir(parents=True)
        (place / "final" / "model.safetensors").touch()
        return SimpleNamespace(signal=None)

    def reply_many(self, sources, *, task, thinking, **_):
        """Right to every other question."""
        found = []
        for number, one in enumerate(sources):
            right = sorted(WORLD.right_replies(self.exchanges[one.key]))[0]
            text = right if number % 2 else "Hm."
            found.append(ablation.Reply(task, None, thinking, Labels(), text, (), None, None, 1.0,
                                        None))  # fmt: skip
        return found


def run(world: Path, out: Path, *more: str) -> str:
    argv = ["--out", str(out), "--start", str(world / "start"), "--whisper", str(world / "whisper"),
            "--train", str(world / "train"), "--test", str(world / "test"), "--situations", "10",
            "--steps", "100", *more]  # fmt: skip
    return ablation.run(ablation.parser().parse_args(argv))


@pytest.fixture
def trained(monkeypatch, part):
    stand_in = Trained(monkeypatch)
    stand_in.exchanges = {one.key: one.exchange for one in part.questions}
    return stand_in


def test_every_variant_makes_as_many_updates_from_the_same_start(world, tmp_path, trained):
    run(world, tmp_path / "out")
    first = trained.runs["understanding"]
    assert set(trained.runs) == {"understanding", *NAMES}
    for one in VARIANTS:
        own = trained.runs[one.name]
        assert own.steps + (first.steps if one.understands else 0) == 100 == 70 + 30
        start = str(tmp_path / "out/understanding/final" if one.understands else world / "start")
        assert own.init == start and own.total == own.steps and own.minutes == 0
        assert own.lists == ["s2t_think" if one.thinks else "s2t"] and own.ctc_weight == 0
        assert (own.encoder is None) == one.understands
    assert first.init == str(world / "start") and first.ctc_weight > 0
