"""The talker's tokenizer: phonemes with their stress and the space before them, one id each.

    python -m common_utils.small_model.phonemes --out DIR
"""

import re
import sys
from pathlib import Path

from common_utils.command import command
from common_utils.small_model.hibari import STYLES
from common_utils.tiny_world.text_tokenizer import save
from osum_echat.inference.talker import PHONEME
from osum_echat.sequence import NEXT_CLAUSE
from osum_echat.tasks import SWITCH, TASKS
from osum_echat.vocab import TEXT_END, UNKNOWN

VOWELS = "AIOQWYaeiouæɑɐɒɔəɚɛɜɨɪʊʌᵊᵻ"
OTHERS = "bdfhjklmnpstvwzðŋɡɹɾʃʒʤʧθTʔxrSʰː" + ";:,.!?—…\"()“”"
PAD = "<pad>"
_PIECE = re.compile(rf"<[A-Z]+>|{PHONEME.pattern}", re.DOTALL)


def pieces_of(text: str) -> list[str]:
    """The pieces of a clause: its style mark, then phonemes."""
    return _PIECE.findall(text)


def vocabulary() -> list[str]:
    """Every phoneme with every stress, alone and behind a space, in a fixed order."""
    singles = [*(stress + vowel for vowel in VOWELS for stress in ("", "ˈ", "ˌ")), *OTHERS]
    return [PAD, *singles, *(f" {one}" for one in singles)]


def marks() -> list[str]:
    """What is one id each and not spoken: the fixed words around a clause, and styles."""
    fixed = (TASKS["tts_streaming"].opening, SWITCH, NEXT_CLAUSE, TEXT_END, UNKNOWN)
    return [*fixed, *(f"<{style}>" for style in STYLES)]


def write(out: Path) -> None:
    """Write the tokenizer, loadable by AutoTokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    numbers = {piece: number for number, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PHONEME.pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks()])
    save(tokenizer, out, TEXT_END, PAD)


main = command(write)


if __name__ == "__main__":
    sys.exit(main())
