"""Key names: ours, and those of published files; every known key has one place or is left out.

Source: facts of the published layout (888 keys); the table of names is in the README.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")

TEXT_TABLE, TEXT_HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
# The other names of the text table. Where several differ, upstream keeps the last of this order.
TEXT_TABLE_ALIASES = (TEXT_TABLE, TEXT_HEAD, "embed_tokens.weight", "lm_head.weight")
TABLE_NAMES, HEAD_NAMES = TEXT_TABLE_ALIASES[0::2], TEXT_TABLE_ALIASES[1::2]
LORA_PREFIX = "base_model.model."  # peft's, on the way to the LLM
UPSTREAM_PREFIXES = (
    ("llama_model.speech_token_emded.", "speech_embedding."),
    ("llama_model.speech_head.", "speech_head."),
    (f"llama_model.{LORA_PREFIX}", "llm."),
    ("llama_model.", "llm."),
    ("down_sample_2.conv.", "adapter.convs."),
    ("speech_transformer.", "adapter.transformer."),
    ("speech_llama_proj.", "adapter.projection."),
    ("speech_token_emded.", "speech_embedding."),
    ("speech_head.", "speech_head."),
)
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of parallel training and of torch.compile
# Never read, with the reason that a report gives.
IGNORED = (
    (re.compile(r"^ln_speech\."), "a norm that upstream never applies"),
    (re.compile(r"\.pos_enc\.pe$"), "a position table, computed here"),
    (re.compile(r"^llm\._cache\."), "a cache saved by accident"),
    (re.compile(r"\.rotary_emb\.(?:original_)?inv_freq$"), "rotary rates, computed here"),
)


def our_name(name: str) -> str:
    """Our name of a key of a published file; one of ours stays."""
    name = WRAPPERS.sub("", name)
    for theirs, ours in UPSTREAM_PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def published_name(name: str, lora: bool = False) -> str:
    """The published name of one of our keys; lora: of a model whose LLM has LoRA layers."""
    for theirs, ours in reversed(UPSTREAM_PREFIXES):
        if name.startswith(ours):
            inner = LORA_PREFIX if lora and ours == "llm." else ""
            return theirs + inner + name[len(ours) :]
    return name


def why_ignored(name: str) -> str | None:
    """The reason why a key (under our name) is never read; None: it is read."""
    return next((reason for pattern, reason in IGNORED if pattern.search(name)), None)


def aliases(name: str, tied: bool) -> tuple[str, ...]:
    """All names under which a published file holds one of our weights, ours first."""
    if tied and name == TEXT_TABLE:
        return TEXT_TABLE_ALIASES
    return {TEXT_TABLE: TABLE_NAMES, TEXT_HEAD: HEAD_NAMES}.get(name, (name,))


def without_aliases(names: Iterable[str], tied: bool) -> list[str]:
    """Our names that stand for a weight of their own."""
    return [name for name in names if not (tied and name in TEXT_TABLE_ALIASES[1:])]


def named_as_ours(raw: Mapping[str, Value], tied: bool) -> dict[str, Value]:
    """Any file's keys under our names, each weight once, without what is never read."""
    named = {our_name(name): value for name, value in raw.items()}
    found = {
        name: value
        for name, value in named.items()
        if name not in TEXT_TABLE_ALIASES and why_ignored(name) is None
    }
    for ours in (TEXT_TABLE,) if tied else (TEXT_TABLE, TEXT_HEAD):
        values = [named[name] for name in aliases(ours, tied) if name in named]
        if values:
            found[ours] = values[-1]
    return found
