"""OSUM-EChat: hears speech, understands words and voice, answers in text and speech."""
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat
    from osum_echat.inference.reply import Reply
    from osum_echat.records import Turn, Utterance

__all__ = ["EChat", "Reply", "Turn", "Utterance"]
if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
    # Threads that wait for each other sleep: where they spin, as libgomp's do by default, a reply
    # beside two busy processes takes ten times as long. Read once, when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_HOMES = {"EChat": "inference.assistant", "Reply": "inference.reply", "Turn": "records",
          "Utterance": "records"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `--help` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'osum_echat' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"osum_echat.{_HOMES[name]}"), name)
