"""Lightning, for the whole lab: a run is one process, whatever the environment's variables say, and draws nothing.

When it is imported, Lightning takes the process's rank from variables that torchrun, SLURM and others set, and every
argument of a trainer that is not given from PL_TRAINER_NAME; and torchmetrics, which it imports, imports matplotlib, if
that is installed, whose backend and folders are set by variables and files of their own.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError

from lightning_utilities.core import imports

from lab.environment import unheard
from lab.errors import MachineFault, one_line

_OTHERS = r"(\w+_)?RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|(SLURM|JSM|LSB|TORCHELASTIC)_\w+|PL_\w+"
"""Variables by which Lightning would know of other processes, or set itself up."""


@contextmanager
def _undrawn() -> Iterator[None]:
    """Inside, what asks Lightning's helper whether matplotlib is installed hears that it is not."""
    if "matplotlib" in sys.modules or not hasattr(imports, "_version"):  # it is there already, or Lightning's changed
        yield
        return
    version: Callable[[str], str] = imports._version

    def installed(name: str) -> str:
        if name == "matplotlib":
            raise PackageNotFoundError(name)
        return version(name)

    imports._version = installed
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        yield
    finally:
        imports._version = version
        del sys.modules["matplotlib"]


try:
    with unheard(_OTHERS), _undrawn():
        import lightning.pytorch as L
        from lightning.fabric.plugins import TorchCheckpointIO
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
        from lightning.pytorch.loggers.logger import Logger
        from lightning.pytorch.loggers.tensorboard import TensorBoardLogger
        from lightning.pytorch.utilities.exceptions import SIGTERMException
except Exception as error:  # whatever the libraries that it finds may raise
    raise MachineFault(f"Lightning cannot be imported: {one_line(error)}") from error

__all__ = ["L", "LightningEnvironment", "Logger", "SIGTERMException", "TensorBoardLogger", "TorchCheckpointIO", "alone"]


@contextmanager
def alone() -> Iterator[None]:
    """Inside, Lightning takes this process for the only one, which logs and saves, and hears of no settings."""
    LightningEnvironment().set_global_rank(0)  # which it may have from whoever imported it first
    with unheard(_OTHERS):
        yield
