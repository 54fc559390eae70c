"""Answers that runs generate: right answers among samples, choices between answers, and calibration.

A question is a test example up to its scored tokens, of which one run, tokens that are scored one after another, is the
answer: of polynomials the coefficients and the end token, of stories the second token of a name that was mentioned
before. Slices that a task's scores are shown along (numbers of operations, fresh and pool names) stand apart here too;
questions seen and unseen in training do not.

- pass@k, whether one of k samples is right (Chen et al. 2021, arXiv 2107.03374): from s samples of which c are right,
  1 - C(s - c, k) / C(s, k), which is unbiased. By temperature; the best temperature for each k is an oracle, since it
  looks at the scores, and is called so (the paper's Fig. 4 and its tables are such oracles).
- Choice accuracy: whether the answer has a greater likelihood a token than near misses, answers of which one token is
  replaced by another of its kind that stands in that place in other answers. Beside generative accuracy (the likeliest
  answer, at temperature 0, is right) it is the paper's Fig. 5 against its Fig. 6: choosing an answer and giving one.
- Calibration of head 1 on the scored tokens: the mean distance between confidence and accuracy, over bins of equally
  many tokens (Naeini et al. 2015's expected calibration error, with bins as of Nguyen & O'Connor 2015). It is above 0
  for a calibrated model, too, the more so the fewer the tokens (Kumar et al. 2019); what it would be stands beside it.

Of one run there are standard errors over questions; over seeds, intervals (`lab.report.answers`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lab.analysis.finished_run import FinishedRun, rows_of
from lab.analysis.terms import passes
from lab.decoding.decode import decode
from lab.decoding.sampling import Sampling
from lab.errors import BadInput
from lab.learning.data import select
from lab.objectives import LanguageModel
from lab.tasks.base import Examples, GeneratedAnswers

MISSES = 3
"""Near misses that an answer is chosen among."""
BINS = 15
"""Of confidence."""
_REDRAWN = 200
"""Times that what a calibrated model would get right is drawn."""
_ROWS = 256
"""Prompts that are decoded at once."""


def pass_at_k(samples: int, right: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The unbiased estimate of pass@k for each question, [Q], from `samples` of which `right` [Q] are right.

    Raises:
        ValueError: k is not from 1 to `samples`.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs from {k} samples on, not {samples}")
    wrong = samples - np.asarray(right)
    # C(wrong, k) / C(samples, k), factor by factor: every one is at most 1, and 0 where there are fewer wrong than k
    places = np.arange(k)
    wrongly: NDArray[np.float64] = np.prod(np.maximum(0, wrong[:, None] - places) / (samples - places), axis=1)
    return 1.0 - wrongly


@dataclass(frozen=True)
class Prompted:
    """Q questions, of which the answer is `starts` to `ends` of the example."""

    examples: Examples
    starts: NDArray[np.int64]
    """[Q] the first place of the answer."""
    ends: NDArray[np.int64]
    """[Q] the place after it."""

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return int((self.ends - self.starts).max())

    def answers(self) -> NDArray[np.int64]:
        """[Q, A] the answers' tokens; -1 beyond their end."""
        places = self.starts[:, None] + np.arange(self.longest)
        inside = places < self.ends[:, None]
        found = np.take_along_axis(self.examples.tokens, np.minimum(places, self.examples.tokens.shape[1] - 1), axis=1)
        return np.where(inside, found.astype(np.int64), -1)


def questions(examples: Examples) -> Prompted:
    """One question for each example that has scored tokens after its first: which of them is random, but repeats."""
    scored = examples.score_mask.copy()
    scored[:, 0] = False  # there is nothing to continue
    begins = scored & ~np.roll(scored, 1, axis=1)
    rows = np.flatnonzero(begins.any(axis=1))
    random = np.random.default_rng(0)
    starts = np.array([random.choice(np.flatnonzero(begins[row])) for row in rows], np.int64)
    after = np.arange(scored.shape[1]) >= starts[:, None]
    stops = after & ~scored[rows]
    ends = np.where(stops.any(axis=1), stops.argmax(axis=1), scored.shape[1])
    return Prompted(select(examples, rows), starts, ends)


