"""Decoding: token by token, or with drafts of the model's own further heads (self-speculative).

Blockwise decoding (Stern et al. 2018, arXiv 1811.03115; Section 3.2 of arXiv 2404.19737). Head 1 says a row's next
token, heads 2 to k propose what follows it. One forward pass then reads the next token and all drafts at once. Head 1's
outputs there tell which drafts are what it would have said itself, one after another; at the first that is not, it says
its own. So a pass gives 1 to k tokens, the very ones that head 1 gives one at a time. Plain decoding is k = 1.

As a tree (Medusa, arXiv 2401.10774, Section 2.1.2). Of each further head not the likeliest token alone is read, but its
w likeliest, each after each candidate of the head before; a candidate sees what it continues, and no other branch. A
chain of drafts is the tree with one branch.

Sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). A draft x from a further head's q is kept
with probability min(1, p(x) / q(x)), p being head 1's, else a token from the positive part of p - q takes its place:
what comes out is distributed as p. Temperature and top-p are applied to p and q alike.

One cache serves all: a pass writes its tokens' keys and values behind those that are settled, and what was rejected is
overwritten by the next. Rows are of any lengths and accept different numbers of drafts; who is done leaves the batch.

Teacher-forced heads (`Objective.teacher_forced`) draft one after another, each reading what the one before it proposed.
Where they have read drafts, they read again when the tokens are settled, so that at every earlier position
they have seen the true ones, as in training.

Exactness. Drafts decide how many passes there are, never which tokens come out, but for rounding: k positions at once
are other matrix products than one at a time, and where head 1's two likeliest tokens are equal within rounding (about
1e-6 of their logits in fp32), either may be chosen.

Shape suffixes: B rows still being decoded, S nodes of the draft tree, D width, V tokens, k heads.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.errors import BadInput
from lab.models.decoder import Context
from lab.objectives import LanguageModel

COLDEST = 1e-3
"""The lowest temperature; below it all that differs from greedy decoding is rounding."""
MOST_NODES = 1024
"""Of a draft tree."""
_HIDDEN_STATES = "head 1"
"""Owner, in the cache, of head 1's hidden states, where further heads read them again."""


class Sampling(NamedTuple):
    """How tokens are drawn."""

    temperature: float
    """What logits are divided by; at least `COLDEST`."""
    top_p: float = 1.0
    """The share of probability that tokens are drawn from, the likeliest first (arXiv 1904.09751); above 0, at most 1.
    """
    seed: int = 0
    """Of the generator. The same batch gives the same tokens again."""


class Step(NamedTuple):
    """What one forward pass gave a row."""

    accepted: list[int]
    """Drafts that head 1 agreed with, in order."""
    own: int | None
    """The token after them, head 1's own; None where the row was done before it."""
    rejected: list[int]
    """The likeliest drafts in the place of `own` and after it, but for those that would stand after the row's end."""


