"""Decoding with a run's own further heads: accepted drafts, and the speed-up that they give.

With k heads a forward pass gives `tokens_per_forward` tokens, 1 to k, which no hardware enters. A pass with k heads
takes longer than a plain one: it reads k tokens a row, through k-1 layers more where heads are layers, and makes k
heads' logits. From what is measured, the speed-up over k = 1, follows what a pass costs,

    cost_per_forward = tokens_per_forward / speed_up,

in plain passes: also the tokens a forward from which drafts pay. In a batch it has two factors: `step_cost`, what a
pass of the batch takes, and `waiting`, how much more than in plain decoding rows wait for those that need more passes.
If passes took time by their layers alone, as where reading weights bounds them, the speed-up would be

    layers_allow = tokens_per_forward (N - n + 1) / (N - n + k)

for heads that are layers beside each other or in a chain from the first (`parallel`, `causal`, `sequential` …); the
layers are counted in the cache, so for others (`linear`, `anticausal`) it is what it is with them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.analysis.finished_run import FinishedRun
from lab.decoding.decode import Decoded, decode
from lab.decoding.sampling import Sampling
from lab.decoding.tree import chain
from lab.errors import BadInput
from lab.objectives import LanguageModel
from lab.paper import BYTE_SPEED_UPS, SPEED_UPS


class Prompts(NamedTuple):
    """Prompts that are continued."""

    tokens: Tensor
    """int64 [rows, P], padded on the right."""
    lengths: Tensor
    """int64 [rows]."""
    end: int | None
    """The token that ends an answer."""


def prompts_of(run: FinishedRun, count: int) -> Prompts:
    """The beginnings of test examples: up to where the score begins to look, or half way, whichever is later."""
    examples = run.test_examples(count)
    lengths = np.maximum(1, np.maximum(examples.score_mask.argmax(axis=1), examples.lengths // 2))
    tokens = torch.from_numpy(examples.tokens[:, : lengths.max()].astype(np.int64))
    return Prompts(tokens, torch.from_numpy(lengths), end_token(run))


def given_prompt(run: FinishedRun, tokens: Sequence[int]) -> Prompts:
    """A prompt of one's own.

    Raises:
        BadInput: it is empty, longer than what the run was trained or tested on, or outside of the vocabulary.
    """
    size, allowed = len(run.task.vocabulary), longest(run)
    if not 1 <= len(tokens) <= allowed:
        raise BadInput(
            f"prompt: {len(tokens)} tokens are not allowed: should be from 1 to {allowed}, the most that the run was "
            "trained or tested on"
        )
    for token in tokens:
        if not 0 <= token < size:
            raise BadInput(f"prompt: token {token} is not allowed: should be from 0 to {size - 1}")
    return Prompts(torch.tensor([list(tokens)]), torch.tensor([len(tokens)]), end_token(run))


def longest(run: FinishedRun) -> int:
    """The most tokens in a row that a run has read."""
    return max(run.experiment.train.context, run.task.max_length("test"))


def beyond(run: FinishedRun, prompts: Prompts, new_tokens: int) -> str | None:
    """Return a warning if continuations have no end token and outgrow all rows the run was trained on; else None."""
    most, read = int(prompts.lengths.max()) + new_tokens, longest(run)
    if prompts.end is not None or most <= read:
        return None
    return f"rows get {most} tokens long; in training and test the longest has {read}"


def end_token(run: FinishedRun) -> int | None:
    """The token that ends each of the task's documents and stands nowhere else; None where there is none."""
    examples = run.test_examples(100)
    inside = np.arange(examples.tokens.shape[1]) < examples.lengths[:, None]
    [last, *others] = {*examples.tokens[np.arange(len(inside)), examples.lengths - 1].tolist()}
    alone = not others and int((examples.tokens[inside] == last).sum()) == len(inside) > 1
    return last if alone else None


def ways(heads: int, tree: Sequence[int] | None) -> list[tuple[int, ...]]:
    """The `drafts` that are compared: none, the chains of 2 to `heads` heads, and the tree."""
    chains = [chain(k) for k in range(1, heads + 1)]
    return [*chains, *([tuple(tree)] if tree and tuple(tree) not in chains else [])]


