"""Synthesis: how many words a recogniser misses in it, and how like its prompt the voice is.

Source of the lists and of the layout: SEED-TTS-eval. Its own scripts score OUT/wavs with the same
meta.lst: `bash cal_wer.sh meta.lst OUT/wavs zh` and `bash cal_sim.sh meta.lst OUT/wavs ...`.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from osum_echat import audio
from osum_echat.errors import DataError, InputError, OsumError
from osum_echat.evaluation import echat_items, paper, predictions
from osum_echat.evaluation.asking_together import ask
from osum_echat.evaluation.asr_judge import listener
from osum_echat.evaluation.grading import RATES
from osum_echat.evaluation.predictions import Lines, Prediction
from osum_echat.evaluation.results import (
    Block,
    Cell,
    Clip,
    Measure,
    Outcome,
    Players,
    Table,
    Words,
    mean,
)  # fmt: skip
from osum_echat.evaluation.runner import Model
from osum_echat.evaluation.start import limited
from osum_echat.inference.reply import Reply
from osum_echat.metrics import error_rate, errors_of_each, interval, language_of, normalised_pair
from osum_echat.tasks import task_for
from osum_echat.token2wav.voice import (
    SpeakerEncoder,
    SpeechTokenizer,
    VoicePrompt,
    make_prompt,
)  # fmt: skip

ENCODERS = ("speaker.onnx", "campplus.onnx")
TOKENIZERS = ("speech_tokenizer.onnx", "speech_tokenizer_v1.onnx")
WAVS = "wavs"
COLUMNS = {"english": "test-en", "chinese": "test-zh"}


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


def read(data: Path) -> list[Sentence]:
    """A meta.lst (name|prompt text|prompt wav|text), or the replies of a tiny world's folder."""
    if data.is_dir():
        place = data / echat_items.WORLD_FILE
        if not place.exists():
            raise InputError(f"--data {data}: a folder without {echat_items.WORLD_FILE}; name the "
                             "meta.lst itself")
        return [Sentence(raw["key"], raw["reply_text"], data / raw["reply_wav"],
                         raw["reply_style"]) for _, raw in echat_items.objects(place)
                if raw["kind"] == "single"]  # fmt: skip
    try:
        lines = data.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data {data}: cannot be read ({error}); give a meta.lst") from error
    return [_sentence(line, f"{data} line {number}", data.parent)
            for number, line in enumerate(lines, 1) if line.strip()]  # fmt: skip


def _sentence(line: str, where: str, root: Path) -> Sentence:
    parts = [part.strip() for part in line.split("|")]
    if len(parts) < 4 or not parts[0] or not parts[3]:
        raise DataError(f"{where}: {len(parts)} fields; need name|prompt text|prompt wav|text")
    return Sentence(parts[0].removesuffix(".wav"), parts[3], root / parts[2] if parts[2] else None)


