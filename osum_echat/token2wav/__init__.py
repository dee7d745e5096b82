"""From speech tokens to a wave: flow matching to a mel, then a vocoder."""
