"""Corpora for the tests of this room, and what is in them whatever form they have."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import torch

from common_utils import make_combine_from_shard, make_shard_from_raw
from common_utils.command import called, parser_of
from common_utils.jobs import Report
from osum_echat import audio
from osum_echat.data.manifest import open_source
from osum_echat.data.sources import Dropped
from osum_echat.records import Turn, Utterance

ROUNDING = 0.5001 / 32_768  # of 16-bit samples


def run_tool(tool: ModuleType, source: Path, out: Path, *words: str) -> Report:
    """What a tool that is one job does."""
    given = parser_of(tool.make, {}).parse_args([str(source), str(out), *words])
    return called(tool.make, given)


shards = partial(run_tool, make_shard_from_raw)
combine = partial(run_tool, make_combine_from_shard)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a list, whose lines only a line feed ends."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def read_all(path: Path) -> list[Utterance | Dropped]:
    source = open_source("any", str(path))
    return [source.read(unit) for unit in range(len(source))]


def assert_equal(one: list[Any], two: list[Any], rounding: float = 0.0) -> None:
    """Equal utterances; their sounds, decoded, equal but for the rounding of samples."""
    assert [item.key for item in one] == [item.key for item in two]
    for first, second in zip(one, two, strict=True):
        assert _words(first) == _words(second)
        for mine, theirs in zip(_turns(first), _turns(second), strict=True):
            assert (mine.audio is None) == (theirs.audio is None), first.key
            if mine.audio is not None:
                torch.testing.assert_close(_heard(mine), _heard(theirs), atol=rounding, rtol=0)


def _turns(utterance: Utterance) -> tuple[Turn, ...]:
    return (*utterance.history, utterance.user)


def _words(utterance: Utterance) -> Utterance:
    silent = [replace(turn, audio=None, segment_s=None) for turn in _turns(utterance)]
    return replace(utterance, user=silent[-1], history=tuple(silent[:-1]))


def _heard(turn: Turn) -> torch.Tensor:
    assert turn.audio is not None
    return audio.load(turn.audio, segment_s=turn.segment_s)


def write_raw(folder: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    """A raw list; strings are lines as they stand."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path = folder / "data.list"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_noise(
    path: Path, rate: int = 16_000, seconds: float = 0.3, channels: int = 1, level: float = 0.2
) -> Path:
    noise = np.random.default_rng(len(path.name)).normal(0, level, (int(rate * seconds), channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise.astype(np.float32), rate)
    return path
