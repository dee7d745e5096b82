"""Corpora made and looked at: raw lists, shards and combine lists written, checked and drawn."""
