"""The LLM on rows that grow by a token a step: the prompts in one pass, then only what is new.

The prompts go through the stock model. A step uses the stock model's weights in as few operations
as it takes: at one token a row, most of the stock forward is Python and tensors of a few numbers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat.errors import InputError
from osum_echat.generation.step_graph import BoundSteps, StepGraph
from osum_echat.models.int8 import Int8Linear

ROOM_TOKENS = 256  # places that a cache gains at a time
SMALL_WEIGHTS = 2**20  # up to here, weights that read the same input are worth a joint copy
Map = Callable[[Tensor], Tensor]


class _Layer:
    """One block of the LLM, taken apart. query_norm, key_norm: those of Qwen3."""

    def __init__(self, layer: Any) -> None:
        attention, feed = layer.self_attn, layer.mlp
        self.attention_norm = _norm(layer.input_layernorm)
        self.query_key_value = _side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
        self.query_norm, self.key_norm = (
            _norm(getattr(attention, name)) if hasattr(attention, name) else None
            for name in ("q_norm", "k_norm")
        )
        self.add_output = _adding(attention.o_proj)
        self.feed_norm = _norm(layer.post_attention_layernorm)
        self.gate_up = _side_by_side(feed.gate_proj, feed.up_proj)
        self.add_down = _adding(feed.down_proj)


class CachedLLM:
    """Rows of one batch and what the LLM keeps of them; `state` is (rows, width), at their ends."""

    def __init__(
        self, llm: Any, prompts: Sequence[Tensor] = (), start: "Prefill | None" = None
    ) -> None:
        """llm: a Qwen2ForCausalLM or Qwen3ForCausalLM; prompts, start: as of `Prefill`.

        Without prompts there are no rows until some `join`.
        """
        self.model, config = llm.model, llm.config
        self.graph: StepGraph | None = getattr(llm, "step_graph", None)
        self.bound: BoundSteps | None = None
        self.layers = [_Layer(layer) for layer in self.model.layers]
        self.queries, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_width = self.model.layers[0].self_attn.head_dim
        self.scale = self.model.layers[0].self_attn.scaling
        self.norm = _norm(self.model.norm)
        self.limit_tokens = longest_row(config)
        some = self.model.embed_tokens.weight
        self.tokens, self.is_padded = 0, False
        self.padding = torch.zeros(0, dtype=torch.long, device=some.device)
        self.state = some.new_zeros(0, some.shape[1])
        self.keys = some.new_zeros(len(self.layers), 0, self.groups, 0, self.head_width)
        self.values = self.keys
        if prompts:
            given = Prefill(llm, prompts, start)
            given.advance(given.tokens)
            self.join(given)

    def join(self, given: "Prefill") -> None:
        """More rows beside those that grow; they end where those end."""
        shift = max(0, given.tokens - self.tokens)      # rows that grow are moved to the right
        self.tokens += shift
        left, room = self.tokens - given.tokens, self.keys.shape[3] + shift
        if room <= self.tokens:
            room = self.tokens + ROOM_TOKENS
        self.padding = torch.cat((self.padding + shift, given.padding + left))
        self.state = torch.cat((self.state, given.state))

        def joined(kept: Tensor, new: Tensor) -> Tensor:
            old = functional.pad(kept, (0, 0, shift, room - shift - kept.shape[3]))
            return torch.cat((old, functional.pad(new, (0, 0, left, room - self.tokens))), dim=1)

        self.keys, self.values = joined(self.keys, given.keys), joined(self.values, given.values)
        self.is_padded = bool(self.padding.any())
        self._make_tables()

    def _make_room(self) -> None:
        """More places in the cache, (layers, rows, groups, places, head width), and the tables."""
        room = (0, 0, 0, ROOM_TOKENS)
        self.keys, self.values = (functional.pad(one, room) for one in (self.keys, self.values))
        self._make_tables()

    def _make_tables(self) -> None:
        """The rotary tables of all places, and which of them are padding."""
        columns = torch.arange(self.keys.shape[3], device=self.keys.device)
        cosine, sine = self.model.rotary_emb(self.keys, columns[None])
        half = self.head_width // 2
        # The second half of a head is turned into the first with the opposite sign.
        self.cosine, self.sine = cosine[0], torch.cat((-sine[0, :, :half], sine[0, :, half:]), 1)
        if self.is_padded:
            hidden = (columns < self.padding[:, None])[:, None, None]
            self.mask = torch.zeros_like(hidden, dtype=self.keys.dtype).masked_fill_(
                hidden, -torch.inf
            )

    def step(self, embedded: Tensor) -> None:
        """Grow every row by one token: (rows, width)."""
        place = self.tokens
        self.tokens += 1
        if self.tokens > self.keys.shape[3]:
            self._make_room()
        if self.graph is not None and len(embedded) == 1 and not self.is_padded:
            self.keys, self.values = self.keys.contiguous(), self.values.contiguous()
            if self.bound is None or self.bound.keys is not self.keys:
                self.bound = BoundSteps(self.graph, self.keys, self.values)
            self.state = self.bound.step(embedded, place)
            return
        position = place - self.padding if self.is_padded else place
        cosine, sine = self.cosine[position], self.sine[position]
        if self.is_padded:
            cosine, sine = cosine[:, None], sine[:, None]
        mask = self.mask[..., : self.tokens] if self.is_padded else None
        kept = zip(
            self.layers, self.keys.select(3, place).unbind(), self.values.select(3, place).unbind(),
            self.keys[:, :, :, : self.tokens].unbind(),
            self.values[:, :, :, : self.tokens].unbind(), strict=True,
        )  # fmt: skip
        half, state = self.head_width // 2, embedded
        queries, rotated = self.queries, self.queries + self.groups
        for layer, new_key, new_value, keys, values in kept:
            heads = layer.query_key_value(layer.attention_norm(state))
            heads = heads.view(len(state), -1, self.head_width)
            query_key = heads[:, :rotated]
            if layer.query_norm is not None and layer.key_norm is not None:
                key = layer.key_norm(heads[:, queries:rotated])
                query_key = torch.cat((layer.query_norm(heads[:, :queries]), key), dim=1)
            turned = torch.addcmul(query_key * cosine, query_key.roll(half, 2), sine)
            new_key.copy_(turned[:, queries:])
            new_value.copy_(heads[:, rotated:])
            # Query heads that share a key are laid out as so many places of one head.
            query = turned[:, :queries].view(len(state), self.groups, -1, self.head_width)
            attended = functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, scale=self.scale
            )
            state = layer.add_output(state, attended.reshape(len(state), -1))
            gate, up = layer.gate_up(layer.feed_norm(state)).chunk(2, 1)
            state = layer.add_down(state, functional.silu(gate) * up)
        self.state = self.norm(state)

    def full_rows(self) -> set[int]:
        """The rows that can grow no longer."""
        if self.tokens < self.limit_tokens:
            return set()
        lengths = (self.tokens - self.padding).tolist()
        return {row for row, length in enumerate(lengths) if length >= self.limit_tokens}

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        left = torch.tensor(rows, dtype=torch.long, device=self.padding.device)
        self.keys, self.values = self.keys[:, left], self.values[:, left]
        self.padding, self.state = self.padding[left], self.state[left]
        unused = int(self.padding.min()) if len(rows) else self.tokens
        if unused >= ROOM_TOKENS or (unused and not len(rows)):
            self.keys, self.values = self.keys[:, :, :, unused:], self.values[:, :, :, unused:]
            self.padding, self.tokens = self.padding - unused, self.tokens - unused
            self._make_tables()
        elif self.is_padded:
            self.mask = self.mask[left]


class Prefill:
    """Prompts on their way through the model, a piece at a time. state: (rows, width), at the end.

    They are padded on the left, so that all rows grow at the same place.
    """

    def __init__(
        self, llm: Any, prompts: Sequence[Tensor], start: "Prefill | None" = None
    ) -> None:
        """prompts: (tokens, width) each, embedded; start: what one that is alone may begin with,
        which is through. Raises InputError for one that is too long."""
        from transformers import DynamicCache

        self.model, self.done = llm.model, 0
        self.tokens = max(map(len, prompts))
        check_length(llm, self.tokens)
        left = [self.tokens - len(one) for one in prompts]
        self.padding = torch.tensor(left, device=prompts[0].device)
        self.is_padded = any(left)
        self.prompts = torch.stack(
            [functional.pad(one, (0, 0, more, 0)) for one, more in zip(prompts, left, strict=True)]
        )
        self.cache = DynamicCache(config=llm.model.config)
        if start is not None:
            self.done = min(start.common(prompts[0]), self.tokens - 1)
        if start is not None and self.done:
            for number, layer in enumerate(start.cache.layers):
                keys, values = (each[:, :, : self.done] for each in (layer.keys, layer.values))
                self.cache.update(keys, values, number)

    def common(self, prompt: Tensor) -> int:
        """How many tokens another prompt, (tokens, width), begins with that this begins with."""
        length = min(len(prompt), self.tokens)
        same = (prompt[:length] == self.prompts[0, :length]).all(1)
        return length if same.all() else int(same.int().argmin())

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    def advance(self, tokens: int) -> bool:
        """Take the next piece of so many tokens. True: that was the last."""
        end, mask = min(self.done + tokens, self.tokens), None
        columns = torch.arange(end, device=self.padding.device)
        places = columns[self.done :]
        if self.is_padded:
            seen = (places[:, None] >= columns) & (columns >= self.padding[:, None, None])
            # Padding looks at itself: a softmax over nothing is not a number.
            mask = (seen | (places[:, None] == columns))[:, None]
        self.state = self.model(
            inputs_embeds=self.prompts[:, self.done : end], attention_mask=mask,
            past_key_values=self.cache, use_cache=True,
            position_ids=(places - self.padding[:, None]).clamp(min=0),
        ).last_hidden_state[:, -1]  # fmt: skip
        self.done = end
        return end == self.tokens

    @property
    def keys(self) -> Tensor:
        """(layers, rows, groups, tokens, head width)."""
        return torch.stack([layer.keys for layer in self.cache.layers])

    @property
    def values(self) -> Tensor:
        """As keys."""
        return torch.stack([layer.values for layer in self.cache.layers])


def _side_by_side(*modules: Any) -> Map:
    """What linear layers make of one input, side by side: small ones in one operation."""
    if isinstance(modules[0], Int8Linear) and modules[0].joint:
        return modules[0].joint[0]
    is_plain = all(type(module) is nn.Linear for module in modules)       # without LoRA layers
    if not is_plain or sum(module.weight.numel() for module in modules) > SMALL_WEIGHTS:
        return lambda state: torch.cat([module(state) for module in modules], dim=-1)
    has_bias = modules[0].bias is not None
    return partial(
        functional.linear,
        weight=torch.cat([module.weight for module in modules]),
        bias=torch.cat([module.bias for module in modules]) if has_bias else None,
    )


def _adding(module: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A linear layer whose result is added to the first argument."""
    if type(module) is not nn.Linear or module.bias is not None:
        return lambda state, change: state + module(change)
    weight = module.weight.t()
    return lambda state, change: torch.addmm(state, change, weight)


def _norm(module: Any) -> Map:
    weight, shape, eps = module.weight, module.weight.shape, module.variance_epsilon
    return lambda state: torch.rms_norm(state, shape, weight, eps)


def check_length(llm: Any, tokens: int) -> None:
    """Raises InputError for a prompt that the LLM cannot take."""
    limit = longest_row(llm.config)
    if tokens > limit:
        raise InputError(
            f"audio and text make {tokens} tokens, and the model takes {limit}; give shorter audio "
            "or fewer earlier turns"
        )


def longest_row(config: Any) -> int:
    """The longest row: beyond, positions were not trained, or a layer sees a window only."""
    if "sliding_attention" in config.layer_types:
        return min(config.max_position_embeddings, config.sliding_window)
    return config.max_position_embeddings
