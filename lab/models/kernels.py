"""A transformer layer on a CPU as one node of the autograd graph: products are torch's, the rest compiled C loops.

The loops are in kernels.c, which the machine's C compiler builds once, in about two seconds, into the user's cache
folder. Values and gradients are those of the plain formulas in `lab.models.decoder`, up to rounding. The plain formulas
serve on GPUs, under autocast, and where there is no C compiler. Speeds are in BENCHMARKS.md.

Shape suffixes: B rows, T positions, D width, H attention heads, K width of one attention head, F inner width.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512
"""Longest document, in positions, that these kernels serve: beyond, torch's attention works in tiles and is faster."""

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = (
    "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
    "-freciprocal-math", "-fopenmp-simd",
)  # fmt: skip
_NAMES = {torch.float32: "float", torch.float64: "double"}


def serve(x: Tensor) -> bool:
    """Return whether these kernels compute on x: a CPU tensor in float32 or float64, and a C compiler was found."""
    plain = x.device.type == "cpu" and x.dtype in _NAMES and not torch.is_autocast_enabled("cpu")
    return plain and library() is not None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight, the mean over the last axis; the shape stays."""
    return _RMSNorm.apply(x, weight_D, eps)  # type: ignore[no-any-return,no-untyped-call]


def swiglu(x: Tensor) -> Tensor:
    """Return silu(gate) · value, [..., F], of gate and value side by side, [..., 2F]; not differentiable."""
    return _swiglu(x.contiguous())


def attention(x_BTX: Tensor, turn_TK: Tensor, starts_BT: Tensor, heads: int) -> Tensor:
    """Return causal attention within documents, [B, T, D]; not differentiable.

    Args:
        x_BTX: [B, T, 3D] queries, keys and values side by side, each of all heads side by side, not yet rotated.
        turn_TK: the dtype of x; for each position K/2 cosines, then K/2 sines, one for each pair of channels.
        starts_BT: int32, the first position of the document that a position belongs to.
        heads: attention heads.
    """
    return _attention(x_BTX.contiguous(), turn_TK, starts_BT, heads)[0]


class Weights(NamedTuple):
    """The parameters of one pre-norm layer; matrices are [outputs, inputs]."""

    attention_norm: Tensor
    attention_inputs: Tensor
    attention_output: Tensor
    feedforward_norm: Tensor
    feedforward_inputs: Tensor
    feedforward_output: Tensor


def layer(x_BTD: Tensor, turn_TK: Tensor, starts_BT: Tensor, heads: int, eps: float, weights: Weights) -> Tensor:
    """Return a transformer layer's output [B, T, D]: x plus attention, then plus SwiGLU, each on its RMSNorm.

    The other arguments are those of `attention` and `rms_norm`.
    """
    return _Layer.apply(x_BTD, turn_TK, starts_BT, heads, eps, *weights)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = _normed(x.contiguous(), weight, eps)
        ctx.save_for_backward(x.contiguous(), weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        of_x = torch.zeros_like(x)
        return of_x, _add_norm_gradient(x, weight, inverse, gradient.contiguous(), of_x), None


class _Layer(torch.autograd.Function):
    """Keeps its input, queries, keys, values, attention's output, the stream between, and gate and value.

    Norms and SwiGLU's product are computed again in the backward pass, which costs less than to keep them. Tensors are
    [B·T, ...] inside, and every gradient is written once, where it is to be.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, turn: Tensor, starts: Tensor, heads: int, eps: float, *parameters: Tensor
    ) -> Tensor:
        weights = Weights(*parameters)
        x = x_BTD.contiguous().flatten(0, 1)

        # Attention, on the norm of x; its output is added to x.
        normed, inverse = _normed(x, weights.attention_norm, eps)
        qkv = normed @ weights.attention_inputs.T
        mixed, logs = _attention(qkv.view(*x_BTD.shape[:2], -1), turn, starts, heads)
        mixed = mixed.flatten(0, 1)
        between = torch.addmm(x, mixed, weights.attention_output.T)

        # SwiGLU, on the norm of that sum.
        normed, inverse_between = _normed(between, weights.feedforward_norm, eps, out=normed)
        gates = normed @ weights.feedforward_inputs.T
        out = torch.addmm(between, _swiglu(gates), weights.feedforward_output.T)
        ctx.save_for_backward(x, inverse, qkv, mixed, logs, between, inverse_between, gates, turn, starts, *parameters)
        ctx.eps = eps
        return out.view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTD: Tensor) -> Any:
        x, inverse, qkv, mixed, logs, between, inverse_between, gates, turn, starts, *parameters = ctx.saved_tensors
        weights, eps = Weights(*parameters), ctx.eps
        gradient = gradient_BTD.contiguous().flatten(0, 1)

        # SwiGLU: the gradient of `between` is the stream's plus the norm's.
        of_gates, product = torch.empty_like(gates), torch.mm(gradient, weights.feedforward_output)
        of_product, product = product, torch.empty_like(product)
        _call("swiglu_backward", (gates, of_product, of_gates, product), product.shape)
        of_feedforward_output = gradient.T @ product
        normed, _ = _normed(between, weights.feedforward_norm, eps)
        of_feedforward_inputs = of_gates.T @ normed
        of_normed = torch.mm(of_gates, weights.feedforward_inputs)
        stream = gradient.clone()
        of_feedforward_norm = _add_norm_gradient(between, weights.feedforward_norm, inverse_between, of_normed, stream)

        # Attention, likewise.
        of_attention_output = stream.T @ mixed
        of_mixed = torch.mm(stream, weights.attention_output, out=of_normed)
        of_qkv, (rows, heads, positions) = torch.empty_like(qkv), logs.shape
        sizes = (rows, positions, heads, mixed.shape[1] // heads)
        _call("attention_backward", (qkv, turn, starts, mixed, logs, of_mixed, of_qkv), sizes)
        normed, _ = _normed(x, weights.attention_norm, eps, out=normed)
        of_attention_inputs = of_qkv.T @ normed
        of_normed = torch.mm(of_qkv, weights.attention_inputs, out=of_normed)
        of_attention_norm = _add_norm_gradient(x, weights.attention_norm, inverse, of_normed, stream)
        of_weights = Weights(
            of_attention_norm, of_attention_inputs, of_attention_output,
            of_feedforward_norm, of_feedforward_inputs, of_feedforward_output,
        )  # fmt: skip
        return stream.view_as(gradient_BTD), None, None, None, None, *of_weights


def _normed(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of contiguous x (in `out`, if given), and 1 / sqrt(mean(x²) + eps) by row."""
    out, inverse = torch.empty_like(x) if out is None else out, x.new_empty(x.shape[:-1])
    _call("rms_norm_forward", (x, weight, out, inverse), (inverse.numel(), x.shape[-1]), eps)
    return out, inverse


def _add_norm_gradient(x: Tensor, weight: Tensor, inverse: Tensor, gradient: Tensor, of_x: Tensor) -> Tensor:
    """Add the gradient of RMSNorm's input to `of_x`; return that of its weight, [D]."""
    # Each thread adds up the weight's gradient over a share of the rows; the shares are added in a fixed order.
    parts = torch.get_num_threads()
    of_weight = x.new_empty(parts, x.shape[-1])
    tensors = (x, weight, inverse, gradient, of_x, of_weight)
    _call("rms_norm_backward", tensors, (inverse.numel(), x.shape[-1], parts))
    return of_weight.sum(0)


def _swiglu(x: Tensor) -> Tensor:
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _call("swiglu_forward", (x, out), (out.numel() // width, width))
    return out


def _attention(x: Tensor, turn: Tensor, starts: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return attention's output [B, T, D], and the logarithms of the softmax's denominators [B, H, T]."""
    rows, positions, width = x.shape[0], x.shape[1], x.shape[2] // 3
    out, logs = x.new_empty(rows, positions, width), x.new_empty(rows, heads, positions)
    _call("attention_forward", (x, turn, starts, out, logs), (rows, positions, heads, width // heads))
    return out, logs


def _call(name: str, tensors: Sequence[Tensor], sizes: Sequence[int], *numbers: float) -> None:
    """Call a function of kernels.c on contiguous tensors of the first one's dtype.

    While torch's profiler runs, which sees operators alone, it is told of the call as `lab::name`.
    """
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]  # 0.1 µs
        with torch.autograd.profiler.record_function(f"lab::{name}"):
            _call_compiled(name, tensors, sizes, *numbers)
    else:
        _call_compiled(name, tensors, sizes, *numbers)


def _call_compiled(name: str, tensors: Sequence[Tensor], sizes: Sequence[int], *numbers: float) -> None:
    function = _function(name, tensors[0].dtype, len(tensors), len(sizes), len(numbers))
    if function(*[tensor.data_ptr() for tensor in tensors], *sizes, *numbers):
        raise MemoryError(f"{name}: no memory for what a thread computes with")


@functools.cache  # a library makes a new object at every look-up: 10 µs, of 60 calls a step
def _function(name: str, dtype: torch.dtype, tensors: int, sizes: int, numbers: int) -> Any:
    """Return a function of kernels.c: of so many tensors, whole numbers and other numbers, in this order."""
    loaded = library()
    assert loaded is not None
    function = loaded[f"{name}_{_NAMES[dtype]}"]
    function.argtypes = [*[ctypes.c_void_p] * tensors, *[ctypes.c_int64] * sizes, *[ctypes.c_double] * numbers]
    return function


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, built if need be; None where there is no C compiler that can build them."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    runtime = _openmp()
    flags = [*_FLAGS, *(["-fopenmp"] if runtime else [])]
    built = _cache_folder() / f"kernels-{_digest(compiler, flags)}.so"
    try:
        if not built.is_file():
            _compile(compiler, flags, built)
        if runtime:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)  # so that the loops' threads are torch's own
        _keep_freed_memory()
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, flags: Sequence[str], built: Path) -> None:
    """Build the shared library for this machine's instruction set, in a file of its own that is then moved in place.

    Raises:
        OSError: the folder cannot be written.
        subprocess.SubprocessError: the compiler refuses, or takes longer than a minute.
    """
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        target = Path(folder, "kernels.so")
        for machine in ("-march=native", "-mcpu=native"):  # GCC's and Clang's ways of naming it
            # Not linked against OpenMP: its functions are found in the library that torch has loaded.
            command = [compiler, *flags, machine, str(_SOURCE), "-c", "-o", f"{target}.o"]
            ran = subprocess.run([each for each in command if each != "-shared"], capture_output=True, timeout=60)
            if ran.returncode == 0:
                break
        ran.check_returncode()
        linked = [compiler, "-shared", f"{target}.o", "-o", str(target), "-lm"]
        if platform.system() == "Darwin":
            linked += ["-undefined", "dynamic_lookup"]
        subprocess.run(linked, capture_output=True, timeout=60, check=True)
        os.replace(target, built)


def _keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory for the next step: giving it back and faulting it in costs 5 % of a step."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-1, 2**31 - 1), (-2, 2**26), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_…
            mallopt(parameter, value)


def _digest(compiler: str, flags: Sequence[str]) -> str:
    """Name what the compiled loops depend on: source, compiler, flags and processor."""
    state = Path(compiler).resolve().stat()
    try:  # a folder of the user's may be shared between machines with other instruction sets
        processor = re.findall(
            r"^(?:flags|Features)\s*:.*", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )[:1]
    except OSError:
        processor = [platform.processor()]
    parts = (
        _SOURCE.read_text(encoding="utf-8"),
        compiler,
        state.st_size,
        state.st_mtime_ns,
        flags,
        platform.machine(),
        processor,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    """Return the user's cache folder for compiled loops, or a temporary one where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base, "mtp-lab")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="mtp-lab-"))


def _openmp() -> str | None:
    """Return the path of the OpenMP runtime that torch has loaded; None where that is not known (not Linux)."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*", maps)
    return found[0] if found else None
