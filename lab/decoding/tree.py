"""Draft trees: the drafts that one forward pass verifies (Medusa, arXiv 2401.10774, Section 2.1.2).

Shape suffixes: B active rows, S nodes of the tree, k heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tree(NamedTuple):
    """The nodes that one forward pass verifies: node 0 is a row's newest token, the others are drafts, by depth."""

    candidates: Tensor
    """int64 [S-1] index of each draft among the candidates of all heads, concatenated from head 2 on."""
    depths: Tensor
    """int64 [S] distance of each node from the root."""
    parents: Tensor
    """int64 [S] parent of each node; the root is its own parent."""
    sees: Tensor
    """bool [S, S]: True if the second node is the first or one of its ancestors."""
    paths: Tensor
    """int64 [S, k] nodes on the path from the root to each node, padded with that node."""
    likeliest: Tensor
    """int64 [k-1] path through the first candidate of every head, without the root."""

    @property
    def branches(self) -> bool:
        """True if the tree is more than a chain."""
        return len(self.depths) > self.paths.shape[1]


def chain(heads: int) -> tuple[int, ...]:
    """Return the tree widths of a chain of drafts: one candidate of each of heads 2 to `heads`."""
    return (1,) * (heads - 1)


def draft_tree(widths: Sequence[int], device: torch.device) -> Tree:
    """Return the tree in which every candidate of a head continues every candidate of the head before.

    Args:
        widths: candidates of each head, head 2 first.
        device: device of the tree's tensors.
    """
    # Grow the tree level by level; `level` holds the paths to the deepest nodes so far.
    candidates: list[int] = []
    paths, level, first_candidate = [[0]], [[0]], 0
    for width in widths:
        children: list[list[int]] = []
        for path in level:
            for rank in range(width):
                candidates.append(first_candidate + rank)
                children.append([*path, len(paths) + len(children)])
        paths += children
        level = children
        first_candidate += width

    # A node sees exactly the nodes on its path.
    sees = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for node, path in enumerate(paths):
        sees[node, path] = True

    heads = len(widths) + 1
    return Tree(
        candidates=torch.tensor(candidates, dtype=torch.int64, device=device),
        depths=torch.tensor([len(path) - 1 for path in paths], device=device),
        parents=torch.tensor([path[max(0, len(path) - 2)] for path in paths], device=device),
        sees=sees.to(device),
        paths=torch.tensor([path + path[-1:] * (heads - len(path)) for path in paths], device=device),
        likeliest=torch.tensor(level[0][1:], dtype=torch.int64, device=device),
    )


def longest_match(tree: Tree, nodes_BS: Tensor, best_BS: Tensor) -> Tensor:
    """Return the deepest node [B] up to which all drafts are head 1's own choices.

    Args:
        tree: the draft tree.
        nodes_BS: int64 token at each node.
        best_BS: int64 likeliest next token after each node, according to head 1.
    """
    # A draft matches if head 1, at its parent, chooses the same token; the root is accepted already.
    matches_BS = nodes_BS == best_BS[:, tree.parents]
    matches_BS[:, 0] = True

    # A node is accepted if its whole path matches.
    accepted_BS = (matches_BS[:, None, :] | ~tree.sees).all(dim=-1)
    return (accepted_BS * (tree.depths + 1)).argmax(dim=-1)
