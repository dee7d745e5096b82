"""Synthesis: how many words a recogniser misses in it, and how like its prompt the voice is.

Source of the lists and of the layout: SEED-TTS-eval. Its own scripts score OUT/wavs with the same
meta.lst: `bash cal_wer.sh meta.lst OUT/wavs zh` and `bash cal_sim.sh meta.lst OUT/wavs ...`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from osum_echat import audio
from osum_echat.errors import DataError, InputError, OsumError
from osum_echat.evaluation import echat_eval, report, runner
from osum_echat.evaluation.report import Cell, Clip, Outcome, Table, mean
from osum_echat.evaluation.runner import Model, Prediction, Read, Run, Suite, limited
from osum_echat.evaluation.understanding import WordScore
from osum_echat.inference.reply import Reply
from osum_echat.metrics import language_of, normalised_pair
from osum_echat.tasks import task_for
from osum_echat.token2wav.model import SPEAKER_FILES, find_files, first_of
from osum_echat.token2wav.voice import SpeakerEncoder, make_prompt

OWN = "own-model"
WHISPER_FILES = ("model.bin", "tokenizer.json")
LANGUAGES = {"english": "en", "chinese": "zh"}
COLUMNS = {"english": "test-en", "chinese": "test-zh"}
Recogniser = Callable[[Path, str], str]     # of a wav and its language: the words heard


@dataclass(frozen=True, slots=True)
class Sentence:
    """One line of a list: words to speak, in the voice of a prompt."""

    key: str
    text: str
    prompt: Path | None = None
    style: str | None = None            # a tag that the voice knows

    @property
    def words(self) -> str:
        return f"<{self.style}>{self.text}" if self.style else self.text


def read(data: Path) -> Read[Sentence]:
    """The lines of a meta.lst (name|prompt text|prompt wav|text), or the replies of a tiny world.

    A jsonl, such as the samples of a model: its reply_text.
    """
    if data.is_file() and data.suffix != ".jsonl":
        return runner.read_lines(data, partial(_sentence, data.parent))
    place = data / echat_eval.WORLD_FILE if data.is_dir() else data
    found, lost = runner.read_objects(place, partial(_reply, place.parent))
    return [one for one in found if one is not None], lost


def _reply(root: Path, raw: Mapping[str, Any], where: str) -> Sentence | None:
    if raw.get("kind", "single") != "single":
        return None
    try:
        wav, text = raw.get("reply_wav"), raw["reply_text"]
        key = raw.get("key") or Path(raw["wav"]).stem
        if not (isinstance(key, str) and isinstance(text, str) and text.strip()):
            raise TypeError("key or reply_text: no words")
        return Sentence(key, text, root / wav if wav else None, raw.get("reply_style"))
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: no reply to read out ({error!r})") from error


def _sentence(root: Path, line: str, where: str) -> Sentence:
    parts = [part.strip() for part in line.split("|")]
    if len(parts) < 4 or not parts[0] or not parts[3]:
        raise DataError(f"{where}: {len(parts)} fields; need name|prompt text|prompt wav|text")
    return Sentence(parts[0].removesuffix(".wav"), parts[3], root / parts[2] if parts[2] else None)


def build(run: Run) -> Suite[Sentence]:
    """The suite that the options ask for. Raises InputError or DataError for the data."""
    options = run.options
    if not task_for(options.tts_task).speaks or task_for(options.tts_task).hears:
        raise InputError(f"--tts-task {options.tts_task}: does not read out; take tts")
    every, lost = read(options.data)
    sentences = limited(every, options.limit, lambda one: one.style)
    # The tiny world's replies are in the model's own voice already.
    own_voice = options.no_prompt or options.data.is_dir() or options.data.suffix == ".jsonl"

    def kept(item: Sentence, reply: Reply, out: Path) -> Prediction:
        """The reply in the voice of its prompt. Raises InputError without speech."""
        if item.prompt is not None and not own_voice and reply.speech_tokens:
            reply = _in_voice(run, item, item.prompt, reply)
        if reply.wave is None:
            raise InputError("the model gave no speech")
        return runner.of_reply(reply, out, item.key, "wavs")

    def ask(items: Sequence[Sentence], out: Path) -> list[Prediction | OsumError]:
        return run.ask(items, lambda one: one.words, lambda one, reply: kept(one, reply, out),
                       task=options.tts_task)  # fmt: skip

    return Suite(
        "Speech synthesis", sentences, ask, partial(score, run, sentences, own_voice),
        sounds=lambda one: [one.words, *([one.prompt] if one.prompt else ())], lost=lost,
        fixed={"tts task": options.tts_task, "own voice": own_voice}, shown={"asr": options.asr},
    )  # fmt: skip


def _in_voice(run: Run, item: Sentence, prompt: Path, reply: Reply) -> Reply:
    """The same speech tokens in the voice of a recording. Raises InputError for own voices only."""
    source, speech = _hearing(run.model), run.model.assistant.voice
    if source is None or speech is None:
        raise InputError("this model speaks in voices of its own only; take --no-prompt")
    voice = make_prompt(prompt, echat_eval.tokenizer_of(source), _encoder(source))
    wave = speech(list(reply.speech_tokens), voice, runner.seed_of(run.options.seed, item.key))
    return replace(reply, wave=wave.float().cpu())


def _hearing(model: Model) -> Path | None:
    """Where the model of the voice lies, if it can tell whose voice a recording is."""
    source = model.assistant.voice and model.assistant.voice.source
    return source if source and find_files(source).keys() & {*SPEAKER_FILES} else None


@cache
def _encoder(folder: Path) -> SpeakerEncoder:
    return SpeakerEncoder(first_of(find_files(folder), SPEAKER_FILES, folder))


def recogniser(name: str, model: Model) -> Recogniser:
    """What writes down the words of a wav: our own asr task, or faster-whisper of a directory.

    The model under test may have learnt the faults that it listens for. Raises InputError for a
    folder that is no Whisper in CTranslate2's layout.
    """
    if name == OWN:
        return lambda wav, language: model.assistant.reply(wav, task="asr", greedy=True).heard or ""
    whisper = load_whisper(Path(name), "--asr", device="auto")

    def hear(wav: Path, language: str) -> str:
        segments, _ = whisper.transcribe(
            audio.load(wav).numpy(), language=LANGUAGES[language], beam_size=5,
            condition_on_previous_text=False,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return hear


def load_whisper(directory: Path, option: str, **settings: Any) -> Any:
    """faster-whisper's model of a directory. Raises InputError for a folder that is none."""
    for name in WHISPER_FILES:
        if not (directory / name).is_file():
            raise InputError(f"{option} {directory}: no {name}; give a faster-whisper directory, "
                             "such as python -m common_utils.tiny_world.assets makes")
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise InputError(f"{option}: {error}; pip install -r requirements-bench.txt") from error
    return WhisperModel(str(directory), compute_type="float32", **settings)