def by_slice(run: FinishedRun, count: int) -> list[tuple[str, Examples]]:
    """`count` test examples, by the slice that the task's scores are shown along: its words, as "operations 3".

    "all" where the task slices tokens, not examples.

    Raises:
        BadInput: the task's questions have several right answers, which cannot be told from wrong ones by comparison.
    """
    if isinstance(run.task, GeneratedAnswers):
        name = run.experiment.task.name
        raise BadInput(f"{run.directory.path}: task {name} is not allowed: its questions have several right answers")
    found, across = run.test_examples(count), run.task.main_slice
    if across not in found.slices:
        return [("all", found)]
    values = found.slices[across]
    parts = [(f"{across} {value}", select(found, np.flatnonzero(values == value))) for value in np.unique(values)]
    return [(words, part) for words, part in parts if part.score_mask[:, 1:].any()]


def right_samples(model: LanguageModel, asked: Prompted, samples: int, temperature: float) -> NDArray[np.int64]:
    """Return the number of right samples of each question [Q]; at temperature 0 samples are the likeliest tokens."""
    device = next(model.parameters()).device
    answers, count = asked.answers(), len(asked.starts)
    prompts = torch.from_numpy(asked.examples.tokens.astype(np.int64))[:, : int(asked.starts.max())].to(device)
    lengths = torch.from_numpy(asked.starts).to(device)
    order = np.argsort(asked.starts, kind="stable")  # of like length, so that little is padding
    repeated = np.repeat(order, samples)
    right = np.zeros(count, np.int64)
    for number, first in enumerate(range(0, len(repeated), _ROWS)):
        rows = repeated[first : first + _ROWS]
        chosen = torch.from_numpy(rows).to(device)
        width = int(asked.starts[rows].max())
        sampling = Sampling(temperature, seed=number) if temperature else None
        said = decode(model, prompts[chosen, :width], lengths[chosen], asked.longest, sampling=sampling).tokens
        correct = ((np.array(said) == answers[rows]) | (answers[rows] < 0)).all(axis=1)
        np.add.at(right, rows, correct)
    return right


