"""Speaks every sentence in every style it is used in: the training set of the tiny token2wav.

python -m common_utils.tiny_world.reply_set --out DIR [--sentences FILE] [--minutes N]
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import soundfile

from common_utils.command import command
from common_utils.tiny_world.lists import read_jsonl, said_by_users
from common_utils.tiny_world.reply_voice import SAMPLE_RATE_HZ, STYLES, ReplyVoice, file_name
from common_utils.tiny_world.speaking import write_wav
from common_utils.tiny_world.world import load_world
from osum_echat.logs import logger, progress

LIST_FILE = "reply.list"

log = logger(__name__)

Pair = tuple[str, str]                                       # sentence, style


def speak(pairs: Iterable[Pair], voice: ReplyVoice, out: Path, minutes: float) -> float:
    """Write the wavs that are missing and the list; returns the minutes of audio."""
    (out / "wav").mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    with (out / LIST_FILE).open("w", encoding="utf-8") as rows:
        for sentence, style in progress(pairs, "speaking"):
            name = file_name(style, sentence)
            path = out / "wav" / f"{name}.wav"
            if not path.exists():
                write_wav(path, voice.say(sentence, style), SAMPLE_RATE_HZ)
            row = {"key": name, "wav": f"wav/{name}.wav", "txt": sentence, "style": style}
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            seconds += soundfile.info(path).duration
            if seconds > 60 * minutes:
                log.info("stopped at %.0f minutes", minutes)
                break
    return seconds / 60


def make(
    out: Path, assets: Path = Path("build/assets"), sentences: Path | None = None,
    styles: Literal[1, 2, 3, 4] = 4, minutes: float = 60.0, seed: int = 7,
) -> None:  # fmt: skip
    """Speak the replies of the tiny world in every style, or what users say in some of them."""
    rng = random.Random(seed)
    if sentences is None:
        pairs = sorted(load_world().all_reply_sentences())
    else:
        said = sorted(said_by_users(read_jsonl(sentences)))
        pairs = [(line, style) for line in said for style in rng.sample([*STYLES], styles)]
    rng.shuffle(pairs)
    made = speak(pairs, ReplyVoice(assets), out, minutes)
    log.info("%s: %.1f minutes in all", out / LIST_FILE, made)


main = command(
    make, out=f"gets wav/ and {LIST_FILE}", minutes="of audio, at most", sentences="exchanges.jsonl"
    ", for what users say there; default: the replies of the tiny world",
    styles="of --sentences: each in so many styles, drawn; default: in all",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