@dataclass(frozen=True)
class Decoded:
    """What decoding some prompts gave."""

    tokens: list[list[int]]
    """Of each row, without its prompt; the end token, if it came, is the last."""
    passes: NDArray[np.int64]
    """[rows] forward passes after the prompt's, which gave the row's first token."""
    proposed: NDArray[np.int64]
    """[k-1] drafts of heads 2 to k that passes verified, over all rows, but for those after a row's end."""
    accepted: NDArray[np.int64]
    """[k-1] those that became part of the answer (of a tree: where one of a head's candidates did)."""
    layers: int
    """Attention layers that took part."""
    prompt_seconds: float
    """Of reading the prompts; with it each row's first token, and the first drafts."""
    seconds: float
    """Of all that came after."""
    steps: list[list[Step]] = field(default_factory=list)
    """What each pass gave each row, the prompt's first; empty where it was not to be recorded."""

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of a forward pass and row, without the prompt's pass and the token that it gave; nan without passes.

        Tokens after a row's end do not count: with few new tokens a row, it stays below k even if all is accepted.
        """
        passes = int(self.passes.sum())
        return (sum(map(len, self.tokens)) - len(self.tokens)) / passes if passes else float("nan")


def greedy(model: LanguageModel, prompts: Tensor, lengths: Tensor, new_tokens: int) -> Tensor:
    """The most likely continuation, one token at a time, by the next-token head: [B, new_tokens] int64.

    Args:
        model: any objective; heads beyond the first are not used.
        prompts: [B, P] int64 token ids, padded on the right.
        lengths: [B] int64 tokens in each prompt, at least 1.
        new_tokens: tokens to add to each, at least 1.
    """
    return torch.tensor(decode(model, prompts, lengths, new_tokens).tokens, device=prompts.device)


def chain(heads: int) -> tuple[int, ...]:
    """The `drafts` of decoding with so many heads: one of each head after the first."""
    return (1,) * (heads - 1)


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
    """Continuations of prompts.

    Args:
        model: any objective.
        prompts: [rows, P] int64 token ids, padded on the right.
        lengths: [rows] int64 tokens in each prompt, at least 1.
        new_tokens: tokens to add to each row, at least 1.
        drafts: how many candidates of each further head are verified at once, those of head 2 first: () is plain
            decoding, (1, 1) drafts with heads 2 and 3, (3, 2) is a tree with 3 + 6 drafts.
        sampling: how tokens are drawn; None for the likeliest (greedy).
        end: the token after which a row is done.
        record: whether to tell what each pass gave each row.

    Raises:
        BadInput: more heads than the model has, a tree that is too large or is sampled from, sampling or new tokens out
            of range, a prompt that is empty or outside of the vocabulary.
    """
    _check(model, prompts, lengths, new_tokens, drafts, sampling)
    decoding = _Decoding(model, prompts, lengths, new_tokens, drafts, sampling, end, record)
    started = now(prompts.device)
    decoding.read_prompts()
    begun = now(prompts.device)
    while len(decoding.rows):
        decoding.step()
    ended = now(prompts.device)
    return decoding.result(begun - started, ended - begun)


def _check(
    model: LanguageModel, prompts: Tensor, lengths: Tensor, new_tokens: int, drafts: Sequence[int],
    sampling: Sampling | None,
) -> None:  # fmt: skip
    n, vocabulary = model.objective.n, model.decoder.unembedding.out_features
    if len(drafts) >= n:
        has = f"the model has n = {n}" if n > 1 else "the model has no heads beyond the first"
        raise BadInput(f"heads: {len(drafts) + 1} is not allowed: {has}")
    if not all(1 <= width <= vocabulary for width in drafts):
        raise BadInput(f"tree: {list(drafts)} is not allowed: should be from 1 to {vocabulary} candidates of each head")
    if (nodes := sum(int(np.prod(drafts[:depth], dtype=object)) for depth in range(len(drafts) + 1))) > MOST_NODES:
        raise BadInput(f"tree: {list(drafts)} is not allowed: {nodes} nodes, at most {MOST_NODES}")
    if sampling is not None:
        if any(width > 1 for width in drafts):
            raise BadInput(f"tree: {list(drafts)} is not allowed with sampling: one candidate of each head")
        if not COLDEST <= sampling.temperature < float("inf"):
            raise BadInput(f"temperature: {sampling.temperature} is not allowed: should be at least {COLDEST}")
        if not 0 < sampling.top_p <= 1:
            raise BadInput(f"top_p: {sampling.top_p} is not allowed: should be above 0 and at most 1")
    if new_tokens < 1:
        raise BadInput(f"new_tokens: {new_tokens} is not allowed: should be at least 1")
    if not len(prompts) or int(lengths.min()) < 1 or int(lengths.max()) > prompts.shape[1]:
        raise BadInput(f"prompt: {lengths.tolist()} tokens are not allowed: should be from 1 to {prompts.shape[1]}")
    inside = torch.arange(prompts.shape[1], device=prompts.device) < lengths[:, None]
    outside = prompts[inside & ((prompts < 0) | (prompts >= vocabulary))]
    if len(outside):
        raise BadInput(f"prompt: token {int(outside[0])} is not allowed: should be from 0 to {vocabulary - 1}")


def now(device: torch.device) -> float:
    """The time in seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Tree(NamedTuple):
    """Which drafts a pass verifies: node 0 is the row's newest token, the other nodes are drafts, nearest first."""

    candidates: Tensor
    """int64 [S-1] which of all heads' candidates, side by side, each draft is."""
    depths: Tensor
    """int64 [S] how far beyond the newest token."""
    parents: Tensor
    """int64 [S] what each node continues; the root's is itself."""
    sees: Tensor
    """bool [S, S] whether the second is the first or one that it continues."""
    paths: Tensor
    """int64 [S, k] the nodes from the root to each node, and then that node again."""
    likeliest: Tensor
    """int64 [k-1] the path of every head's first candidate."""

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain."""
        return len(self.depths) > self.paths.shape[1]


def draft_tree(drafts: Sequence[int], device: torch.device) -> Tree:
    """The tree in which every candidate of a head continues every candidate of the head before."""
    candidates, paths, layer, first = [], [[0]], [[0]], 0
    for width in drafts:
        candidates += [first + rank for _ in layer for rank in range(width)]
        first += width
        starts = [path for path in layer for _ in range(width)]
        layer = [[*path, len(paths) + number] for number, path in enumerate(starts)]
        paths += layer
    nodes = len(paths)
    sees = torch.zeros(nodes, nodes, dtype=torch.bool)
    for node, path in enumerate(paths):
        sees[node, path] = True
    filled = [path + path[-1:] * (len(drafts) + 1 - len(path)) for path in paths]
    return Tree(
        torch.tensor(candidates, dtype=torch.int64, device=device),
        torch.tensor([len(path) - 1 for path in paths], device=device),
        torch.tensor([path[max(0, len(path) - 2)] for path in paths], device=device),
        sees.to(device),
        torch.tensor(filled, device=device),
        torch.tensor(layer[0][1:], dtype=torch.int64, device=device),
    )


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [..., V], float64, that tokens are drawn with."""
    probabilities = (logits.double() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p  # before it there is enough
    kept = ordered.masked_fill(beyond, 0.0)
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(dim=-1, keepdim=True))


