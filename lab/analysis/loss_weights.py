"""Weight of a token in the loss when n tokens are predicted at once: derived, counted, and measured.

The argument (arXiv 2404.19737, Section 5.1 and Appendix L.3). A choice decides k tokens, itself the first. Whoever
misses the choice misses all of them: head i, which from t predicts t+i, has one wrong target for each of the min(i, k)
positions before the choice from which its target is one of the k. With weights w_1..w_n of the heads the choice counts

    W(n, k) = sum_{i=1..n} min(i, k) w_i,

which for equal weights is k n - k (k - 1) / 2 up to k = n, and from there on the paper's n (n + 1) / 2. A token with no
consequences (k = 1) counts n. So the choice counts (n + 1) / 2 times as much as a token without consequences does; with
weights it is the weighted mean horizon, sum(i w_i) / sum(w_i).

What the count takes for granted is that every wrong target is worth the same. Here that is measured. A term of the
loss, the target s of a position t, belongs to the earliest token c in (t, s] that still decides s: if there is a choice
whose consequences reach s, to the choice, else to s itself. (Every term belongs to one token so, and a choice far from
others has W(n, k) of them.) Of all terms that belong to tokens of a kind,

- `loss` is what they add to the training loss, and `excess` what of that lies above the source's entropies, where they
  are known;
- `arriving` is the norm of their gradient with respect to the trunk's output, all positions of all documents together;
- `gradient` is the norm of their mean gradient with respect to the trunk's parameters, which is what moves them. It is
  the root of the inner product of two halves of the documents' gradients, whose noises are independent: the product is
  unbiased but for the halves' sizes, and cut at 0, so that what is lost in noise has 0. At a loss's minimum that is
  so, where `arriving` is not 0.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.analysis.finished_run import FinishedRun
from lab.analysis.terms import passes, terms, valid
from lab.learning.data import select
from lab.objectives import LanguageModel
from lab.tasks.base import Examples, HasEntropies, Task
from lab.tasks.targets import limit_targets


def implicit_weight(n: int, k: int, weights: Sequence[Any] | None = None) -> Any:
    """W(n, k): how often a token counts that decides k tokens, itself the first; `weights` [n] of the heads, or 1."""
    return sum(min(i, k) * (weights[i - 1] if weights else 1) for i in range(1, n + 1))


def counted(n: int, k: int, weights: Sequence[Any] | None = None) -> Any:
    """The same by brute force: on a line of tokens, every head at every position is asked what it is to predict."""
    choice = n + 1  # far enough from the beginning for all heads that can see it coming
    total: Any = 0
    for position in range(choice):  # from the choice on, it is known
        for head in range(1, n + 1):
            if choice <= position + head < choice + k:
                total += weights[head - 1] if weights else 1
    return total


def derivation() -> list[dict[str, Any]]:
    """The closed forms of W(n, k), proved by sympy: `claim`, `left` and `right` sides as text, and whether it `holds`.

    For symbolic n and k where heads count the same; with symbolic weights for every n and k up to 8.
    """
    n, k, i, d = sympy.symbols("n k i d", integer=True, positive=True)
    short = sympy.Sum(i, (i, 1, k)) + sympy.Sum(k, (i, k + 1, n))  # min(i, k), up to k and beyond
    by_distance = sympy.Sum(n - d + 1, (d, 1, k))  # of the d-th decided token, the heads that reach it from before
    claims: list[tuple[str, Any, Any]] = [
        ("k <= n: W(n, k)", short, k * n - k * (k - 1) / 2),
        ("k <= n: W(n, k), token by token", by_distance, k * n - k * (k - 1) / 2),
        ("k >= n: W(n, k), a choice point", sympy.Sum(i, (i, 1, n)), n * (n + 1) / 2),
        ("k = 1: W(n, 1), no consequences", short.subs(k, 1), n),
        ("k >= n: W(n, k) / W(n, 1)", sympy.Sum(i, (i, 1, n)) / n, (n + 1) / 2),
    ]
    proved = [
        {"claim": claim, "left": str(left), "right": str(right), "holds": sympy.simplify(left.doit() - right) == 0}
        for claim, left, right in claims
    ]
    w = sympy.symbols("w1:9", positive=True)
    horizons = [  # sum_i min(i, k) w_i, as the tokens decided, each with the heads that reach it
        sympy.expand(implicit_weight(m, q, w) - sum(sum(w[e] for e in range(f, m)) for f in range(min(q, m)))) == 0
        for m in range(1, 9)
        for q in range(1, 9)
    ]
    enumerated = [
        sympy.expand(implicit_weight(m, q, w) - counted(m, q, w)) == 0 for m in range(1, 9) for q in range(1, 9)
    ]
    left = "Sum(Min(i, k)*w_i, (i, 1, n))"
    right = "Sum(Sum(w_i, (i, d, n)), (d, 1, Min(k, n)))"
    proved.append({"claim": "n, k <= 8, any weights", "left": left, "right": right, "holds": all(horizons)})
    proved.append({"claim": "n, k <= 8, any weights", "left": left, "right": "enumeration", "holds": all(enumerated)})
    return proved


def positions(ns: Sequence[int], k: int, reach: int) -> list[dict[str, Any]]:
    """The terms of the loss that belong to each token from `reach` before a choice to `reach` after its consequences.

    Counted as `measure` counts. Rows have `n`, `k`, `place` (0 is the choice) and `weight`.
    """
    rows = []
    for n in ns:
        line = np.ones((1, 2 * (n + reach) + k), np.uint8)
        choice = n + reach
        line[0, choice] = k
        found = np.zeros(line.shape[1], np.int64)
        for head in range(1, n + 1):
            owner = owners(line, head)[0, : line.shape[1] - head]
            found += np.bincount(owner, minlength=line.shape[1])
        for place in range(-reach, k + reach):
            rows.append({"n": n, "k": k, "place": place, "weight": int(found[choice + place])})
    return rows


def owners(spans: NDArray[np.uint8], ahead: int) -> NDArray[np.int64]:
    """[N, L] the place of the token to which the target `ahead` of each place belongs; of the last ones, no matter.

    Args:
        spans: [N, L] as of `Examples`.
        ahead: i, at least 1.
    """
    length = spans.shape[1]
    here = np.broadcast_to(np.arange(length), spans.shape)
    found: NDArray[np.int64] = here + ahead
    for back in range(1, ahead):  # the further back the earlier: the last to be found counts
        place = here + ahead - back
        deciding = np.take_along_axis(spans, np.minimum(place, length - 1), axis=1) > back
        found = np.where(deciding, place, found)
    return np.minimum(found, length - 1)  # type: ignore[no-any-return]


def measure(run: FinishedRun, examples: int, every: bool) -> Iterator[dict[str, Any]]:
    """Return the sums of a run's loss terms, by kind of token; see the module's documentation.

    Rows have the run's `identity`, `step`, `kind`, `span` (of the kind's tokens; the mean), `events` (its
    tokens), `terms`, `weight` (terms of a token away from documents' ends, the most that one has), `loss`, `excess`
    (None where entropies are not known), `arriving` and `gradient`; the last four of all the kind's tokens together.

    Args:
        run: any finished run.
        examples: test documents that are looked at.
        every: every step of which there are weights, else the last alone.
    """
    found = run.test_examples(examples)
    for step, model in run.models(every):
        for row in _by_kind(model, run.task, found, run.head_weights(step)):
            yield {"identity": run.experiment.identity, "step": step, **row}


def _by_kind(model: LanguageModel, task: Task, examples: Examples, weights: Sequence[float]) -> list[dict[str, Any]]:
    n, kinds = model.objective.n, len(task.token_types)
    examples = limit_targets(task, examples, model.objective.where)
    spans = np.ones(examples.tokens.shape, np.uint8) if examples.horizons is None else examples.horizons
    kind = task.token_type(examples).astype(np.int64)
    floors = np.nan_to_num(task.entropies(examples, n)) if isinstance(task, HasEntropies) else None
    there = valid(examples, n)
    owner = np.stack([owners(spans, ahead) for ahead in range(1, n + 1)], axis=2)
    scales = np.array(weights) / np.maximum(1, there.sum(axis=(0, 1)))

    trunk = [*model.decoder.embedding.parameters(), *model.decoder.trunk.parameters()]
    halves = [[[torch.zeros_like(each) for each in trunk] for _ in range(kinds)] for _ in range(2)]
    sums = {name: np.zeros(kinds) for name in ("terms", "weight", "loss", "floor", "arriving")}
    for number, rows in enumerate(passes(model, examples)):
        part = select(examples, rows)
        width = part.tokens.shape[1]
        owned = owner[rows, :width]
        of_kind = np.take_along_axis(kind[rows], owned.reshape(len(rows), -1), axis=1).reshape(owned.shape)
        belongs = np.where(there[rows, :width], of_kind, -1)
        trunk_BTD, nats_BTn, importance = terms(model, part)
        share = torch.from_numpy(scales).to(nats_BTn)
        if importance is not None:
            share = share * importance[..., None]
        for each in np.unique(belongs[belongs >= 0]).tolist():
            mine = belongs == each
            chosen = torch.from_numpy(mine).to(nats_BTn.device)
            loss = torch.where(chosen, nats_BTn * share, 0.0).sum()
            arriving, *of_trunk = torch.autograd.grad(loss, (trunk_BTD, *trunk), retain_graph=True)
            for total, gradient in zip(halves[number % 2][each], of_trunk, strict=True):
                total += gradient
            sums["loss"][each] += loss.item()
            sums["arriving"][each] += arriving.square().sum().item()
            sums["terms"][each] += mine.sum()
            sums["weight"][each] = max(sums["weight"][each], _most(owned, mine))
            if floors is not None:
                sums["floor"][each] += np.where(mine, floors[rows, :width] * share.cpu().numpy(), 0.0).sum()
    inside = np.arange(examples.tokens.shape[1]) < examples.lengths[:, None]
    found = []
    for each, name in enumerate(task.token_types):
        here, total = inside & (kind == each), {measure: float(values[each]) for measure, values in sums.items()}
        if total["terms"]:
            found.append(
                {
                    "kind": name,
                    "span": float(spans[here].mean()),
                    "events": int(here.sum()),
                    "terms": int(total["terms"]),
                    "weight": int(total["weight"]),
                    "loss": total["loss"],
                    "excess": total["loss"] - total["floor"] if floors is not None else None,
                    "arriving": float(np.sqrt(total["arriving"])),
                    "gradient": 2 * _root_of_product(halves[0][each], halves[1][each]),
                }
            )
    return found


def _most(owned: NDArray[np.int64], mine: NDArray[np.bool_]) -> int:
    """The most terms of one token, among the terms that are `mine`."""
    rows, places, heads = np.nonzero(mine)
    return int(np.unique(rows * owned.shape[1] + owned[rows, places, heads], return_counts=True)[1].max())


def _root_of_product(one: list[Tensor], other: list[Tensor]) -> float:
    """The root of the inner product of two halves of a gradient; 0 where it is negative, that is, all noise."""
    return float(np.sqrt(max(0.0, sum(float((a * b).sum()) for a, b in zip(one, other, strict=True)))))
