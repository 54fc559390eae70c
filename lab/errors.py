"""The two ways a command can end badly; each message is one line."""


class BadInput(Exception):
    """What the user gave cannot be used: the message names the field, its value and what is allowed. Exit status 2."""


class Failure(Exception):
    """What was asked could not be done, though the asking was right. Exit status 1."""


class Missing(Failure):
    """A result that is asked for has not been made yet."""


def one_line(error: Exception) -> str:
    """What went wrong, in one line: what is not one of the lab's own errors is named."""
    if isinstance(error, BadInput | Failure):
        said = str(error)
    elif isinstance(error, OSError) and error.filename:
        said = f"{error.filename}: {error.strerror}"
    else:
        said = f"{type(error).__name__}: {error}"
    return " ".join(said.split())