def agreeing(tree: Tree, nodes_BS: Tensor, best_BS: Tensor) -> Tensor:
    """The deepest node [B] whose token, and every one on the way to it, is what head 1 says (`best_BS`) just before."""
    matches_BS = nodes_BS == best_BS[:, tree.parents]
    matches_BS[:, 0] = True
    right_BS = (matches_BS[:, None, :] | ~tree.sees).all(dim=-1)
    return (right_BS * (tree.depths + 1)).argmax(dim=-1)


def keeps(p: Tensor, q: Tensor, uniform: Tensor) -> Tensor:
    """Whether drafts are kept, with probability min(1, p / q); p and q are what head 1 and their head give them."""
    return uniform * q < p


def speculated(
    drafts_Bk: Tensor, p_BkV: Tensor, q_BkV: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How many drafts [B] are kept, and the token [B] after them, such that all are distributed as head 1's.

    Args:
        drafts_Bk: int64 [B, k-1], drawn from q.
        p_BkV: [B, k, V] head 1's distribution in each draft's place, and in the one after.
        q_BkV: [B, k-1, V] the drafts' own.
        generator: what is drawn from.
    """
    chosen = drafts_Bk[..., None]
    uniform = torch.rand(drafts_Bk.shape, dtype=p_BkV.dtype, device=p_BkV.device, generator=generator)
    keep = keeps(p_BkV[:, :-1].gather(-1, chosen)[..., 0], q_BkV.gather(-1, chosen)[..., 0], uniform)
    count = keep.long().cumprod(dim=1).sum(dim=1)
    p_BV = _at(p_BkV, count)
    q_BV = _at(torch.cat((q_BkV, torch.zeros_like(p_BkV[:, :1])), dim=1), count)  # after the last draft, no draft
    rest_BV = (p_BV - q_BV).clamp(min=0)
    empty = rest_BV.sum(dim=-1, keepdim=True) <= 0  # p = q but for rounding
    return count, _drawn(torch.where(empty, p_BV, rest_BV), generator)


def _at(x_BSD: Tensor, place_B: Tensor) -> Tensor:
    """What stands at one place of each row [B, D]."""
    return x_BSD[torch.arange(len(x_BSD), device=x_BSD.device), place_B]


def _drawn(weights_BV: Tensor, generator: torch.Generator) -> Tensor:
    return weights_BV.multinomial(1, generator=generator)[:, 0]


class _Decoding:
    """Rows on their way.

    A row's text is its prompt and what has been made. All of it but the newest token is settled: it has been read, and
    lies in the cache. `rows` are the numbers of those that are still decoded; whatever else is [B, ...] is in their
    order, and of them alone.
    """

    def __init__(
        self, model: LanguageModel, prompts: Tensor, lengths: Tensor, new_tokens: int, drafts: Sequence[int],
        sampling: Sampling | None, end: int | None, record: bool,
    ) -> None:  # fmt: skip
        self.decoder, self.objective = model.decoder, model.objective
        self.new_tokens, self.drafts, self.sampling, self.end, self.record = new_tokens, drafts, sampling, end, record
        self.heads = len(drafts) + 1
        device = prompts.device
        self.tree = draft_tree(drafts, device)
        self.width = prompts.shape[1]
        beyond = max(len(self.tree.depths), 3 * self.heads)  # heads that read ahead reach 3k - 3 past where they begin
        columns = self.width + new_tokens + beyond
        self.cache = model.decoder.cache(columns)
        self.columns = torch.arange(columns, device=device)
        self.text = prompts.new_zeros(len(prompts), columns)
        self.text[:, : self.width] = prompts.masked_fill(self.columns[: self.width] >= lengths[:, None], 0)
        self.generator = torch.Generator(device)
        if sampling is not None:
            self.generator.manual_seed(sampling.seed)
        self.prompts = lengths.cpu().numpy()

        # of all rows
        self.made = np.zeros(len(prompts), np.int64)
        self.passes = np.zeros(len(prompts), np.int64)
        self.proposed, self.accepted = np.zeros(self.heads - 1, np.int64), np.zeros(self.heads - 1, np.int64)
        self.steps: list[list[Step]] = [[] for _ in prompts] if record else []

        # of those still decoded
        self.rows = np.arange(len(prompts))
        self.rows_B = self.columns.new_tensor(self.rows)
        self.settled_B = lengths - 1  # as if the prompt's last token were new
        self.settled = self.before = self.prompts - 1  # before: when the last pass began
        self.newest_B = self.settled_B
        self.nodes_BS = prompts[:, :0]  # none before the prompts are read
        self.q: list[Tensor] = []  # [B, V] each, of head 2 first

    def read_prompts(self) -> None:
        """Read all prompts, take each row's first token, and make drafts."""
        columns_BS = self.columns[: self.width].expand(len(self.rows), -1)
        context = self.decoder.continuation(self.cache, columns_BS, columns_BS[:1], None)
        hidden_states = self._hidden_states(self.text[:, : self.width], context)
        last_B = self.settled_B
        at_kBD = torch.stack([_at(hidden_BSD, last_B) for hidden_BSD in hidden_states])
        logits_BV = self.objective.logits_of(self.decoder, 1, at_kBD[0])
        if self.sampling is None:
            own_B = logits_BV.argmax(dim=-1)
        else:
            own_B = _drawn(distribution(logits_BV, self.sampling), self.generator)
        at_kBD = self._settle(own_B[:, None], torch.zeros_like(own_B), at_kBD[1:])
        self._propose(at_kBD, np.zeros_like(self.settled), self.width)

    def step(self) -> None:
        """Read the newest tokens and the drafts after them, take what is right, and make new drafts."""
        nodes = len(self.tree.depths)
        columns_BS = self.settled_B[:, None] + self.columns[:nodes]
        positions_BS = self.settled_B[:, None] + self.tree.depths
        behind_BC = self.columns[: int(self.settled.max()) + nodes] < self.settled_B[:, None]
        seen_BSC = behind_BC[:, None].repeat(1, nodes, 1)
        seen_BSC.scatter_(2, columns_BS[:, None].expand(-1, nodes, -1), self.tree.sees.expand(len(self.rows), -1, -1))
        context = self.decoder.continuation(self.cache, columns_BS, positions_BS, seen_BSC)
        hidden_states = self._hidden_states(self.nodes_BS, context)
        node_B, own_B = self._verified(self.objective.logits_of(self.decoder, 1, hidden_states[0]))
        path_Bk = self.tree.paths[node_B]
        accepted_B = self.tree.depths[node_B]
        emitted_Bk = torch.cat((self.nodes_BS.gather(1, path_Bk[:, 1:]), own_B[:, None]), dim=1)
        emitted_Bk.scatter_(1, accepted_B[:, None], own_B[:, None])
        if self.tree.branches:
            columns_Bk = self.settled_B[:, None] + self.columns[: self.heads]
            self.cache.move(self.settled_B[:, None] + path_Bk, columns_Bk)
        at_kBD = torch.stack(hidden_states)[1:, torch.arange(len(node_B), device=node_B.device), node_B]
        at_kBD = self._settle(emitted_Bk, accepted_B, at_kBD)
        # Beside the new positions: head i has read drafts, in place of true tokens, at the last i-2 of the old ones.
        self._propose(at_kBD, np.maximum(0, self.before - (self.heads - 2)), 2 * self.heads - 2)

    def result(self, prompt_seconds: float, seconds: float) -> Decoded:
        """What came of it."""
        text = self.text.tolist()
        spans = zip(self.prompts.tolist(), self.made.tolist(), strict=True)
        tokens = [row[first : first + made] for row, (first, made) in zip(text, spans, strict=True)]
        return Decoded(
            tokens, self.passes, self.proposed, self.accepted, self.cache.layers, prompt_seconds, seconds, self.steps
        )

    def _hidden_states(self, tokens_BS: Tensor, context: Context) -> list[Tensor]:
        """The hidden states [B, S, D] of all heads that draft; of head 1 alone where the others read tokens ahead."""
        trunk_BSD = self.decoder(tokens_BS, context)
        heads = 1 if self.objective.teacher_forced else self.heads
        hidden_states = list(self.objective.hidden_states(self.decoder, trunk_BSD, context, heads))
        if self.objective.teacher_forced and self.heads > 1 and context.slots is not None:
            self.cache.write(_HIDDEN_STATES, context.slots.places, hidden_states[0])
        return hidden_states

    def _verified(self, logits_BSV: Tensor) -> tuple[Tensor, Tensor]:
        """The last accepted node of each row, and head 1's own token after it."""
        if self.sampling is None:
            best_BS = logits_BSV.argmax(dim=-1)
            node_B = agreeing(self.tree, self.nodes_BS, best_BS)
            return node_B, best_BS.gather(1, node_B[:, None])[:, 0]
        p_BkV = distribution(logits_BSV, self.sampling)
        q_BkV = torch.stack(self.q, dim=1) if self.q else p_BkV[:, :0]
        return speculated(self.nodes_BS[:, 1:], p_BkV, q_BkV, self.generator)

    def _settle(self, emitted_Bk: Tensor, accepted_B: Tensor, at_kBD: Tensor) -> Tensor:
        """Add what a pass gave to the rows' texts, and let go of those that are done.

        Args:
            emitted_Bk: int64, accepted drafts and then head 1's own token; what follows is of no account.
            accepted_B: int64, the accepted drafts.
            at_kBD: anything of the rows.

        Returns:
            `at_kBD` of the rows that are left.
        """
        first_B = self.settled_B + 1
        self.text[self.rows_B[:, None], first_B[:, None] + self.columns[: emitted_Bk.shape[1]]] = emitted_Bk
        self.newest_B = emitted_Bk.gather(1, accepted_B[:, None])[:, 0]
        self.settled_B = first_B + accepted_B
        told = torch.cat((accepted_B[:, None], emitted_Bk), dim=1).cpu().numpy()
        self.before, self.settled = self.settled, self.settled + 1 + told[:, 0]
        left = np.flatnonzero(~self._count(told[:, 1:], told[:, 0]))
        if len(left) < len(self.rows):
            chosen = self.columns.new_tensor(left)
            self.rows, self.before, self.settled = self.rows[left], self.before[left], self.settled[left]
            self.rows_B, self.settled_B, self.newest_B = (
                each[chosen] for each in (self.rows_B, self.settled_B, self.newest_B)
            )
            self.cache.select(chosen)
            at_kBD = at_kBD[:, chosen]
        return at_kBD

    def _count(self, emitted: NDArray[np.int64], accepted: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Count what a pass gave, [B, k] tokens of which accepted + 1 are valid; returns which rows are done."""
        left = self.new_tokens - self.made[self.rows]
        kept = np.minimum(accepted + 1, left)
        ends = (emitted == self.end) & (np.arange(emitted.shape[1]) < kept[:, None])
        ended = ends.any(axis=1)
        kept = np.where(ended, ends.argmax(axis=1) + 1, kept)
        self.made[self.rows] += kept
        room = np.where(ended, kept, left)
        if self.nodes_BS.shape[1]:  # not the prompts' pass
            depths = np.arange(self.heads - 1)
            self.passes[self.rows] += 1
            self.proposed += (depths < room[:, None]).sum(axis=0)
            self.accepted += (depths < np.minimum(accepted, kept)[:, None]).sum(axis=0)
        if self.record:
            self._tell(emitted, accepted, kept, room)
        done: NDArray[np.bool_] = ended | (kept == left)
        return done

    def _tell(
        self, emitted: NDArray[np.int64], accepted: NDArray[np.int64], kept: NDArray[np.int64], room: NDArray[np.int64]
    ) -> None:
        """Record a pass: each row's tokens of which `kept` were kept, its drafts up to `room`."""
        likeliest = self.nodes_BS[:, self.tree.likeliest] if self.nodes_BS.shape[1] else self.nodes_BS
        for row, said, good, count, most, drafts in zip(
            self.rows.tolist(), emitted.tolist(), accepted.tolist(), kept.tolist(), room.tolist(), likeliest.tolist(),
            strict=True,
        ):  # fmt: skip
            own = said[good] if count > good else None
            self.steps[row].append(Step(said[: min(good, count)], own, drafts[good:most]))

    def _propose(self, at_kBD: Tensor, start: NDArray[np.int64], width: int) -> None:
        """Make drafts for all rows.

        Args:
            at_kBD: [k-1, B, D] hidden states of heads 2..k at the last settled position, unless teacher-forced.
            start: [B] where heads that read ahead begin to read again,
            width: and how many positions.
        """
        if not len(self.rows):
            return
        candidates: list[Tensor] = []
        self.q = []
        if not self.drafts:
            logits: Iterator[Tensor] = iter(())
        elif self.objective.teacher_forced:
            logits = self._logits_ahead(start, width)
        elif self.objective.unembeddings():
            logits = (self.objective.logits_of(self.decoder, head, at_BD) for head, at_BD in enumerate(at_kBD, start=2))
        else:  # all heads share what reads them: one product
            logits = iter(self.objective.logits_of(self.decoder, 2, at_kBD))
        for depth, (count, logits_BV) in enumerate(zip(self.drafts, logits, strict=False), start=1):
            if self.sampling is None:
                candidates.append(logits_BV.topk(count, dim=-1).indices)
            else:
                self.q.append(distribution(logits_BV, self.sampling))
                candidates.append(_drawn(self.q[-1], self.generator)[:, None])
            if self.objective.teacher_forced:
                self.text[self.rows_B, self.settled_B + depth] = candidates[-1][:, 0]
        drafts = [torch.cat(candidates, dim=1)[:, self.tree.candidates]] if candidates else []
        self.nodes_BS = torch.cat((self.newest_B[:, None], *drafts), dim=1)

    def _logits_ahead(self, start: NDArray[np.int64], width: int) -> Iterator[Tensor]:
        """Logits [B, V] at the last settled position of heads that read ahead; each reads the draft before its own."""
        start_B = self.columns.new_tensor(start)
        columns_BS = start_B[:, None] + self.columns[:width]
        seen_BSC = self.columns[: int(start.max()) + width] <= columns_BS[..., None] if start.any() else None
        context = self.decoder.continuation(self.cache, columns_BS, columns_BS, seen_BSC)
        [hidden_BSD] = self.cache.read(_HIDDEN_STATES, self.cache.places(columns_BS))
        places = self.rows_B[:, None], start_B[:, None] + self.columns[: width + self.heads - 1]
        tokens = self.text[places]
        further = self.objective.next_hidden_states(self.decoder, hidden_BSD, context, self.heads, tokens)
        for head, hidden_BSD in enumerate(further, start=2):
            yield self.objective.logits_of(self.decoder, head, _at(hidden_BSD, self.settled_B - 1 - start_B))
            tokens.copy_(self.text[places])
