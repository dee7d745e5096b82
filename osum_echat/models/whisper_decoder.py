"""Whisper's own decoder on the encoder that a model shares with it: a second opinion on the words.

It lies beside the encoder in the cache of base models, in half precision; set-up puts it there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.models import int8
from osum_echat.models.echat import LONGEST_FRAMES, EChatModel
from osum_echat.models.settings import COPY

DECODER_FILE, TOKENIZER_FILE = "decoder.safetensors", "tokenizer.json"
OPENING = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
END = "<|endoftext|>"
HEAD_WIDTH = 64                         # of every Whisper
MOST_TOKENS = 200                       # of 30 s
LEAST_TOKENS, FRAMES_A_TOKEN = 16, 12   # a clip has so many at most, and one more in so many frames
SILENCE_FRAMES = 500                    # behind a clip
PHRASE = 2                              # ids that hardly anybody says twice in a row
RANGE = 2.0                             # of log-mel features below the loudest: silence
CLIP_READERS = ("encoder_attn.k_proj", "encoder_attn.v_proj")   # asked once, for the whole clip


@dataclass(frozen=True, slots=True)
class WhisperDecoder:
    """A loaded decoder. opening: the ids that ask for English without times; end: the last id.

    head: (rows, width) -> (rows, end + 1), the scores of the ids.
    """

    decoder: nn.Module
    head: Callable[[Tensor], Tensor]
    tokenizer: Any
    opening: tuple[int, ...]
    end: int

    @classmethod
    def load(cls, folder: Path, shrinks: bool = False) -> "WhisperDecoder":
        """Read the files in the folder of a Whisper. Raises CheckpointError.

        shrinks: keep what each token needs as whole numbers of 8 bits, on a CPU.
        """
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
        table = stored["embed_tokens.weight"][: ids[-1] + 1].float()     # beyond are marks
        head: Callable[[Tensor], Tensor] = partial(functional.linear, weight=table)
        if shrinks:
            int8.shrink_each(decoder, CLIP_READERS)
            head = int8.Int8Linear(int8.eight_bits(table), None, None)
        return cls(decoder.eval(), head, tokenizer, tuple(ids[:-1]), ids[-1])

    def read(self, network: EChatModel, mel: Tensor) -> str:
        """The text of a clip of up to 30 s, greedily; mel: (frames, mel).

        Whisper was trained on 30 s. Fewer take less time, and do for most clips; where it then
        finds no end, or says a phrase twice, it hears the clip again as it was trained.
        """
        mel = mel[:LONGEST_FRAMES]
        frames = min(len(mel) + SILENCE_FRAMES, LONGEST_FRAMES)
        ids = self._ids(network, mel, frames, LEAST_TOKENS + len(mel) // FRAMES_A_TOKEN)
        if ids[-1] != self.end or says_twice(ids[:-1]):
            ids = self._ids(network, mel, LONGEST_FRAMES, MOST_TOKENS)
        return str(self.tokenizer.decode([one for one in ids if one != self.end])).strip()

    @torch.inference_mode()
    def _ids(self, network: EChatModel, mel: Tensor, frames: int, most: int) -> list[int]:
        """What it says of a clip with silence up to so many frames: at most so many ids, the end
        among them if there is one."""
        from transformers import DynamicCache, EncoderDecoderCache

        whole = functional.pad(mel, (0, 0, 0, frames - len(mel)), value=float(mel.max()) - RANGE)
        steps, _ = network.encoder(
            whole[None].to(network.dtype), torch.tensor([frames]), alone=True
        )
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        new, ids = list(self.opening), list[int]()
        while len(ids) < most and self.end not in new:
            place = cache.get_seq_length()
            state = self.decoder(
                input_ids=torch.tensor([new]), encoder_hidden_states=steps.float(),
                past_key_values=cache, use_cache=True,
                position_ids=torch.arange(place, place + len(new))[None],
            ).last_hidden_state[0, -1:]  # fmt: skip
            new = [int(self.head(state).argmax())]
            ids += new
        return ids


def says_twice(ids: Sequence[int]) -> bool:
    """Whether a phrase of several ids comes back to back."""
    return any(
        ids[end - size : end] == ids[end : end + size]
        for size in range(PHRASE, len(ids) // 2 + 1) for end in range(size, len(ids) - size + 1)
    )  # fmt: skip
