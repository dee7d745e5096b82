"""The talker: a small model of its own that turns the words of a reply into speech codes.

It reads a clause at a time, so that speech begins while the rest is still being written, and writes
each piece of the clause before the codes that sound it. The pieces are given to it; all that it
chooses is the next code, and when the next piece begins. So nothing is left out or said twice, and
the length of the speech is bounded by the text.
"""

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.generation.kv_cache import CachedLLM
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.echat import EChatModel
from osum_echat.models.settings import read_settings
from osum_echat.records import Turn
from osum_echat.sequence import compose
from osum_echat.tasks import TASKS
from osum_echat.thinking import without_labels
from osum_echat.vocab import Vocab

TASK = TASKS["tts_streaming"]
MOST_CODES = 20                 # of one piece: 0.8 s, longer than any pause
CODES_A_PIECE = 4               # on average, at most: half as fast as people speak
MOST_TOKENS = 600               # of a row: earlier clauses beyond it are forgotten
CLAUSE_END = re.compile(r"([.!?…][\"'”’)]*|[,;:—])\s+")
SENTENCE_ENDS = ".!?…"
SHORTEST_CLAUSE, LONGEST_CLAUSE = 12, 160           # letters
PHONEME = re.compile(r" ?[ˈˌ]?.", re.DOTALL)        # with its stress and the space before it
NOT_IN_ANY_TEXT = "\ue000"
Spell = Callable[[str], str]
ENGLISH = "english"
CODES_AHEAD = 16                # that wait for a caller who solves a piece: 0.6 s