@dataclass(frozen=True)
class Tts:
    """The suite. in_own_voice: prompts are not spoken like."""

    model: Model
    sentences: tuple[Sentence, ...]
    task: str
    asr: str
    in_own_voice: bool
    seed: int
    greedy: bool
    players: int
    fixed: dict[str, Any]
    shown: dict[str, Any]
    name: str = "tts"
    title: str = "Speech synthesis"

    def items(self) -> Sequence[Sentence]:
        return self.sentences

    def kind(self, item: Sentence) -> str:
        """All together."""
        return self.task

    def predict(self, items: Sequence[Sentence], out: Path) -> list[Prediction | OsumError]:
        """The words spoken; OUT/wavs/NAME.wav is what the official scripts score."""
        return ask(
            self.model.assistant, items, self.seed, lambda one: one.words,
            lambda one, reply: self._kept(one, reply, out), task=self.task, greedy=self.greedy,
        )  # fmt: skip

    def _kept(self, item: Sentence, reply: Reply, out: Path) -> Prediction:
        """The reply in the voice of its prompt. Raises InputError without speech."""
        if item.prompt is not None and not self.in_own_voice and reply.speech_tokens:
            voice = self.model.assistant.voice
            assert voice is not None
            seed = predictions.seed_of(self.seed, item.key)
            wave = voice(list(reply.speech_tokens), self._prompt(item.prompt), seed)
            reply = replace(reply, wave=wave.float().cpu())
        if reply.wave is None:
            raise InputError("the model gave no speech")
        return predictions.of_reply(reply, out, item.key, WAVS)

    def _prompt(self, wav: Path) -> VoicePrompt:
        folder = str(self.model.assistant.directory / "token2wav")
        return make_prompt(wav, _tokenizer(folder), _encoder(folder))

    def score(self, found: Sequence[Prediction], out: Path) -> Outcome:
        """Errors by language, and likeness to the prompts."""
        made = predictions.made(found)
        heard = self._heard(made, out)
        likeness = self._likeness(made, out)
        sentences = {one.key: one for one in self.sentences}
        measures: dict[str, Measure] = {}
        own: dict[str, Measure] = {}
        for language in dict.fromkeys(language_of(sentences[one["key"]].text) for one in made):
            pairs = [normalised_pair(sentences[one["key"]].text, heard[one["key"]], language)
                     for one in made if language_of(sentences[one["key"]].text) == language
                     ]  # fmt: skip
            name, unit = RATES[language]
            low, high = interval(*errors_of_each(pairs, unit))
            rate = Measure(100 * error_rate(pairs, unit).rate, "%", len(pairs), 100 * low,
                           100 * high)  # fmt: skip
            measures[f"{name} {language}"] = own[COLUMNS[language]] = rate
        if likeness:
            measures["speaker similarity"] = mean(list(likeness.values()))
        lengths = [one["audio_out_s"] for one in made if one["audio_out_s"]]
        measures["length"] = mean(lengths, "s")
        rows = [[one["key"], sentences[one["key"]].text, heard[one["key"]],
                 likeness.get(one["key"])] for one in made]  # fmt: skip
        return Outcome(measures, self._blocks(made, own, measures, rows, out),
                       details={"heard": heard, "similarity": likeness})  # fmt: skip

    def _heard(self, made: Sequence[Prediction], out: Path) -> dict[str, str]:
        """What the recogniser hears in every wav, each listened to once."""
        judge = None
        texts = {one.key: one.text for one in self.sentences}
        with Lines(out / "heard.jsonl") as kept:
            for one in made:
                key = f"{self.asr}:{one['key']}"
                if key not in kept.found:
                    judge = judge or listener(self.asr, self.model)
                    language = language_of(texts[one["key"]])
                    kept.add({"key": key, "heard": judge(out / one["wav"], language)})
            return {one["key"]: kept.found[f"{self.asr}:{one['key']}"]["heard"] for one in made}

    def _likeness(self, made: Sequence[Prediction], out: Path) -> dict[str, float]:
        """Cosine between the speaker vectors of a wav and its prompt, where there is one."""
        prompts = {one.key: one.prompt for one in self.sentences if one.prompt}
        found = {}
        with Lines(out / "similarity.jsonl") as kept:
            for one in made:
                key, prompt = one["key"], prompts.get(one["key"])
                if prompt is None:
                    continue
                if key not in kept.found:
                    encoder = _encoder(str(self.model.assistant.directory / "token2wav"))
                    spoken, wanted = (encoder(audio.load(path))
                                      for path in (out / one["wav"], prompt))  # fmt: skip
                    cosine = torch.cosine_similarity(spoken, wanted).item()
                    kept.add({"key": key, "cosine": round(cosine, 4)})
                found[key] = kept.found[key]["cosine"]
        return found

    def _blocks(
        self, made: Sequence[Prediction], own: dict[str, Measure], measures: dict[str, Measure],
        rows: list[list[Cell]], out: Path,
    ) -> list[Block]:  # fmt: skip
        clips = []
        sentences = {one.key: one for one in self.sentences}
        for one in made[: self.players]:
            sounds = {"spoken": out / one["wav"]}
            if prompt := sentences[one["key"]].prompt:
                sounds = {"prompt": prompt} | sounds
            clips.append(Clip(one["key"], sounds, {"Text: ": sentences[one["key"]].words}))
        voice = "the model's own voice" if self.in_own_voice else "the voice of each prompt"
        note = f"Errors as {self.asr} hears them, on --data and not on the SEED test set unless " \
               "that was given."  # fmt: skip
        return [
            Words(f"Task {self.task}, in {voice}. Similarity is the cosine of our speaker "
                  "encoder's vectors: it does not compare with figures of WavLM."),
            Table("Scores", ("what", "value"), list(measures.items())),
            paper.TTS.beside([("this model", [own.get(name) for name in paper.TTS.columns])], note),
            Players("Some sentences", clips),
            Table("Every sentence", ("name", "text", "heard", "similarity"), rows),
        ]  # fmt: skip


@cache
def _encoder(folder: str) -> SpeakerEncoder:
    return SpeakerEncoder(_first(Path(folder), ENCODERS))


@cache
def _tokenizer(folder: str) -> SpeechTokenizer:
    return SpeechTokenizer(_first(Path(folder), TOKENIZERS))


def _first(folder: Path, names: Sequence[str]) -> Path:
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise InputError(f"{folder}: none of {', '.join(names)}; a voice cannot be measured: "
                         "copy the whole directory, or take --no-prompt")  # fmt: skip
    return found


def build(arguments: Namespace, model: Model) -> Tts:
    """The suite that the options ask for. Raises InputError or DataError for the data."""
    if not task_for(arguments.tts_task).speaks or task_for(arguments.tts_task).hears:
        raise InputError(f"--tts-task {arguments.tts_task}: does not read out; take tts")
    sentences = limited(read(arguments.data), arguments.limit, lambda one: one.style)
    # The tiny world's replies are in the model's own voice already.
    in_own_voice = arguments.no_prompt or arguments.data.is_dir()
    fixed = {"tts task": arguments.tts_task, "own voice": in_own_voice}
    return Tts(
        model, tuple(sentences), arguments.tts_task, arguments.asr, in_own_voice,
        arguments.seed, arguments.greedy, arguments.players, fixed, {"asr": arguments.asr},
    )  # fmt: skip
