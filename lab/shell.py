"""Commands that are told to people."""

import shlex


def command(*words: object) -> str:
    """A command of the lab that runs when it is pasted into a shell, `lab` and its words in order."""
    return shlex.join(["lab", *map(str, words)])


def argument(path: object) -> str:
    """A path as a command takes it in an argument's place: one that begins with a dash is no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
