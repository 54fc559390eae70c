"""Evaluation on a half-trained model: one teacher-forced pass says what greedy decoding, token by token, would."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lab.decoding.decode import greedy
from lab.learning import evaluation
from lab.learning.data import Steps, select
from lab.learning.evaluation import batches, evaluate, head_losses, predict
from lab.learning.settings import Train
from lab.models.sizes import Model
from lab.objectives import LanguageModel, build_model
from lab.objectives.backward import losses
from lab.objectives.parallel import Parallel
from lab.tasks.base import Examples
from lab.tasks.polynomials.task import Polynomials

CONFIG: dict[str, Any] = {
    "prime": 3,
    "degree": 2,
    "operators": {"neg": 1.0, "add": 1.0},
    "train_operations": (1, 2),
    "test_operations": (1, 3),
    "test_examples": 120,
    "validation_examples": 20,
}
TASK = Polynomials(**CONFIG).build()
TEST = TASK.examples("test", np.arange(360), seed=0)
UNSEEN = np.zeros((360, 1), np.bool_)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Trained until some answers are right and some are wrong; then float64, so that argmaxes have no ties."""
    torch.set_num_threads(1)
    model = build_model(Model(layers=3, width=32, heads=2), Parallel(n=2), len(TASK.vocabulary), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = Steps(
        TASK, Train(batch_tokens=1024, context=32), 2, seed=0, first=0, evaluation_fingerprints=TEST.fingerprints[:, 0]
    )
    for step in islice(steps, 250):
        optimizer.zero_grad()
        torch.autograd.backward(losses(model.objective, model.decoder, step.batch, [1.0, 1.0]).total)
        optimizer.step()
    return model.double().eval()


def right(examples: Examples, predicted: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """[N, 3] whether each coefficient, and the end token, is predicted."""
    rows = zip(predicted, examples.tokens, examples.score_mask, strict=True)
    return np.array([guess[scored] == truth[scored] for guess, truth, scored in rows])


def alone(model: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """Both heads' logits [2, T, V] on one document."""
    inputs = torch.tensor([tokens])
    with torch.no_grad():
        context = model.decoder.context(inputs, None)
        trunk = model.decoder(inputs, context)
        return torch.cat(list(model.objective.logits(model.decoder, trunk, context, heads=2)))


def document(examples: Examples, row: int) -> list[int]:
    tokens: list[int] = examples.tokens[row, : examples.lengths[row]].tolist()
    return tokens


def test_the_model_is_right_and_wrong(model: LanguageModel) -> None:
    share = right(TEST, predict(model, TEST)).all(axis=1).mean()
    assert 0.05 < share < 0.95
    assert len(set(TEST.lengths.tolist())) > 3


def test_teacher_forced_scores_are_those_of_greedy_decoding(model: LanguageModel) -> None:
    forced = right(TEST, predict(model, TEST))
    exact = []
    for row in range(360):
        tokens, first = document(TEST, row), int(TEST.score_mask[row].argmax())
        decoded = greedy(model, torch.tensor([tokens[:first]]), torch.tensor([first]), len(tokens) - first)[0].tolist()
        whole, without_end = decoded == tokens[first:], decoded[:-1] == tokens[first:-1]
        assert (whole, without_end) == (bool(forced[row].all()), bool(forced[row, :-1].all()))
        exact.append((whole, without_end))

    # And so says the score table.
    for entry in evaluate(model, TASK, TEST, UNSEEN):
        chosen = TEST.slices["operations"] == entry["operations"]
        if entry["operator"] != "all":
            chosen &= TEST.slices["operator"] == entry["operator"]
        shares = np.array(exact)[chosen].mean(axis=0)
        assert (entry["exact_match"], entry["exact_match_without_end"]) == pytest.approx(tuple(shares))


def test_greedy_is_the_same_for_one_prompt_and_for_many(model: LanguageModel) -> None:
    rows = range(100, 260)
    firsts = [int(TEST.score_mask[row].argmax()) for row in rows]
    prompts = torch.zeros(len(rows), max(firsts), dtype=torch.int64)
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        prompts[i, :first] = torch.tensor(document(TEST, row)[:first])
    together = greedy(model, prompts, torch.tensor(firsts), 4)
    for i, first in enumerate(firsts):
        assert together[i].tolist() == greedy(model, prompts[i : i + 1, :first], torch.tensor([first]), 4)[0].tolist()


def test_predictions_are_those_of_one_example_at_a_time(model: LanguageModel) -> None:
    predicted = predict(model, TEST)
    for row in range(360):
        expected = alone(model, document(TEST, row))[0, :-1].argmax(dim=-1).tolist()
        assert predicted[row].tolist() == [0, *expected] + [0] * (TEST.tokens.shape[1] - len(expected) - 1)


@pytest.mark.parametrize("limit", [1, 50, 1000])
def test_predictions_do_not_depend_on_the_batch(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    before = predict(model, TEST)
    shuffled = np.random.default_rng(0).permutation(360)[:200]
    monkeypatch.setattr(evaluation, "_TOKENS", limit)
    part = select(TEST, shuffled)
    assert np.array_equal(predict(model, part), before[shuffled, : part.tokens.shape[1]])


@pytest.mark.parametrize("limit", [1, 50, 1000, 16_384])
def test_batches_hold_every_example_once_and_are_small(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(evaluation, "_TOKENS", limit)
    parts = list(batches(TEST))
    assert sorted(np.concatenate(parts).tolist()) == list(range(360))
    assert all(len(part) == 1 or len(part) * TEST.lengths[part].max() <= limit for part in parts)


@pytest.mark.parametrize("loss", ["all", "answer"])
@pytest.mark.parametrize("limit", [100, 16_384])
def test_head_losses_are_means_over_documents_read_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, loss: str, limit: int
) -> None:
    monkeypatch.setattr(evaluation, "_TOKENS", limit)
    examples = Polynomials(**CONFIG, loss=loss).build().examples("test", np.arange(100, 220), seed=0)  # type: ignore[arg-type]
    nats: tuple[list[float], list[float]] = ([], [])
    for row in range(120):
        tokens = document(examples, row)
        likelihoods = alone(model, tokens).log_softmax(dim=-1)
        for head in (1, 2):
            for t in range(len(tokens) - head):
                if examples.loss_mask[row, t + head]:
                    nats[head - 1].append(-likelihoods[head - 1, t, tokens[t + head]].item())
    assert head_losses(model, examples) == pytest.approx([np.mean(each) for each in nats], rel=1e-5)
    assert np.mean(nats[0]) != pytest.approx(np.mean(nats[1]), rel=1e-3)
