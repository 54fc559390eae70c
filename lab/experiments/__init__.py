"""Experiments: what is run, once or as a sweep, and what comes back."""
