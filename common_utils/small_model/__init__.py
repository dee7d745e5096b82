"""The recipe of the small model: what it learns from and how it is put together."""
