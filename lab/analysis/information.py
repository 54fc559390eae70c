"""Information between tokens when n are predicted at once: derived, and measured on trained models.

The argument (arXiv 2404.19737, Section 5.2 and Appendix L.2). With X the next token and Y the one after it,

    H(X) + H(Y) = H(X|Y) + 2 I(X;Y) + H(Y|X),

so a model of two heads gives twice the weight to what the next token says of the one after it. For cross-entropies, p
being the data's distribution and q the model's, the same holds with

    I_{p||q}(X;Y) = H(p_X, q_X) + H(p_Y, q_Y) - H(p, q).

For n tokens, over a whole text: with a_i = H(x_s | x_1..x_{s-i}), the entropy of token s as head i has it,

    sum_{i=1..n} a_i = n a_1 + sum_{d=1..n-1} (n - d) I_d,    I_d = a_{d+1} - a_d = I(x_s; x_{s-d} | x_1..x_{s-d-1}):

what token s-d says of token s counts n - d times, beside the n next-token losses. (With weights w_i of the heads, the
sum of w_i over i > d.) It is also the count of Section 5.1. A choice of entropy h that decides k tokens has a_1 = h,
and says all of each of them: I_d = h from one to k - 1 tokens on; together h (n + sum_{d<k} (n - d)) = h W(n, k).

Measured on a run, I_d is a difference of losses on the same token,

    loss_i(t -> t+i) - loss_1(t+i-1 -> t+i),

head i from i before against head 1 from the place just before; that of head i is the sum of I_1 to I_{i-1}, and what
head i is from its entropy, less what head 1 is from its own: neither a lower nor an upper bound while either learns.

The argument takes q_Y, the second head, for the marginal of what head 1 says step by step. Parallel heads need not be
consistent so. `gaps` measures by how much they are not: the divergence of head i from

    sum_x q_1(x_{t+1} = x) q_{i-1}(x_{t+i} | x_{t+1} = x).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.analysis.finished_run import FinishedRun
from lab.analysis.generation import questions, standard_error
from lab.analysis.terms import passes, terms, valid
from lab.decoding.decode import greedy
from lab.learning.data import select
from lab.learning.evaluation import predict
from lab.objectives import LanguageModel
from lab.tasks.base import Examples, HasEntropies

MASS = 0.999
"""The share of head 1's probability that `gaps` sums over, the likeliest tokens first; the rest is renormalised."""


def identities() -> list[dict[str, Any]]:
    """The identities above, proved by sympy: `claim`, `statement`, and whether it `holds`.

    Those of two tokens for entropies of any distribution, by the definitions of conditional entropy and information;
    the relative ones also for every p and q on 2 x 3 values, probabilities being symbols. That of n tokens for symbolic
    n, by induction.
    """
    return [
        {"claim": "two tokens", "statement": "H(X) + H(Y) = H(X|Y) + 2 I(X;Y) + H(Y|X)", "holds": _two_tokens()},
        {
            "claim": "two tokens, relative",
            "statement": "H(pX,qX) + H(pY,qY) = H(pX|Y,qX|Y) + 2 I_p||q(X;Y) + H(pY|X,qY|X)",
            "holds": _two_tokens_relative(),
        },
        {
            "claim": "lemma",
            "statement": "D(p || qX qY) - D(p || q) = H(pX,qX) + H(pY,qY) - H(p,q)",
            "holds": _lemma(),
        },
        {
            "claim": "n tokens",
            "statement": "sum_{i<=n} a_i = n a_1 + sum_{d<n} (n - d) (a_{d+1} - a_d)",
            "holds": _n_tokens(),
        },
        {
            "claim": "n tokens, any weights, n <= 8",
            "statement": "sum_i w_i a_i = a_1 sum_i w_i + sum_{d<n} (sum_{i>d} w_i) (a_{d+1} - a_d)",
            "holds": _n_tokens_weighted(),
        },
        {
            "claim": "a choice of entropy h that decides k tokens",
            "statement": "n h + sum_{d<k} (n - d) h = h W(n, k), k <= n",
            "holds": _choice(),
        },
    ]


def _two_tokens() -> bool:
    x, y, both = sympy.symbols("H_X H_Y H_XY")
    information = x + y - both
    return bool(sympy.expand((both - y) + 2 * information + (both - x) - (x + y)) == 0)


def _joint(name: str) -> sympy.Matrix:
    return sympy.Matrix(2, 3, sympy.symbols(f"{name}:6", positive=True))


def _crosses(weights: sympy.Matrix, code: Any) -> Any:
    """-sum over x, y of weights times log code(x, y); logarithms are taken apart."""
    cells = [(x, y) for x in range(2) for y in range(3)]
    return -sum(weights[x, y] * sympy.expand_log(sympy.log(code(x, y))) for x, y in cells)