def score(
    run: Run, sentences: Sequence[Sentence], own_voice: bool, found: Sequence[Prediction],
    out: Path,
) -> Outcome:  # fmt: skip
    """Errors by language, and likeness to the prompts."""
    made, said = runner.made(found), {one.key: one for one in sentences}
    asr = run.options.asr
    hear = cache(lambda: recogniser(asr, run.model))
    heard = runner.measured(out / runner.HEARD, made, "heard", lambda one: hear()(
        out / one["wav"], language_of(said[one["key"]].text)), by=asr)  # fmt: skip
    prompts = {one.key: one.prompt for one in sentences if one.prompt is not None}
    cosines = runner.measured(
        out / runner.LIKENESS, [one for one in made if one["key"] in prompts], "cosine",
        lambda one: _cosine(run.model, out / one["wav"], prompts[one["key"]]),
    )  # fmt: skip
    likeness = {key: one for key, one in cosines.items() if one is not None}
    by_language: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one in made:
        text = said[one["key"]].text
        by_language[language_of(text)].append(normalised_pair(text, heard[one["key"]]))
    scores = {own: WordScore.of(own, pairs) for own, pairs in by_language.items()}
    rates = {COLUMNS[own]: one.measure for own, one in scores.items()}
    measures = {f"{one.name} {own}": one.measure for own, one in scores.items()}
    if likeness:
        measures["speaker similarity"] = mean(list(likeness.values()))
    measures["length"] = mean([one["audio_out_s"] for one in made if one["audio_out_s"]], "s")
    rows: list[list[Cell]] = [[one["key"], said[one["key"]].text, heard[one["key"]],
                               likeness.get(one["key"])] for one in made]  # fmt: skip
    clips = []
    for one in made[: run.options.players]:
        sentence = said[one["key"]]
        sounds = {"prompt": sentence.prompt} if sentence.prompt else {}
        clips.append(Clip(one["key"], {**sounds, "spoken": out / one["wav"]},
                          {"Text: ": sentence.words}))  # fmt: skip
    voice = "the model's own voice" if own_voice else "the voice of each prompt"
    paper = report.paper("tts")
    note = f"Errors as {run.options.asr} hears them, on --data and not on the SEED test set " \
           "unless that was given."  # fmt: skip
    blocks: list[report.Block] = [
        f"Task {run.options.tts_task}, in {voice}. Similarity is the cosine of our speaker "
        "encoder's vectors: it does not compare with figures of WavLM.",
        Table("Scores", ("what", "value"), list(measures.items())),
        paper.beside([("this model", [rates.get(name) for name in paper.columns[1:]])], note),
        report.Players("Some sentences", clips),
        Table("Every sentence", ("name", "text", "heard", "similarity"), rows),
    ]  # fmt: skip
    return Outcome(measures, blocks, details={"heard": heard, "similarity": likeness})


def _cosine(model: Model, wav: Path, prompt: Path) -> float | None:
    """Between the speaker vectors of a wav and its prompt; None without what measures them."""
    source = _hearing(model)
    if source is None:
        return None
    encoder = _encoder(source)
    spoken, wanted = (encoder(audio.load(path)) for path in (wav, prompt))
    return round(torch.cosine_similarity(spoken, wanted).item(), 4)
