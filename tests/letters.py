"""A tokenizer for tests: one id a character, and a few marks that are one piece."""

import re

from osum_echat.vocab import Vocab

MARKS = ("<|im_end|>", "<|im_start|>", "&&")
ROWS = 128 + len(MARKS)


class Letters:
    """Ids below 128 are ASCII characters (others are taken modulo 128); marks follow."""

    def __init__(self, marks: tuple[str, ...] = MARKS) -> None:
        self.marks = marks

    def encode(self, text: str) -> list[int]:
        pattern = "|".join([*map(re.escape, self.marks), r"[\s\S]"])
        return [128 + self.marks.index(piece) if piece in self.marks else ord(piece) % 128
                for piece in re.findall(pattern, text)]  # fmt: skip

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(number) for number in ids if number < 128)


def letter_vocab(speech_codes: int = 64) -> Vocab:
    return Vocab(Letters(), ROWS, speech_codes)