def _relative() -> tuple[Any, Any, Any, Any]:
    """H(pX, qX), H(pY, qY), H(p, q), and D(p || qX qY) - D(p || q), for symbolic p and q of 2 x 3 values."""
    p, q = _joint("p"), _joint("q")
    # q's marginals as symbols of their own: what is claimed holds whatever they are, so also for heads of their own.
    q_x, q_y = sympy.symbols("qx:2", positive=True), sympy.symbols("qy:3", positive=True)
    of_x = _crosses(p, lambda x, y: q_x[x])
    of_y = _crosses(p, lambda x, y: q_y[y])
    both = _crosses(p, lambda x, y: q[x, y])
    divergences = _crosses(p, lambda x, y: q_x[x] * q_y[y] / p[x, y]) - _crosses(p, lambda x, y: q[x, y] / p[x, y])
    return of_x, of_y, both, divergences


def _lemma() -> bool:
    of_x, of_y, both, divergences = _relative()
    return bool(sympy.expand(divergences - (of_x + of_y - both)) == 0)


def _two_tokens_relative() -> bool:
    of_x, of_y, both, divergences = _relative()
    # conditional cross-entropy: of x given y, -sum p(x, y) log q(x, y) / q(y)
    return bool(sympy.expand((both - of_y) + 2 * divergences + (both - of_x) - (of_x + of_y)) == 0)


def _n_tokens() -> bool:
    """By induction on n: both sides are a_1 for n = 1, and from n to n + 1 both grow by a_{n+1}."""
    n, d = sympy.symbols("n d", integer=True, positive=True)
    a = sympy.Function("a")
    more = sympy.simplify((n + 1 - d) - (n - d))  # the weight that every difference gains; that of d = n was 0
    growth = a(1) + sympy.Sum(more * (a(d + 1) - a(d)), (d, 1, n)).doit()
    return bool(sympy.expand(growth - a(n + 1)) == 0)


def _n_tokens_weighted() -> bool:
    a, w = sympy.symbols("a1:9"), sympy.symbols("w1:9")
    return all(
        sympy.expand(
            sum(w[i] * a[i] for i in range(n))
            - a[0] * sum(w[:n])
            - sum(sum(w[d:n]) * (a[d] - a[d - 1]) for d in range(1, n))
        )
        == 0
        for n in range(1, 9)
    )


def _choice() -> bool:
    n, k, d, h = sympy.symbols("n k d h", integer=True, positive=True)
    total = n * h + sympy.Sum((n - d) * h, (d, 1, k - 1)).doit()
    return bool(sympy.simplify(total - h * (k * n - k * (k - 1) / 2)) == 0)


def losses(run: FinishedRun, examples: int, every: bool) -> Iterator[dict[str, Any]]:
    """The loss of each further head against head 1's on the same tokens, by kind of token.

    Rows have the run's `identity`, `step`, `kind` (of the token that is predicted; "all"), `head` i,
    `targets`, `loss` of head i, `loss_1` of head 1 on the same tokens, each in nats a token, `information`, their
    difference, and `true_information`, the source's own, where entropies are known (else None).

    Args:
        run: any finished run.
        examples: test documents that are looked at.
        every: every step of which there are weights, else the last alone.
    """
    found = run.test_examples(examples)
    n = run.model(run.steps[-1]).objective.n
    if n == 1:
        return
    floors = run.task.entropies(found, n) if isinstance(run.task, HasEntropies) else None
    kinds = np.array(["all", *run.task.token_types])
    kind = run.task.token_type(found).astype(np.int64)
    for step, model in run.models(every):
        nats = _nats(model, found)
        for head in range(2, n + 1):
            # of each token, by the place from which it is predicted: head i's from i before, head 1's from just before
            far, near = nats[:, :-head, head - 1], nats[:, head - 1 : -1, 0]
            there = ~np.isnan(far) & ~np.isnan(near)
            what = kind[:, head:]
            true = None if floors is None else floors[:, :-head, head - 1] - floors[:, head - 1 : -1, 0]
            for number, name in enumerate(kinds):
                mine = there & ((what == number - 1) | (name == "all"))
                if mine.any():
                    loss, loss_1 = float(far[mine].mean()), float(near[mine].mean())
                    yield {
                        "identity": run.experiment.identity, "step": step, "kind": str(name), "head": head,
                        "targets": int(mine.sum()),
                        "loss": loss, "loss_1": loss_1, "information": loss - loss_1,
                        "true_information": None if true is None else float(true[mine].mean()),
                    }  # fmt: skip


@torch.inference_mode()
def _nats(model: LanguageModel, examples: Examples) -> NDArray[np.float64]:
    """[N, L, n] each head's cross-entropy on its target at each place, nan where there is none."""
    found = np.full((*examples.tokens.shape, model.objective.n), np.nan)
    for rows in passes(model, examples):
        _, nats_BTn, _ = terms(model, select(examples, rows))
        found[rows, : nats_BTn.shape[1]] = nats_BTn.cpu().numpy()
    return np.where(valid(examples, model.objective.n), found, np.nan)


