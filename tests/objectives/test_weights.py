"""Head weights: each law by hand, what is refused, identities, what a run logs, and balancing by gradient norms."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from lab.config import canonical
from lab.errors import BadInput
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory, read_json_lines
from lab.learning import module as learning
from lab.learning.module import rate
from lab.models.decoder import Decoder
from lab.objectives import build_model
from lab.objectives.backward import Losses, losses
from lab.objectives.base import Batch, Objective, targets
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel
from lab.objectives.reweighted import Reweighted
from lab.objectives.shallow import Shallow
from lab.objectives.weights import Auxiliary, Balanced, Curriculum, Geometric, HeadWeights, Listed
from tests.conftest import same_end, tiny

BELOW_ONE = 1 - 2**-53
"""The largest share of training that is not all of it."""


def weights(law: HeadWeights | None, n: int, done: float = 0.0) -> list[float]:
    return Parallel(n=n, weights=law).head_weights(done)


# The laws


def test_without_a_law_all_heads_weigh_the_same() -> None:
    assert weights(None, 3) == [1.0, 1.0, 1.0]
    assert NextToken().head_weights(0.5) == Shallow(n=4).head_weights(0.5) == Reweighted(n=4).head_weights(0.5) == [1.0]


def test_listed() -> None:
    assert weights(Listed(values=[2.0, 0.0, 0.5]), 3) == [2.0, 0.0, 0.5]
    assert weights(Listed(values=[0.5]), 1, done=0.9) == [0.5]


def test_geometric() -> None:
    assert weights(Geometric(ratio=0.5), 4) == [1.0, 0.5, 0.25, 0.125]
    assert weights(Geometric(ratio=2.0), 3, done=0.7) == [1.0, 2.0, 4.0]
    assert weights(Geometric(), 1) == [1.0]


def test_auxiliary() -> None:
    law = Auxiliary(first=0.3, last=0.1, change=0.5)
    early, late = [1.0, 0.1, 0.1, 0.1], [1.0, 0.1 / 3, 0.1 / 3, 0.1 / 3]  # λ is of the others' mean
    assert weights(law, 4) == weights(law, 4, done=0.4999) == pytest.approx(early)
    assert weights(law, 4, done=0.5) == weights(law, 4, done=BELOW_ONE) == pytest.approx(late)
    assert weights(law, 2) == [1.0, 0.3]
    assert weights(law, 1) == weights(law, 1, done=0.9) == [1.0]
    assert weights(Auxiliary(), 2, done=0.67) == [1.0, 0.3]
    assert weights(Auxiliary(), 2, done=0.68) == [1.0, 0.1]


@pytest.mark.parametrize(
    ("done", "active"),
    [(0.0, 1), (0.2499, 1), (0.25, 2), (0.4999, 2), (0.5, 3), (0.7499, 3), (0.75, 4), (BELOW_ONE, 4), (1.0, 4)],
)
def test_curriculum(done: float, active: int) -> None:
    forward, reverse = Curriculum(order="forward"), Curriculum(order="reverse")
    assert weights(forward, 4, done) == [1.0] * active + [0.0] * (4 - active)
    assert weights(reverse, 4, done) == [1.0] * (5 - active) + [0.0] * (active - 1)
    assert weights(forward, 1, done) == weights(reverse, 1, done) == [1.0]


def test_a_curriculum_in_a_share_of_training() -> None:
    forward, reverse = (Curriculum(order=order, share=0.5) for order in ("forward", "reverse"))
    for done, active in ((0.0, 1), (0.2499, 1), (0.25, 2), (0.4999, 2), (0.5, 2), (0.75, 2), (BELOW_ONE, 2)):
        assert sum(weights(forward, 2, done)) == active
        assert sum(weights(reverse, 2, done)) == 3 - active


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_every_number_of_heads_has_its_part_of_a_run(n: int) -> None:
    steps = 20 * n
    active = [int(sum(weights(Curriculum(order="forward"), n, step / steps))) for step in range(steps)]
    assert active == sorted(active)
    assert [active.count(number) for number in range(1, n + 1)] == pytest.approx([20] * n, abs=1)  # rounding


def test_balanced_has_equal_shares() -> None:
    assert weights(Balanced(), 3, done=0.3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (None, [0.25, 0.25, 0.25, 0.25]),
        (Listed(values=[3.0, 1.0, 0.0, 0.0]), [0.75, 0.25, 0.0, 0.0]),
        (Geometric(ratio=0.5), [8 / 15, 4 / 15, 2 / 15, 1 / 15]),
        (Auxiliary(first=0.6), [1 / 1.6, 0.2 / 1.6, 0.2 / 1.6, 0.2 / 1.6]),
        (Curriculum(order="reverse"), [0.25, 0.25, 0.25, 0.25]),
        (Curriculum(order="forward"), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_mean_divides_by_the_sum(law: HeadWeights | None, expected: list[float]) -> None:
    assert Parallel(n=4, reduction="mean", weights=law).head_weights(0.0) == pytest.approx(expected)


# Configuration


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("{name: listed, values: [1]}", ["weights.values: [1.0]", "n=2", "2 numbers, the first above 0"]),
        ("{name: listed, values: [1, 1, 1]}", ["weights.values: [1.0, 1.0, 1.0]", "2 numbers"]),
        ("{name: listed, values: [0, 1]}", ["weights.values: [0.0, 1.0]", "the first above 0"]),
        ("{name: listed, values: [1, -1]}", ["objective.weights.values.1: -1", "greater than or equal to 0"]),
        ("{name: listed, values: [1, .nan]}", ["objective.weights.values.1: NaN"]),
        ("{name: listed, values: []}", ["objective.weights.values: []", "at least 1 item"]),
        ("{name: listed}", ["objective.weights.values: missing"]),
        ("{name: geometrc}", ["objective.weights: 'geometrc'", "listed, geometric", "did you mean 'geometric'?"]),
        ("{name: geometric, ratio: 0}", ["objective.weights.ratio: 0", "greater than 0"]),
        ("{name: geometric, ratio: 2.5}", ["objective.weights.ratio: 2.5", "less than or equal to 2"]),
        ("{name: geometric, ration: 1}", ["objective.weights.ration: unknown field", "did you mean 'ratio'?"]),
        ("{name: auxiliary, first: -0.1}", ["objective.weights.first: -0.1", "greater than or equal to 0"]),
        ("{name: auxiliary, change: 0}", ["objective.weights.change: 0", "greater than 0"]),
        ("{name: auxiliary, change: 1.5}", ["objective.weights.change: 1.5", "less than or equal to 1"]),
        ("{name: curriculum}", ["objective.weights.order: missing"]),
        ("{name: curriculum, order: foward}", ["objective.weights.order: \"foward\"", "did you mean 'forward'?"]),
        ("{name: curriculum, order: forward, share: 0}", ["objective.weights.share: 0", "greater than 0"]),
        ("{name: balanced, decay: 1}", ["objective.weights.decay: 1", "less than 1"]),
        ("{name: balanced, every: 0}", ["objective.weights.every: 0", "greater than or equal to 1"]),
        ("{}", ["objective.weights.name: missing", "listed, geometric, auxiliary, curriculum, balanced"]),
        ("[1, 1]", ["objective.weights: [1, 1]", "mapping"]),
    ],
)  # fmt: skip
def test_bad_weights_get_one_clear_line(change: str, parts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        tiny(f"objective.weights={change}")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["next_token", "shallow", "reweighted"])
def test_one_head_has_no_weights(name: str) -> None:
    with pytest.raises(BadInput, match=r"objective\.weights: unknown field"):
        tiny(f"objective={{name: {name}, weights: {{name: geometric}}}}")


def test_no_weights_is_as_if_there_were_no_such_field() -> None:
    assert canonical(tiny().objective) == {"version": 1, "name": "parallel", "n": 2, "reduction": "sum"}
    assert tiny("objective.weights=null").identity == tiny().identity == "45ba1cffdafad15a"
    weighed = tiny("objective.weights={name: listed, values: [1, 1]}")
    assert weighed.identity != tiny().identity
    assert "weights" in canonical(weighed.objective)


# Runs


def logged(store: Path, *changes: str) -> list[list[float]]:
    """The weights of each step of a run, as logged."""
    experiment = tiny("execution.log_every=1", *changes)
    assert execute(experiment, store) is not None
    rows = [row for row in read_json_lines(RunDirectory(store, experiment).metrics) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, experiment.train.steps + 1))
    for row in rows:
        parts = [row[f"weight_{i}"] * row[f"loss_{i}"] for i in (1, 2)]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    return [[row["weight_1"], row["weight_2"]] for row in rows]


@pytest.mark.parametrize(("order", "reduction"), [("forward", "sum"), ("reverse", "sum"), ("forward", "mean")])
def test_a_run_follows_its_curriculum(tmp_path: Path, order: str, reduction: str) -> None:
    law = f"objective={{name: parallel, n: 2, reduction: {reduction}, weights: {{name: curriculum, order: {order}}}}}"
    one, both = [1.0, 0.0], [1.0, 1.0] if reduction == "sum" else [0.5, 0.5]
    stages = [one, both] if order == "forward" else [both, one]
    assert logged(tmp_path, law, "train.steps=20") == [stages[0]] * 10 + [stages[1]] * 10


def test_a_row_of_several_steps_has_their_mean_weights(tmp_path: Path) -> None:
    experiment = tiny("objective.weights={name: curriculum, order: forward, share: 0.6}", "train.steps=20")
    execute(experiment, tmp_path)
    rows = [row for row in read_json_lines(RunDirectory(tmp_path, experiment).metrics) if "loss" in row]
    assert [row["weight_1"] for row in rows] == [1.0] * 4
    assert [row["weight_2"] for row in rows] == pytest.approx([0.0, 0.8, 1.0, 1.0])  # from the seventh step on


def test_a_weight_of_zero_trains_nothing_but_weights_decay(tmp_path: Path) -> None:
    changes = ("objective.weights={name: listed, values: [1, 0]}", "train.steps=6")
    assert logged(tmp_path, *changes) == [[1.0, 0.0]] * 6
    experiment = tiny(*changes)
    trained = load_file(RunDirectory(tmp_path, experiment).weights / "final.safetensors")
    initial = build_model(experiment.model, experiment.objective, 12, experiment.seed)
    train, kept = experiment.train, 1.0
    for step in range(6):
        kept *= 1 - train.lr * rate(step, train) * train.weight_decay
    for name, parameter in initial.state_dict().items():
        if name.startswith("objective.heads.1."):
            torch.testing.assert_close(trained[name], parameter * (kept if parameter.dim() == 2 else 1))
        else:
            assert not torch.allclose(trained[name], parameter * kept)


# Balancing


class Recomputed:
    """Takes the place of `losses` in training: works out for itself what the weights should be."""

    def __init__(self, decay: float, every: int, passes: int) -> None:
        self.decay, self.every, self.passes = decay, every, passes
        self.norms: list[list[float]] = []
        self.given: list[list[float]] = []
        self.expected: list[list[float]] = []

    def __call__(self, objective: Objective, decoder: Decoder, batch: Batch, weights: Tensor, *more: Any) -> Losses:
        if len(self.given) % (self.every * self.passes) == 0:  # the first pass of a step
            self.norms.append(norms(objective, decoder, batch))
        # Of all measurements, each discounted by what came after it.
        discounts = [self.decay ** (len(self.norms) - 1 - k) for k in range(len(self.norms))]
        means = [
            sum(d * each[i] for d, each in zip(discounts, self.norms, strict=True)) / sum(discounts)
            for i in range(objective.n)
        ]
        inverse = [1 / mean for mean in means]
        self.expected.append([objective.n * each / sum(inverse) for each in inverse])
        self.given.append(weights.tolist())
        return losses(objective, decoder, batch, weights, *more)


def norms(objective: Objective, decoder: Decoder, batch: Batch) -> list[float]:
    """Of each head's mean loss, the gradient's norm at the trunk's output."""
    found = []
    inputs = batch.tokens[:, : -objective.n]
    context = decoder.context(inputs, batch.document_ids[:, : -objective.n])
    for head in range(1, objective.n + 1):
        trunk = decoder(inputs, context).detach().requires_grad_()
        *_, logits = objective.logits(decoder, trunk, context, head, batch.tokens[:, :-1])
        wanted = targets(batch, head, inputs.shape[1])
        [gradient] = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), wanted.flatten()), trunk)
        found.append(gradient.norm().item())
    return found


