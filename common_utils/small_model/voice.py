"""The voice of the small model: hibari's speech to learn from, and its trained parts together.

    python -m common_utils.small_model.voice waves --parts P --out OUT --hours 2
    python -m common_utils.small_model.voice codes --out OUT --units F --whisper DIR
    python -m common_utils.small_model.voice rows --parts P --out OUT/NAME.list --units F ...
    python -m common_utils.small_model.voice styles --out build/voice/styles
    python -m common_utils.small_model.voice phonemes --out build/voice/tokenizer
    python -m common_utils.small_model.voice parts --voice build/voice --out DIR
    python -m common_utils.small_model.voice tokenizer --voice DIR --whisper DIR --out ONNX

`waves`: rows of one to three sentences, OUT/waves.list and OUT/waves/; `codes`: their speech codes,
OUT/voice.list; `rows`: a talker's rows without sound, each piece of text with the codes before it;
`styles`: a speaker vector for each style; `phonemes`: the talker's tokenizer, phonemes with their
stress and the space before them, one id each; `parts`: in half precision OUT/talker (a model
directory) and OUT/token2wav, with a voice for each style: its vector and a recording of a few
seconds; `tokenizer`: the speech tokenizer that these codes come from, out of Whisper base and what
DIR/units.safetensors keeps, for measuring voices and lists: replying does without it.
"""

import math
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from common_utils.command import command
from common_utils.jobs import digest
from common_utils.small_model import texts
from common_utils.small_model.hibari import SAMPLE_RATE_HZ, STYLES, Hibari, Spoken, Wave, sentences
from common_utils.small_model.thinker import TOKENIZER_FILES
from common_utils.tiny_world.assemble import write_halves
from common_utils.tiny_world.reply_voice import write_wav
from common_utils.tiny_world.text_tokenizer import save
from common_utils.token2wav_recipe.runs import VoiceRow, read_lists
from common_utils.token2wav_recipe.train_flow import speech_tokens
from common_utils.token2wav_recipe.train_tokenizer import (
    UNITS_PER_S,
    export_units,
    nearest,
    with_learnt,
)
from osum_echat import audio
from osum_echat.errors import DataError, InputError
from osum_echat.files import Journal, read_journal, whole_file, write_jsonl
from osum_echat.inference.talker import ENGLISH, PHONEME, Talker
from osum_echat.logs import logger, progress
from osum_echat.models import checkpoint
from osum_echat.sequence import NEXT_CLAUSE
from osum_echat.settings import read_mapping
from osum_echat.tasks import SWITCH, TASKS
from osum_echat.token2wav.flow import frames_for
from osum_echat.token2wav.model import VOICE_FILE, Token2Wav
from osum_echat.token2wav.voice import SPEAKER_WIDTH, SpeechTokenizer, VoicePrompt, prompt_mel
from osum_echat.vocab import TEXT_END, UNKNOWN

