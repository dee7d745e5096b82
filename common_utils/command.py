"""A command made of a function: what the function takes becomes the options."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from osum_echat import cli

Result = TypeVar("Result")


def command(function: Callable[..., None], **told: str) -> Callable[..., int]:
    """The `main` of a module: an option for each argument of the function, by its type.

    Positional-only ones are words, not options. What has no default must be given; a bool is a
    flag, a tuple takes several words, a Literal names the choices. told: what --help says of each.
    It returns 0, or 2 for what the user can put right, told in one line.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        given = parser_of(function, told).parse_args(argv)
        return cli.run(Path(inspect.getfile(function)).stem, lambda: called(function, given))

    return main


def parser_of(
    function: Callable[..., object], told: Mapping[str, str], more: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The parser of a function's command, but for the arguments called `more`."""
    parser = cli.parser(sys.modules[function.__module__].__doc__)
    for name, one in inspect.signature(function).parameters.items():
        if name not in more:
            is_word = one.kind is one.POSITIONAL_ONLY
            flag = name if is_word else f"--{name.replace('_', '-')}"
            parser.add_argument(flag, help=told.get(name), **_option(one))
    return parser


def called(function: Callable[..., Result], given: argparse.Namespace, **more: Any) -> Result:
    """Call the function with what was parsed, and more."""
    lists = {name: tuple(one) for name, one in vars(given).items() if isinstance(one, list)}
    values = vars(given) | lists | more
    arguments = inspect.signature(function).parameters
    words = [values.pop(name) for name, one in arguments.items() if one.kind is one.POSITIONAL_ONLY]
    return function(*words, **{name: values[name] for name in arguments if name in values})


def _option(one: inspect.Parameter) -> dict[str, Any]:
    """What argparse is told of an argument."""
    kind = one.annotation
    if kind is bool:
        return {"action": "store_true"}
    found: dict[str, Any] = {}
    if one.default is not one.empty:
        found["default"] = one.default
    elif one.kind is not one.POSITIONAL_ONLY:
        found["required"] = True
    if NoneType in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        kind, found["nargs"] = get_args(kind)[0], "*"
    if get_origin(kind) is Literal:
        found["choices"] = get_args(kind)
        kind = type(found["choices"][0])
    return found | {"type": kind}
