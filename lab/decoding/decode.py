"""Self-speculative decoding: the model drafts with its own heads 2 to k, and verifies with head 1.

Blockwise decoding (Stern et al. 2018, arXiv 1811.03115; Section 3.2 of arXiv 2404.19737). Head 1 gives a row's next
token, and heads 2 to k propose drafts of the tokens after it. One forward pass then reads the newest token and all
drafts. Head 1's outputs in that pass show which drafts it would have chosen itself. These are accepted up to the first
mismatch, where head 1's own token is taken. So a pass gives 1 to k tokens, the same that head 1 gives one at a time.
Plain decoding is k = 1. `decode` is the loop; the parts are

- `lab.decoding.tree`: drafts as a tree with several candidates of each head,
- `lab.decoding.sampling`: acceptance when tokens are sampled,
- `lab.decoding.drafting`: drafts by parallel heads and by sequential (teacher-forced) heads,
- `lab.decoding.state`: the rows and the counts.

One cache serves all. A forward pass writes the keys and values of its tokens behind those of the committed tokens, and
the next pass overwrites those of rejected drafts. Rows may differ in length and in accepted drafts; a row that is done
leaves the batch.

Exactness. Drafts change the number of forward passes and never the tokens, except by rounding: the matrix products of
k positions differ from those of one. Where head 1's two best logits are equal within rounding (relative error about
1e-6 in fp32), either token may be chosen.

Shape suffixes: B active rows, S nodes of the draft tree, C columns of the cache, D width, V tokens, k heads.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.decoding.drafting import Drafter, Drafts, ParallelDrafter, SequentialDrafter
from lab.decoding.sampling import MIN_TEMPERATURE, Sampling, distribution, sample, speculative_sample
from lab.decoding.state import Rows, Step, Tally
from lab.decoding.tree import longest_match
from lab.errors import BadInput
from lab.objectives import LanguageModel

MAX_NODES = 1024
"""Most nodes of a draft tree."""


@dataclass(frozen=True)
class Decoded:
    """Continuations of some prompts, and what decoding them took."""

    tokens: list[list[int]]
    """Continuation of each row, without its prompt; includes the end token if it came."""
    forward_passes: NDArray[np.int64]
    """[rows] forward passes without the prompt's, which gave the row's first token."""
    proposed: NDArray[np.int64]
    """[k-1] drafts of heads 2 to k that were verified, over all rows, without those after a row's end."""
    accepted: NDArray[np.int64]
    """[k-1] drafts of heads 2 to k that became part of a continuation (in a tree: one of the head's candidates did)."""
    layers: int
    """Attention layers that were run."""
    prompt_seconds: float
    """Seconds for the prompts' forward pass, each row's first token and the first drafts."""
    seconds: float
    """Seconds for everything after that."""
    steps: list[list[Step]]
    """Outcome of each forward pass by row, the prompt's first; empty if it was not recorded."""

    @property
    def tokens_per_forward(self) -> float:
        """Tokens per forward pass and row, without the prompt's pass and its token; nan without passes.

        Tokens after a row's end do not count. So with few new tokens a row it stays below k even if all are accepted.
        """
        passes = int(self.forward_passes.sum())
        return (sum(map(len, self.tokens)) - len(self.tokens)) / passes if passes else float("nan")


def greedy(model: LanguageModel, prompts: Tensor, lengths: Tensor, new_tokens: int) -> Tensor:
    """Return the likeliest continuations [B, new_tokens], int64, by head 1, one token at a time.

    Args:
        model: any objective; heads beyond the first are not used.
        prompts: [B, P] int64 token ids, padded on the right.
        lengths: [B] int64 tokens in each prompt, at least 1.
        new_tokens: tokens to add to each row, at least 1.
    """
    return torch.tensor(decode(model, prompts, lengths, new_tokens).tokens, device=prompts.device)


