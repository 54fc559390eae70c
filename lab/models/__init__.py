"""The decoder that every objective trains."""
