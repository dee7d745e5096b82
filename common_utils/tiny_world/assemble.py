"""Puts a trained model's parts together into one directory, in half precision: pretrained/tiny.

    python -m common_utils.tiny_world.assemble --model exp/tiny/stage3/final \
        --flow exp/tiny/flow --vocoder build/token2wav/vocoder_training \
        --speech-tokenizer build/token2wav/speech_tokenizer.onnx \
        --speaker build/token2wav/speaker.onnx \
        --samples build/world/test --out pretrained/tiny
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from common_utils.command import command
from common_utils.tiny_world.lists import read_jsonl
from common_utils.tiny_world.step import write_card
from osum_echat import audio, logs, weights
from osum_echat.errors import CheckpointError
from osum_echat.files import write_jsonl
from osum_echat.models import checkpoint
from osum_echat.settings import read_mapping
from osum_echat.tasks import PROMPTS_FILE
from osum_echat.token2wav.model import SETTINGS_FILE, VOICE_FILE, Token2Wav
from osum_echat.token2wav.voice import VoicePrompt
from osum_echat.training.experiment import TOKENIZER_FILES

MB = 1_000_000
LARGEST_MB, LARGEST_FILE_MB = 64, 48
MANNER = {
    "sampling": {"text": {"greedy": True}, "speech": {"greedy": True}},
    "text_loop": {"times": 3},          # a small model's words may run in a circle
    "ctc_weight": 1.0,                  # its adapter was trained with the CTC loss
}
LEAST_S, MOST_S = 2.0, 4.0                # of a sample question
SAMPLES_FILE = "samples.jsonl"
SHOWN = ("user_text", "labels", "reply_text", "reply_style")

log = logs.logger(__name__)


def assemble(
    model: Path, flow: Path, vocoder: Path, speech_tokenizer: Path, speaker: Path, samples: Path,
    out: Path, count: int = 6, books: tuple[Path, ...] = (),
) -> None:  # fmt: skip
    """Write OUT, with its card."""
    write_model(model, out)
    write_token2wav({"vocoder": vocoder, "flow": flow}, speech_tokenizer, speaker,
                    out / "token2wav")  # fmt: skip
    write_samples(samples, out / "samples", count)
    write_card(out, books)
    log.info("%s: %.1f MB", out, check_sizes(out))


def write_model(source: Path, out: Path) -> None:
    """The dialogue model, its tokenizer and its prompts."""
    raw = read_mapping(source / checkpoint.SETTINGS_FILE)
    notes = {"thinking": raw["thinking"], "template": raw["template"]}
    notes |= {name: raw.get(name, usual) for name, usual in MANNER.items()}
    checkpoint.save(out, checkpoint.load(source), dtype=torch.float16, notes=notes)
    for name in (*TOKENIZER_FILES, PROMPTS_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def write_token2wav(parts: Mapping[str, Path], tokenizer: Path, speaker: Path, out: Path) -> None:
    """Flow, vocoder, the two ONNX models, and no voice prompt: the flow knows one voice."""
    write_halves(parts, out)
    shutil.copyfile(tokenizer, out / "speech_tokenizer.onnx")
    shutil.copyfile(speaker, out / "speaker.onnx")
    VoicePrompt.absent().save(out / VOICE_FILE)
    Token2Wav.load(out)                 # so that parts that do not fit are told now


def write_halves(folders: Mapping[str, Path], out: Path) -> None:
    """Vocoder and flow in half precision, their settings together in token2wav.yaml."""
    out.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {}
    for part, folder in folders.items():
        raw |= read_mapping(folder / f"{part}.yaml")
        tensors = weights.read(folder / f"{part}.safetensors")
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor
                  for name, tensor in tensors.items()}  # fmt: skip
        weights.write_safetensors_file(out / f"{part}.safetensors", halves)
    (out / SETTINGS_FILE).write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def write_samples(split: Path, out: Path, count: int) -> None:
    """Questions of unlike voices: question.wav, question_2.wav ...; and what is right for each."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, exchange in enumerate(_unlike(split, count), start=1):
        name = "question.wav" if number == 1 else f"question_{number}.wav"
        shutil.copyfile(split / exchange["wav"], out / name)
        rows.append({"wav": name, **{key: exchange[key] for key in SHOWN}})
    write_jsonl(out / SAMPLES_FILE, rows)


def _unlike(split: Path, count: int) -> Iterator[dict[str, Any]]:
    """Single turns of two to four seconds; no emotion, event or speaker twice while others last."""
    singles = [one for one in read_jsonl(split / "exchanges.jsonl") if one["kind"] == "single"]
    waiting = [one for one in singles
               if LEAST_S < audio.length(split / one["wav"]) / audio.SAMPLE_RATE_HZ < MOST_S]
    seen: set[str] = {"NEUTRAL", "OTHER"}
    for _ in range(min(count, len(waiting))):
        best = max(waiting, key=lambda one: len(set(one["labels"].values()) - seen))
        waiting.remove(best)
        seen |= set(best["labels"].values())
        yield best


def check_sizes(directory: Path, most: float = LARGEST_MB) -> float:
    """Megabytes in all. Raises CheckpointError beyond what may ship."""
    sizes = {path: path.stat().st_size / MB for path in directory.rglob("*") if path.is_file()}
    for path, size in sizes.items():
        if size > LARGEST_FILE_MB:
            raise CheckpointError(f"{path}: {size:.1f} MB; at most {LARGEST_FILE_MB} may ship")
    total = sum(sizes.values())
    if total > most:
        raise CheckpointError(f"{directory}: {total:.1f} MB; at most {most} may ship")
    return total


main = command(
    assemble, model="`final` of the last stage", flow="folder with flow.safetensors and flow.yaml",
    vocoder="folder with vocoder.safetensors and .yaml", speech_tokenizer="onnx file",
    speaker="onnx file", samples="test split to take questions from", count="sample questions",
    books="times of the recipe's steps, for the card",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
