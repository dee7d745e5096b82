"""The LLM as a stock directory whose vocabulary goes on with the speech ids, for other engines.

Row `text rows + s` of embedding and head is speech id s: the codes, the edge, then the two marks
around audio, which the head never says (their head rows are zero). A stock Qwen has no bias in its
head, so the speech head's bias lies in speech.safetensors, and one logits processor (PhaseMask)
adds it while it opens the half of the vocabulary whose turn it is. Prompts enter as embeddings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.models import names, stored
from osum_echat.models.echat import LLM_KINDS, MARKS, EChatSettings
from osum_echat.models.stored import Stored

CONFIG_FILE, SPEECH_FILE, BIAS_FILE = "config.json", "speech.json", "speech.safetensors"
LLM = "llm."
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPEECH_TABLE, SPEECH_HEAD = "speech_embedding.weight", "speech_head.weight"
BIAS = "speech_head.bias"


@dataclass(frozen=True, slots=True)
class PhaseMask:
    """A logits processor: text ids until the text ends, then speech ids with the head's bias.

    bias: (codes + 1,); text_end: the id that ends texts; speaks: speech follows the text;
    from_speech: the prompt ends in the first edge (text to speech). After the answer only `end` is
    left, the config's eos_token_id. Ids are joint ids of the answer so far, without the prompt.
    """

    text_rows: int
    bias: Tensor
    text_end: int
    speaks: bool = True
    from_speech: bool = False

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        speaks: bool = True,
        from_speech: bool = False,
        text_end: int | None = None,
    ) -> "PhaseMask":
        """The mask of an exported directory; text_end: None is its eos_token_id of before.

        Raises CheckpointError.
        """
        path = directory / SPEECH_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            text_rows = int(raw["text_rows"])
            text_end = int(raw["text_end"]) if text_end is None else text_end
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); convert again") from error
        bias = stored.safetensors_file(directory / BIAS_FILE)[BIAS].read()
        return cls(text_rows, bias, text_end, speaks, from_speech)

    @property
    def edge(self) -> int:
        """The joint id of the edge of speech."""
        return self.text_rows + len(self.bias) - 1

    @property
    def end(self) -> int:
        """The joint id that is said after an answer: that of the mark after audio."""
        return self.edge + 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (batch, answered); scores: (batch, text rows + speech rows). As scores."""
        masked = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            is_over, in_speech = self._phase(ids)
            if is_over:
                masked[row, self.end] = 0.0
            elif in_speech:
                spoken = slice(self.text_rows, self.edge + 1)
                masked[row, spoken] = scores[row, spoken] + self.bias.to(scores)
            else:
                masked[row, : self.text_rows] = scores[row, : self.text_rows]
        return masked

    def _phase(self, ids: list[int]) -> tuple[bool, bool]:
        """Whether the answer is whole, and whether speech comes next."""
        if self.from_speech:
            return self.edge in ids, True
        if self.text_end not in ids:
            return False, False
        return not self.speaks or ids.count(self.edge) >= 2, True


def write(
    directory: Path, weights: Mapping[str, Stored], settings: EChatSettings
) -> dict[str, tuple[str, ...]]:
    """Write the directory; returns which of our weights each stock weight is made of.

    weights: of the whole model, under our names.
    """
    parts: dict[str, tuple[str, ...]] = {
        name.removeprefix(LLM): (name,)
        for name in weights
        if name.startswith(LLM) and name not in names.TEXT_TABLE_ALIASES
    }
    head = names.TEXT_TABLE if settings.tied else names.TEXT_HEAD
    parts[TABLE], parts[HEAD] = (names.TEXT_TABLE, SPEECH_TABLE), (head, SPEECH_HEAD)
    rows = weights[names.TEXT_TABLE].shape[0] + settings.speech_codes + MARKS
    made = {
        there: _with_speech([weights[name] for name in own], rows)
        if there in (TABLE, HEAD)
        else weights[own[0]]
        for there, own in parts.items()
    }
    stored.write_safetensors(directory, made)
    stored.write_safetensors_file(directory / BIAS_FILE, {BIAS: weights[BIAS]})
    text_rows = weights[names.TEXT_TABLE].shape[0]
    _write_json(directory / CONFIG_FILE, _config(settings, rows, made[TABLE].dtype))
    _write_json(directory / SPEECH_FILE, _speech(settings, text_rows))
    return {**parts, BIAS_FILE: (BIAS,)}


def _with_speech(halves: list[Stored], rows: int) -> Stored:
    """The text rows, the speech rows and zeros up to `rows`, in the wider of the two types."""
    text, speech = halves
    dtype = torch.promote_types(text.dtype, speech.dtype)
    shape = (rows, text.shape[1])

    def read() -> Tensor:
        whole = torch.zeros(shape, dtype=dtype)
        whole[: text.shape[0]] = text.read()
        whole[text.shape[0] : text.shape[0] + speech.shape[0]] = speech.read()
        return whole

    return Stored(shape, dtype, read)


def _config(settings: EChatSettings, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json: the LLM's own, with the longer vocabulary, untied."""
    kind = settings.llm.get("model_type", "qwen2")
    end = rows - 1
    return {
        **settings.llm,
        "architectures": [f"{LLM_KINDS[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        "pad_token_id": end,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _speech(settings: EChatSettings, text_rows: int) -> dict[str, Any]:
    """speech.json: what an engine must know of the joint ids."""
    edge = text_rows + settings.speech_codes
    return {
        "text_rows": text_rows,
        "text_end": settings.llm.get("eos_token_id"),
        "speech_codes": settings.speech_codes,
        "first_code": text_rows,
        "edge": edge,
        "audio_begin": edge + 1,
        "audio_end": edge + 2,
        "answer_end": edge + 2,
        "bias": f"{BIAS_FILE}: {BIAS}, one value for each id from first_code to edge",
        "rule": "ids below text_rows until text_end, then ids from first_code to edge with the "
        "bias added, until the edge was said twice (once where the prompt ends in it), then "
        "answer_end; see PhaseMask",
    }


def _write_json(path: Path, raw: dict[str, Any]) -> None:
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False), encoding="utf-8")
