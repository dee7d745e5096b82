"""A command made of a function: what the function takes becomes the options."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from common_utils.jobs import Work, add_job_options
from osum_echat import cli, logs

Result = TypeVar("Result")


def command(function: Callable[..., object], **told: str) -> Callable[..., int]:
    """The `main` of a module: an option for each argument of the function, by its type.

    Positional-only ones are words, not options. What has no default must be given; a bool is a
    flag, a tuple takes several words, a Literal names the choices, a Work has the options of jobs;
    `quiet` means that nothing is logged. told: what --help says of each. It prints what the
    function returns, if anything, and returns 0, or 2 for what the user can put right, told in one
    line.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        given = parser_of(function, told).parse_intermixed_args(argv)

        def work() -> None:
            made = called(cli.importable(function), given)
            if made is not None:
                logs.out(str(made))

        place = Path(inspect.getfile(function))
        name = place.parent.name if place.stem == "__main__" else place.name
        return cli.run(name, work, getattr(given, "quiet", False))

    return main


def parser_of(
    function: Callable[..., object], told: Mapping[str, str]
) -> argparse.ArgumentParser:
    """The parser of a function's command."""
    parser = cli.parser(sys.modules[function.__module__].__doc__)
    cli.add_threads(parser)
    for name, one in inspect.signature(function).parameters.items():
        if one.annotation is Work:
            add_job_options(parser)
        else:
            is_word = one.kind is one.POSITIONAL_ONLY
            flag = name if is_word else f"--{name.replace('_', '-')}"
            parser.add_argument(flag, help=told.get(name), **_option(one))
    return parser


def called(function: Callable[..., Result], given: argparse.Namespace) -> Result:
    """Call the function with what was parsed."""
    lists = {name: tuple(one) for name, one in vars(given).items() if isinstance(one, list)}
    values, arguments = vars(given) | lists, inspect.signature(function).parameters
    values |= {name: Work.chosen(given) for name, one in arguments.items()
               if one.annotation is Work}  # fmt: skip
    words = [values.pop(name) for name, one in arguments.items() if one.kind is one.POSITIONAL_ONLY]
    return function(*words, **{name: values[name] for name in arguments if name in values})


def _option(one: inspect.Parameter) -> dict[str, Any]:
    """What argparse is told of an argument."""
    kind = one.annotation
    if kind is bool:
        return {"action": "store_true"}
    is_word, has_default = one.kind is one.POSITIONAL_ONLY, one.default is not one.empty
    found: dict[str, Any] = {"default": one.default} if has_default else {}
    if is_word and has_default:
        found["nargs"] = "?"
    elif not (is_word or has_default):
        found["required"] = True
    if NoneType in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        kind, found["nargs"] = get_args(kind)[0], "*" if is_word else "+"
    if get_origin(kind) is Literal:
        found["choices"] = get_args(kind)
        kind = type(found["choices"][0])
    return found | {"type": kind}
