"""Data preparation scripts: they stand outside the package and may use all of it."""
