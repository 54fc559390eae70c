"""Properties of objectives that can be derived or measured."""
