"""The order of the stages in a folder: each after those whose results it starts from.

python -m osum_echat.chain conf/tiny        # one configuration a line, for train.sh
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import ConfigError, OsumError
from osum_echat.training import experiment
from osum_echat.training.experiment import Experiment


def stages(folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """The experiments of a folder in the order of their `init`; all are read before any starts.

    Raises ConfigError for a folder without stages, a wrong setting, one output used twice, or
    stages that wait for each other.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give one such as conf/tiny")
    found = {
        path: experiment.load(path, list(overrides)) for path in sorted(folder.glob("stage*.yaml"))
    }
    if not found:
        raise ConfigError(f"{folder}: holds no stage*.yaml")
    makers: dict[Path, Path] = {}
    for path, loaded in found.items():
        other = makers.setdefault(Path(loaded.output), path)
        if other != path:
            raise ConfigError(f"{path} and {other} write to one output: {loaded.output}")
    waiting, order = dict(found), list[Path]()
    while waiting:
        ready = [path for path, one in waiting.items() if not _needs(one, makers) - set(order)]
        if not ready:
            names = ", ".join(map(str, waiting))
            raise ConfigError(f"{names}: each starts from another's output; see their `init`")
        order.append(ready[0])
        del waiting[ready[0]]
    return order


def _needs(loaded: Experiment, makers: dict[Path, Path]) -> set[Path]:
    """The stages of the folder that this one starts from."""
    starts = (loaded.init, loaded.init_encoder_adapter, loaded.init_llm)
    places = [Path(start) for start in starts if start is not None]
    return {maker for output, maker in makers.items()
            if any(output in (place, *place.parents) for place in places)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the order; 2 for what the user can put right."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stderr.write(f"{__doc__}\n")
        return 0 if arguments else 2
    try:
        for path in stages(Path(arguments[0]), arguments[1:]):
            logs.out(str(path))
    except OsumError as error:
        sys.stderr.write(f"chain: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
