"""Peak memory of a training step, by n, vocabulary and backward order.

Peaks are those of the allocator, so that they are exact and repeat: what tensors hold, to the byte. On a GPU the
allocator keeps the score; on a CPU torch's profiler hears of each allocation and release. What the process holds
besides (code, kernels' scratch, what malloc keeps) is in no peak.
"""

import gc
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function

from lab.bench.speed import Setting, Trainer
from lab.models import kernels
from lab.models.decoder import Block, inner_width
from lab.models.sizes import Model
from lab.objectives import LanguageModel
from lab.objectives.backward import CHUNK_BYTES, Order
from lab.objectives.flops import training_flops_per_token

BOUND = 1.02
"""Largest allowed net peak of n = 4, relative to n = 1 in the same order, in BOUND_SETTING, V = BOUND_VOCABULARY."""
BOUND_VOCABULARY = 32_000
BOUND_MODEL, BOUND_TOKENS = Model(size="30M"), 4096

BESIDES = 2**30
"""Bytes that a process holds beside tensors: torch itself, kernels' scratch; 0.6 to 0.8 GiB were seen on CPU."""

_MARK = "lab: the peak counts from here"


class Meter:
    """Measures the peak of what tensors hold that were made inside it; those made before count for nothing.

    Usage: `with Meter(device) as meter: prepare(); meter.start(); work()`, then `meter.peak`: bytes during `work`, what
    `prepare` made and `work` still holds or frees included.
    """

    peak: int
    """Bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Meter":
        gc.collect()  # so that nothing made before is freed inside
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.profile = profile(use_kineto=True, profile_memory=True)
            self.profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def start(self) -> None:
        """The peak counts from here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with record_function(_MARK):
                pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) - self.before
            return
        self.profile.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if error is None:
            self.peak = self._highest()

    def _highest(self) -> int:
        """The peak, from what the profiler heard."""
        results = self.profile.kineto_results
        assert results is not None
        held, peak, counts = 0, 0, False
        for event in sorted(results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()  # type: ignore[attr-defined]  # torch's stubs have left it out
            elif event.name() == _MARK:
                counts = True
            if counts:
                peak = max(peak, held)
        return peak


def cells(
    setting: Setting,
    ns: Sequence[int],
    vocabularies: Sequence[int],
    orders: Sequence[Order],
    limit: int,
    listen: Callable[[str, float], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """A row for each vocabulary, order and n: the peak of a training step, measured where it should fit.

    `peak_bytes` is all that tensors hold; `net_bytes` is the peak less parameters and the optimiser's state, so that it
    is activations, logits, the batch, and gradients, those of parameters included. `ratio_to_n1` divides net peaks of
    the same order. A cell whose estimate lies beyond the limit is not run (`ran`), and has its estimate alone.

    Args:
        setting: the model, and what it reads.
        ns: heads.
        vocabularies: tokens.
        orders: backward orders.
        limit: bytes that a cell may take in all, BESIDES included.
        listen: told each cell that is about to run, and the share of all work that is done, by FLOPs.

    Raises:
        BadInput: the objective cannot have that many heads.
    """
    rows, works = [], []
    for vocabulary in vocabularies:
        models = {n: setting.instantiated(n, vocabulary) for n in ns}
        for order in orders:
            for model in models.values():
                row = _expected(setting, model, vocabulary, order)
                row["ran"] = row["estimated_peak_bytes"] + BESIDES <= limit
                rows.append(row)
                works.append(row["ran"] * training_flops_per_token(model, setting.context))
    for index, row in enumerate(rows):
        if row["ran"]:
            listen("V = {vocabulary:,}, {order}, n = {n}".format(**row), sum(works[:index]) / sum(works))
            row |= _measured(setting, row)
    firsts = {(row["vocabulary"], row["order"]): row["net_bytes"] for row in rows if row["n"] == 1}
    for row in rows:
        first = firsts.get((row["vocabulary"], row["order"]))
        row["ratio_to_n1"] = row["net_bytes"] / first if first and row["ran"] else None
    return rows


def bound(setting: Setting, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The net peak with n = 4 against n = 1 by order, and whether it is within the bound; None in another setting."""
    if (setting.model, setting.tokens) != (BOUND_MODEL, BOUND_TOKENS):
        return None
    ratios = {
        row["order"]: row["ratio_to_n1"]
        for row in rows
        if (row["n"], row["vocabulary"]) == (4, BOUND_VOCABULARY) and row["ratio_to_n1"] is not None
    }
    holds = {order: ratio <= BOUND for order, ratio in ratios.items()}
    return {"n": 4, "vocabulary": BOUND_VOCABULARY, "at_most": BOUND, "ratio_to_n1": ratios, "holds": holds}


def with_kernels(context: int) -> bool:
    """Return whether the CPU's kernels (`lab.models.kernels`) compute layers in rows of `context` positions."""
    return context <= kernels.LONGEST and kernels.library() is not None


def numbers_kept_per_layer(width: int, inner: int, heads: int, context: int) -> int:
    """Return how many numbers a layer keeps for a position until its backward pass, in fp32 on a CPU.

    With the kernels: its input, queries, keys, values, attention's output and the stream between (6 widths), gate and
    value (2 inner widths), the norms' two factors, a softmax's denominator for each head. By the plain formulas: also
    the norms' outputs, rotated queries and keys and a copy of attention's output (11 widths), and SwiGLU's parts (4).
    """
    return 6 * width + 2 * inner + heads + 2 if with_kernels(context) else 11 * width + 4 * inner


def estimate(model: LanguageModel, tokens: int, context: int, order: Order) -> int:
    """Bytes of the net peak of a training step in float32 on a CPU, by what is known to be there at once.

    - Of every layer `numbers_kept_per_layer`; where that has no kernels of its own also the mask, once. With `joint` or
      heads that share layers it is all layers, else the trunk's and one head's, since heads are done with one by one.
    - With `joint` each head's logits, whose memory `lab.objectives.cross_entropy` makes do with; else those of one head
      or chunk; or the gradients within a layer, where that is more.
    - The unembedding's gradient, and where those of heads or chunks are added up as many of it as were found to be
      there; but with `joint`, those of the heads' parameters. All others are made later, while activations go.
    - Of the heads a few widths: 2 each and 3 with `joint`, 5 in all else.

    Within 5 % of what was measured with the parallel objective (tests, and results/bench_memory.cpu.json).
    """
    objective, unembedding = model.objective, model.decoder.unembedding.weight
    layers = [sum(isinstance(each, Block) for each in part.modules()) for part in (model.decoder, objective)]
    together = order == "joint" or objective.heads_share_layers
    kept = layers[0] + (layers[1] if together else math.ceil(layers[1] / objective.n))
    width, in_heads = unembedding.shape[1], 2 * objective.n + 3 if order == "joint" else 5
    inner, mask = inner_width(width), 0 if with_kernels(context) else context
    layer = numbers_kept_per_layer(width, inner, width // model.decoder.head_width, context)
    activations = 4 * tokens * (kept * layer + mask + in_heads * width)
    within = 4 * tokens * (4 * inner + 3 * width if with_kernels(context) else 2 * inner)
    logits = 4 * tokens * unembedding.shape[0]
    if order == "joint":
        return activations + max(objective.n * logits, within) + _bytes([unembedding])
    chunk = min(logits, CHUNK_BYTES) if order == "fused" else logits
    gradients = _bytes(objective.parameters()) + min(objective.n, 3) * _bytes([unembedding])
    beside_chunk = 2 * (chunk < logits) * _bytes([unembedding])  # a chunk's own gradient, and the sum with it
    return activations + max(chunk + beside_chunk, within) + gradients


def available(device: torch.device) -> int:
    """Bytes of memory that can be had now.

    On a CPU of Linux's own count; elsewhere, where there is none, half of the machine's.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _expected(setting: Setting, model: LanguageModel, vocabulary: int, order: Order) -> dict[str, Any]:
    """A cell's row before it is run."""
    parameters = _bytes(model.parameters())
    net = estimate(model, setting.tokens, setting.context, order)
    return {
        "vocabulary": vocabulary,
        "order": order,
        "n": model.objective.n,
        "parameter_bytes": parameters,
        "estimated_net_bytes": net,
        "estimated_peak_bytes": net + 3 * parameters,  # AdamW keeps two moments
        "peak_bytes": None,
        "net_bytes": None,
    }


def _measured(setting: Setting, row: dict[str, Any]) -> dict[str, Any]:
    """Return the measured columns of a cell's row: the peak of its second step.

    The first step, which makes the optimiser's state, reads one row: that state has the same size.
    """
    with Meter(setting.device) as meter:
        trainer, batch = setting.trainer(row["n"], row["vocabulary"]), setting.batch(row["n"], row["vocabulary"])
        trainer.step(batch.rows(slice(1)), row["order"])
        meter.start()
        trainer.step(batch, row["order"])
    parameters, state = _held(trainer)
    return {
        "optimizer_bytes": state,
        "peak_bytes": meter.peak,
        "net_bytes": meter.peak - parameters - state,
    }


def _held(trainer: Trainer) -> tuple[int, int]:
    """Bytes of the parameters and of the optimiser's state."""
    states = [each for state in trainer.optimizer.state.values() for each in state.values()]
    return _bytes(trainer.model.parameters()), _bytes(states)


def _bytes(tensors: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
