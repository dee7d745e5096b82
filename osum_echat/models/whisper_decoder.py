"""Whisper's own decoder on the encoder that a model shares with it: a second opinion on the words.

It lies beside the encoder in the cache of base models, in half precision; set-up puts it there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.models.echat import LONGEST_FRAMES, EChatModel
from osum_echat.models.settings import COPY

DECODER_FILE, TOKENIZER_FILE = "decoder.safetensors", "tokenizer.json"
OPENING = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
END = "<|endoftext|>"
HEAD_WIDTH = 64                         # of every Whisper
MOST_TOKENS = 200                       # of 30 s
RANGE = 2.0                             # of log-mel features below the loudest: silence


@dataclass(frozen=True, slots=True)
class WhisperDecoder:
    """A loaded decoder. opening: the ids that ask for English without times; end: the last id."""

    decoder: nn.Module
    tokenizer: Any
    opening: tuple[int, ...]
    end: int

    @classmethod
    def load(cls, folder: Path) -> "WhisperDecoder":
        """Read the files in the folder of a Whisper. Raises CheckpointError."""
        from tokenizers import Tokenizer
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperDecoder as Stock

        stored = weights.read(folder / DECODER_FILE)
        tokens, width = stored["embed_tokens.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in stored if name.startswith("layers."))
        config = WhisperConfig(
            vocab_size=tokens, d_model=width, decoder_layers=layers,
            decoder_attention_heads=width // HEAD_WIDTH,
            decoder_ffn_dim=len(stored["layers.0.fc1.bias"]),
            max_target_positions=len(stored["embed_positions.weight"]),
        )  # fmt: skip
        with torch.device("meta"):
            decoder = Stock(config)
        decoder.load_state_dict({name: one.float() for name, one in stored.items()}, assign=True)
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        found = [tokenizer.token_to_id(name) for name in (*OPENING, END)]
        ids = [one for one in found if one is not None]
        if len(ids) < len(found):
            raise CheckpointError(f"{folder / TOKENIZER_FILE}: not Whisper's; {COPY}")
        return cls(decoder.eval(), tokenizer, tuple(ids[:-1]), ids[-1])

    @torch.inference_mode()
    def read(self, network: EChatModel, mel: Tensor) -> str:
        """The text of a clip of up to 30 s, greedily; mel: (frames, mel)."""
        from transformers import DynamicCache, EncoderDecoderCache

        mel = mel[:LONGEST_FRAMES]
        padding = (0, 0, 0, LONGEST_FRAMES - len(mel))
        whole = functional.pad(mel, padding, value=float(mel.max()) - RANGE)
        steps, _ = network.encoder(
            whole[None].to(network.dtype), torch.tensor([LONGEST_FRAMES]), alone=True
        )
        cache, table = EncoderDecoderCache(DynamicCache(), DynamicCache()), self._table
        ids, new = [*self.opening], [*self.opening]
        while len(ids) < MOST_TOKENS:
            state = self.decoder(
                input_ids=torch.tensor([new]), encoder_hidden_states=steps.float(),
                past_key_values=cache, use_cache=True,
                position_ids=torch.arange(len(ids) - len(new), len(ids))[None],
            ).last_hidden_state[0, -1]  # fmt: skip
            scores = (table @ state)[: self.end + 1]    # beyond are marks
            new = [int(scores.argmax())]
            if new[0] == self.end:
                break
            ids += new
        return str(self.tokenizer.decode(ids[len(self.opening) :])).strip()

    @property
    def _table(self) -> Tensor:
        """(tokens, width)."""
        table = self.decoder.get_submodule("embed_tokens").weight
        assert isinstance(table, Tensor), "a table of embeddings"
        return table
