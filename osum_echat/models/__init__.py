"""The network: encoder, adapter, language model, heads, and how they are stored."""
