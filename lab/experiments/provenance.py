"""The provenance of a number: hardware, versions, commit, memory."""

import contextlib
import os
import platform
import re
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lab.experiments.result import Hardware
from lab.home import home
from lab.models import kernels

_ARITHMETIC = (
    r"ATEN_CPU_CAPABILITY|MKL_(CBWR|ENABLE_INSTRUCTIONS)|(ONEDNN|DNNL)_\w+|CUBLAS_WORKSPACE_CONFIG|"
    r"NVIDIA_TF32_OVERRIDE|TORCH_BLAS_PREFER_\w+"
)
"""Variables by which libraries round otherwise, which nothing in the process can undo."""


def hardware(device: torch.device) -> Hardware:
    """The machine, in words and numbers, and what is set of variables that move last bits."""
    about: Hardware = {
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": "compiled" if device.type == "cpu" and kernels.library() else "torch",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    variables = {name: value for name, value in os.environ.items() if re.fullmatch(_ARITHMETIC, name)}
    if variables:
        about["variables"] = variables
    return about


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """CPU threads to use in all: OMP_NUM_THREADS, where that is set, else one a core."""
    said, *_ = os.environ.get("OMP_NUM_THREADS", "").split(",")  # the first is of the outermost level
    return int(said) if said.isdigit() and int(said) else cores()


def here() -> dict[str, Any]:
    """Return the provenance of a document made on a CPU: `hardware`, `versions`, `commit`."""
    return {"hardware": hardware(torch.device("cpu")), "versions": versions(), "commit": commit()}


def versions() -> dict[str, str]:
    """The versions that move numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "lightning", "numpy")}}


def commit() -> str | None:
    """The checkout's commit, `+` appended when tracked files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home()), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != home().resolve():
            return None  # somebody else's repository, around an installed lab
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring peak memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux alone: the peak resident size falls back to the present one
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's allocator peak on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