def passing(
    run: FinishedRun, examples: int, samples: int, ks: Sequence[int], temperatures: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """pass@k of a run's last weights: a row for each temperature, slice and k, then for each slice's and k's oracle.

    Rows have the run's `identity`, `slice` (`by_slice`), `k`, `temperature` ("oracle" for the best for this slice and
    k), `questions`, `samples`, `pass_at_k`, and `error`, its standard error over questions.
    """
    model = run.model(run.steps[-1])
    parts = [(words, questions(found)) for words, found in by_slice(run, examples)]
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for temperature in temperatures:
        for words, asked in parts:
            right = right_samples(model, asked, samples, temperature)
            about = {"identity": run.experiment.identity, "slice": words, "questions": len(right), "samples": samples}
            for k in ks:
                each = pass_at_k(samples, right, k)
                measured = {"pass_at_k": float(each.mean()), "error": standard_error(each)}
                row = {**about, "k": k, "temperature": temperature, **measured}
                best[words, k] = max(best.get((words, k), row), row, key=lambda row: row["pass_at_k"])
                yield row
    yield from ({**row, "temperature": "oracle"} for row in best.values())


def answering(run: FinishedRun, examples: int) -> list[dict[str, Any]]:
    """Return generative accuracy, choices and calibration of a run's last weights: a row for each slice.

    Rows have the run's `identity`, `slice` (`by_slice`), `questions`, `generative_accuracy` (greedy), `choice_accuracy`
    among the answer and up to `MISSES` near misses, `choice_chance`, standard errors of the two over questions
    (`…_error`), and of the scored tokens their number `tokens`, `confidence` (the mean probability of the likeliest
    token), `accuracy`, `calibration_error`, and `calibrated_error`, what that would be if accuracy were as believed.
    """
    model = run.model(run.steps[-1])
    return [
        {"identity": run.experiment.identity, "slice": words, **_answering(run, model, found)}
        for words, found in by_slice(run, examples)
    ]


def _answering(run: FinishedRun, model: LanguageModel, found: Examples) -> dict[str, Any]:
    """A row of `answering`, of the examples of a slice."""
    asked = questions(found)
    given = right_samples(model, asked, 1, 0.0)
    options, kinds = near_misses(asked, run.task.token_type(asked.examples))
    likelihoods = np.stack([_likelihoods(model, asked, answers) for answers in options])
    missed = np.arange(MISSES)[:, None] < kinds
    chosen = ((likelihoods[0] > likelihoods[1:]) | ~missed).all(axis=0)
    confidence, correct = _beliefs(model, found)
    count = len(given)
    return {
        "questions": count,
        "generative_accuracy": float(given.mean()),
        "generative_error": standard_error(given),
        "choice_accuracy": float(chosen.mean()),
        "choice_error": standard_error(chosen),
        "choice_chance": float((1 / (1 + kinds)).mean()),
        "tokens": len(correct),
        "confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
        "calibration_error": calibration_error(confidence, correct),
        "calibrated_error": calibrated_error(confidence),
    }


def near_misses(asked: Prompted, kind: NDArray[np.uint8]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """The answers and `MISSES` other lists of them, [Q, A] each, and how many of these are misses of each answer, [Q].

    A miss has one token that is wrong, which stands in that place of an answer to some other question, as a token of
    the same type (`Task.token_type`, [Q, L]), so that knowing which type of token belongs there is not enough. The
    misses of an answer differ; where there are fewer than `MISSES`, the last lists repeat the answer.
    """
    answers = asked.answers()
    random = np.random.default_rng(0)
    places = np.minimum(asked.starts[:, None] + np.arange(answers.shape[1]), kind.shape[1] - 1)
    of_kind = np.take_along_axis(kind, places, axis=1)
    known: dict[tuple[int, int], set[int]] = {}
    for row, place in zip(*np.nonzero(answers >= 0), strict=True):
        known.setdefault((int(place), int(of_kind[row, place])), set()).add(int(answers[row, place]))
    options, counts = [answers] + [answers.copy() for _ in range(MISSES)], np.zeros(len(answers), np.int64)
    for row, answer in enumerate(answers):
        pairs = [
            (place, token)
            for place in np.flatnonzero(answer >= 0).tolist()
            for token in sorted(known[place, int(of_kind[row, place])])
            if token != answer[place]
        ]
        counts[row] = min(MISSES, len(pairs))
        for number, picked in enumerate(random.permutation(len(pairs))[:MISSES]):
            place, token = pairs[picked]
            options[1 + number][row, place] = token
    return options, counts


def standard_error(values: NDArray[Any]) -> float | None:
    """The standard error of the mean; None of a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


@torch.inference_mode()
def _likelihoods(model: LanguageModel, asked: Prompted, answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean log-probability a token that head 1 gives to answers [Q, A], -1 beyond their ends: [Q]."""
    tokens = asked.examples.tokens.copy()
    places = asked.starts[:, None] + np.arange(answers.shape[1])
    rows, columns = np.nonzero(answers >= 0)
    tokens[rows, places[rows, columns]] = answers[rows, columns]
    examples = Examples(**{**vars(asked.examples), "tokens": tokens, "lengths": asked.ends})
    found = np.zeros(len(answers))
    for chosen in passes(model, examples):
        given = rows_of(model, examples, chosen)
        nats = _log_probabilities(model, given).gather(2, given[:, 1:, None])[..., 0].cpu().numpy()
        for place in range(answers.shape[1]):
            inside = answers[chosen, place] >= 0
            at = np.minimum(asked.starts[chosen] + place - 1, nats.shape[1] - 1)
            found[chosen] += np.where(inside, nats[np.arange(len(chosen)), at], 0.0)
    return found / (answers >= 0).sum(axis=1)  # type: ignore[no-any-return]


@torch.inference_mode()
def _beliefs(model: LanguageModel, examples: Examples) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of every scored token: the probability of the likeliest one, and whether that is right."""
    confidence, correct = [], []
    for rows in passes(model, examples):
        tokens = rows_of(model, examples, rows)
        highest, best = _log_probabilities(model, tokens).max(dim=-1)
        scored = examples.score_mask[rows, 1 : tokens.shape[1]]
        confidence.append(highest.exp().double().cpu().numpy()[scored])
        correct.append((best == tokens[:, 1:]).cpu().numpy()[scored])
    return np.concatenate(confidence), np.concatenate(correct)


def _log_probabilities(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Head 1's, of the tokens after each place but the last: [B, T-1, V]."""
    context = model.decoder.context(tokens, None)
    logits = next(model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=1))
    return logits[:, :-1].log_softmax(-1)


def calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """The mean over tokens of |confidence - accuracy| of their bin; `BINS` bins of equally many, by confidence."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    off = sum(len(part) * abs(confidence[part].mean() - correct[part].mean()) for part in parts)
    return float(off / len(order))


def calibrated_error(confidence: NDArray[np.float64]) -> float:
    """The mean `calibration_error` of as many tokens that are right just as often as they are believed to be."""
    random = np.random.default_rng(0)
    draws = (calibration_error(confidence, random.random(len(confidence)) < confidence) for _ in range(_REDRAWN))
    return float(np.mean(list(draws)))
