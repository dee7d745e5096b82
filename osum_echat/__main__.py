"""osum-echat COMMAND ...: what the repository's scripts do, for an installed package."""

import sys
from collections.abc import Sequence
from importlib import import_module

from osum_echat import cli, logs

USUAL = "ask"
COMMANDS = {
    USUAL: ("osum_echat.inference.command", "ask the model once (without a COMMAND, too)"),
    "page": ("osum_echat.serving.app", "talk to it in a browser"),
    "live": ("osum_echat.serving.online", "talk to it live: the real-time server and its page"),
    "batch": ("osum_echat.evaluation.batch", "answer a whole list, and score the answers"),
    "evaluate": ("osum_echat.evaluation.__main__", "measure a model"),
}
HELP = "osum-echat COMMAND ...; osum-echat COMMAND --help\n\n" + "\n".join(
    f"  {name:10}{about}" for name, (_, about) in COMMANDS.items()
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of the command: 2 for what the user can put right."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        logs.out(HELP)
        return 0
    name = words.pop(0) if words and words[0] in COMMANDS else USUAL
    command = import_module(COMMANDS[name][0])

    def work() -> int | None:
        parser = command.parser()
        parser.prog = f"osum-echat {name}"
        done: int | None = command.run(parser.parse_args(words))
        return done

    return cli.run(f"osum-echat {name}", work)


if __name__ == "__main__":
    sys.exit(main())
