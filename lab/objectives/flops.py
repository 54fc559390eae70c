"""Costs of a model: parameters counted on instantiated models, and training FLOPs derived from them."""

import torch
from torch import nn

from lab.models.decoder import Attention, Unset
from lab.models.sizes import Model
from lab.objectives import LanguageModel, ObjectiveConfig


def instantiate(model: Model, objective: ObjectiveConfig, vocabulary: int) -> LanguageModel:
    """The model without memory for its parameters (meta device)."""
    with torch.device("meta"), Unset():
        return LanguageModel(model, objective, vocabulary)


def embedding_parameters(model: LanguageModel) -> int:
    """Those of the embedding and of every unembedding."""
    return sum(map(_parameters, (model.decoder.embedding, model.decoder.unembedding, *model.objective.unembeddings())))


def non_embedding_parameters(model: LanguageModel) -> int:
    """All parameters but the embedding's and the unembeddings'."""
    return _parameters(model) - embedding_parameters(model)


def training_flops_per_token(model: LanguageModel, context: int) -> int:
    """Floating-point operations of forward and backward for one position of a row of `context`.

    A multiply-add is two operations; the backward pass costs twice the forward. Counted: every matrix product, the n
    unembeddings, and attention's two products over the whole row (as the common MFU formula does, arXiv 2204.02311
    Appendix B, and as torch's flop counter does; a causal kernel may do half). Left out: norms, activations, softmax,
    and reading embeddings. Heads are read off at every position, targets or not (`where`), and a gradient that is
    scaled costs the same. Where one is cut off, a product for each further head may be saved (the unembedding's with
    `readout_gradient` 0, a linear head's with `trunk_gradient` 0), which is counted all the same.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.Linear)]
    unembedding = model.decoder.unembedding
    sharing = model.objective.n - len(model.objective.unembeddings())  # heads that use the decoder's unembedding
    products = sum(each.weight.numel() for each in layers if each is not unembedding)
    products += sharing * unembedding.weight.numel()
    attentions = [each for each in model.modules() if isinstance(each, Attention)]
    return 3 * (2 * products + len(attentions) * 4 * context * unembedding.in_features)


def _parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())
