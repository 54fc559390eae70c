"""Decoding: greedy, sampled, and self-speculative with the model's own heads 2 to n as drafts."""
