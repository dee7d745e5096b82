"""Text pieces and speech codes in one id space; every special id found by name.

Text ids come first (0 to text_rows), speech ids after them: speech id `s` is `text_rows + s`.
"""
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from osum_echat.errors import CheckpointError, DataError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
TEXT_END = "<|im_end|>"
UNKNOWN = "&&"                  # inside <>: a label nobody knows, no loss on it
SPEECH_CODES = 4096
_MARK = re.compile(r"<\|.*\|>|\[PAD\]")
_CACHED_TEXTS = 4096


class Pieces:
    """The first merges of a byte-pair tokenizer: coarser spelling with the tokenizer's own ids."""

    def __init__(self, tokenizer: "Tokenizer", merges: int | None = None, rows: int = 0) -> None:
        """merges: how many; None: all those whose ids are among the first `rows`.

        Raises CheckpointError for a tokenizer that has fewer merges, or none.
        """
        from tokenizers import Tokenizer as Backend

        backend = getattr(tokenizer, "backend", None)
        whole = json.loads(backend.to_str()) if backend is not None else {}
        raw = whole.get("model", {})
        every = [
            raw["vocab"]["".join(one if isinstance(one, list) else one.split(" "))]
            for one in raw.get("merges", [])
        ]
        if merges is None:
            merges = sum(number < rows for number in every)
        if not every or len(every) < merges:
            raise CheckpointError(f"tokenizer: {len(every)} merges, need {merges}; lower "
                                  "prepare.audio_as_text_merges")
        raw["merges"] = raw["merges"][:merges]
        self.inner = Backend.from_str(json.dumps(whole))
        self.ids = tuple(every[:merges])  # of the merges

    def encode(self, text: str) -> list[int]:
        """Ids of the text, none of them past the merges."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)


class Tokenizer(Protocol):
    """Anything that turns text to ids and back."""

    def encode(self, text: str) -> list[int]: """Ids without any added start or end."""

    def decode(self, ids: list[int]) -> str: """Text of the ids, chat marks left out."""


class Vocab:
    """One id space for text and speech.

    text_rows: rows of the model's text table; speech_codes: codes of the codec. After the codes
    come the edge (begin and end of speech), then the marks before and after the user's audio.
    """

    def __init__(self, tokenizer: Tokenizer, text_rows: int, speech_codes: int = SPEECH_CODES):
        self.tokenizer, self.text_rows, self.speech_codes = tokenizer, text_rows, speech_codes
        self.speech_edge = speech_codes
        self.audio_begin = speech_codes + 1
        self.audio_end = speech_codes + 2
        self.speech_rows = speech_codes + 3         # of the speech table
        self.speech_head_rows = speech_codes + 1    # the marks around audio are never spoken
        self._ids: dict[str, tuple[int, ...]] = {}
        end = self.encode(TEXT_END)
        if len(end) != 1:
            raise CheckpointError(f"tokenizer: {TEXT_END} is {len(end)} pieces, need one; "
                                  "add it as a special token")
        self.text_end = end[0]
        unknown = self.encode(UNKNOWN)
        self.unknown_label = unknown[0] if len(unknown) == 1 else None

    @classmethod
    def from_directory(
        cls, path: Path | str, text_rows: int | None = None, speech_codes: int = SPEECH_CODES
    ) -> "Vocab":
        """Read a Hugging Face tokenizer from local files; text_rows defaults to its size."""
        tokenizer = _HuggingFaceTokenizer(Path(path))
        if text_rows is not None and text_rows < tokenizer.size:
            raise CheckpointError(f"{path}: the tokenizer has {tokenizer.size} ids, the model's "
                                  f"text table {text_rows} rows; use the model's own tokenizer")
        return cls(tokenizer, text_rows or tokenizer.size, speech_codes)

    def encode(self, text: str) -> tuple[int, ...]:
        """Text ids; `<|im_start|>` and the like are known as single marks."""
        ids = self._ids.get(text)
        if ids is None:
            ids = tuple(self.tokenizer.encode(text))
            if len(self._ids) < _CACHED_TEXTS:
                self._ids[text] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; chat marks and ids outside the text table are left out."""
        return self.tokenizer.decode([number for number in ids if 0 <= number < self.text_rows])

    def joint(self, speech_id: int) -> int:
        """The joint id of a speech id (a code, the edge or an audio mark)."""
        if not 0 <= speech_id < self.speech_rows:
            raise DataError(f"speech id {speech_id}: need 0 to {self.speech_rows - 1}")
        return self.text_rows + speech_id

    def speech(self, joint_id: int) -> int:
        """The speech id of a joint id."""
        return joint_id - self.text_rows

    def is_speech(self, joint_id: int) -> bool:
        """True for codes, the edge and the audio marks."""
        return joint_id >= self.text_rows

    def choices_after(
        self, cue: str, names: Sequence[str]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the rule AllowedAfter needs: the ids of `cue`, the first id of each name after it.

        `cue + name` is encoded as a whole, since pieces may span the border: what all have in
        common is the cue. E.g. cue "年龄为:<", names CHILD> ADULT> OLD>.
        """
        rows = [self.encode(cue + name) for name in names]
        shared = 0
        while shared < min(map(len, rows)) - 1 and len({row[shared] for row in rows}) == 1:
            shared += 1
        return rows[0][:shared], tuple(sorted({row[shared] for row in rows}))


class _HuggingFaceTokenizer:
    """A transformers tokenizer behind our two methods; its chat marks are dropped when decoding."""

    def __init__(self, path: Path):
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory; give a model directory that holds "
                                  "a tokenizer")
        from transformers import AutoTokenizer

        try:
            self.inner = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path}: the tokenizer cannot be read ({reason}); "
                                  "need tokenizer.json or vocab.json and merges.txt") from error
        self.size = len(self.inner)
        self.backend = getattr(self.inner, "backend_tokenizer", None)   # a slow one has none
        marks = [token for token in self.inner.get_added_vocab() if _MARK.fullmatch(token)]
        self.marks = frozenset(self.inner.convert_tokens_to_ids(marks))

    def encode(self, text: str) -> list[int]:
        if self.backend is not None:    # the same ids at half the cost
            return list(self.backend.encode(text, add_special_tokens=False).ids)
        return list(self.inner.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        words = [number for number in ids if number < self.size and number not in self.marks]
        return str(self.inner.decode(words, skip_special_tokens=False,
                                     clean_up_tokenization_spaces=False))
