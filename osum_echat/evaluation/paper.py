"""The paper's tables, to stand beside ours.

Source: arXiv:2508.09600, tables 1 to 5 as the published repository shows them. A None is a cell
that the paper leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from osum_echat.evaluation.results import Cell, Table


@dataclass(frozen=True, slots=True)
class Printed:
    """A table of the paper. rows: a system, then its figures in the order of the columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, *tuple[float | None, ...]], ...]

    def beside(self, own: Sequence[tuple[str, Sequence[Cell]]], note: str = "") -> Table:
        """The table with our own rows below, marked as such."""
        rows = [*self.rows, *((name, *cells) for name, cells in own)]
        marked = frozenset(range(len(self.rows), len(rows)))
        return Table(self.title, ("system", *self.columns), rows, note, marked)


CATEGORIES = ("emotion", "age", "gender", "event", "multi")
ECHAT_EVAL = Printed(
    "EChat-eval, score from 0 to 100 (the paper's Table 1, judged by GPT-4o)",
    CATEGORIES,
    (
        ("Qwen2.5-Omni", 44.8, 52.6, 43.3, None, 63.7),
        ("Freeze-Omni", 44.0, 31.7, 47.3, None, 49.6),
        ("GLM-4-Voice", 48.7, 44.7, 42.4, None, 60.3),
        ("Baichuan-Audio", 41.5, 28.6, 41.6, None, 45.6),
        ("Kimi-Audio", 45.8, 34.2, 36.0, None, 57.4),
        ("OpenS2S", 46.6, 62.1, 37.9, None, 57.3),
        ("OSUM-EChat (paper)", 58.0, 63.1, 62.7, 87.1, 72.0),
        ("without understanding-driven training", 53.4, 35.4, 41.0, 52.9, 63.1),
        ("without dual thinking", 54.5, 42.3, 61.3, 61.1, 56.4),
        ("without both", 51.6, 40.3, 39.1, 10.4, 54.2),
    ),
)
HUMAN = Printed(
    "Rated by people (the paper's Table 2)",
    CATEGORIES,
    (
        ("Doubao", 78.0, 42.2, 39.0, None, 60.7),
        ("Qwen2.5-Omni", 54.9, 55.0, 49.2, None, 67.3),
        ("OSUM-EChat (paper)", 72.0, 68.9, 65.8, 88.0, 73.3),
    ),
)
VOICEBENCH_SETS = ("alpacaeval", "commoneval", "sd-qa", "mmsu", "openbookqa", "ifeval", "advbench")
VOICEBENCH = Printed(
    "VoiceBench (the paper's Table 3)",
    (*VOICEBENCH_SETS, "overall"),
    (
        ("GPT-4o-Audio", 4.78, 4.49, 75.5, 80.25, 89.23, 76.02, 98.65, 86.42),
        ("Baichuan-Audio", 4.41, 4.08, 45.84, 53.19, 71.65, 50.31, 99.42, 70.03),
        ("GLM-4-Voice", 3.97, 3.42, 36.98, 39.75, 53.41, 25.92, 88.08, 55.99),
        ("SLAM-Omni", 1.9, 1.79, 4.16, 26.06, 25.27, 13.38, 94.23, 33.84),
        ("Mini-Omni2", 2.32, 2.18, 9.31, 24.27, 26.59, 11.56, 57.5, 31.32),
        ("Mini-Omni", 1.95, 2.02, 13.92, 24.69, 26.59, 13.58, 37.12, 27.9),
        ("Moshi", 2.01, 1.6, 15.64, 24.04, 25.93, 10.12, 44.23, 27.47),
        ("OSUM-EChat (paper)", 4.29, 3.39, 24.41, 60.11, 78.46, 32.36, 92.88, 63.12),
    ),
)
# Rows are test sets, since each system column has gaps of its own.
UNDERSTANDING = Table(
    "Speech understanding in the paper: errors (ASR) or right answers, in percent",
    ("test set", "Whisper-L-v3", "Qwen2-Audio", "OSUM", "OSUM-EChat (paper)"),
    (
        ("ASR WenetSpeech net", 10.48, None, 6.46, 6.47),
        ("ASR WenetSpeech meeting", 18.87, None, 5.34, 9.90),
        ("ASR AISHELL-2 mic", None, 3.0, 2.81, 2.89),
        ("ASR AISHELL-2 ios", 4.96, 3.0, 2.75, 3.04),
        ("ASR AISHELL-2 android", None, 2.9, 2.73, 2.89),
        ("ASR LibriSpeech clean", 1.82, 1.6, 2.19, 2.46),
        ("ASR LibriSpeech other", 3.50, 3.6, 5.53, 5.93),
        ("event VocalSound", None, 93.3, 82.58, 82.58),
        ("event MMAU sound", None, 54.95, None, 45.05),
        ("emotion MELD test", None, 55.3, 53.38, 51.23),
        ("emotion MER2023 test", None, None, 86.43, 85.93),
        ("gender AISHELL-1 test", None, 97.36, 100.0, 100.0),
        ("gender Common Voice", None, 97.25, 99.41, 99.67),
        ("age Common Voice", None, 35.53, 76.52, 83.77),
    ),
    "From the paper; our figures above are of --data, whatever that holds.",
)
TTS = Printed(
    "Synthesis on the SEED test set: CER zh, WER en, in percent (the paper's Table 5)",
    ("test-zh", "test-en"),
    (
        ("Seed-TTS", 1.12, 2.25),
        ("CosyVoice", 3.63, 4.29),
        ("Qwen2.5-Omni", 1.70, 2.72),
        ("GLM-4-Voice", 2.10, 2.91),
        ("OSUM-EChat (paper)", 3.00, 3.99),
    ),
)