TASK = "<TEXT2TOKEN> <STREAMING>"
WAVES, VOICE = "waves.list", "voice.list"
LEAD_S = 0.04                           # silence before a row
SENTENCES, SENTENCE_WEIGHTS = (1, 2, 3), (0.6, 0.28, 0.12)      # of a row
CALM_SHARE = 0.4                        # of rows, beside the even draw of styles
WORDNET_SHARE = 0.25                    # of sentences
JOIN_CHANCE, CUT_CHANCE = 0.25, 0.5     # sentences that share a clause; marks inside that end one
SEED = 11
PROMPT_TOKENS = (60, 90)                # of a style's recording: 2.4 to 3.6 s
USUAL_STYLE = "CALM"
UNITS_FILE = "units.safetensors"        # what the speech tokenizer learnt beside the Whisper
VOWELS = "AIOQWYaeiouæɑɐɒɔəɚɛɜɨɪʊʌᵊᵻ"
OTHERS = "bdfhjklmnpstvwzðŋɡɹɾʃʒʤʧθTʔxrSʰː" + ";:,.!?—…\"()“”"
PAD = "<pad>"
_INSIDE = re.compile(r"[,;:—] ")
_PIECE = re.compile(rf"<[A-Z]+>|{PHONEME.pattern}", re.DOTALL)

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Clause:
    """A stretch of a row. starts_s: when its style mark begins, then each letter of the rest."""

    text: str
    starts_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A reply of one to three sentences. wave: (samples,) at 22.05 kHz."""

    key: str
    style: str
    words: str
    clauses: tuple[Clause, ...]
    wave: Wave


def different_sentences(parts: Path, held_out: bool) -> Iterator[str]:
    """Different sentences of a split in a fixed order, without end: after the last, from the first.

    Chats and the tiny world's; of the training split a share is WordNet's, whose words are rare.
    """
    chats, wordnet = texts.chat_sentences(parts, held_out), list[str]()
    if not held_out:
        chats = sorted([*chats, *texts.world_sentences()],
                       key=lambda one: texts.fraction(f"order {one}"))  # fmt: skip
        wordnet = texts.wordnet_sentences(parts)
    rng, given = random.Random(5), {True: 0, False: 0}
    while True:
        rare = bool(wordnet) and rng.random() < WORDNET_SHARE
        source = wordnet if rare else chats
        found = source[given[rare] % len(source)]
        given[rare] += 1
        yield found[0].upper() + found[1:]


class RowMaker:
    """Speaks rows. Row N of a split is always the same."""

    def __init__(self, parts: Path, held_out: bool = False) -> None:
        self._voice = Hibari(parts)
        self._sentences = different_sentences(parts, held_out)
        self._split = "test" if held_out else "train"

    def rows(self, first: int = 0) -> Iterator[Row]:
        """The rows from that number on, without end; those that cannot be spoken are left out."""
        for number in count():
            rng = random.Random(f"{self._split} {number}")
            drawn = rng.choices(SENTENCES, SENTENCE_WEIGHTS)[0]
            style = "CALM" if rng.random() < CALM_SHARE else rng.choice(tuple(STYLES))
            said = [next(self._sentences) for _ in range(drawn)]
            if number < first:
                continue
            try:
                yield self._row(f"{self._split}-{number:06d}", style, said, rng)
            except InputError as error:
                log.info("row %d left out: %s", number, error)

    def _row(self, key: str, style: str, said: Sequence[str], rng: random.Random) -> Row:
        spoken: list[Spoken] = []
        for text in said:
            for sentence in sentences(text):
                phonemes = self._voice.phonemes(sentence)
                one = self._voice.say(phonemes, STYLES[style], rng.randrange(2**31))
                spoken.append(one if spoken else one.led_by(LEAD_S))
        wave = np.concatenate([one.wave for one in spoken])
        return Row(key, style, " ".join(said), tuple(clauses_of(spoken, style, rng)), wave)


def clauses_of(spoken: Sequence[Spoken], style: str, rng: random.Random) -> Iterator[Clause]:
    """The sentences of a row, some cut at marks inside, some joined with the next."""
    mark, text, starts, begun_s, now_s = f"<{style}>", "", list[float](), 0.0, 0.0
    for one in spoken:
        places = [match.end() for match in _INSIDE.finditer(one.phonemes)]
        cuts = {place for place in places if rng.random() < CUT_CHANCE}
        for place, (letter, start) in enumerate(zip(one.phonemes, one.starts_s, strict=True)):
            if place in cuts or (place == 0 and text and rng.random() >= JOIN_CHANCE):
                yield Clause(mark + text.rstrip(), (begun_s, *starts[: len(text.rstrip())]))
                text, starts = "", []
                begun_s = now_s + start if place else now_s
            elif place == 0 and text:
                text, starts = f"{text} ", [*starts, now_s + start]
            text, starts = text + letter, [*starts, now_s + start]
        now_s += len(one.wave) / SAMPLE_RATE_HZ
    yield Clause(mark + text.rstrip(), (begun_s, *starts[: len(text.rstrip())]))


@dataclass(frozen=True, slots=True)
class CodedClause:
    """codes: its own; starts: how many of them come before each piece of its text."""

    text: str
    codes: tuple[int, ...]
    starts: tuple[int, ...]


def coded(clauses: Sequence[Clause], codes: Sequence[int]) -> list[CodedClause]:
    """The codes of a row shared out among its clauses and their pieces."""
    edges = [0, *(_unit(one.starts_s[0], codes) for one in clauses[1:]), len(codes)]
    made = []
    for clause, first, last in zip(clauses, edges, edges[1:], strict=False):
        starts, letter = list[int](), 0
        for piece in pieces_of(clause.text):
            # A piece begins with its first letter that sounds: not with the space before it.
            spaced = len(piece) > 1 and piece[0] == " "
            start = _unit(clause.starts_s[letter + spaced], codes)
            starts.append(min(max(start, first), last) - first)
            letter += len(piece) if letter else 1
        made.append(CodedClause(clause.text, tuple(codes[first:last]), tuple(starts)))
    return made


def _unit(second: float, codes: Sequence[int]) -> int:
    """The first unit whose middle is not before that second."""
    return min(len(codes), max(0, round(second * UNITS_PER_S)))


def raw_row(row: Row, clauses: Sequence[CodedClause]) -> dict[str, Any]:
    """A talker's row of a raw list: earlier clauses are earlier turns."""
    extra: dict[str, Any] = {}
    raw: dict[str, Any] = {"key": row.key, "task": TASK, "voice": row.style, "words": row.words}
    for number, clause in enumerate(clauses, start=1):
        end = "" if number == len(clauses) else f"_{number}"
        raw[f"txt{end}"] = clause.text
        extra[f"speech_token{end}"] = clause.codes
        extra[f"speech_starts{end}"] = clause.starts
    return {**raw, "extra": extra}


