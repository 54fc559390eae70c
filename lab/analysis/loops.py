"""Training loops compared at equal shapes: ours bare, with documents' masks, in Lightning, with further heads; peers.

They take one step in turn, so that whatever else the machine does meets all of them; ratios are medians over rounds of
the two times within one. Both wall-clock and processor time are measured: the first is what people wait for, the second
is steadier where the machine is shared.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lab.analysis.devices import device_peak
from lab.analysis.peers import PEERS, NotInstalled, build_peer, flops_per_token, inner_parameters
from lab.analysis.profiling import Profile, profiled
from lab.analysis.speed import (
    BETAS,
    CLIP,
    LEARNING_RATE,
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
from lab.experiments.experiment import Execution, Experiment
from lab.experiments.run import build_trainer
from lab.experiments.store import RunDirectory
from lab.learning.callbacks import Checkpoint, Record
from lab.learning.data import Step
from lab.learning.module import LearningModule
from lab.learning.settings import Train
from lab.learning.trainer import L, alone
from lab.models.decoder import inner_width
from lab.objectives.backward import backward_order
from lab.objectives.cost import non_embedding_parameters, training_flops_per_token
from lab.tasks.polynomials import Polynomials

LIGHTNING_BOUND = 1.03
"""What a step in Lightning may take, of one in a bare loop on the same batch."""
WARMUP = 2
"""Rounds that do not count."""
DOCUMENTS = 4
"""Documents in a row, where there are masks."""
OURS = ("bare", "masks", "lightning")
"""Our loops: plain causal attention, as peers have; documents' masks; those, in Lightning, as a run trains. Beside them
`with_heads(n)`: documents' masks and n parallel heads."""


class Contender(NamedTuple):
    """What takes steps, and what one costs."""

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
        peers: names among `lab.analysis.peers.PEERS`; one that is not installed has a row that says so.
        steps: rounds that count, each a step of everyone.
        listen: told each round done, from 0, warm-up included.

    Returns:
        A JSON object: the shape, the FLOP/s that count as the peak (on a CPU the fastest matrix product's, measured in
        turn with the rest; on a GPU the device's, null if unknown), the bounds, and `loops`, a row for each loop: its
        times and speed, or why it is `missing`. `of_fastest_peer` is its speed by wall-clock time, as a multiple of the
        fastest peer's; `beyond_flops` its time as a multiple of the loop's with masks, over the ratio of their FLOPs.
    """
    # Models and their steps; what cannot be built is told in its row.
    contenders, missing = ours(setting, vocabulary), {}
    further = {with_heads(n): partial(several_heads, setting, vocabulary, n) for n in ns if n > 1}
    others = {name: partial(peer, setting, name, vocabulary) for name in peers}
    for name, build in {**further, **others}.items():
        try:
            contenders[name] = build()
        except (BadInput, NotInstalled) as error:
            missing[name] = str(error)

    # All of them in turn, and on a CPU the matrix products by which the peak is known.
    products = matmuls(setting) if setting.device.type == "cpu" else {}
    turns: dict[str, Callable[[], None] | None] = {name: each.step for name, each in contenders.items()}
    turns |= {name: step for name, (step, _) in products.items()}
    taken: dict[str, list[Taken]] = {name: [] for name in turns}
    rounds = steps + WARMUP
    in_lightning(setting, vocabulary, rounds, take_turns(turns, rounds, taken, setting.device, listen))

    times = {name: Times(*np.array(each[WARMUP:]).T) for name, each in taken.items()}
    peak: float | None
    if products:
        peak = max(flops / float(np.median(times[name].wall)) for name, (_, flops) in products.items())
        peak_of = "products"
    else:
        peak_of = torch.cuda.get_device_name(setting.device)
        peak = device_peak(peak_of)
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


class _Between(L.Callback):
    """Lets the others take their turns before each of Lightning's steps."""

    def __init__(self, turns: Iterator[None]) -> None:
        self.turns = turns

    def on_train_batch_start(self, *_: Any) -> None:
        next(self.turns, None)


class _Same(IterableDataset[Step]):
    """The same step, over and over."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __iter__(self) -> Iterator[Step]:
        return repeat(self.step)


def in_lightning(setting: Setting, vocabulary: int, steps: int, turns: Iterator[None]) -> nn.Module:
    """Train in Lightning as a run does, from the weights and on the batch that the bare loop with masks has.

    One fit with a run's module, trainer, loggers and callbacks (no evaluation; logging and checkpoints as seldom as a
    run's). `turns` goes on once before each step: between two of them lies all that the loop does for one step. One
    step more than `steps` is taken, so that the last of these ends like the others.

    Returns:
        The model, trained for `steps` + 1 steps.

    Raises:
        KeyboardInterrupt: the process was told to stop.
    """
    train = Train(
        steps=steps + 1, lr=LEARNING_RATE, betas=BETAS, clip=CLIP, weight_decay=0.0, warmup=0, decay_ratio=1.0
    )
    experiment = Experiment(
        task=Polynomials(),  # stands for any: the batch is given
        model=setting.model,
        train=train,
        precision=setting.precision,
        execution=Execution(device="cuda" if setting.device.type == "cuda" else "cpu"),
    )
    model = setting.trainer(1, vocabulary).model
    batch = setting.batch(1, vocabulary, DOCUMENTS)
    step = Step(batch, torch.empty(0, dtype=torch.int64), setting.tokens)
    with tempfile.TemporaryDirectory() as store:
        directory = RunDirectory(Path(store), experiment)
        directory.checkpoint.parent.mkdir(parents=True)
        callbacks = [
            _Between(turns),
            Record(experiment.execution.log_every, lambda _: None),
            Checkpoint(directory.checkpoint, experiment.execution.checkpoint_every, lambda: False),
        ]
        with alone():
            trainer = build_trainer(experiment, directory, setting.device, 0, callbacks)
            try:
                trainer.fit(LearningModule(model, train, questions=0), DataLoader(_Same(step), batch_size=None))
            except SystemExit as error:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from error
    return model


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
    """What is told of a loop that was measured."""
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
    """Whether our loop with masks, as runs train, is ahead of the fastest peer; None when none was measured."""
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
    """Whether a step with four heads takes no more than its FLOPs; None when it was not measured."""
    if row is None:
        return None
    beyond = row["beyond_flops"]
    return {"n": row["n"], "beyond_flops": beyond, "at_most": TIME_BOUND, "holds": beyond <= TIME_BOUND}


def _lightning(times: dict[str, Times]) -> dict[str, Any]:
    """What Lightning costs, of the same step in a bare loop."""
    ratio = _ratio(times["lightning"].wall, times["masks"].wall)
    return {"of_bare_loop": ratio, "at_most": LIGHTNING_BOUND, "holds": ratio <= LIGHTNING_BOUND}


def _ratio(ones: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The median over rounds of a ratio."""
    return float(np.median(ones / others))
