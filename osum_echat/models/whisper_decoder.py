"""Whisper's own decoder on the encoder that a model shares with it: a second opinion on the words.

It lies beside the encoder in the cache of base models, in half precision; set-up puts it there.
"""

import math
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
MARGIN_STEPS, SILENT_STRIDE = 100, 8    # of 20 ms: after a clip, and of the silence that follows
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
        """Of up to 30 s."""
        steps, counts = _encoded(self.encoder or network.encoder, mel)
        reading = _Reading(self.decoder, steps.to(self.decoder.layer_norm.weight.dtype), counts)
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


def _encoded(encoder: Encoder, mel: Tensor) -> tuple[Tensor, Tensor | None]:
    """A clip padded to 30 s, as Whisper was trained; in less it loses words or goes round.

    Steps of the silence after the clip are much alike: one of SILENT_STRIDE stands for its
    neighbours, and attention counts it as that many. mel: (frames, mel), up to 30 s. Returns
    (steps, width), and the logarithm of what each counts, (1, steps), None: no step was left out.
    """
    padding = (0, 0, 0, LONGEST_FRAMES - len(mel))
    whole = functional.pad(mel, padding, value=float(mel.max()) - RANGE)
    steps = encoder.embed(whole[None].to(encoder.after_norm.weight.dtype))
    counts = None
    near = (len(mel) + 1) // 2 + MARGIN_STEPS
    far = range(near + SILENT_STRIDE // 2, steps.shape[1], SILENT_STRIDE)
    if far:
        counts = steps.new_zeros(1, near + len(far))
        counts[:, near:] = math.log((steps.shape[1] - near) / len(far))
        steps = steps[:, [*range(near), *far]]
    for block in encoder.encoders:
        steps = block(steps, counts)
    return encoder.after_norm(steps)[0], counts


class _Reading:
    """A clip while it is read: keys and values of its steps, and of the ids so far.

    The stock decoder's weights in few operations: at one id its own forward is mostly Python.
    """

    def __init__(self, decoder: Any, steps: Tensor, counts: Tensor | None) -> None:
        """steps: (steps, width), the encoder's; counts: (1, steps), see _encoded."""
        self.decoder, self.count, self.counts = decoder, 0, counts
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
            mine = _attended(own.q_proj(normed), keys, values, causal=len(ids) > 1)
            state = state + own.out_proj(mine)
            query = other.q_proj(layer.encoder_attn_layer_norm(state))
            state = state + other.out_proj(_attended(query, *heard, self.counts))
            fed = functional.gelu(layer.fc1(layer.final_layer_norm(state)))
            state = state + layer.fc2(fed)
        self.count = end
        return decoder.layer_norm(state[-1:])


def _heads(rows: Tensor) -> Tensor:
    """(rows, width) -> (heads, rows, head width)."""
    return rows.unflatten(1, (-1, HEAD_WIDTH)).transpose(0, 1)


def _attended(
    query: Tensor, keys: Tensor, values: Tensor, counts: Tensor | None = None, causal: bool = False
) -> Tensor:
    """query: (rows, width); keys, values: (heads, places, head width). Returns (rows, width).

    counts: (1, places), added to the scores; causal: of the rows, all that there are, none sees
    later ones.
    """
    made = functional.scaled_dot_product_attention(
        _heads(query)[None], keys[None], values[None], attn_mask=counts, is_causal=causal
    )
    return made[0].transpose(0, 1).flatten(1)