class UnitFinder:
    """Waves to codes. bf16: the encoder in bfloat16, which changes one code in a hundred."""

    def __init__(self, units: Path, whisper: Path, bf16: bool = True) -> None:
        self.model, self.bf16 = with_learnt(whisper, units), bf16

    @torch.no_grad()
    def __call__(self, wave: Wave) -> list[int]:
        low = audio.resample(torch.from_numpy(wave), SAMPLE_RATE_HZ, audio.SAMPLE_RATE_HZ)
        feats = audio.log_mel(low, self.model.mels).T[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            points = self.model.features(feats)
        return [int(code) for code in nearest(points.float(), self.model.codebook)]


def _grow(
    path: Path, maker: RowMaker, least: int, made: Callable[[Row], dict[str, Any]],
    size: Callable[[dict[str, Any]], int],
) -> None:  # fmt: skip
    """Add rows to a list until their sizes make up so much; stopped, it goes on later."""
    with Journal(path) as lines:
        raws = [raw for _, raw in read_journal(path)]
        total = sum(map(size, raws))
        behind = int(raws[-1]["key"].rpartition("-")[2]) + 1 if raws else 0
        for row in maker.rows(behind):
            if total >= least:
                return
            raw = made(row)
            lines.write([raw])
            total += size(raw)


def write_waves(maker: RowMaker, out: Path, hours: float) -> None:
    """So many hours of rows with their sound: OUT/waves.list and OUT/waves/."""
    (out / "waves").mkdir(parents=True, exist_ok=True)

    def made(row: Row) -> dict[str, Any]:
        name = f"waves/{row.key}.wav"
        write_wav(out / name, row.wave, SAMPLE_RATE_HZ)
        return {"key": row.key, "wav": name, "voice": row.style, "txt": row.words}

    def samples(raw: dict[str, Any]) -> int:
        return int(soundfile.info(out / raw["wav"]).frames)

    _grow(out / WAVES, maker, int(3600 * hours * SAMPLE_RATE_HZ) + 1, made, samples)


def write_codes(find: UnitFinder, out: Path) -> None:
    """OUT/voice.list: the rows of OUT/waves.list with their codes."""
    def with_codes(raw: dict[str, Any]) -> dict[str, Any]:
        wave, _ = soundfile.read(out / raw["wav"], dtype="float32")
        return raw | {"task": "<TEXT2TOKEN>", "extra": {"speech_token": find(wave)}}

    raws = [raw for _, raw in read_journal(out / WAVES)]
    write_jsonl(out / VOICE, map(with_codes, progress(raws, "codes")))


def write_rows(
    maker: RowMaker, find: Callable[[Wave], list[int]], out: Path, hours: float, settings: str
) -> None:
    """So many hours of a talker's rows.

    settings: what rows depend on. Raises InputError where those that are there had other ones.
    """
    told = out.with_name(f".{out.name}.settings")
    if out.is_file() and told.is_file() and told.read_text() != settings:
        raise InputError(f"{out}: its rows were made with other units, or of the other split; "
                         "remove it, or choose another --out")  # fmt: skip
    with whole_file(told) as file:
        file.write(settings.encode())

    def made(row: Row) -> dict[str, Any]:
        return raw_row(row, coded(row.clauses, find(row.wave)))

    _grow(out, maker, math.ceil(3600 * hours * UNITS_PER_S), made, units_in)


def units_in(raw: dict[str, Any]) -> int:
    """How many codes a talker's row has."""
    return sum(len(codes) for name, codes in raw["extra"].items() if "speech_token" in name)


def pieces_of(text: str) -> list[str]:
    """The pieces of a clause: its style mark, then phonemes."""
    return _PIECE.findall(text)


def phoneme_pieces() -> list[str]:
    """Every phoneme with every stress, alone and behind a space, in a fixed order."""
    singles = [*(stress + vowel for vowel in VOWELS for stress in ("", "ˈ", "ˌ")), *OTHERS]
    return [PAD, *singles, *(f" {one}" for one in singles)]


def marks() -> list[str]:
    """What is one id each and not spoken: the fixed words around a clause, and styles."""
    fixed = (TASKS["tts_streaming"].opening, SWITCH, NEXT_CLAUSE, TEXT_END, UNKNOWN)
    return [*fixed, *(f"<{style}>" for style in STYLES)]


def write_phonemes(out: Path) -> None:
    """Write the tokenizer of the talker, loadable by AutoTokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    numbers = {piece: number for number, piece in enumerate(phoneme_pieces())}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PHONEME.pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks()])
    save(tokenizer, out, TEXT_END, PAD)


def style_vectors() -> dict[str, Tensor]:
    """A vector of length 1 for each style, at right angles to the others: (1, numbers) each."""
    generator = torch.Generator().manual_seed(SEED)
    directions, _ = torch.linalg.qr(torch.randn(SPEAKER_WIDTH, len(STYLES), generator=generator))
    return {style: directions[:, number][None].contiguous() for number, style in enumerate(STYLES)}


def write_styles(out: Path) -> None:
    """Voices without a recording, OUT/STYLE.safetensors: what train_flow takes as `voices`."""
    out.mkdir(parents=True, exist_ok=True)
    for style, vector in style_vectors().items():
        VoicePrompt.absent(vector).save(out / f"{style}.safetensors")


def style_voice(rows: Sequence[VoiceRow], style: str) -> VoicePrompt:
    """The voice in a style: its vector, and the first recording of a fitting length."""
    least, most = PROMPT_TOKENS
    for row in rows:
        codes = speech_tokens(row)
        if row.voice != style or not least <= len(codes) <= most:
            continue
        mel = prompt_mel(row.load(SAMPLE_RATE_HZ))
        frames = min(mel.shape[1], frames_for(len(codes), 25))
        return VoicePrompt(torch.tensor([codes]), mel[:, :frames], style_vectors()[style])
    raise DataError(f"no recording in the style {style} of {least} to {most} speech tokens")


def write_talker(source: Path, out: Path) -> None:
    """A talker's directory from what train.py left in `final`."""
    raw = read_mapping(source / checkpoint.SETTINGS_FILE)
    notes = {"thinking": raw["thinking"], "template": raw["template"], "g2p": ENGLISH,
             "style": USUAL_STYLE}  # fmt: skip
    checkpoint.save(out, checkpoint.load(source), dtype=torch.float16, notes=notes)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, out / name)


