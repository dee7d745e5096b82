"""train.py that also writes which utterances each step trains on: CONFIG LOG [key=value ...]

A line is {"step": N, "keys": [...]}, written as soon as the batches of the step are there.
"""

import json
import os
import sys
from pathlib import Path

from osum_echat.training import experiment, trainer


class Recorded(trainer.Trainer):
    """Writes the keys of a step's batches, and its number, before the step is done."""

    log: Path

    def _engine_step(self, batches, rate):
        keys = [pair for batch in batches for row in zip(batch.keys, batch.tasks, strict=True)
                for pair in zip(*row, strict=True)]  # fmt: skip
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.progress.step + 1, "keys": keys}) + "\n")
        return super()._engine_step(batches, rate)


def main() -> None:
    path, log, *overrides = sys.argv[1:]
    Recorded.log = Path(f"{log}.{os.environ.get('RANK', '0')}")
    trainer.Trainer = Recorded
    trainer.train(experiment.load(path, overrides))


if __name__ == "__main__":
    main()
