"""The two ways a command can end badly; each message is one line."""


class BadInput(Exception):
    """What the user gave cannot be used: the message names the field, its value and what is allowed. Exit status 2."""


class Failure(Exception):
    """What was asked could not be done, though the asking was right. Exit status 1."""


class Missing(Failure):
    """A result that is asked for has not been made yet."""