def write_token2wav(voice: Path, out: Path) -> Token2Wav:
    """Flow, vocoder, what the units learnt, and a voice for each style; read back to be sure."""
    write_halves({part: voice / part for part in ("vocoder", "flow")}, out)
    shutil.copyfile(voice / UNITS_FILE, out / UNITS_FILE)
    rows = read_lists([voice / VOICE])
    for style in STYLES:
        made = style_voice(rows, style)
        made.save(out / f"voice_{style}.safetensors")
        if style == USUAL_STYLE:
            made.save(out / VOICE_FILE)
    return Token2Wav.load(out)


def make(
    what: Literal["waves", "codes", "rows", "styles", "phonemes", "parts", "tokenizer"], /,
    out: Path, parts: Path = Path("build/parts"), hours: float = 2.0, held_out: bool = False,
    units: Path | None = None, whisper: Path = Path("build/parts/whisper_base"),
    voice: Path = Path("build/voice"),
) -> None:  # fmt: skip
    """Write OUT."""
    torch.set_num_threads(1)
    if what == "waves":
        write_waves(RowMaker(parts, held_out), out, hours)
    elif what == "styles":
        write_styles(out)
    elif what == "phonemes":
        write_phonemes(out)
    elif what == "parts":
        made = write_token2wav(voice, out / "token2wav")
        write_talker(voice / "talker" / "final", out / "talker")
        Talker.load(out / "talker", made.settings.flow.codes, torch.device("cpu"))  # do they fit?
    elif what == "tokenizer":
        out.parent.mkdir(parents=True, exist_ok=True)
        export_units(with_learnt(whisper, voice / UNITS_FILE), out)
        SpeechTokenizer(out)(torch.zeros(audio.SAMPLE_RATE_HZ))     # tried on a second of silence
    elif units is None:
        raise InputError("--units: give the file that train_tokenizer keeps as `learnt`")
    elif what == "codes":
        write_codes(UnitFinder(units, whisper), out)
    else:
        maker, find = RowMaker(parts, held_out), UnitFinder(units, whisper)
        write_rows(maker, find, out, hours, digest(units, held_out))


main = command(
    make, units="what train_tokenizer keeps as `learnt`", whisper="with model.safetensors",
    held_out="rows of the conversations kept for tests",
    voice="talker, flow, vocoder, units and voice.list",
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