@torch.inference_mode()
def decode(
    model: LanguageModel,
    prompts: Tensor,
    lengths: Tensor,
    new_tokens: int,
    drafts: Sequence[int] = (),
    sampling: Sampling | None = None,
    end: int | None = None,
    record: bool = False,
) -> Decoded:
    """Return continuations of prompts.

    Args:
        model: any objective.
        prompts: [rows, P] int64 token ids, padded on the right.
        lengths: [rows] int64 tokens in each prompt, at least 1.
        new_tokens: tokens to add to each row, at least 1.
        drafts: candidates of each of heads 2, 3, ... that a forward pass verifies: () is plain decoding, (1, 1) drafts
            with heads 2 and 3, (3, 2) is a tree with 3 + 6 drafts.
        sampling: parameters of sampling; None for greedy decoding.
        end: token after which a row is done.
        record: True to return the outcome of each forward pass for each row.

    Raises:
        BadInput: more heads than the model has, a tree that is too large or combined with sampling, sampling or new
            tokens out of range, a prompt that is empty or has tokens outside the vocabulary.
    """
    _check(model, prompts, lengths, new_tokens, drafts, sampling)
    heads, device = len(drafts) + 1, prompts.device
    strategy = SequentialDrafter if model.objective.teacher_forced else ParallelDrafter
    tally = Tally.zeros(len(prompts), heads, record)

    started = now(device)
    rows = Rows(prompts, lengths, new_tokens, end, spare=_spare_columns(drafts))
    drafter = strategy(model, model.decoder.cache(len(rows.columns)), drafts, device, sampling)
    accepted = prefill(drafter, rows)
    hidden_kBD = commit(drafter, rows, tally, accepted, None)
    proposal = drafter.propose(rows, hidden_kBD)
    prefilled = now(device)

    while len(rows.active):
        hidden_states = verify(drafter, rows, proposal)
        accepted = accept(drafter, proposal, hidden_states)
        hidden_kBD = commit(drafter, rows, tally, accepted, proposal)
        proposal = drafter.propose(rows, hidden_kBD)
    finished = now(device)

    return Decoded(
        tokens=rows.continuations(),
        forward_passes=tally.forward_passes,
        proposed=tally.proposed,
        accepted=tally.accepted,
        layers=drafter.cache.layers,
        prompt_seconds=prefilled - started,
        seconds=finished - prefilled,
        steps=tally.steps,
    )


class Accepted(NamedTuple):
    """Tokens that a forward pass gives each active row, and where its heads continue from."""

    tokens_Bk: Tensor
    """int64 [B, at most k] accepted drafts, then head 1's own token; what follows is undefined."""
    count_B: Tensor
    """int64 [B] accepted drafts."""
    path_Bk: Tensor
    """int64 [B, at most k] nodes of the draft tree that were accepted, the root first."""
    hidden_kBD: Tensor
    """Hidden states of the other heads at the last accepted node."""


def prefill(drafter: Drafter, rows: Rows) -> Accepted:
    """Run the prompts' forward pass; return each row's first token, as if all drafts were rejected."""
    # Read all prompts at once, with causal attention.
    columns_BS = rows.columns[: rows.prompt_width].expand(len(rows.active), -1)
    context = drafter.decoder.continuation(drafter.cache, columns_BS, columns_BS[:1], None)
    hidden_states = drafter.hidden_states(rows.text[:, : rows.prompt_width], context)

    # Take head 1's token after each prompt's last one.
    hidden_kBD = torch.stack([hidden_BSD[rows.batch_B, rows.position_B] for hidden_BSD in hidden_states])
    logits_BV = drafter.objective.logits_of(drafter.decoder, 1, hidden_kBD[0])
    if drafter.sampling is None:
        token_B = logits_BV.argmax(dim=-1)
    else:
        token_B = sample(distribution(logits_BV, drafter.sampling), drafter.generator)
    count_B = torch.zeros_like(token_B)
    return Accepted(token_B[:, None], count_B, count_B[:, None], hidden_kBD[1:])


def verify(drafter: Drafter, rows: Rows, drafts: Drafts) -> list[Tensor]:
    """Run one forward pass over the newest tokens and all drafts.

    Returns:
        Hidden states [B, S, D] at each node of the tree: of head 1, and of the other heads that are computed with it.
    """
    # Nodes take the columns from the newest token on; their positions in the text are given by their depths.
    tree, start_B1 = drafter.tree, rows.position_B[:, None]
    nodes = len(tree.depths)
    columns_BS = start_B1 + rows.columns[:nodes]

    # Each node sees all tokens before the newest one, itself, and its ancestors in the tree.
    before_BC = rows.columns[: int(rows.positions.max()) + nodes] < start_B1
    seen_BSC = before_BC[:, None].repeat(1, nodes, 1)
    seen_BSC.scatter_(2, columns_BS[:, None].expand(-1, nodes, -1), tree.sees.expand(len(rows.active), -1, -1))
    context = drafter.decoder.continuation(drafter.cache, columns_BS, start_B1 + tree.depths, seen_BSC)
    return drafter.hidden_states(drafts.nodes_BS, context)


def accept(drafter: Drafter, drafts: Drafts, hidden_states: list[Tensor]) -> Accepted:
    """Return the accepted drafts and head 1's own token after them, given the hidden states of `verify`."""
    # Find the last accepted node: by head 1's likeliest tokens, or by speculative sampling.
    tree, logits_BSV = drafter.tree, drafter.objective.logits_of(drafter.decoder, 1, hidden_states[0])
    if drafter.sampling is None:
        best_BS = logits_BSV.argmax(dim=-1)
        node_B = longest_match(tree, drafts.nodes_BS, best_BS)
        token_B = best_BS.gather(1, node_B[:, None])[:, 0]
    else:
        p_BkV = distribution(logits_BSV, drafter.sampling)
        q_BkV = torch.stack(drafts.q, dim=1) if drafts.q else p_BkV[:, :0]
        node_B, token_B = speculative_sample(drafts.nodes_BS[:, 1:], p_BkV, q_BkV, drafter.generator)

    # Line up the drafts on the path to that node, and head 1's own token after the last of them.
    path_Bk, count_B = tree.paths[node_B], tree.depths[node_B]
    tokens_Bk = torch.cat((drafts.nodes_BS.gather(1, path_Bk[:, 1:]), token_B[:, None]), dim=1)
    tokens_Bk.scatter_(1, count_B[:, None], token_B[:, None])
    batch_B = torch.arange(len(node_B), device=node_B.device)
    return Accepted(tokens_Bk, count_B, path_Bk, torch.stack(hidden_states)[1:, batch_B, node_B])