def gaps(run: FinishedRun, positions: int) -> list[dict[str, Any]]:
    """Return the distance of each further head from the marginal of the earlier heads, at a run's last step.

    A row for each head i from 2 on and each kind of the next token: where nothing is uncertain, no gap can be. It has
    the run's `identity`, `step`, `kind`, `positions`, `divergence`, the mean over them of D(marginal || head i) in
    nats, its standard error `error` (None of one position), `distance`, the mean total variation distance, and `mass`,
    the mean share of head 1's probability that the marginal sums over. No rows where there is one head, or heads read
    true tokens ahead: those make no claim about a marginal.

    Args:
        run: any finished run.
        positions: how many are looked at of each kind, one a document as far as there are documents enough.
    """
    model = run.model(run.steps[-1])
    n = model.objective.n
    if n == 1 or model.objective.teacher_forced:
        return []
    examples, random = run.test_examples(4 * positions), np.random.default_rng(0)
    kind = run.task.token_type(examples)
    length = examples.tokens.shape[1]
    inside = np.arange(length) + n < examples.lengths[:, None]  # all heads' targets are in the document
    table = []
    for number, name in enumerate(run.task.token_types):
        here = inside & (np.roll(kind, -1, axis=1) == number)
        rows = random.permutation(np.flatnonzero(here.any(axis=1)))[:positions]
        if not len(rows):
            continue
        places = [int(random.choice(np.flatnonzero(here[row]))) for row in rows]
        measured = np.array(
            [_gap(model, examples.tokens[row, : place + 1]) for row, place in zip(rows, places, strict=True)]
        )
        for head in range(2, n + 1):
            divergence, distance = measured[:, head - 2], measured[:, n - 3 + head]
            table.append(
                {
                    "identity": run.experiment.identity, "step": run.steps[-1], "kind": name, "head": head,
                    "positions": len(rows), "divergence": float(divergence.mean()), "error": standard_error(divergence),
                    "distance": float(distance.mean()), "mass": float(measured[:, -1].mean()),
                }
            )  # fmt: skip
    return table


@torch.inference_mode()
def _gap(model: LanguageModel, prompt: NDArray[np.uint16]) -> list[float]:
    """At a prompt's end, each further head's divergence from the marginal, then its distance, then the mass summed."""
    n, device = model.objective.n, next(model.parameters()).device
    tokens = torch.from_numpy(prompt.astype(np.int64)).to(device)[None]
    heads = _at_end(model, tokens, n)[:, 0]
    first, order = heads[0].sort(descending=True)
    count = min(len(first), int((first.cumsum(0) < MASS).sum()) + 1)  # a rounded sum may stay below 1
    said = torch.cat((tokens.expand(count, -1), order[:count, None]), dim=1)
    later = torch.cat(
        [_at_end(model, part, n - 1) for part in torch.split(said, max(1, 2**14 // said.shape[1]))], dim=1
    )
    marginals = (first[:count, None] * later).sum(dim=1) / first[:count].sum()  # [n-1, V]
    marginals, further = marginals.double(), heads[1:].double()
    divergences = torch.where(marginals > 0, marginals * (marginals / further.clamp(min=1e-300)).log(), 0.0).sum(1)
    distances = (marginals - further).abs().sum(1) / 2
    return [*divergences.tolist(), *distances.tolist(), float(first[:count].sum())]


def _at_end(model: LanguageModel, tokens: Tensor, heads: int) -> Tensor:
    """[heads, B, V] what the heads say at the end of rows [B, T]."""
    context = model.decoder.context(tokens, None)
    logits = model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads)
    return torch.stack([each[:, -1].softmax(-1) for each in logits])


def mismatch(run: FinishedRun, examples: int, tokens: int = 8) -> list[dict[str, Any]]:
    """Accuracy with the true tokens given against the model's own, from where the score begins to look, at the end.

    In each document one run of scored tokens is chosen (`generation.questions`). From its first token on, head 1 is
    asked for `tokens` tokens: given the true ones before each (`teacher_forced`), and continuing what it said itself
    (`free_running`). A row for each `ahead` = 1..tokens has the run's `identity`, `step`, and the number of `documents`
    that reach so far. Right is what stands in the document.
    """
    model, asked = run.model(run.steps[-1]), questions(run.test_examples(examples))
    found, starts = asked.examples, asked.starts
    forced = predict(model, found)
    device = next(model.parameters()).device
    prompts = torch.from_numpy(found.tokens[:, : int(starts.max())].astype(np.int64)).to(device)
    free = greedy(model, prompts, torch.from_numpy(starts).to(device), tokens).cpu().numpy()
    table = []
    for ahead in range(tokens):
        place = starts + ahead
        [rows] = np.nonzero(place < found.lengths)
        if not len(rows):
            break
        true = found.tokens[rows, place[rows]]
        table.append(
            {
                "identity": run.experiment.identity, "step": run.steps[-1], "ahead": ahead + 1,
                "documents": len(rows),
                "teacher_forced": float((forced[rows, place[rows]] == true).mean()),
                "free_running": float((free[rows, ahead] == true).mean()),
            }
        )  # fmt: skip
    return table
