"""All tasks. A new task is a file in this folder, and its config's name in `TaskConfig`."""

from typing import Annotated

from pydantic import Field

from lab.tasks.agreement import Agreement
from lab.tasks.choices import Choices
from lab.tasks.countdown import Countdown
from lab.tasks.dag import Dag
from lab.tasks.mixture import Mixture
from lab.tasks.polynomials.task import Polynomials
from lab.tasks.star import Star
from lab.tasks.stories.task import Stories
from lab.tasks.text.task import Text

TaskConfig = Annotated[
    Polynomials | Stories | Text | Mixture | Choices | Agreement | Star | Dag | Countdown, Field(discriminator="name")
]
"""The union of all tasks' configs, discriminated by `name`."""
