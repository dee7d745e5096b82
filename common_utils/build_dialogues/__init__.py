"""A corpus of empathetic spoken dialogues, as EChat-200K is one, from a chat model and voices."""
