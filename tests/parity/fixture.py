"""A directory of published model tensors: its files, sizes, vocabulary and network."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from osum_echat import audio
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.tasks import TURN_END
from osum_echat.vocab import TEXT_END, UNKNOWN, Vocab


class TokenTable:
    """A tokenizer that knows the strings of token_ids.json and nothing else."""

    def __init__(self, table: dict[str, list[int]], where: Path) -> None:
        self.table, self.where = dict(table), where
        if TEXT_END not in self.table and TURN_END in self.table:
            self.table[TEXT_END] = self.table[TURN_END][:1]
        unknown = self.table.get(f"<{UNKNOWN}>", [])
        self.table.setdefault(UNKNOWN, unknown[1:-1])

    def encode(self, text: str) -> list[int]:
        if text not in self.table:
            raise CheckpointError(f"{self.where}: no ids for {text!r}; add them")
        return self.table[text]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Fixture:
    """Reads only files of its directory; each is read when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def has(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def text(self, name: str) -> str:
        path = self.directory / name
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; a model fixture needs it") from error

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{self.directory / name}: not JSON ({error})") from error

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        path = self.directory / name
        try:
            with np.load(path) as archive:
                return {key: archive[key] for key in archive.files}
        except (OSError, ValueError, BadZipFile) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error

    @cached_property
    def settings(self) -> EChatSettings:
        """The sizes: model.yaml and llm_config.json."""
        return checkpoint.read_settings(self.directory)

    @cached_property
    def network(self) -> EChatModel:
        """The model in float32, without dropout."""
        path = self.directory / "model.pt"
        return checkpoint.load(path, settings=self.settings, dtype=torch.float32).eval()

    @cached_property
    def vocab(self) -> Vocab:
        table = TokenTable(self.json("token_ids.json"), self.directory / "token_ids.json")
        return Vocab(table, int(self.settings.llm["vocab_size"]), self.settings.speech_codes)

    @cached_property
    def wavs(self) -> dict[str, Tensor]:
        """Features (frames, mel) of every wav of the directory, by its stem."""
        mels = self.settings.encoder.mels
        return {path.stem: audio.log_mel(audio.load(path), mels)
                for path in sorted(self.directory.glob("*.wav"))}

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """text_cols, speech_cols: the logit columns that are kept."""
        return {name: torch.from_numpy(values).long()
                for name, values in self.arrays("columns.npz").items()}
