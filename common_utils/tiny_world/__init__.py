"""The tiny world: a synthetic corpus of short, emotionally coloured English exchanges."""
