"""Decoding: greedy, sampled, and self-speculative with the model's own further heads."""
