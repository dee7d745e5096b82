"""Comparison with a directory of published tensors: `python -m osum_echat.parity DIR [--json]`."""
