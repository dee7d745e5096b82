"""Train one stage: python train.py --config conf/tiny/stage1_understanding.yaml key=value ..."""

import sys
from collections.abc import Sequence

from osum_echat import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when finished, 2 for what the user can put right, 128 + signal when stopped."""
    parser = cli.OneLineParser(
        description="Train one stage, or go on with it: the output directory remembers."
    )
    parser.add_argument("--config", required=True, help="YAML of the experiment, see conf/")
    parser.add_argument("--quiet", action="store_true", help="warnings only")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. run.steps=100")
    cli.add_threads(parser)
    arguments = parser.parse_args(argv)

    def train() -> int:
        from osum_echat.training import experiment, trainer

        outcome = trainer.train(experiment.load(arguments.config, arguments.overrides))
        return 0 if outcome.signal is None else 128 + outcome.signal

    return cli.run("train.py", train, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
