"""Claims about the batches of the pipeline that we compare with."""

import json
from pathlib import Path

from benchmarks.data_loading import Sample, upstream_batches

GOLDEN = Path(__file__).parents[1] / "goldens" / "data" / "dynamic_batch.json"


def test_batches_are_those_that_upstream_composed() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    samples = [
        Sample(one["i"], one["output_type"], one["T"], one["L"], one["P"], one["S"])
        for one in golden["samples"]
    ]
    limits = (golden["max_frames_in_batch"], golden["max_seq_in_batch"])
    found = [[one.number for one in batch] for batch in upstream_batches(samples, *limits)]
    assert found == golden["batches"]
