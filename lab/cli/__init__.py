"""The commands. They own the console; below them, code logs."""
