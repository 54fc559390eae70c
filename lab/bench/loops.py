"""Training loops compared at equal shapes: ours bare, with documents' masks, in Lightning, with further heads; peers.

They take one step in turn, so that whatever else the machine does meets all of them; ratios are medians over rounds of
the two times within one. Both wall-clock and processor time are measured: the first is what people wait for, the second
is steadier where the machine is shared.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lab.bench.devices import device_peak
from lab.bench.lightning_loop import in_lightning
from lab.bench.peers import PEERS, NotInstalled, build_peer, flops_per_token, inner_parameters
from lab.bench.profiling import Profile, profiled
from lab.bench.speed import (
    DOCUMENTS,
    PRESETS,
    TIME_BOUND,
    Setting,
    Taken,
    adamw,
    causal_loss,
    now,
    take_step,
)
from lab.errors import BadInput
from lab.models.decoder import inner_width
from lab.objectives.backward import backward_order
from lab.objectives.flops import non_embedding_parameters, training_flops_per_token

LIGHTNING_BOUND = 1.03
"""Largest allowed time of a step in Lightning, relative to one in a bare loop on the same batch."""
WARMUP = 2
"""Rounds that do not count."""
OURS = ("bare", "masks", "lightning")
"""Our loops: plain causal attention, as peers have; documents' masks; those, in Lightning, as a run trains. Beside them
`with_heads(n)`: documents' masks and n parallel heads."""


class Contender(NamedTuple):
    """A training loop that is compared, and the FLOPs of its step."""

    step: Callable[[], None] | None
    """None: takes its step while the others' turns are suspended."""
    parameters: int
    """Those of no embedding."""
    flops: int
    """Of a position, in training."""
    n: int = 1
    """Heads."""
    version: str | None = None
    """Of the library."""


class Times(NamedTuple):
    """Seconds of one loop's steps in the rounds that count."""

    wall: NDArray[np.float64]
    processor: NDArray[np.float64]


