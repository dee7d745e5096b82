"""Raw training lists from the tiny world's corpus: one task tag a row, speech tokens beside texts.

Needs OUT/<split>/exchanges.jsonl; writes OUT/<split>/*.list. Without a speech tokenizer only the
lists that need no speech are written.

    python -m common_utils.tiny_world.lists --corpus OUT [--speech-tokenizer FILE.onnx]
"""
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from common_utils.command import command
from common_utils.tiny_world.world import SPLITS, World, load_world, normalise
from osum_echat import audio, files
from osum_echat.errors import DataError
from osum_echat.files import write_jsonl
from osum_echat.logs import logger, progress
from osum_echat.tasks import task_for

Row = dict[str, Any]                     # one object of a raw list
Codec = Callable[[str], tuple[int, ...]]     # a reply wav's name to its speech tokens

FULL_TAG = "<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION>"
UNDERSTANDING = {                        # how often each question about a voice is asked
    FULL_TAG: 0.50,
    "<TRANSCRIBE>": 0.16,
    "<TRANSCRIBE> <EMOTION>": 0.06,
    "<TRANSCRIBE> <CAPTION>": 0.06,
    "<TRANSCRIBE> <AGE> <GENDER>": 0.06,
    "<EMOTION>": 0.05,
    "<CAPTION>": 0.04,
    "<AGE> <GENDER>": 0.04,
    "<AGE>": 0.015,
    "<GENDER>": 0.015,
}
SPEECH_TAGS = {"s2s": "<S2TCHAT> <TEXT2TOKEN>", "s2s_think": "<S2TCHAT> <TEXT2TOKEN> <THINK>"}
TEXT_TAGS = {"s2t": "<S2TCHAT>", "s2t_think": "<S2TCHAT> <THINKER>"}
HISTORY_TAG = "<S2TCHAT> <TEXT2TOKEN> <HISTORY>"
TTS_TAG, T2T_TAG = "<TEXT2TOKEN>", "<TEXT2TEXT>"
PLAIN_CALM = 0.75                        # of calm texts to speak: without a leading style tag
AS_TYPED = 0.5                           # of written questions: with capitals and stops
UNSPOKEN_SEED = 1_000_003                # exchanges without sound are other ones
TEXT_ONLY = "text-only"                  # the wav of an earlier turn that was never spoken

log = logger(__name__)


def make_lists(
    corpus: Path, speech_tokenizer: Path | None = None, sentences: Path | None = None,
    pretrain_size: int = 0, seed: int = 0,
) -> None:  # fmt: skip
    """Write the lists of both splits."""
    world = load_world()
    for split in SPLITS:
        folder, is_train = corpus / split, split == "train"
        codec = None if speech_tokenizer is None else codec_of(speech_tokenizer, folder)
        silent = world.exchanges("train", seed + UNSPOKEN_SEED, pretrain_size if is_train else 0)
        single = [] if sentences is None or codec is None or not is_train else [
            row | {"wav": str((sentences.parent / row["wav"]).resolve())}
            for row in read_jsonl(sentences)
        ]
        sizes = write_lists(folder, Maker(world, Random(f"{split}:{seed}"), codec), split,
                            (exchange.to_json() for exchange in silent), single)
        log.info("%s: %s", folder, ", ".join(f"{name} {size}" for name, size in sizes.items()))


def codec_of(tokenizer: Path, folder: Path) -> Codec:
    """Speech tokens of the wavs of a folder, each counted once."""
    from osum_echat.token2wav.voice import SpeechTokenizer

    tokenize = SpeechTokenizer(tokenizer)
    return cache(lambda wav: tuple(tokenize(audio.load(folder / wav), str(folder / wav))))


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the rows of every list. `codec`: None where there are no speech tokens yet."""
    world: World
    rng: Random
    codec: Codec | None = None

    def understanding(self, exchange: Row, full_only: bool = False) -> Iterator[Row]:
        """One question about each turn's voice."""
        for number, turn in enumerate((*exchange["turns"], exchange)):
            tag = FULL_TAG if full_only else self.rng.choices(
                tuple(UNDERSTANDING), weights=tuple(UNDERSTANDING.values()))[0]
            yield row_of(exchange, turn, tag, understanding_text(tag, turn), f"understand{number}")

    def chats(self, exchange: Row, tags: Mapping[str, str],
              speech: bool) -> Iterator[tuple[str, Row]]:
        """List name and row for each tag; of a dialogue the first turn, which needs no other."""
        turn = exchange["turns"][0] if exchange["turns"] else exchange
        for name, tag in tags.items():
            if "thought" in turn or not task_for(tag).thinks:
                row = row_of(exchange, turn, tag, turn["reply_text"], name)
                yield name, self._with_speech(row, turn["reply_wav"]) if speech else row

    def dialogue(self, exchange: Row, speech: bool) -> Row:
        """The last turn with all earlier ones as history."""
        row = row_of(exchange, exchange, HISTORY_TAG, exchange["reply_text"], "history")
        for number, turn in enumerate(exchange["turns"], start=1):
            row[f"wav_{number}"] = turn.get("wav", TEXT_ONLY)
            row[f"txt_{number}"] = turn["reply_text"]
            row["extra"][f"q_txt_{number}"] = normalise(turn["user_text"])
            if speech and self.codec:
                row["extra"][f"speech_token_{number}"] = list(self.codec(turn["reply_wav"]))
        row["extra"]["speech_token_num"] = len(exchange["turns"]) + 1
        return self._with_speech(row, exchange["reply_wav"]) if speech else row

    def written(self, exchange: Row) -> Row:
        """A written question; the reply goes by the words alone."""
        row = row_of(exchange, exchange, T2T_TAG, self.world.text_reply(exchange), "t2t")
        typed = self.rng.random() < AS_TYPED
        row["extra"]["question"] = exchange["user_text"] if typed else row["extra"]["q_txt"]
        return row

    def spoken(self, key: str, text: str, style: str, wav: str) -> Row:
        """A text to speak: calm mostly without a tag, other styles by a leading tag."""
        plain = style == "CALM" and self.rng.random() < PLAIN_CALM
        row = {"key": f"{key}-tts", "wav": wav, "txt": text if plain else f"<{style}>{text}",
               "task": TTS_TAG, "extra": {"reply_emotion": style}}
        return self._with_speech(row, wav)

    def pretraining(self, exchange: Row) -> Iterator[Row]:
        """Every kind of row, to be read with text in place of sound and no speech answers."""
        yield from self.understanding(exchange)
        if exchange["turns"]:
            yield self.dialogue(exchange, speech=False)
        else:
            yield self.written(exchange)
        for _, row in self.chats(exchange, SPEECH_TAGS | TEXT_TAGS, speech=False):
            yield row

    def _with_speech(self, row: Row, wav: str) -> Row:
        if self.codec is None:
            raise DataError(f"{row['key']}: {row['task']} needs speech tokens;"
                            " give --speech-tokenizer")
        row["extra"]["speech_token"] = list(self.codec(wav))
        return row


