"""What a model whose CTC spells hears in a clip: the words, and labels of the voice and of sounds.

The CTC's best texts are weighed by the LLM, all in one batch: a word that it doubts is mended. The
LLM reads the labels and words in the place of the clip, and they are given to it as the words it
would write down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, takewhile

import torch
from torch import Tensor

from osum_echat import thinking
from osum_echat.errors import ConfigError
from osum_echat.generation import ctc_beam
from osum_echat.models.echat import FRAMES_PER_STEP, EChatModel
from osum_echat.models.voice_labels import VoiceLabels
from osum_echat.models.whisper_decoder import WhisperDecoder, cut_at_pauses
from osum_echat.records import Labels
from osum_echat.tasks import USER_START, Task
from osum_echat.vocab import UNKNOWN, Pieces, Vocab

EAR, WHISPER, BOTH = "ear", "whisper", "both"
RECOGNIZERS = (EAR, WHISPER, BOTH)
NO_VOICE = "NOISE"  # the label of a clip in which nobody speaks
VOCABULARIES = 4  # whose pieces are remembered


@dataclass(frozen=True, slots=True)
class RecognizerSettings:
    """How words and labels are decided: `recognizer` in model.yaml, chosen on recordings of people.

    kind: ear (the model's own), whisper (Whisper's decoder on the same encoder), or both: its text
    is one of those that are weighed, and `whisper` is what each word of it counts for being that;
    llm, word: what the LLM's log probability and each word count beside the CTC's 1;
    language_model: a file of bigrams beside model.yaml (generation/ctc_beam.py), whose log
    probability counts `ngram`, and each word `word`, in the beam, None: the beam hears spellings
    alone; voice_labels: a file beside model.yaml that tells labels (models/voice_labels.py), None:
    the CTC does; beam: texts kept in it; best: so many different ones are weighed by the LLM;
    event, emotion, age, gender: log probability that a label has at least (the CTC's at some step)
    to be told; other kinds always are told; no_voice: that NOISE has where nobody speaks, and
    spelling steps on average have not;
    words: mean log probability of the spelling steps, below which there are no words but a guess.
    """

    kind: str = EAR
    llm: float = 0.4
    word: float = 0.8
    whisper: float = 8.0
    language_model: str | None = None
    voice_labels: str | None = None
    ngram: float = 0.5
    beam: int = 16
    best: int = 8
    event: float = -1.0
    emotion: float = -3.0
    age: float = -9.0
    gender: float = -9.0
    no_voice: float = -0.7
    words: float = -9.0

    def __post_init__(self) -> None:
        if self.kind not in RECOGNIZERS:
            raise ConfigError(f"recognizer {self.kind!r}: choose one of {', '.join(RECOGNIZERS)}")
        if self.beam < 1 or self.best < 1:
            raise ConfigError(f"recognizer: beam {self.beam}, best {self.best}: write 1 or more")


SETTINGS = RecognizerSettings()


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was heard. words: lower case, "" for none; labels: by the names of thinking.VALUES."""

    words: str
    labels: Mapping[str, str]

    @property
    def is_nothing(self) -> bool:
        """Neither words nor a sound that has a name."""
        return not self.words and "event" not in self.labels

    def ids(self, vocab: Vocab, rows: int) -> tuple[int, ...]:
        """What the LLM reads in the clip's place: labels as words, then the words, by pieces.

        rows: of the text table that are pieces. Nothing heard is four times the mark of a clip.
        """
        text = f"{thinking.voice_tags(self.labels)} {self.words}"
        found = _pieces(vocab, rows).encode(thinking.as_words(text))
        return tuple(found) or (vocab.joint(vocab.audio_begin),) * 4

    def thought(self, template: thinking.LabelTemplate) -> str:
        """The label thought up to the style of the reply, which the LLM chooses."""
        known = Labels(**{**thinking.DEFAULT_LABELS, **self.labels})
        cue = template.cues[-1]
        return thinking.label_thought(template, self.words, known).rpartition(cue)[0] + cue.rstrip()

    def answer(self, task: Task) -> str:
        """The whole answer of an understanding task."""
        told = {**thinking.DEFAULT_LABELS, **self.labels}
        tags = "".join(f"<{told.get(kind, UNKNOWN)}>" for kind in task.labels)
        return (self.words if task.transcript else "") + tags


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may have been said, and the log probabilities of CTC and LLM.

    is_read: Whisper's decoder reads the same; each: by the LLM, of the text's ids; is_spelt: the
    CTC's beam finds it.
    """

    text: str
    ctc: float
    is_read: bool = False
    each: tuple[float, ...] = ()
    is_spelt: bool = True

    @property
    def llm(self) -> float:
        return sum(self.each)

    def worth(self, settings: RecognizerSettings) -> float:
        of_word = settings.word + settings.whisper * self.is_read
        return self.ctc + settings.llm * self.llm + of_word * len(self.text.split())


@dataclass(frozen=True, slots=True)
class Recognizer:
    """A model whose CTC spells. reader: of whisper and both; bigrams, voice_labels: the settings'
    files."""

    network: EChatModel
    vocab: Vocab
    settings: RecognizerSettings = SETTINGS
    reader: WhisperDecoder | None = None
    bigrams: ctc_beam.Bigrams | None = None
    voice_labels: VoiceLabels | None = None

    @torch.inference_mode()
    def recognize(self, mel: Tensor) -> Recognition:
        """The words and labels of one clip; mel: (frames, mel).

        A clip of over 30 s is weighed in parts, cut where it is quiet. Raises ConfigError for a
        model whose CTC has no classes of its own (model.yaml: ctc).
        """
        settings, reader = self.settings, self.reader
        log_probs, names = self.heard(mel)
        found = labels(self.surest_labels(mel, log_probs, names), settings)
        parts = cut_at_pauses(mel)
        ends = [end // FRAMES_PER_STEP for end in accumulate(map(len, parts[:-1]))]
        texts = []
        for part, scores in zip(parts, log_probs.tensor_split(ends), strict=True):
            if is_without_voice(scores, names, settings.no_voice):
                continue
            spelling = ctc_beam.without(scores, [*names.values()])
            if reader is not None and settings.kind == WHISPER:
                texts.append(thinking.as_heard(reader.read(self.network, part)))
            elif sureness(spelling) >= settings.words:
                read = [thinking.as_heard(reader.read(self.network, part))] if reader else []
                texts.append(self.words(spelling, read))
        spelt = " ".join(filter(None, texts))
        if not spelt:
            found = {kind: name for kind, name in found.items() if kind == "event"}
        return Recognition(spelt, found)

    def heard(self, mel: Tensor) -> tuple[Tensor, dict[str, int]]:
        """What the CTC makes of one clip, (steps, classes + 1), and the class of each label.

        mel: (frames, mel). Raises ConfigError for a model whose CTC has no classes of its own.
        """
        network, settings = self.network, self.network.settings.ctc
        if settings is None:
            raise ConfigError("ctc: missing in model.yaml; this model does not spell what it hears")
        mel = mel.to(network.device)
        lengths = torch.tensor([len(mel)], device=mel.device)
        steps, _ = network.encode_audio_alone(mel[None], lengths)
        names = {name: settings.pieces + place for place, name in enumerate(settings.labels)}
        return network.ctc_log_probs(steps[0]).cpu(), names

    def surest_labels(
        self, mel: Tensor, log_probs: Tensor, names: Mapping[str, int]
    ) -> dict[str, tuple[str, float]]:
        """Of each kind the likeliest label of a clip and its log probability; mel: (frames, mel).

        log_probs, names: what the CTC makes of it; it tells where there is nothing else.
        """
        if self.voice_labels is not None:
            return self.voice_labels.surest(self.network.encoder, mel)
        return surest_of_ctc(log_probs, names)

    def candidates(self, log_probs: Tensor, read: Sequence[str] = ()) -> list[Candidate]:
        """The texts that the CTC finds likeliest, if it hears any, and those that were read.

        log_probs: (steps, pieces + 1).
        """
        return self._weighed(self._found(log_probs, read))

    def words(self, log_probs: Tensor, read: Sequence[str] = ()) -> str:
        """The text that CTC and LLM together like best; log_probs: (steps, pieces + 1).

        The LLM is not asked about texts that cannot win: it only takes from what they are worth.
        """
        settings = self.settings
        found = sorted(self._found(log_probs, read), key=lambda one: -one.worth(settings))
        if not found:
            return ""
        (first,) = self._weighed(found[:1])
        rest = [
            one for one in found[1:]
            if settings.llm < 0 or self._at_most(one, first).worth(settings) > first.worth(settings)
        ]  # fmt: skip
        return max([first, *self._weighed(rest)], key=lambda one: one.worth(settings)).text

    def _found(self, log_probs: Tensor, read: Sequence[str]) -> list[Candidate]:
        """Candidates before the LLM is asked. A text that is spelt in several ways is one."""
        settings, vocab, rows, scorer = self.settings, self.vocab, log_probs.shape[1] - 1, None
        if self.bigrams is not None and settings.ngram:
            spellings = _spellings(vocab, rows)
            scorer = ctc_beam.WordScorer(self.bigrams, spellings, settings.ngram, settings.word)
        texts: dict[str, float] = {}
        for one in ctc_beam.beam_search(log_probs, settings.beam, settings.beam, scorer):
            text = vocab.decode(one.ids).strip()
            texts[text] = max(texts.get(text, ctc_beam.NEVER), one.score)
        spoken = [(text, score) for text, score in texts.items() if text][: settings.best]
        if not spoken or not next(iter(texts)):
            return []
        found = [Candidate(text, ctc, text in read) for text, ctc in spoken]
        for text in {*read} - {"", *(text for text, _ in spoken)}:
            ids = _pieces(vocab, rows).encode(thinking.as_words(text))
            score = ctc_beam.text_score(log_probs, ids)
            found.append(Candidate(text, score, is_read=True, is_spelt=False))
        return found

    def _weighed(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Candidates with what the LLM finds, all in one batch."""
        if not found:
            return []
        rows = [self._row(one) for one in found]
        scores = ctc_beam.llm_scores(self.network.llm, self.vocab.encode(USER_START), rows)
        return [replace(one, each=tuple(own)) for one, own in zip(found, scores, strict=True)]

    def _row(self, one: Candidate) -> tuple[int, ...]:
        """A text as the LLM is asked about it."""
        return self.vocab.encode(f" {one.text}")

    def _at_most(self, one: Candidate, known: Candidate) -> Candidate:
        """With the most that the LLM may find: what it found of the ids with which both begin."""
        pairs = zip(self._row(one), self._row(known), strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return replace(one, each=known.each[:same])


def sureness(log_probs: Tensor) -> float:
    """Mean log probability of the steps that spell; log_probs: (steps, pieces + 1)."""
    best, classes = log_probs.max(1)
    spelt = best[classes < log_probs.shape[1] - 1]
    return float(spelt.mean()) if len(spelt) else ctc_beam.NEVER


def labels(
    surest: Mapping[str, tuple[str, float]], settings: RecognizerSettings = SETTINGS
) -> dict[str, str]:
    """Of each kind the surest label, where that is sure enough."""
    return {kind: name for kind, (name, score) in surest.items()
            if score > getattr(settings, kind, ctc_beam.NEVER)}  # fmt: skip


def surest_of_ctc(
    log_probs: Tensor, names: Mapping[str, int]
) -> dict[str, tuple[str, float]]:
    """Of each kind that the CTC knows, the label that some step is surest of, and how sure.

    log_probs: (steps, classes + 1); names: the class of each label; how sure: its log probability.
    """
    best, found = log_probs.amax(0), {}
    for kind, values in thinking.VALUES.items():
        known: Sequence[str] = sorted(values & names.keys())
        if known:
            name = max(known, key=lambda one: float(best[names[one]]))
            found[kind] = (name, float(best[names[name]]))
    return found


def is_without_voice(
    log_probs: Tensor, names: Mapping[str, int], sure: float = SETTINGS.no_voice
) -> bool:
    """Whether a step is sure that nobody speaks, and those that spell are not: words may follow a
    long silence. sure: log probability; others as of `heard`."""
    place = names.get(NO_VOICE)
    if place is None or float(log_probs[:, place].max()) <= sure:
        return False
    return sureness(ctc_beam.without(log_probs, [*names.values()])) <= sure


@lru_cache(maxsize=VOCABULARIES)
def _pieces(vocab: Vocab, rows: int) -> Pieces:
    return Pieces(vocab.tokenizer, rows=rows)


@lru_cache(maxsize=VOCABULARIES)
def _spellings(vocab: Vocab, rows: int) -> tuple[str, ...]:
    """How each piece is written; one that begins a word, with a space."""
    return tuple(vocab.decode([number]) for number in range(rows))
