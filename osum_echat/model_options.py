"""Which model a command asks, and where it runs: the options that commands share."""

import argparse

from osum_echat.places import TINY


def add_model(one: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --model and what belongs to it."""
    add = one.add_argument
    add("--model", default=str(TINY), metavar="SOURCE", help="a model directory, a published .pt, "
        "a DeepSpeed directory or hub:OWNER/NAME[/FILE] (default: the small model)")
    add("--config", metavar="YAML", help="the model's settings (default: beside the weights)")
    add("--tokenizer", metavar="DIR", help="of the model's LLM (default: beside the weights)")
    add("--token2wav", metavar="SOURCE", help="the model of speech: a directory or .tar of ours or "
        "of CosyVoice-300M-25Hz, or hub: (default: beside the weights)")
    add("--voice", metavar="FILE", help="a recording or a saved voice to speak in")
    add("--device", default="auto", help="auto, cpu, cuda, npu (default: auto)")
    add("--dtype", default="auto", help="auto, bf16, fp32, on a CPU int8 (default: auto)")
    add("--keep-lora", action="store_true", help="leave LoRA layers as they are, do not merge them")
