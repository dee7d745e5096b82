"""How good the answers are: whole lists answered, texts and labels scored, the paper's tables."""