def speculation(
    model: LanguageModel,
    prompts: Prompts,
    ways: Sequence[tuple[int, ...]],
    new_tokens: int,
    batch: int,
    sampling: Sampling | None = None,
    rounds: int = 3,
    listen: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return a row, in JSON types, for each way of drafting on the same prompts.

    Rows have `k` heads, `drafts` (candidates of each further head), `batch`, `prompts`, `tokens` made, `passes` (summed
    over prompts), `steps` (passes of a batch, summed over batches), `tokens_per_forward`, `accepted` (share of the
    drafts verified by depth, that of head 2's first; none stand after a row's end), `accepted_length` (drafts accepted
    a pass), `seconds`, `tokens_per_second`, `speed_up` over plain decoding, `cost_per_forward`, `step_cost` in plain
    ones and `waiting`, `break_even_acceptance`, the share of verified drafts from which it pays, `layers` that take
    part, `layers_allow`, the speed-up if passes took time by layers, and `identical`, the share of prompts whose tokens
    are those of plain decoding (None where they are sampled). Time and tokens a forward are without reading the prompt
    and the token that it gives.

    Args:
        model: of a finished run.
        prompts: what is continued.
        ways: the `drafts` (see `decode`) that are compared, plain decoding `()` first.
        new_tokens: the most that are added to each prompt.
        batch: rows decoded at once.
        sampling: how tokens are drawn; None for the likeliest.
        rounds: times that each batch is decoded in each way, all ways in turn; seconds are the median.
        listen: called after each decoding, `len(ways) * rounds` times a batch.
    """
    tokens_of, lengths_of = (torch.split(each, batch) for each in (prompts.tokens, prompts.lengths))
    parts = [(part[:, : int(most.max())], most) for part, most in zip(tokens_of, lengths_of, strict=True)]
    found: dict[tuple[int, ...], list[Decoded]] = {drafts: [] for drafts in ways}
    seconds = dict.fromkeys(ways, 0.0)
    decode(model, *parts[0], new_tokens=1)  # what the first pass of a process sets up is nobody's time
    for tokens, lengths in parts:
        times: dict[tuple[int, ...], list[float]] = {drafts: [] for drafts in ways}
        for number in range(rounds):
            for drafts in (*ways[number % len(ways) :], *ways[: number % len(ways)]):
                decoded = decode(model, tokens, lengths, new_tokens, drafts, sampling, prompts.end)
                times[drafts].append(decoded.seconds)
                found[drafts] += [decoded] if not number else []
                listen()
        for drafts in ways:
            seconds[drafts] += median(times[drafts])
    plain = _row(found[ways[0]], ways[0], seconds[ways[0]], batch)
    return [
        _compared(_row(found[drafts], drafts, seconds[drafts], batch), plain, found[drafts], found[ways[0]], sampling)
        for drafts in ways
    ]


def _row(found: Sequence[Decoded], drafts: tuple[int, ...], seconds: float, batch: int) -> dict[str, Any]:
    rows, passes = sum(len(each.tokens) for each in found), sum(int(each.forward_passes.sum()) for each in found)
    tokens = sum(len(row) for each in found for row in each.tokens)
    proposed, accepted = (sum(getattr(each, name) for each in found) for name in ("proposed", "accepted"))
    return {
        "k": len(drafts) + 1, "drafts": list(drafts), "batch": min(batch, rows), "prompts": rows, "tokens": tokens,
        "passes": passes, "steps": sum(int(each.forward_passes.max()) for each in found),
        "tokens_per_forward": _share(tokens - rows, passes),
        "accepted": [_share(good, all_) for good, all_ in zip(accepted, proposed, strict=True)],
        "accepted_length": _share(int(accepted.sum()), passes),
        "seconds": seconds, "tokens_per_second": _share(tokens - rows, seconds),
        "layers": max(each.layers for each in found),  # in batches that end at once no further head takes part
    }  # fmt: skip


def _compared(
    row: dict[str, Any], plain: dict[str, Any], found: Sequence[Decoded], plainly: Sequence[Decoded],
    sampling: Sampling | None,
) -> dict[str, Any]:  # fmt: skip
    speed_up = _share(row["tokens_per_second"], plain["tokens_per_second"])
    cost = _share(row["tokens_per_forward"], speed_up)
    step_cost = _share(_share(row["seconds"], row["steps"]), _share(plain["seconds"], plain["steps"]))
    own = row["tokens_per_forward"] - row["accepted_length"]  # head 1's: 1 a pass, but for a row's last
    verified = _share(sum(each.proposed.sum() for each in found), row["passes"])
    pairs = [pair for one, two in zip(found, plainly, strict=True) for pair in zip(one.tokens, two.tokens, strict=True)]
    return {
        **row,
        "speed_up": speed_up,
        "cost_per_forward": cost,
        "step_cost": step_cost,
        "waiting": _share(cost, step_cost),
        "break_even_acceptance": _share(cost - own, verified) if row["k"] > 1 else None,
        "layers_allow": row["tokens_per_forward"] * plain["layers"] / row["layers"],
        "identical": _share(sum(one == two for one, two in pairs), len(pairs)) if sampling is None else None,
    }


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def paper() -> Iterator[dict[str, Any]]:
    """Tables S2 and S3: `table`, `text`, `n`, `k`, `tokens_per_forward`, `speed_up`, `cost_per_forward`."""
    texts = [("S2", text, 4, measured) for text, measured in SPEED_UPS.items()]
    for table, text, n, measured in [*texts, *(("S3", "code, bytes", n, each) for n, each in BYTE_SPEED_UPS.items())]:
        for k, (tokens, speed_up) in measured.items():
            yield {
                "table": table, "text": text, "n": n, "k": k, "tokens_per_forward": tokens, "speed_up": speed_up,
                "cost_per_forward": tokens / speed_up,
            }  # fmt: skip
