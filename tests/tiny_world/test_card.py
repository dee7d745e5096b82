"""Claims about the card: its parts, and the time of each step over all runs."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from common_utils.tiny_world import card
from common_utils.tiny_world.step import Book, Entry


def made(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model's folder, a book of steps, and the output of two trainings."""
    out = tmp_path / "model"
    (out / "token2wav").mkdir(parents=True)
    save_file({"llm.a": torch.zeros(200, 100), "llm.b": torch.zeros(100, 100),
               "adapter.a": torch.zeros(100, 100)}, out / "model.safetensors")  # fmt: skip
    save_file({"x": torch.zeros(200, 200)}, out / "token2wav" / "flow.safetensors")
    book = Book(tmp_path / "steps.json")
    book.steps = {"corpus": Entry(("a",), 90.0, True), "stages": Entry(("b",), 600.0, True)}
    book.save()
    for name, minutes in {"stage1": (1.0, 2.5), "stage2": (3.0,)}.items():
        (tmp_path / "exp" / name).mkdir(parents=True)
        lines = [json.dumps({"step": 1, "minutes": one}) for one in minutes]
        (tmp_path / "exp" / name / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9}']))
    return out, book.path, tmp_path / "exp"


def test_a_new_card_tells_parts_and_times(tmp_path: Path) -> None:
    out, book, stages = made(tmp_path)
    card.write(out, [book], stages)
    rows = {"llm": "0.03", "adapter": "0.01", "flow": "0.04", "corpus": "1.5", "stages": "10.0",
            "of these: stage1": "2.5", "of these: stage2": "3.0"}  # fmt: skip
    told = (out / "README.md").read_text().splitlines()
    assert {f"| {name} | {figure} |" for name, figure in rows.items()} <= set(told)


def test_of_a_card_that_is_there_only_the_times_change(tmp_path: Path) -> None:
    out, book, stages = made(tmp_path)
    path = out / "README.md"
    path.write_text("# Ours\n\nFigures.\n")
    card.write(out, [book], stages)
    first = path.read_text()
    assert first.startswith("# Ours\n\nFigures.\n\n## Time") and "| corpus | 1.5 |" in first
    path.write_text(first + "\n## Limits\nMany.\n")
    again = Book(book)
    again.steps["corpus"].seconds = 180.0
    again.save()
    card.write(out, [book], stages)
    second = path.read_text()
    assert "| corpus | 3.0 |" in second and "| corpus | 1.5 |" not in second
    assert second.startswith("# Ours\n\nFigures.\n") and second.endswith("\n## Limits\nMany.\n")
    assert second.count("## Time") == 1