@pytest.mark.parametrize("name", ["parallel", "causal"])
@pytest.mark.parametrize(("decay", "every", "passes"), [(0.0, 1, 1), (0.5, 3, 1), (0.99, 4, 2)])
def test_balanced_weights_are_those_of_the_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decay: float, every: int, passes: int
) -> None:
    recomputed = Recomputed(decay, every, passes)
    monkeypatch.setattr(learning, "losses", recomputed)
    law = f"{{name: balanced, decay: {decay}, every: {every}}}"
    found = logged(
        tmp_path, f"objective={{name: {name}, n: 2, weights: {law}}}", "train.steps=10", f"execution.passes={passes}"
    )
    assert len(recomputed.norms) == -(-10 // every)
    each_pass = [row for row in found for _ in range(passes)]
    for given, expected, row in zip(recomputed.given, recomputed.expected, each_pass, strict=True):
        assert given == pytest.approx(expected, rel=1e-4)
        assert row == pytest.approx(given, rel=1e-6)
        assert sum(row) == pytest.approx(2, rel=1e-6)
    changes = [one != other for one, other in pairwise(found)]
    assert changes == [step % every == 0 for step in range(1, 10)]
    assert max(abs(row[0] - 1) for row in found) > 0.01  # the law does something


def test_the_mean_of_balanced_weights(tmp_path: Path) -> None:
    """The balancing is of shares: their scale is that of the reduction."""
    law = "weights: {name: balanced, every: 2}"
    sums, means = (
        logged(tmp_path, f"objective={{name: parallel, n: 2, reduction: {reduction}, {law}}}", "train.steps=6")
        for reduction in ("sum", "mean")
    )
    assert [sum(row) for row in sums] == pytest.approx([2.0] * 6)
    assert [sum(row) for row in means] == pytest.approx([1.0] * 6)
    assert means[0] == pytest.approx([each / 2 for each in sums[0]])


def stopping_at(steps: Sequence[int]) -> Any:
    """Asks a run to stop after each of these numbers of steps of its own."""
    asked = {"times": 0}

    def stop() -> bool:
        asked["times"] += 1
        return asked["times"] in steps

    return stop


@pytest.mark.parametrize("changes", [(), ("precision=bf16",), ("execution.passes=2", "execution.backward=sequential")])
def test_an_interrupted_balanced_run_ends_bit_for_bit_alike(tmp_path: Path, changes: tuple[str, ...]) -> None:
    experiment = tiny("objective.weights={name: balanced, decay: 0.9, every: 3}", "train.steps=20", *changes)
    assert execute(experiment, tmp_path / "stopped", stop=stopping_at([7])) is None
    resumed: list[int] = []
    assert execute(experiment, tmp_path / "stopped", resumed=resumed.append) is not None
    assert resumed == [7]
    assert execute(experiment, tmp_path / "straight") is not None
    straight = RunDirectory(tmp_path / "straight", experiment)
    same_end(RunDirectory(tmp_path / "stopped", experiment), straight)
    rows = [json.loads(line) for line in straight.metrics.read_text().splitlines()]
    assert len({row["weight_2"] for row in rows if "weight_2" in row}) > 2
