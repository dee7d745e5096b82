"""Whisper's own decoder on the encoder that a model shares with it: a second opinion on the words.

It lies beside the encoder in the cache of base models, in half precision; set-up puts it there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.models import int8
from osum_echat.models.echat import LONGEST_FRAMES, EChatModel
from osum_echat.models.encoder import Encoder
from osum_echat.models.settings import COPY

DECODER_FILE, TOKENIZER_FILE = "decoder.safetensors", "tokenizer.json"
OPENING = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
END = "<|endoftext|>"
HEAD_WIDTH = 64                         # of every Whisper
MOST_TOKENS = 200                       # of 30 s
NOTE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")     # of sounds: "(laughs)", "[music]"
RANGE = 2.0                             # of log-mel features below the loudest: silence
PAUSE_FRAMES = 20                       # 0.2 s, in which a clip may be cut
CLIP_READERS = ("encoder_attn.k_proj", "encoder_attn.v_proj")   # asked once, for the whole clip


def cut_at_pauses(mel: Tensor) -> list[Tensor]:
    """A clip in parts of at most 30 s, each cut where its last quarter is quietest.

    mel: (frames, mel).
    """
    found = []
    while len(mel) > LONGEST_FRAMES:
        first = LONGEST_FRAMES * 3 // 4
        level = mel[first:LONGEST_FRAMES].mean(1).unfold(0, PAUSE_FRAMES, 1).mean(1)
        cut = first + int(level.argmin()) + PAUSE_FRAMES // 2
        found.append(mel[:cut])
        mel = mel[cut:]
    return [*found, mel]


@dataclass(frozen=True, slots=True)
class WhisperDecoder:
    """A loaded decoder. opening: the ids that ask for English without times; end: the last id.

    head: (rows, width) -> (rows, end + 1), the scores of the ids; encoder: in a faster type than
    the model's own, None: that one.
    """

    decoder: Any
    head: Callable[[Tensor], Tensor]
    tokenizer: Any
    opening: tuple[int, ...]
    end: int
    encoder: Encoder | None = None

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "WhisperDecoder":
        """Read the files in the folder of a Whisper. Raises CheckpointError.

        dtype: of the weights; in float16 they stay mapped from disk.
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
        decoder.load_state_dict({name: one.to(dtype) for name, one in stored.items()}, assign=True)
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        found = [tokenizer.token_to_id(name) for name in (*OPENING, END)]
        ids = [one for one in found if one is not None]
        if len(ids) < len(found):
            raise CheckpointError(f"{folder / TOKENIZER_FILE}: not Whisper's; {COPY}")
        table = decoder.embed_tokens.weight[: ids[-1] + 1]      # beyond are marks
        head = partial(functional.linear, weight=table)
        return cls(decoder.eval(), head, tokenizer, tuple(ids[:-1]), ids[-1])

    def read(self, network: EChatModel, mel: Tensor) -> str:
        """The words of a clip, greedily, without notes; mel: (frames, mel).

        A clip of over 30 s is read in parts, cut where it is quiet.
        """
        return " ".join(filter(None, (self._part(network, one) for one in cut_at_pauses(mel))))

    @torch.inference_mode()
    def _part(self, network: EChatModel, mel: Tensor) -> str:
        """Of up to 30 s, to which it is padded, as Whisper was trained.

        In less it loses words or goes round.
        """
        padding = (0, 0, 0, LONGEST_FRAMES - len(mel))
        whole = functional.pad(mel, padding, value=float(mel.max()) - RANGE)
        encoder = self.encoder or network.encoder
        steps, _ = encoder(
            whole[None].to(encoder.after_norm.weight.dtype), torch.tensor([LONGEST_FRAMES]),
            alone=True,
        )  # fmt: skip
        reading = _Reading(self.decoder, steps[0].to(self.decoder.layer_norm.weight.dtype))
        ids, new = [*self.opening], [*self.opening]
        while len(ids) < MOST_TOKENS:
            new = [int(self.head(reading.push(new)).argmax())]
            if new[0] == self.end:
                break
            ids += new
        return NOTE.sub("", str(self.tokenizer.decode(ids[len(self.opening) :]))).strip()

    def shrunk(self, dtype: torch.dtype) -> "WhisperDecoder":
        """For a CPU: what each token needs in 8 bits, all else in a type.

        It takes the place of this one, whose weights it changes.
        """
        table = int8.eight_bits(self.decoder.embed_tokens.weight[: self.end + 1].detach())
        is_whole = dtype == torch.float32
        decoder = self.decoder.float() if is_whole else self.decoder
        int8.shrink_each(decoder, CLIP_READERS)     # whose scales are in bfloat16, always
        decoder = decoder if is_whole else decoder.to(dtype)
        return replace(self, decoder=decoder, head=int8.Int8Linear(table, None, None))

    def beside(self, encoder: Encoder) -> "WhisperDecoder":
        """With an encoder of its own, in its type, where the model's is in another."""
        dtype = self.decoder.layer_norm.weight.dtype
        if encoder.after_norm.weight.dtype == dtype:
            return self
        with torch.device("meta"):
            other = Encoder(encoder.settings)
        own = {name: one.to(dtype) for name, one in encoder.state_dict().items()}
        other.load_state_dict(own, assign=True)
        return replace(self, encoder=other.eval())


class _Reading:
    """A clip while it is read: keys and values of its steps, and of the ids so far.

    The stock decoder's weights in few operations: at one id its own forward is mostly Python.
    """

    def __init__(self, decoder: Any, steps: Tensor) -> None:
        """steps: (steps, width), the encoder's."""
        self.decoder, self.count = decoder, 0
        self.heard = [
            (_heads(layer.encoder_attn.k_proj(steps)), _heads(layer.encoder_attn.v_proj(steps)))
            for layer in decoder.layers
        ]
        self.said = [(keys[:, :0], values[:, :0]) for keys, values in self.heard]

    def push(self, ids: list[int]) -> Tensor:
        """Take the next ids. Returns the state at the last one, (1, width)."""
        decoder, end = self.decoder, self.count + len(ids)
        state = decoder.embed_tokens.weight[ids] + decoder.embed_positions.weight[self.count : end]
        for number, (layer, heard) in enumerate(zip(decoder.layers, self.heard, strict=True)):
            own, other = layer.self_attn, layer.encoder_attn
            normed = layer.self_attn_layer_norm(state)
            keys, values = self.said[number]
            keys = torch.cat((keys, _heads(own.k_proj(normed))), 1)
            values = torch.cat((values, _heads(own.v_proj(normed))), 1)
            self.said[number] = keys, values
            state = state + own.out_proj(_attended(own.q_proj(normed), keys, values))
            query = other.q_proj(layer.encoder_attn_layer_norm(state))
            state = state + other.out_proj(_attended(query, *heard, causal=False))
            fed = functional.gelu(layer.fc1(layer.final_layer_norm(state)))
            state = state + layer.fc2(fed)
        self.count = end
        return decoder.layer_norm(state[-1:])


def _heads(rows: Tensor) -> Tensor:
    """(rows, width) -> (heads, rows, head width)."""
    return rows.unflatten(1, (-1, HEAD_WIDTH)).transpose(0, 1)


def _attended(query: Tensor, keys: Tensor, values: Tensor, causal: bool = True) -> Tensor:
    """query: (rows, width); keys, values: (heads, places, head width). Returns (rows, width).

    causal: several rows, all that there are, do not see later ones.
    """
    made = functional.scaled_dot_product_attention(
        _heads(query)[None], keys[None], values[None], is_causal=causal and len(query) > 1
    )
    return made[0].transpose(0, 1).flatten(1)
