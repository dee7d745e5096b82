"""What the small model hears: words and labels of people, of made voices, and of sounds.

Every voice and every text is one that nothing was trained on.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.small_replies import share, written
from common_utils.small_model import speak, texts
from common_utils.small_model.pieces import heard_words
from common_utils.small_model.tune_recognizer import spread
from common_utils.small_model.waves import utterances
from osum_echat import audio, metrics
from osum_echat.errors import InputError
from osum_echat.inference.recognizer import Recognition

EVERY = 10**9
CLIPS_OF_A_SPEAKER = 4
TOLD_EVENTS = ("LAUGH", "SIGH", "GROAN")
NO_EVENT = "none"
Hear = Callable[[Tensor], Recognition]          # (samples,) at 16 kHz


@dataclass(frozen=True, slots=True)
class Truth:
    """One clip and what is known of it. samples: (samples,) at 16 kHz."""

    samples: Tensor
    words: str
    labels: dict[str, str | None]


def word_errors(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The share of wrong words with its interval, by Whisper's normaliser; (truth, heard)."""
    plain = [metrics.normalised_pair(*pair, "english") for pair in pairs]
    low, high = metrics.interval(*metrics.errors_of_each(plain))
    return {"share": metrics.error_rate(plain).rate, "interval": [low, high], "n": len(pairs)}


def recordings(path: Path, most: int) -> Iterator[Truth]:
    """So many recordings of a list, from all over it."""
    for one in spread(list(utterances(path, EVERY)), most):
        assert one.user.audio is not None, "a recording has sound"
        labels = {kind: getattr(one.labels, kind) for kind in ("age", "gender", "emotion", "event")}
        yield Truth(audio.read(one.user.audio).samples, (one.user.text or "").strip(), labels)


def by_speaker(folder: Path, hear: Hear) -> dict[str, Any]:
    """Gender: of each speaker of the lists, what most of a few clips say."""
    genders: dict[str, str] = written()["genders"]
    clips = defaultdict(list)
    for path in sorted(folder.glob("*.list")):
        for line in path.read_text("utf-8").splitlines():
            raw = json.loads(line)
            if raw.get("speaker") in genders:
                clips[raw["speaker"]].append(path.parent / raw["wav"])
    if not clips:
        raise InputError(f"--people {folder}: no lists of speakers whose gender is known")
    right = []
    for speaker, sounds in clips.items():
        told = Counter(hear(audio.read(sound).samples).labels.get("gender")
                       for sound in sounds[:CLIPS_OF_A_SPEAKER])  # fmt: skip
        right.append(told.most_common(1)[0][0] == genders[speaker])
    return share(right)


def bursts(path: Path, hear: Hear, most: int) -> dict[str, Any]:
    """Laugh, sigh, groan or none of them: as many of each."""
    of_kind = defaultdict(list)
    for one in utterances(path, EVERY):
        event = one.labels.event
        if event in TOLD_EVENTS or event is None:
            of_kind[event or NO_EVENT].append(one)
    least = min(max(1, most // len(of_kind)), *map(len, of_kind.values()))
    right = {
        kind: [
            _event(hear(audio.read(one.user.audio).samples)) == kind
            for one in spread(found, least) if one.user.audio is not None
        ]
        for kind, found in of_kind.items()
    }  # fmt: skip
    whole = share([hit for hits in right.values() for hit in hits])
    return whole | {"note": ", ".join(f"{kind} {sum(hits)}/{len(hits)}"
                                      for kind, hits in sorted(right.items()))}  # fmt: skip


def _event(found: Recognition) -> str:
    event = found.labels.get("event", NO_EVENT)
    return event if event in TOLD_EVENTS else NO_EVENT


def made_clips(parts: Path, say: speak.Speaker, most: int, seed: int = 7) -> Iterator[Truth]:
    """Held-out chitchat by made voices."""
    known, rng = speak.known_words(parts), np.random.default_rng(seed)
    pool = [one for one in texts.chat_sentences(parts, held_out=True)
            if speak.can_be_read(one, known)]  # fmt: skip
    order = rng.permutation(len(pool))
    given = 0
    for place in order:
        if given >= most:
            return
        text = pool[int(place)]
        try:
            made = say(text, rng)
        except InputError:
            continue
        given += 1
        wave = torch.from_numpy(np.ascontiguousarray(made.wave, np.float32))
        yield Truth(wave, heard_words(text) or "", made.labels)


def labels_right(truths: Sequence[Truth], found: Sequence[Recognition]) -> dict[str, Any]:
    """By kind of label, the share that is right."""
    plain = {"emotion": "NEUTRAL"}
    told = {}
    for kind in ("age", "gender", "emotion"):
        hits = [one.labels.get(kind, plain.get(kind)) == truth.labels.get(kind)
                for truth, one in zip(truths, found, strict=True)
                if truth.labels.get(kind)]  # fmt: skip
        told[kind] = share(hits)
    return told


def told_nothing(path: Path, hear: Hear, most: int) -> dict[str, Any]:
    """Noise and silence that is told as nothing heard."""
    noises = [one for one in utterances(path, EVERY) if one.labels.event == "NOISE"]
    sounds = [audio.read(one.user.audio).samples for one in spread(noises, most)
              if one.user.audio is not None]  # fmt: skip
    sounds += [torch.randn(32_000, generator=torch.Generator().manual_seed(1)) * 1e-3]
    return share([hear(samples).is_nothing for samples in sounds])