def write_lists(folder: Path, maker: Maker, split: str, silent: Iterable[Row] = (),
                sentences: Iterable[Row] = ()) -> dict[str, int]:
    """Write every list that can be made in `folder`; returns their sizes.

    silent: exchanges without sound, for pre-training; sentences: rows of txt, style and wav.
    """
    exchanges = read_jsonl(folder / "exchanges.jsonl")
    rows: dict[str, list[Row]] = {name: [] for name in ("pretrain", "understand", "t2t")}
    for exchange in progress(exchanges, f"{split} lists", len(exchanges)):
        rows["pretrain"] += maker.pretraining(exchange)
        rows["understand"] += maker.understanding(exchange, full_only=split == "test")
        for name, row in maker.chats(exchange, TEXT_TAGS, speech=False):
            rows.setdefault(name, []).append(row)
        if not exchange["turns"]:
            rows["t2t"].append(maker.written(exchange))
        if maker.codec is None:
            continue
        for name, row in maker.chats(exchange, SPEECH_TAGS, speech=True):
            rows.setdefault(name, []).append(row)
        if exchange["turns"]:
            rows.setdefault("history", []).append(maker.dialogue(exchange, speech=True))
        rows.setdefault("tts", []).append(maker.spoken(
            exchange["key"], exchange["reply_text"], exchange["reply_style"],
            exchange["reply_wav"]))
    for exchange in silent:
        rows["pretrain"] += maker.pretraining(exchange)
    for number, sentence in enumerate(sentences):
        rows.setdefault("tts", []).append(maker.spoken(
            f"sentence-{number:05d}", sentence["txt"], sentence["style"], sentence["wav"]))
    for name, listed in rows.items():
        write_jsonl(folder / f"{name}.list", listed)
    return {name: len(listed) for name, listed in rows.items()}


def understanding_text(tag: str, turn: Row) -> str:
    """The answer to an understanding task: the words if asked, then labels in the tag's order."""
    task = task_for(tag)
    words = normalise(turn["user_text"]) if task.transcript else ""
    return words + "".join(f"<{turn['labels'][field]}>" for field in task.labels)


def row_of(exchange: Row, turn: Row, tag: str, text: str, suffix: str) -> Row:
    """A row with all that is known of the turn's voice."""
    labels = turn["labels"]
    extra = {"q_txt": normalise(turn["user_text"]), "age": labels["age"],
             "gender": labels["gender"], "q_emotion": labels["emotion"],
             "caption": labels["event"], "reply_emotion": turn["reply_style"]}
    if "thought" in turn:
        extra["think_str"] = turn["thought"]
    wav = {"wav": turn["wav"]} if "wav" in turn else {}
    return {"key": f"{exchange['key']}-{suffix}", **wav, "txt": text, "task": tag, "extra": extra}


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a file, one a line."""
    advice = "make the corpus first (python -m common_utils.tiny_world.make)"
    return [row for _, row in files.read_jsonl(path, advice)]


def said_by_users(exchanges: Iterable[Row]) -> set[str]:
    """What users say in any turn of a corpus."""
    return {turn["user_text"] for one in exchanges for turn in (*one["turns"], one)}


main = command(
    make_lists, corpus="what the tiny world made", pretrain_size="exchanges more in "
    "train/pretrain.list, without any sound", speech_tokenizer="onnx file; none: no speech lists",
    sentences="list of single reply sentences with wavs (reply_voice), for tts.list",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
