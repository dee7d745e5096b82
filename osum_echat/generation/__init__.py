"""From a prompt to tokens: the cached loop, sampling, and rules on what may come next."""
