"""Chooses how a model decides what it heard, on recordings of people that it was not trained on.

    python -m common_utils.small_model.tune_recognizer --model DIR --words build/ear/people/dev.list
        [--bursts build/ear/people/bursts_dev.list] [--most 150] [--dry]

The weights of LLM and words are those of the fewest word errors of the ear alone, with --recognizer
both the weight of Whisper's text then that of the fewest with it; each threshold of a label is
that of the most right answers, where what is not told counts as its plain value; below `words` lie
as many of the clips without words as may be while 1 % of those with words do. They are written as
`recognizer` into DIR/model.yaml.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from common_utils.command import command
from common_utils.small_model.waves import utterances
from osum_echat import audio, logs
from osum_echat.errors import ConfigError
from osum_echat.files import whole_file
from osum_echat.generation.ctc_beam import NEVER, without
from osum_echat.inference import recognizer
from osum_echat.inference.load import RECOGNIZER, LoadedModel, LoadOptions, load
from osum_echat.inference.recognizer import Candidate, RecognizerSettings
from osum_echat.metrics import error_rate, normalised_pair
from osum_echat.models.settings import SETTINGS_FILE
from osum_echat.records import Labels, Utterance
from osum_echat.settings import parse, read_mapping
from osum_echat.thinking import DEFAULT_LABELS, as_heard

LLM = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
WORD = (-1.0, 0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 4.0)
READ = (0.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 40.0)
SURE = (-9.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.7, -0.4, -0.2, -0.1)
LOST = 0.01                             # share of clips with words that may count as without
TRUE_EVENTS = ("LAUGH", "SIGH", "GROAN")

log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Clip:
    """What one recording holds and what the ear makes of it.

    said: None where nothing is said; candidates: Whisper's text among them; no_voice: how sure a
    step is that nothing is said.
    """

    said: str | None
    labels: Labels
    candidates: tuple[Candidate, ...]
    surest: dict[str, tuple[str, float]]
    sureness: float
    no_voice: float


def spread(items: Sequence[Utterance], most: int) -> list[Utterance]:
    """So many of a list, from all over it."""
    step = max(1.0, len(items) / most)
    return [items[int(place * step)] for place in range(min(most, len(items)))]


@torch.inference_mode()
def clip_of(model: LoadedModel, utterance: Utterance) -> Clip:
    """Hear one recording."""
    network, user = model.network, utterance.user
    assert user.audio is not None, "a recording has sound"
    mel = audio.log_mel(audio.read(user.audio).samples, network.settings.encoder.mels)
    log_probs, names = model.recognizer.heard(mel)
    spelling = without(log_probs, [*names.values()])
    place = names.get(recognizer.NO_VOICE)
    said = user.text if user.text and user.text.strip() else None
    reader = model.recognizer.reader
    read = [as_heard(reader.read(network, mel))] if reader is not None and said else []
    surest = model.recognizer.surest_labels(mel, log_probs, names)
    found = model.recognizer.candidates(spelling, read) if said else []
    return Clip(
        said, utterance.labels, tuple(found), surest, recognizer.sureness(spelling),
        float(log_probs[:, place].max()) if place is not None else NEVER,
    )  # fmt: skip


def word_error_rate(clips: Sequence[Clip], settings: RecognizerSettings) -> float:
    """Of the texts that these settings prefer."""
    errors = total = 0
    for clip in clips:
        best = max(clip.candidates, key=lambda one: one.worth(settings), default=None)
        own, words = _errors(clip.said or "", best.text if best else "")
        errors, total = errors + own, total + words
    return errors / max(1, total)


@cache
def _errors(said: str, heard: str) -> tuple[int, int]:
    """Wrong words, and words."""
    rate = error_rate([normalised_pair(said, heard, "english")])
    return rate.errors, rate.total


def threshold(clips: Sequence[Clip], kind: str, default: float) -> float:
    """How sure of a label one must be for the most right answers; the default without any truth."""
    known = [(clip.surest[kind], _truth(clip, kind)) for clip in clips if kind in clip.surest]
    judged = [(one, truth) for one, truth in known if truth is not None]
    if len({truth for _, truth in judged}) < 2:
        return default

    def right(sure: float) -> float:
        told = [name if score > sure else DEFAULT_LABELS[kind] for (name, score), _ in judged]
        return sum(one == truth for one, (_, truth) in zip(told, judged, strict=True))

    return max(SURE, key=right)


def _truth(clip: Clip, kind: str) -> str | None:
    """What should be told of a clip; None: not known."""
    label: str | None = getattr(clip.labels, kind)
    if kind != "event":
        return label if clip.said else None     # of a sound without words only the event is told
    if label in TRUE_EVENTS:
        return label
    return DEFAULT_LABELS[kind] if clip.said else None


def lowest(values: Iterable[float], share: float) -> float:
    """The value below which lie so few."""
    order = sorted(values)
    return order[int(share * len(order))] if order else NEVER


def tuned(clips: Sequence[Clip], before: RecognizerSettings) -> RecognizerSettings:
    """The settings that suit these clips best."""
    spoken = [clip for clip in clips if clip.said]
    if not spoken:
        raise ConfigError("no clip with words: weights cannot be chosen")
    by_ear = [
        replace(clip, candidates=tuple(replace(one, is_read=False) for one in clip.candidates
                                       if one.is_spelt)) for clip in spoken
    ]  # fmt: skip
    tried = [replace(before, llm=llm, word=word) for llm, word in product(LLM, WORD)]
    found = min(tried, key=lambda one: word_error_rate(by_ear, one))
    if any(one.is_read for clip in spoken for one in clip.candidates):
        counting = [replace(found, whisper=read) for read in READ]
        found = min(counting, key=lambda one: word_error_rate(spoken, one))
    rates = [100 * word_error_rate(spoken, one) for one in (found, before)]
    log.info("words wrong: %.1f %%, before %.1f %%", *rates)
    for kind in DEFAULT_LABELS:
        chosen: dict[str, Any] = {kind: threshold(clips, kind, getattr(before, kind))}
        found = replace(found, **chosen)
    highest = -lowest((-clip.no_voice for clip in spoken), LOST)
    return replace(
        found, words=max(-9.0, round(lowest((clip.sureness for clip in spoken), LOST) - 0.01, 3)),
        no_voice=min(-0.05, round(highest + 0.01, 3)),
    )  # fmt: skip


def tune(
    model: Path, words: Path, bursts: Path | None = None,
    recognizer: Literal["ear", "both"] | None = None, most: int = 150, dry: bool = False,
) -> None:  # fmt: skip
    """Hear the lists, choose, and put the settings into the model's YAML."""
    torch.set_num_threads(1)
    options = LoadOptions(model, recognizer=recognizer)
    loaded = load(options, torch.device("cpu"), speaks=False)
    clips: list[Clip] = []
    for path in [one for one in (words, bursts) if one is not None]:
        for utterance in logs.progress(spread([*utterances(path)], most), path.name, most):
            clips.append(clip_of(loaded, utterance))
    path = model / SETTINGS_FILE
    raw = read_mapping(path)
    found = tuned(clips, parse(RecognizerSettings, raw.get(RECOGNIZER) or {}, RECOGNIZER))
    logs.out_json(asdict(found))
    if not dry:
        raw[RECOGNIZER] = asdict(found)
        with whole_file(path) as file:
            file.write(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True).encode())


main = command(
    tune, words="list of recordings with their words", most="clips of each list",
    bursts="list of laughs, sighs, groans and noises", dry="choose, but write nothing",
    recognizer="both: with the weight of Whisper's text, kept for `--recognizer both`",
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
