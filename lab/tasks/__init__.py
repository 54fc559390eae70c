"""What is learned. A new task is a file beside this and its config's name in `TaskConfig`.

With a second task: `Annotated[Polynomials | Other, Field(discriminator="name")]`.
"""

from lab.tasks.polynomials import Polynomials

TaskConfig = Polynomials
"""The union of all tasks' configs, discriminated by `name`."""
