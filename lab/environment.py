"""The process's environment variables, where a library would take from them what the lab decides itself."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unheard(names: str) -> Iterator[None]:
    """Inside, variables whose whole name matches the regular expression `names` are not set; then they are again."""
    hidden = {name: value for name, value in os.environ.items() if re.fullmatch(names, name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