def commit(drafter: Drafter, rows: Rows, tally: Tally, accepted: Accepted, drafts: Drafts | None) -> Tensor:
    """Add the accepted tokens to the rows, count them, and remove the rows that are done from the batch.

    Args:
        drafter: owner of the cache.
        rows: changed in place.
        tally: changed in place.
        accepted: tokens of the active rows.
        drafts: verified drafts; None after the prompts' pass, which verifies nothing and is not counted.

    Returns:
        `accepted.hidden_kBD` of the rows that remain active.
    """
    # Move the keys and values of accepted branches to the columns of their positions; a chain's are there already.
    if drafts is not None and drafter.tree.branches:
        start_B1 = rows.position_B[:, None]
        drafter.cache.move(start_B1 + accepted.path_Bk, start_B1 + rows.columns[: drafter.heads])

    # Append the tokens and count.
    committed = rows.commit(accepted.tokens_Bk, accepted.count_B)
    if drafts is None:
        tally.record(committed, accepted.tokens_Bk[:, :0])
    else:
        tally.count(committed)
        tally.record(committed, drafts.nodes_BS[:, drafter.tree.likeliest])

    # Keep the rows that are still active.
    if len(committed.survivors) == len(committed.rows):
        return accepted.hidden_kBD
    survivors = torch.from_numpy(committed.survivors).to(rows.text.device)
    drafter.cache.select(survivors)
    return accepted.hidden_kBD[:, survivors]


def now(device: torch.device) -> float:
    """Return the time in seconds, after all work that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _nodes(widths: Sequence[int]) -> int:
    """Return the number of nodes of a draft tree, the root included."""
    nodes, level = 1, 1
    for width in widths:
        level *= width
        nodes += level
    return nodes


def _spare_columns(widths: Sequence[int]) -> int:
    """Return the columns beyond a full row that a forward pass may write to.

    Verification writes the nodes of the tree; sequential heads read up to 3k-3 columns beyond where they begin.
    """
    return max(_nodes(widths), 3 * (len(widths) + 1))


def _check(
    model: LanguageModel, prompts: Tensor, lengths: Tensor, new_tokens: int, drafts: Sequence[int],
    sampling: Sampling | None,
) -> None:  # fmt: skip
    """Raise BadInput if an argument of `decode` is not allowed."""
    # Heads and the draft tree.
    n, vocabulary = model.objective.n, model.decoder.unembedding.out_features
    if len(drafts) >= n:
        has = f"the model has n = {n}" if n > 1 else "the model has no heads beyond the first"
        raise BadInput(f"heads: {len(drafts) + 1} is not allowed: {has}")
    if not all(1 <= width <= vocabulary for width in drafts):
        raise BadInput(f"tree: {list(drafts)} is not allowed: should be from 1 to {vocabulary} candidates of each head")
    if (nodes := _nodes(drafts)) > MAX_NODES:
        raise BadInput(f"tree: {list(drafts)} is not allowed: {nodes} nodes, at most {MAX_NODES}")

    # Sampling.
    if sampling is not None:
        if any(width > 1 for width in drafts):
            raise BadInput(f"tree: {list(drafts)} is not allowed with sampling: one candidate of each head")
        if not MIN_TEMPERATURE <= sampling.temperature < float("inf"):
            raise BadInput(f"temperature: {sampling.temperature} is not allowed: should be at least {MIN_TEMPERATURE}")
        if not 0 < sampling.top_p <= 1:
            raise BadInput(f"top_p: {sampling.top_p} is not allowed: should be above 0 and at most 1")

    # Prompts and new tokens.
    if new_tokens < 1:
        raise BadInput(f"new_tokens: {new_tokens} is not allowed: should be at least 1")
    if not len(prompts) or int(lengths.min()) < 1 or int(lengths.max()) > prompts.shape[1]:
        raise BadInput(f"prompt: {lengths.tolist()} tokens are not allowed: should be from 1 to {prompts.shape[1]}")
    inside = torch.arange(prompts.shape[1], device=prompts.device) < lengths[:, None]
    outside = prompts[inside & ((prompts < 0) | (prompts >= vocabulary))]
    if len(outside):
        raise BadInput(f"prompt: token {int(outside[0])} is not allowed: should be from 0 to {vocabulary - 1}")
