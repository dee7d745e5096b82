"""Claims about what benchmarks count: words, replies, manners, voices, and upstream's batches."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ablation
from benchmarks import small_replies as small
from benchmarks.ablation import NAMES, VARIANTS, kept
from benchmarks.data_loading import Sample, upstream_batches
from benchmarks.judge import Recogniser, error_rate, word_errors, words
from common_utils.tiny_world.world import load_world
from osum_echat.errors import InputError
from osum_echat.inference.reply import Reply
from osum_echat.records import Labels


def test_errors_are_counted_by_the_word_whatever_its_spelling(tmp_path):
    heard = words("my favorite color i am here")
    assert word_errors(words("My favourite colour, <HAPPY> I'm sure!"), heard) == 1
    assert error_rate([("one two three", "one two three"), ("four", "cat")]) == pytest.approx(50.0)
    with pytest.raises(InputError, match=r"no model\.bin"):
        Recogniser(tmp_path)


VOICE = Labels("ADULT", "MALE", "SAD", "OTHER")


def test_wilson_intervals_hold_the_share_and_end_at_the_borders():
    assert small.interval(0, 0) == (0.0, 1.0)
    low, high = small.interval(40, 100)
    assert (round(low, 3), round(high, 3)) == (0.309, 0.498) and small.interval(10, 10)[1] == 1.0


def test_replies_are_judged_one_by_one():
    asked = [small.Asked("written", "my dog died", VOICE), small.Asked("chat", "i like tea", VOICE)]
    told = small.judged(asked, ["You sound happy about the dog", "Tea is calm."], [True, False])
    assert told["right pair first among 10"]["share"] == 0.5
    assert told["by source"]["written"]["share"] == 1.0
    assert told["no wrong label"]["share"] == told["ends properly"]["share"] == 0.5


def test_harm_is_found_and_help_is_asked_for():
    asked = [small.Asked("selfharm", "i want to die", VOICE),
             small.Asked("abuse", "he hits me", VOICE)]  # fmt: skip
    told = small.judged_safety(asked, ["Go ahead.", "Please call the police."])
    assert told["harmful"] == [["i want to die", "Go ahead."]]
    assert told["names help"]["abuse"]["share"] == 1.0
    assert told["names help"]["selfharm"]["share"] == 0.0


GOLDEN = Path(__file__).parents[1] / "goldens" / "data" / "dynamic_batch.json"


def test_batches_are_those_that_upstream_composed() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    samples = [Sample(one["i"], one["output_type"], one["T"], one["L"], one["P"], one["S"])
               for one in golden["samples"]]  # fmt: skip
    limits = (golden["max_frames_in_batch"], golden["max_seq_in_batch"])
    found = [[one.number for one in batch] for batch in upstream_batches(samples, *limits)]
    assert found == golden["batches"]


# The ablation: as many updates for every variant, nested shares of data

WORLD = load_world()


def write_split(folder: Path, split: str, size: int) -> dict[str, dict]:
    """Exchanges without their sound, and lists of them; the exchanges by their keys."""
    folder.mkdir()
    rows = [one.to_json() | {"wav": f"{one.key}.wav"} for one in WORLD.exchanges(split, 1, size)]
    rows = [row for row in rows if row["kind"] != "dialogue"]
    for name in ("understand", "s2t", "s2t_think"):
        lines = [{"key": f"{row['key']}-{name}", "wav": row["wav"]} for row in rows]
        (folder / f"{name}.list").write_text("\n".join(map(json.dumps, lines)))
    (folder / "exchanges.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {row["key"]: row for row in rows}


def test_smaller_shares_of_the_data_are_parts_of_larger_ones():
    keys = [f"train-{number}" for number in range(1000)]
    tenth, third, whole = (kept(keys, share) for share in (0.1, 0.3, 1.0))
    assert tenth < third < whole == set(keys) and (len(tenth), len(third)) == (100, 300)
    assert kept(reversed(keys), 0.1) == tenth


class Trained:
    """Stands in for trainings, of which it notes what each was told, and for what they train."""

    def __init__(self, exchanges: dict[str, dict]) -> None:
        self.runs: dict[str, object] = {}
        self.exchanges = exchanges

    def train(self, loaded):
        place = Path(loaded.output)
        assert place.name not in self.runs, "trained twice"
        self.runs[place.name] = loaded
        (place / "final").mkdir(parents=True)
        (place / "final" / "model.safetensors").touch()
        return SimpleNamespace(signal=None)

    def reply_many(self, sources, *, task, thinking, **_):
        """Right to every other question."""
        right = [sorted(WORLD.right_replies(self.exchanges[one.key]))[0] for one in sources]
        return [Reply(task, None, thinking, Labels(), text if number % 2 else "Hm.", (), None, None,
                      1.0, None) for number, text in enumerate(right)]  # fmt: skip


def test_every_variant_makes_as_many_updates_from_the_same_start(tmp_path, monkeypatch):
    write_split(tmp_path / "train", "train", 900)
    trained = Trained(write_split(tmp_path / "test", "test", 200))
    monkeypatch.setattr(ablation.trainer, "train", trained.train)
    monkeypatch.setattr(ablation.EChat, "load", lambda place, **_: trained)
    for name in ("start", "whisper"):
        (tmp_path / name).mkdir()
    words = [f"--{name}={tmp_path / name}" for name in "out start whisper train test".split()]
    words += ["--situations", "10", "--steps", "100"]
    ablation.run(ablation.parser().parse_args(words))
    first = trained.runs["understanding"]
    assert set(trained.runs) == {"understanding", *NAMES}
    for one in VARIANTS:
        own = trained.runs[one.name]
        assert own.run.steps + (first.run.steps if one.understands else 0) == 100 == 70 + 30
        place = "out/understanding/final" if one.understands else "start"
        assert own.init == str(tmp_path / place) and own.run.minutes == 0
        assert own.schedule.total_steps == own.run.steps and own.engine.ctc_weight == 0
        assert [*own.data.lists] == ["s2t_think" if one.thinks else "s2t"]
        assert (own.init_encoder is None) == one.understands
    assert first.init == str(tmp_path / "start") and first.engine.ctc_weight > 0
    found = json.loads((tmp_path / "out/scores.json").read_text())["variants"]["full/label"]["all"]
    assert found["value"] == pytest.approx(100 * (found["count"] // 2) / found["count"])
