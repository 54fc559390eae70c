"""Decoding speed of runs: with k of their heads, by batch, and beside transformers' cached generate.

Time per character is what makes runs with unlike tokens comparable (Section 3.3 of the paper: bytes with n = 8 against
tokens with n = 1).
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from lab.analysis.finished_run import FinishedRun
from lab.analysis.speculation import beyond, prompts_of, speculation, ways
from lab.bench.peers import NotInstalled, build_peer
from lab.decoding.decode import decode, now
from lab.models.sizes import Model, Shape
from lab.objectives import NextToken, build_model

BOUND = 0.9
"""The least share of what layers allow that the speed-up at batch 1 with all heads should be."""


def measure(
    run: FinishedRun,
    batches: Sequence[int],
    count: int,
    new_tokens: int,
    rounds: int,
    device: torch.device,
    listen: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Rows of `speculation` for every batch and k = 1 to n, with what the run is (`Trained.about`, `task`).

    Also `characters_per_second`, by the characters of a token in the run's test examples, and `of_layers`, the speed-up
    as a share of what layers allow, and `beyond`, what to say of rows that get longer than any that the run has read.

    Args:
        run: finished.
        batches: rows decoded at once.
        count: prompts, test examples; more where that fills the last batch.
        new_tokens: the most added to a prompt.
        rounds: times that each batch is decoded with each k, all in turn; seconds are the median.
        device: where, in fp32.
        listen: called when a batch size is done.
    """
    model, found = run.model(run.steps[-1]).to(device), []
    characters = characters_per_token(run)
    for batch in batches:
        prompts = prompts_of(run, batch * math.ceil(count / batch))
        prompts = prompts._replace(tokens=prompts.tokens.to(device), lengths=prompts.lengths.to(device))
        for row in speculation(model, prompts, ways(model.objective.n, None), new_tokens, batch, rounds=rounds):
            found.append(
                {
                    **run.about,
                    "task": run.experiment.task.name,
                    **row,
                    "characters_per_second": characters * row["tokens_per_second"],
                    "of_layers": row["speed_up"] / row["layers_allow"],
                    "beyond": beyond(run, prompts, new_tokens),
                }
            )
        listen()
    return found


def characters_per_token(run: FinishedRun) -> float:
    """Of the run's first 100 test examples."""
    examples = run.test_examples(100)
    texts = [
        run.task.text(tokens[:length].tolist())
        for tokens, length in zip(examples.tokens, examples.lengths, strict=True)
    ]
    return sum(map(len, texts)) / int(examples.lengths.sum())


def beside_transformers(
    shape: Shape, vocabulary: int, batch: int, prompt: int, new_tokens: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Plain decoding, n = 1, beside `generate` of transformers' Llama with its cache, in the same shape and in fp32.

    Both take the likeliest token, read prompts of equal length, which counts for both, and make as many tokens. Weights
    are random, which is nothing to time.

    Returns:
        JSON types: `layers`, `width`, `heads`, `vocabulary`, `batch`, `prompt`, `new_tokens`, `seconds` and
        `peer_seconds` (medians over rounds, each in turn), `of_peer`, our tokens a second over the peer's; `missing`
        says what to install, the numbers then None.
    """
    layers, width, heads = shape
    about = {
        "layers": layers, "width": width, "heads": heads, "vocabulary": vocabulary,
        "batch": batch, "prompt": prompt, "new_tokens": new_tokens
    }  # fmt: skip
    try:
        peer = build_peer("transformers-llama", shape, vocabulary, prompt + new_tokens).model.eval().to(device)
    except NotInstalled as error:
        return {**about, "seconds": None, "peer_seconds": None, "of_peer": None, "missing": str(error)}
    model = (
        build_model(Model(layers=layers, width=width, heads=heads), NextToken(), vocabulary, seed=0).eval().to(device)
    )
    tokens = torch.randint(vocabulary, (batch, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    lengths = torch.full((batch,), prompt, device=device)

    def ours() -> int:
        return sum(map(len, decode(model, tokens, lengths, new_tokens).tokens))

    def theirs() -> int:
        made = peer.generate(  # type: ignore[operator]
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, use_cache=True, pad_token_id=0,
            min_new_tokens=new_tokens, max_new_tokens=new_tokens,
        )  # fmt: skip
        return int((made.shape[1] - prompt) * batch)

    times: dict[str, list[float]] = {"seconds": [], "peer_seconds": []}
    with torch.inference_mode():
        for turn in range(rounds + 1):  # the first is what sets up, and counts for nobody
            for name, act in (("seconds", ours), ("peer_seconds", theirs)):
                started = now(device)
                if (made := act()) != batch * new_tokens:
                    raise AssertionError(f"{made} tokens were made, not {batch * new_tokens}")
                times[name] += [now(device) - started] if turn else []
    seconds = {name: median(each) for name, each in times.items()}
    return {**about, **seconds, "of_peer": seconds["peer_seconds"] / seconds["seconds"], "missing": None}