class ClauseSplitter:
    """Cuts a growing text into clauses: at the end of a sentence, or at a mark well inside one."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str, is_last: bool = False) -> list[str]:
        """The clauses that are whole now; at the end of the text, what is left too."""
        self._text += text
        found = []
        while (end := self._end()) is not None:
            found.append(self._text[:end])
            self._text = self._text[end:]
        if is_last:
            found.append(self._text)
            self._text = ""
        return [clause for clause in map(str.strip, found) if clause]

    def _end(self) -> int | None:
        # No mark beyond the place of the cut below counts, or a text that comes whole would be cut
        # at others than one that grows.
        for mark in CLAUSE_END.finditer(self._text, 0, LONGEST_CLAUSE + 1):
            if mark[0][0] in SENTENCE_ENDS or mark.start() >= SHORTEST_CLAUSE:
                return mark.end()
        if len(self._text) <= LONGEST_CLAUSE:
            return None
        return self._text.rfind(" ", SHORTEST_CLAUSE, LONGEST_CLAUSE) + 1 or LONGEST_CLAUSE


@dataclass(frozen=True, slots=True)
class Talker:
    """A loaded talker. spell: words to what the model reads; style: where a reply has none."""

    source: Path
    network: EChatModel
    vocab: Vocab
    spell: Spell
    style: str | None

    @classmethod
    def load(cls, place: str | Path, codes: int, device: torch.device) -> "Talker":
        """Read a model directory. codes: of the token to wav that shall sound it.

        Raises CheckpointError for a model of other codes, or without what spells its words.
        """
        found = pretrained.find(place)
        settings, raw = read_settings(found.settings), found.settings_yaml()
        if settings.speech_codes != codes:
            raise CheckpointError(
                f"{found.settings}: a talker of {settings.speech_codes} speech codes, where token "
                f"to wav knows {codes}; give one that was trained on its codes"
            )
        rows = settings.llm["vocab_size"]
        vocab = Vocab.from_directory(found.tokenizer(), rows, settings.speech_codes)
        g2p, style = raw.get("g2p"), raw.get("style")
        if g2p not in (None, ENGLISH):
            raise CheckpointError(f"{found.settings}: g2p {g2p!r}; write {ENGLISH} or nothing")
        network = checkpoint.load(found.weights, settings, torch.float32, device=device)
        spell = _english(vocab) if g2p == ENGLISH else without_labels
        return cls(found.home, network, vocab, spell, style)

    def begin(self, style: str | None) -> "Speech":
        """The speech of one reply. style: of the reply, None: not known."""
        mark = next((f"<{one}>" for one in (style, self.style) if one and self._knows(one)), "")
        return Speech(self, mark)

    def say(self, text: str, style: str | None) -> list[int]:
        """The codes of a whole text."""
        return list(self.begin(style).push(text, is_last=True))

    def _knows(self, style: str) -> bool:
        return len(self.vocab.encode(f"<{style}>")) == 1

    @torch.inference_mode()
    def codes(self, row: list[int], pieces: tuple[int, ...]) -> Iterator[int | None]:
        """The codes of a clause, None where the next piece begins.

        row: its prompt; pieces: its text, both in joint ids. The first None ends what comes before
        the first piece.
        """
        network, vocab = self.network, self.vocab
        begin = [*row, vocab.joint(vocab.speech_edge)]
        llm = CachedLLM(network.llm, [self._embedded(begin)])
        left = MOST_CODES
        for piece in (*pieces, vocab.text_end):
            stays = 1.0                 # how likely the piece before has not ended so far
            for _ in range(min(max(left, CODES_A_PIECE), MOST_CODES)):
                code, ends = self._likeliest(llm.state[0], piece)
                stays *= 1 - ends
                if stays < 0.5:         # the median of its length
                    break
                yield code
                left -= 1
                llm.step(self._embedded([vocab.joint(code)]))
            yield None
            left += CODES_A_PIECE
            llm.step(self._embedded([piece]))

    def _likeliest(self, state: Tensor, piece: int) -> tuple[int, float]:
        """The likeliest code, and the probability that the piece comes now. state: (width,)."""
        scores = self.network.logits_speech(state)[: self.vocab.speech_codes].float()
        goes_on = self.network.logits_text(state)[piece].float() - scores.logsumexp(0)
        return int(scores.argmax()), float(goes_on.sigmoid())

    def _embedded(self, ids: list[int]) -> Tensor:
        """(tokens, width)."""
        return self.network.embed_ids(torch.tensor(ids, device=self.network.device))


class Speech:
    """A reply on its way from words to codes; later clauses go on with the melody of earlier."""

    def __init__(self, talker: Talker, mark: str) -> None:
        self._talker, self._mark = talker, mark
        self._clauses = ClauseSplitter()
        self._past: list[Turn] = []

    def push(self, text: str, is_last: bool = False) -> Iterator[int]:
        """The codes of the clauses that these next letters complete."""
        for clause in self._clauses.push(text, is_last):
            yield from self._spoken(clause)

    def _spoken(self, clause: str) -> Iterator[int]:
        talker = self._talker
        spelt = talker.spell(clause)
        if not spelt.strip():
            return
        text = self._mark + spelt
        row = self._row(text)
        codes: list[int] = []
        starts: list[int] = []
        for code in talker.codes(row, talker.vocab.encode(text)):
            if code is None:
                starts.append(len(codes))
            else:
                codes.append(code)
                yield code
        longest = max(map(operator.sub, starts, [0, *starts]))
        if longest >= MOST_CODES or len(codes) >= MOST_CODES + CODES_A_PIECE * (len(starts) - 1):
            return      # it was lost in silence: what comes next is not to go on like that
        # The last one begins the end mark.
        self._past.append(Turn(None, None, text, tuple(codes), tuple(starts[:-1])))

    def _row(self, text: str) -> list[int]:
        """The prompt of a clause behind as many earlier ones as a row may hold."""
        while True:
            row = compose(TASK, self._talker.vocab, history=self._past, user_text=text)
            if len(row) <= MOST_TOKENS or not self._past:
                return row.ids
            del self._past[0]


def _english(vocab: Vocab) -> Spell:
    """English words to the phonemes that a vocabulary knows, with their stress and marks."""
    try:
        from hibari.g2p import G2P
    except ImportError as error:
        raise CheckpointError(
            "the talker reads phonemes, and the package that makes them is missing: "
            "pip install hibari-tts==0.2.1"
        ) from error
    g2p, unknown = G2P(), vocab.encode(NOT_IN_ANY_TEXT)

    def known(piece: str) -> str:
        for one in (piece, piece[-1]):      # without its stress and space, where they are not known
            if vocab.encode(one) != unknown:
                return one
        return ""

    def spell(text: str) -> str:
        words = without_labels(text).strip()
        if not re.search(r"\w", words):
            return ""
        whole = words if words[-1] in f"{SENTENCE_ENDS},;:—" else f"{words}."
        return "".join(known(piece) for piece in PHONEME.findall(g2p(whole)))

    return spell
