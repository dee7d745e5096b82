"""The small trainings of token to wav: tokenizer, flow, vocoder, speaker encoder."""
