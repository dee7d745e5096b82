"""Speaks every sentence in every style it is used in: the training set of the tiny token2wav.

python -m common_utils.tiny_world.reply_set --out DIR [--sentences FILE] [--minutes N]
"""

import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from common_utils.tiny_world.lists import read_jsonl, said_by_users
from common_utils.tiny_world.reply_voice import SAMPLE_RATE_HZ, STYLES, ReplyVoice, file_name
from common_utils.tiny_world.speaking import write_wav
from common_utils.tiny_world.world import load_world
from osum_echat import cli
from osum_echat.files import read_lines
from osum_echat.logs import logger, progress

LIST_FILE = "reply.list"

log = logger(__name__)

Pair = tuple[str, str]                                       # sentence, style


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="gets wav/ and " + LIST_FILE)
    parser.add_argument("--assets", type=Path, default=Path("build/assets"))
    parser.add_argument("--sentences", type=Path,
                        help="one a line, or exchanges.jsonl for what users say there; default: "
                             "the replies of the tiny world")
    parser.add_argument("--styles", type=int, default=len(STYLES), metavar="N",
                        choices=range(1, len(STYLES) + 1),
                        help="of --sentences: each in so many styles, drawn; default: in all")
    parser.add_argument("--minutes", type=float, default=60.0, help="of audio, at most")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args(argv)
    rng = random.Random(chosen.seed)
    pairs = (read_pairs(chosen.sentences, chosen.styles, rng) if chosen.sentences
             else sorted(load_world().all_reply_sentences()))
    rng.shuffle(pairs)
    minutes = speak(pairs, ReplyVoice(chosen.assets), chosen.out, chosen.minutes)
    log.info("%s: %.1f minutes in all", chosen.out / LIST_FILE, minutes)


def read_pairs(path: Path, styles: int, rng: random.Random) -> list[Pair]:
    """Each line of `path`, or what users say in a corpus (.jsonl), in so many of the styles."""
    if path.suffix == ".jsonl":
        lines = sorted(said_by_users(read_jsonl(path)))
    else:
        lines = [line.strip() for _, line in read_lines(path)]
    return [(line, style) for line in lines for style in rng.sample([*STYLES], styles)]


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


if __name__ == "__main__":
    sys.exit(cli.run("reply_set", main))
