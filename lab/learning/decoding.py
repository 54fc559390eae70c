"""Decoding, token by token."""

import torch
from torch import Tensor

from lab.objectives import LanguageModel


@torch.inference_mode()
def greedy(model: LanguageModel, prompts: Tensor, lengths: Tensor, new_tokens: int) -> Tensor:
    """The most likely continuation, one token at a time, by the next-token head.

    Args:
        model: any objective; heads beyond the first are not used.
        prompts: [B, P] int64 token ids, padded on the right.
        lengths: [B] int64 tokens in each prompt, at least 1.
        new_tokens: tokens to add to each.

    Returns:
        [B, new_tokens] int64.
    """
    rows = torch.arange(len(prompts), device=prompts.device)
    tokens = torch.cat((prompts, prompts.new_zeros(len(prompts), new_tokens)), dim=1)
    for step in range(new_tokens):
        context = model.decoder.context(tokens, None)
        logits = next(model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=1))
        tokens[rows, lengths + step] = logits[rows, lengths + step - 1].argmax(dim=-1)
    return tokens[rows[:, None], lengths[:, None] + torch.arange(new_tokens, device=prompts.device)]
