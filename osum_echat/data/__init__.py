"""From lists of recordings to batches: sources, preparing, packing, mixing."""
