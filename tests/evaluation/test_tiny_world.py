"""Claims about the tiny world's suite: right is what the world's script says, task by task."""

import json

from common_utils.tiny_world.world import load_world
from tests.evaluation.spoken import Spoken, scored


def write_split(folder, count=12):
    world = load_world()
    rows = []
    for one in world.exchanges("test", 3, count):
        raw = one.to_json()
        for number, turn in enumerate(raw["turns"]):
            turn |= {"wav": f"{one.key}-{number}.wav", "reply_wav": f"{one.key}-{number}r.wav"}
        rows.append(raw | {"wav": f"{one.key}.wav", "reply_wav": f"{one.key}r.wav"})
    folder.mkdir()
    (folder / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world, rows


def test_right_replies_are_counted_by_task_and_kind(tmp_path):
    world, rows = write_split(tmp_path / "d")
    answers = {row["key"]: row["reply_text"] for row in rows}
    answers |= {row["user_text"][:20]: world.text_reply(row) for row in rows}
    found = scored("tiny_world", tmp_path / "d", tmp_path / "out", Spoken(answers))["measures"]
    assert {name.partition("/")[0] for name in found if name.endswith("/all")} == {
        "s2s_think, label", "s2s_think, natural", "s2s", "s2t", "t2t"}  # fmt: skip
    assert all(found[name]["value"] == 100 for name in found if name.endswith("/all"))
    dialogues = sum(row["kind"] == "dialogue" for row in rows)
    assert dialogues and found["s2s/multi-turn"]["count"] == dialogues
    assert found["t2t/all"]["count"] == len(rows) - dialogues


def test_other_replies_are_wrong_and_shown_beside_a_right_one(tmp_path):
    write_split(tmp_path / "d", 4)
    found = scored("tiny_world", tmp_path / "d", tmp_path / "out", Spoken())["measures"]
    assert found["s2t/all"]["value"] == 0
    assert "Bless you, little one." in (tmp_path / "out" / "report.md").read_text()