def compare(
    setting: Setting,
    vocabulary: int,
    ns: Sequence[int],
    peers: Sequence[str],
    steps: int,
    listen: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Steady-state speed of our loops and of peers at one shape, on fixed batches of random tokens.

    Args:
        setting: what is measured on; next-token prediction.
        vocabulary: tokens.
        ns: heads of further loops of ours, those beyond 1 alone; a number that the model is too small for has a row
            that says so.
        peers: names among `lab.bench.peers.PEERS`; one that is not installed has a row that says so.
        steps: rounds that count, each a step of everyone.
        listen: told each round done, from 0, warm-up included.

    Returns:
        A JSON object: the shape, the FLOP/s that count as the peak (on a CPU the fastest matrix product's, measured in
        turn with the rest; on a GPU the device's, null if unknown), the bounds, and `loops`, a row for each loop: its
        times and speed, or why it is `missing`. `of_fastest_peer` is its speed by wall-clock time, as a multiple of the
        fastest peer's; `beyond_flops` its time as a multiple of the loop's with masks, over the ratio of their FLOPs.
    """
    contenders, missing = _contenders(setting, vocabulary, ns, peers)
    further = [with_heads(n) for n in ns if n > 1]

    # All of them in turn, and on a CPU the matrix products by which the peak is known.
    products = matmuls(setting) if setting.device.type == "cpu" else {}
    turns: dict[str, Callable[[], None] | None] = {name: each.step for name, each in contenders.items()}
    turns |= {name: step for name, (step, _) in products.items()}
    taken: dict[str, list[Taken]] = {name: [] for name in turns}
    rounds = steps + WARMUP
    in_lightning(setting, vocabulary, rounds, take_turns(turns, rounds, taken, setting.device, listen))

    times = {name: Times(*np.array(each[WARMUP:]).T) for name, each in taken.items()}
    peak, peak_of = _peak(setting, products, times)
    fastest = min(
        (name for name in peers if name in times), key=lambda name: float(np.median(times[name].wall)), default=None
    )
    measured = {name: _row(name, contenders, times, setting.tokens, peak, fastest) for name in contenders}
    names = (*OURS, *further, *peers)
    rows = [{"loop": name, "missing": missing.get(name), **measured.get(name, {})} for name in names]
    layers, width, heads = setting.model.shape
    return {
        "size": setting.model.label,
        "layers": layers,
        "width": width,
        "heads": heads,
        "vocabulary": vocabulary,
        "tokens": setting.tokens,
        "context": setting.context,
        "documents_in_a_row": DOCUMENTS,
        "precision": setting.precision,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "peak_flops_per_second": peak,
        "peak_of": peak_of,
        "loops": rows,
        "bounds": {
            "ahead_of_peers": _ahead(times, fastest, [name for name in peers if name in missing], at_least(setting)),
            "heads": _heads(measured.get(with_heads(4))),
            "lightning": _lightning(times),
        },
    }


def _contenders(
    setting: Setting, vocabulary: int, ns: Sequence[int], peers: Sequence[str]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return those that can be built, by name, and why the others cannot."""
    contenders, missing = ours(setting, vocabulary), {}
    builds = {with_heads(n): partial(several_heads, setting, vocabulary, n) for n in ns if n > 1}
    builds |= {name: partial(peer, setting, name, vocabulary) for name in peers}
    for name, build in builds.items():
        try:
            contenders[name] = build()
        except (BadInput, NotInstalled) as error:
            missing[name] = str(error)
    return contenders, missing


def _peak(
    setting: Setting, products: dict[str, tuple[Callable[[], None], int]], times: dict[str, Times]
) -> tuple[float | None, str]:
    """Return the FLOP/s that count as the peak (None: unknown), and what they are of."""
    if products:
        return max(flops / float(np.median(times[name].wall)) for name, (_, flops) in products.items()), "products"
    device = torch.cuda.get_device_name(setting.device)
    return device_peak(device), device


def take_turns(
    steps: dict[str, Callable[[], None] | None],
    rounds: int,
    taken: dict[str, list[Taken]],
    device: torch.device,
    listen: Callable[[int], None],
) -> Iterator[None]:
    """Everyone takes a step in each round; the times go to `taken`.

    The order rotates, and every other round it is backwards: who comes next finds the caches and the heap as the one
    before left them, and that should not always be the same one.

    Yields:
        When it is the turn of who has None for a step: it takes it, then goes on with the iterator.
    """
    names = list(steps)
    for turn in range(rounds):
        first = turn % len(names)
        for name in (names[first:] + names[:first])[:: -1 if turn % 2 else 1]:
            step = steps[name]
            started = now(device)
            if step is None:
                yield
            else:
                step()
            taken[name].append(now(device) - started)
        listen(turn)


def ours(setting: Setting, vocabulary: int) -> dict[str, Contender]:
    """Our loops; the bare ones share a model."""
    trainer = setting.trainer(1, vocabulary)
    model, optimizer, precision = trainer
    plain, masked = (setting.batch(1, vocabulary, documents) for documents in (1, DOCUMENTS))
    cost = non_embedding_parameters(model), training_flops_per_token(model, setting.context)
    bare = partial(take_step, model, optimizer, precision, lambda: causal_loss(model, plain))
    steps = bare, lambda: trainer.step(masked, "joint"), None
    return {name: Contender(step, *cost) for name, step in zip(OURS, steps, strict=True)}


def with_heads(n: int) -> str:
    """Return the name of our loop with n heads."""
    return f"n{n}"


def several_heads(setting: Setting, vocabulary: int, n: int) -> Contender:
    """Our loop with documents' masks and n parallel heads, in the backward order that a run would choose.

    Raises:
        BadInput: the model has no room for so many heads.
    """
    parallel = setting._replace(objective="parallel")
    parallel.instantiated(n, vocabulary)  # raises
    trainer, batch = parallel.trainer(n, vocabulary), parallel.batch(n, vocabulary, DOCUMENTS)
    order = backward_order(n, setting.tokens, vocabulary)
    cost = non_embedding_parameters(trainer.model), training_flops_per_token(trainer.model, setting.context)
    return Contender(lambda: trainer.step(batch, order), *cost, n)


def peer(setting: Setting, name: str, vocabulary: int) -> Contender:
    """A peer in the same shape, on the same tokens.

    Raises:
        NotInstalled: its library is missing.
    """
    shape, context = setting.model.shape, setting.context
    built = build_peer(name, shape, vocabulary, context)
    model = built.model.to(setting.device).train()
    tokens = setting.batch(1, vocabulary).tokens
    inputs, wanted = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()

    def loss() -> torch.Tensor:
        return F.cross_entropy(built.logits(inputs).flatten(0, 1).float(), wanted)

    return Contender(
        partial(take_step, model, adamw(model), setting.precision, loss),
        sum(each.numel() for each in inner_parameters(built)),
        flops_per_token(built, shape, vocabulary, context),
        version=version(PEERS[name].package) if PEERS[name].module else None,
    )


def matmuls(setting: Setting) -> dict[str, tuple[Callable[[], None], int]]:
    """Matrix products in fp32 with the FLOPs of each: a large square one, and the model's own largest."""
    width = setting.model.shape.width
    side = min(2048, 16 * width)  # large enough for the peak, and no longer than a step
    shapes = {
        "square product": (side, side, side),
        "model's product": (setting.tokens, width, 2 * inner_width(width)),
    }
    found: dict[str, tuple[Callable[[], None], int]] = {}
    for name, (m, k, n) in shapes.items():
        times = max(1, side**3 // (m * k * n))  # as long as the square one
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        found[name] = partial(_multiply, a, b, c, times), 2 * m * k * n * times
    return found


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, times: int) -> None:
    for _ in range(times):
        torch.mm(a, b, out=out)


def profiles(setting: Setting, vocabulary: int, peers: Sequence[str], steps: int) -> dict[str, Profile]:
    """Return the profiles of our loop with masks, and of the first peer that is installed."""
    found = {"masks": profiled(_step(ours(setting, vocabulary)["masks"]), steps)}
    for name in peers:
        try:
            found[name] = profiled(_step(peer(setting, name, vocabulary)), steps)
            break
        except NotInstalled:
            continue
    return found


def _step(contender: Contender) -> Callable[[], None]:
    assert contender.step is not None
    return contender.step


def at_least(setting: Setting) -> float:
    """Return the bound on our speed with masks, times the fastest peer's: a preset's own on a CPU, else 1."""
    measured = setting.model, setting.tokens, setting.context
    ahead = [each.ahead for each in PRESETS.values() if (each.model, each.tokens, each.context) == measured]
    return ahead[0] if ahead and setting.device.type == "cpu" else 1.0


def _row(
    name: str,
    contenders: dict[str, Contender],
    times: dict[str, Times],
    tokens: int,
    peak: float | None,
    fastest: str | None,
) -> dict[str, Any]:
    """Return the row of a loop that was measured."""
    contender, mine, first = contenders[name], times[name], contenders["masks"]
    low, median, high = (float(each) for each in np.percentile(mine.wall, (25, 50, 75)))
    speed = contender.flops * tokens / median
    beyond = None
    if contender.n > 1:
        beyond = _ratio(mine.wall, times["masks"].wall) / (contender.flops / first.flops)
    return {
        "n": contender.n,
        "version": contender.version,
        "non_embedding_parameters": contender.parameters,
        "flops_per_token": contender.flops,
        "seconds": median,
        "seconds_quartiles": [low, high],
        "processor_seconds": float(np.median(mine.processor)),
        "tokens_per_second": tokens / median,
        "of_fastest_peer": _ratio(times[fastest].wall, mine.wall) if fastest else None,
        "of_fastest_peer_by_processor": _ratio(times[fastest].processor, mine.processor) if fastest else None,
        "beyond_flops": beyond,
        "flops_per_second": speed,
        "share_of_peak": speed / peak if peak else None,
    }


def _ahead(times: dict[str, Times], fastest: str | None, missing: list[str], bound: float) -> dict[str, Any] | None:
    """Return how our loop with masks, as runs train, stands to the fastest peer; None when none was measured."""
    if fastest is None:
        return None
    speed = _ratio(times[fastest].wall, times["masks"].wall)
    return {
        "loop": "masks",
        "peer": fastest,
        "of_fastest_peer": speed,
        "by_processor": _ratio(times[fastest].processor, times["masks"].processor),
        "at_least": bound,
        "holds": speed >= bound,
        "missing": missing,
    }


def _heads(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a step with four heads takes beyond its FLOPs; None when it was not measured."""
    if row is None:
        return None
    beyond = row["beyond_flops"]
    return {"n": row["n"], "beyond_flops": beyond, "at_most": TIME_BOUND, "holds": beyond <= TIME_BOUND}


def _lightning(times: dict[str, Times]) -> dict[str, Any]:
    """Return what a step in Lightning takes, of the same one in a bare loop."""
    ratio = _ratio(times["lightning"].wall, times["masks"].wall)
    return {"of_bare_loop": ratio, "at_most": LIGHTNING_BOUND, "holds": ratio <= LIGHTNING_BOUND}


def _ratio(ones: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the median over rounds of a ratio."""
    return float(np.median(ones / others))
