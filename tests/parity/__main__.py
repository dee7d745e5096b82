"""`python -m tests.parity DIR [--json]`: one row an array; exit 1 if any falls short."""

import argparse
import json
import sys
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import InputError, OsumError

MODEL_FILES = ("llm_config.json", "token_ids.json")
VOICE_FILES = ("flow.pt", "hift.pt")


def kind_of(directory: Path) -> str:
    """model or token2wav, by the files that are there. Raises InputError."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give one that holds a parity fixture")
    for kind, names in (("model", MODEL_FILES), ("token2wav", VOICE_FILES)):
        if any((directory / name).is_file() for name in names):
            return kind
    raise InputError(f"{directory}: neither a model fixture ({', '.join(MODEL_FILES)}) nor a "
                     f"token2wav fixture ({', '.join(VOICE_FILES)})")


def main(argv: list[str] | None = None) -> int:
    """Compare, print, and return the exit code: 0 all well, 1 falls short, 2 cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity",
        description="Compare this implementation with a directory of published tensors.")
    parser.add_argument("directory", type=Path, help="a model fixture or a token2wav fixture")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(argv)
    try:
        kind = kind_of(options.directory)
        if kind == "model":
            from tests.parity.model import rows
        else:
            from tests.parity.token2wav import rows
        found = rows(options.directory)
    except OsumError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    from tests.parity.rows import summary, table

    short = any(row.status == "falls short" for row in found)
    if options.json:
        whole = {"kind": kind, "ok": not short, "rows": [row.to_json() for row in found]}
        logs.out(json.dumps(whole, ensure_ascii=False, allow_nan=False))
    else:
        logs.out(f"{table(found)}\n{summary(found)}")
    return int(short)


if __name__ == "__main__":
    raise SystemExit(main())
