"""Claims about the ablation: as many updates for every variant, nested shares of data."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ablation
from benchmarks.ablation import NAMES, VARIANTS
from benchmarks.ablation_world import kept
from common_utils.tiny_world.world import load_world
from osum_echat.inference.reply import Reply
from osum_echat.records import Labels

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
    monkeypatch.setattr(ablation.experiment, "train", trained.train)
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
