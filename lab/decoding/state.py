"""State of decoding: the rows with their tokens, and the tally of forward passes and drafts.

Shape suffixes: B active rows, k heads.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Step(NamedTuple):
    """Outcome of one forward pass for one row."""

    accepted: list[int]
    """Accepted drafts, in order."""
    own: int | None
    """Head 1's own token after them; None if the row was done before it."""
    rejected: list[int]
    """Likeliest drafts at the place of `own` and after it, up to the row's end."""


class Commit(NamedTuple):
    """Tokens that one forward pass added to the rows that were active in it, in host memory."""

    rows: NDArray[np.int64]
    """[B] numbers of these rows."""
    emitted: NDArray[np.int64]
    """[B, k] accepted drafts, then head 1's own token; what follows is undefined."""
    accepted: NDArray[np.int64]
    """[B] accepted drafts."""
    kept: NDArray[np.int64]
    """[B] emitted tokens up to the row's end, at most `accepted` + 1."""
    room: NDArray[np.int64]
    """[B] tokens that the row could take: up to the end token if it was emitted, else up to the maximum length."""
    survivors: NDArray[np.int64]
    """[B'] indices, within these rows, of those that are still active."""


class Rows:
    """Texts that grow; rows that are done become inactive.

    A row's newest token has not been read by the model yet; all tokens before it have, and are in the cache.
    """

    text: Tensor
    """int64 [rows, columns] tokens of the prompts and of the continuations; undefined beyond `lengths`."""
    lengths: NDArray[np.int64]
    """[rows] tokens of each row, those of the prompt included."""
    active: NDArray[np.int64]
    """[B] numbers of the active rows, ascending."""
    active_B: Tensor
    """`active` on the device."""
    position_B: Tensor
    """int64 [B] position of each active row's newest token, on the device."""
    batch_B: Tensor
    """int64 [B] numbers from 0 to B-1, on the device."""

    def __init__(self, prompts: Tensor, lengths: Tensor, new_tokens: int, end: int | None, spare: int) -> None:
        """Begin with the prompts.

        Args:
            prompts: int64 [rows, P], padded on the right.
            lengths: int64 [rows] tokens in each prompt.
            new_tokens: tokens to add to each row, at most.
            end: token after which a row is done.
            spare: columns beyond the maximum length.
        """
        self.prompt_lengths = lengths.cpu().numpy()
        self.max_lengths = self.prompt_lengths + new_tokens
        self.end = end

        # Padding may be any number, which the embedding could not read.
        self.prompt_width = prompts.shape[1]
        self.columns = torch.arange(self.prompt_width + new_tokens + spare, device=prompts.device)
        padding = self.columns[: self.prompt_width] >= lengths[:, None]
        self.text = prompts.new_zeros(len(prompts), len(self.columns))
        self.text[:, : self.prompt_width] = prompts.masked_fill(padding, 0)

        self.lengths = self.prompt_lengths.copy()
        self._activate(np.arange(len(prompts)))

    @property
    def positions(self) -> NDArray[np.int64]:
        """[B] positions of the active rows' newest tokens, in host memory."""
        return self.lengths[self.active] - 1

    @property
    def newest_B(self) -> Tensor:
        """int64 [B] newest tokens of the active rows."""
        return self.text[self.active_B, self.position_B]

    def commit(self, emitted_Bk: Tensor, accepted_B: Tensor) -> Commit:
        """Add the tokens of a forward pass to the active rows, and deactivate the rows that are done.

        Args:
            emitted_Bk: int64 [B, at most k], accepted drafts and then head 1's own token; what follows is ignored.
            accepted_B: int64, accepted drafts.
        """
        # Write all of it; what lies beyond a row's length is overwritten later.
        columns_Bk = self.position_B[:, None] + 1 + self.columns[: emitted_Bk.shape[1]]
        self.text[self.active_B[:, None], columns_Bk] = emitted_Bk

        # Cut at the maximum length and at the end token. This is the pass's only transfer to the host.
        on_host = torch.cat((accepted_B[:, None], emitted_Bk), dim=1).cpu().numpy()
        accepted, emitted = on_host[:, 0], on_host[:, 1:]
        room = self.max_lengths[self.active] - self.lengths[self.active]
        kept = np.minimum(accepted + 1, room)
        is_end = (emitted == self.end) & (np.arange(emitted.shape[1]) < kept[:, None])
        ended = is_end.any(axis=1)
        kept = np.where(ended, is_end.argmax(axis=1) + 1, kept)
        room = np.where(ended, kept, room)

        # A row is done when it has no room left.
        survivors = np.flatnonzero(kept < room)
        commit = Commit(self.active, emitted, accepted, kept, room, survivors)
        self.lengths[self.active] += kept
        self._activate(self.active[survivors])
        return commit

    def continuations(self) -> list[list[int]]:
        """Return the tokens of each row without its prompt."""
        spans = zip(self.text.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True)
        return [row[start:stop] for row, start, stop in spans]

    def _activate(self, active: NDArray[np.int64]) -> None:
        self.active = active
        device = self.text.device
        self.active_B = torch.from_numpy(active).to(device)
        self.position_B = torch.from_numpy(self.positions).to(device)
        self.batch_B = torch.arange(len(active), device=device)


@dataclass
class Tally:
    """Counts of forward passes and drafts."""

    forward_passes: NDArray[np.int64]
    """[rows] forward passes that verified something, so without the prompt's."""
    proposed: NDArray[np.int64]
    """[k-1] drafts of heads 2 to k that were verified, over all rows, without those after a row's end."""
    accepted: NDArray[np.int64]
    """[k-1] drafts of heads 2 to k that became part of a continuation."""
    steps: list[list[Step]] = field(default_factory=list)
    """Outcome of every forward pass by row, the prompt's first; empty if nothing is recorded."""

    @classmethod
    def zeros(cls, rows: int, heads: int, record: bool) -> "Tally":
        """Return a tally of nothing yet."""
        drafting = heads - 1
        steps: list[list[Step]] = [[] for _ in range(rows)] if record else []
        return cls(np.zeros(rows, np.int64), np.zeros(drafting, np.int64), np.zeros(drafting, np.int64), steps)

    def count(self, commit: Commit) -> None:
        """Count a forward pass that verified drafts."""
        depths = np.arange(len(self.proposed))
        self.forward_passes[commit.rows] += 1
        self.proposed += (depths < commit.room[:, None]).sum(axis=0)
        self.accepted += (depths < np.minimum(commit.accepted, commit.kept)[:, None]).sum(axis=0)

    def record(self, commit: Commit, likeliest_Bk: Tensor) -> None:
        """Record the outcome of a forward pass, if anything is recorded.

        Args:
            commit: tokens that the pass added.
            likeliest_Bk: int64 [B, k-1] likeliest draft of each head.
        """
        if not self.steps:
            return
        drafts_of_rows = likeliest_Bk.tolist()
        for index, row in enumerate(commit.rows.tolist()):
            emitted, accepted = commit.emitted[index].tolist(), int(commit.accepted[index])
            kept, room = int(commit.kept[index]), int(commit.room[index])
            own = emitted[accepted] if kept > accepted else None
            rejected = drafts_of_rows[index][accepted:room]
            self.steps[row].append(Step(emitted[: min(accepted, kept)], own, rejected))
