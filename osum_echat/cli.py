"""What commands share: the options that choose a model, and how a command ends."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from osum_echat import logs
from osum_echat.errors import OsumError
from osum_echat.paths import HOUSE, model_source

SOME_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR,
              errno.EEXIST)  # fmt: skip
MODEL_HELP = (
    "small, tiny, a model directory, its .tar.gz or the web address of one, a published .pt, a "
    "DeepSpeed directory or hub:OWNER/NAME[/FILE] (default: small where it is complete, else tiny)"
)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def parser(about: str | None, prog: str | None = None) -> OneLineParser:
    """A parser whose help shows a module's docstring as it is written."""
    return OneLineParser(
        prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(name: str, work: Callable[[], int | None], quiet: bool = False) -> int:
    """Do a command's work. Returns its exit code.

    0, or what work returns; 2 for what the user can put right, told in one line; 130 for Ctrl-C.
    """
    logs.setup(quiet)
    try:
        return work() or 0
    except OsumError as error:
        sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        sys.stderr.write(f"{name}: {error.filename or 'output'}: {error.strerror}; make room, or "
                         "choose another place\n")  # fmt: skip
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: stopped; the same command goes on from here\n")
        return INTERRUPTED


def importable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a module that was started as a program, by the name others import it by."""
    if function.__module__ != "__main__":
        return function
    main = sys.modules["__main__"]
    place = Path(str(main.__file__)).resolve().relative_to(HOUSE).with_suffix("")
    name = main.__spec__.name if main.__spec__ else ".".join(place.parts)
    found: Callable[..., Any] = getattr(import_module(name), function.__name__)
    return found


class _Threads(argparse.Action):
    """Takes hold before torch is loaded, and where it is."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **_: Any) -> None:
        count = given[1]
        if not count.isdigit() or not int(count):
            raise argparse.ArgumentError(self, f"{count!r}: give a whole number from 1")
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = count
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(int(count))


def add_threads(one: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --threads."""
    one.add_argument("--threads", action=_Threads, metavar="N", help="of the processor (default: "
                     "one for each core, 1 for the tiny model; give fewer where other programs are "
                     "at work)")  # fmt: skip


def add_ray(one: argparse.ArgumentParser) -> None:
    """Add --ray."""
    one.add_argument("--ray", metavar="ADDRESS", help="work on a Ray cluster: HOST:PORT of its "
                     "head, auto (the one of this machine), or local (one for this command)")


def loading(given: argparse.Namespace) -> dict[str, Any]:
    """What `add_model` has taken, as `EChat.load` takes it beside the source."""
    names = ("device", "config", "tokenizer", "token2wav", "voice", "talker", "recognizer", "dtype",
             "keep_lora", "engine")  # fmt: skip
    return {name: getattr(given, name) for name in names}


def add_model(one: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --model and what belongs to it."""
    add = one.add_argument
    add("--model", type=model_source, default=model_source(), metavar="SOURCE", help=MODEL_HELP)
    add("--config", metavar="YAML", help="the model's settings (default: beside the weights)")
    add("--tokenizer", metavar="DIR", help="of the model's LLM (default: beside the weights)")
    add("--token2wav", metavar="SOURCE", help="the model of speech: a directory or .tar of ours or "
        "of CosyVoice-300M-25Hz, or hub: (default: beside the weights)")
    add("--voice", metavar="FILE", help="a recording or a saved voice to speak in")
    add("--talker", metavar="DIR", help="a model that speaks the words; none: the model speaks "
        "them itself (default: what its settings name)")
    add("--recognizer", choices=("ear", "whisper", "both"), help="what hears the words of a model "
        "built on Whisper: its own ear, Whisper's decoder, or both (default: as its settings say)")
    add("--device", default="auto", help="auto, cpu, cuda, npu (default: auto)")
    add("--dtype", default="auto", help="auto, bf16, fp32, on a CPU int8 (default: auto)")
    add_threads(one)
    add("--engine", default="own", choices=("own", "vllm"), help="what decodes: our own loop, or "
        "vLLM, from the environment that make vllm sets up (default: own)")
    add("--keep-lora", action="store_true", help="leave LoRA layers as they are, do not merge them")
