"""Implicit weights and information: closed forms against enumeration, measurements against autograd and definitions."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lab.analysis import information, loss_weights
from lab.analysis.finished_run import FinishedRun, open_runs
from lab.analysis.terms import passes, terms, valid
from lab.cli.main import cli
from lab.errors import BadInput, Missing
from lab.experiments import sweep as sweeps
from lab.experiments.experiment import Experiment, dump_yaml
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory
from lab.learning.data import packed_batch
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.backward import losses
from lab.objectives.causal import Causal
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel
from lab.objectives.reweighted import Reweighted
from lab.objectives.sequential import Sequential
from lab.report.choices import against_one
from lab.tasks.base import Examples
from lab.tasks.choices import Choices, Station
from lab.tasks.polynomials.task import Polynomials
from lab.tasks.stories.task import Stories
from tests.conftest import same_end, tiny

MODEL = Model(layers=5, width=16, heads=2)
CIRCUIT = Choices(stations=[Station(branches=3, span=k, entropy=0.5) for k in (1, 2, 4)], road=5, laps=3)


# --- what is derived ---


@pytest.mark.parametrize("n", range(1, 9))
def test_implicit_weights_are_those_of_the_paper_and_of_enumeration(n: int) -> None:
    for k in range(1, 9):
        weight = loss_weights.implicit_weight(n, k)
        assert weight == loss_weights.counted(n, k)
        assert weight == (n * (n + 1) // 2 if k >= n else k * n - k * (k - 1) // 2)
    assert loss_weights.implicit_weight(n, 1) == n


def test_the_example_of_fig_9() -> None:
    """1 2 3 4 5 A B C with n = 3, 5 -> A being hard: from 3 one hard target, from 4 two, from 5 three."""
    line, hard = "12345ABC", "ABC"
    seen = {here: sum(line[place + head] in hard for head in (1, 2, 3)) for place, here in enumerate(line[:5])}
    assert [seen[here] for here in "12345"] == [0, 0, 1, 2, 3]
    assert loss_weights.implicit_weight(3, 3) == sum(seen.values()) == 6


@given(st.lists(st.floats(0, 5), min_size=1, max_size=8), st.integers(1, 12))
def test_any_weights(weights: list[float], k: int) -> None:
    """Sum over heads i of min(i, k) w_i: over the k tokens that are decided, of the heads that reach each."""
    n = len(weights)
    reached = sum(weights[head - 1] for token in range(k) for head in range(1, n + 1) if head > token)
    assert loss_weights.implicit_weight(n, k, weights) == pytest.approx(reached)
    assert loss_weights.counted(n, k, weights) == pytest.approx(reached)


def test_everything_that_is_claimed_is_proved() -> None:
    claims = loss_weights.derivation() + information.identities()
    assert len(claims) == 13
    assert all(claim["holds"] is True for claim in claims)


def test_sympy_does_not_prove_what_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_weights, "implicit_weight", lambda n, k, weights=None: sum(weights or [1] * n) * min(n, k))
    assert not all(claim["holds"] for claim in loss_weights.derivation())
    p = sympy.Matrix(2, 3, sympy.symbols("p:6", positive=True))
    wrong = information._crosses(p, lambda x, y: p[x, y])
    monkeypatch.setattr(information, "_crosses", lambda weights, code: wrong)
    assert not all(claim["holds"] for claim in information.identities())


def entropy(joint: Any, kept: tuple[int, ...]) -> float:
    """Of some of the variables of a joint distribution, by adding up."""
    other = tuple(axis for axis in range(joint.ndim) if axis not in kept)
    law = joint.sum(axis=other).ravel()
    return float(-(law[law > 0] * np.log(law[law > 0])).sum())


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_identity_of_n_tokens_holds_for_any_distribution(seed: int) -> None:
    """Five binary tokens of a random joint distribution, n = 4, the last one as the target: by definitions alone."""
    joint = np.random.default_rng(seed).dirichlet(np.full(32, 0.3)).reshape((2,) * 5)
    n, s = 4, 4

    def given_first(count: int) -> float:  # H(x_s | the first `count` tokens)
        return entropy(joint, (*range(count), s)) - entropy(joint, tuple(range(count)))

    def says(d: int) -> float:  # I(x_s; x_{s-d} | x_1..x_{s-d-1})
        before, token = tuple(range(s - d)), s - d
        both = entropy(joint, (*before, token)) + entropy(joint, (*before, s))
        return both - entropy(joint, (*before, token, s)) - entropy(joint, before)

    left = sum(given_first(s - i + 1) for i in range(1, n + 1))
    assert left == pytest.approx(n * given_first(s) + sum((n - d) * says(d) for d in range(1, n)))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_relative_identity_holds_for_any_two_distributions(seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = (random.dirichlet(np.ones(12)).reshape(3, 4) for _ in range(2))
    q_x, q_y = q.sum(1), q.sum(0)
    x_given_y = -(p * np.log(q / q_y)).sum()
    y_given_x = -(p * np.log(q / q_x[:, None])).sum()
    product = np.log(p / np.outer(q_x, q_y))
    information_ = (p * product).sum() - (p * np.log(p / q)).sum()
    left = -(p.sum(1) * np.log(q_x)).sum() - (p.sum(0) * np.log(q_y)).sum()
    assert left == pytest.approx(x_given_y + 2 * information_ + y_given_x)


def test_a_choice_of_known_entropy_counts_alike_in_both_arguments() -> None:
    """Section 5.1's count and 5.2's information, on the source itself: entropies over heads add up to h W(n, k)."""
    config = Choices(stations=[Station(branches=4, span=k, entropy=0.8) for k in (1, 3, 6)], road=8, laps=3)
    task, n = config.build(), 5
    examples = task.examples("train", np.arange(10), 0)
    floors = task.entropies(examples, n)
    assert examples.horizons is not None
    owner = np.stack([loss_weights.owners(examples.horizons, ahead) for ahead in range(1, n + 1)], axis=2)
    for row, place in zip(*np.nonzero(examples.score_mask), strict=True):
        k = int(examples.horizons[row, place])
        if place + k <= examples.tokens.shape[1]:
            total = np.nansum(floors[row][owner[row] == place])  # nan: beyond the end
            assert total == pytest.approx(0.8 * loss_weights.implicit_weight(n, k), abs=1e-6)


# --- what is measured ---


@given(st.lists(st.integers(1, 6), min_size=3, max_size=14), st.integers(1, 5))
def test_a_target_belongs_to_the_earliest_token_that_decides_it(spans: list[int], ahead: int) -> None:
    found = loss_weights.owners(np.array([spans], np.uint8), ahead)[0]
    for here in range(len(spans) - ahead):
        target = here + ahead
        deciding = [token for token in range(here + 1, target + 1) if token + spans[token] > target]
        assert found[here] == deciding[0]


def test_positions_count_as_the_closed_form() -> None:
    for row in loss_weights.positions((1, 2, 3, 8), 4, 6):
        n, place = row["n"], row["place"]
        expected = n if not 0 <= place < 4 else loss_weights.implicit_weight(n, 4) if place == 0 else min(n, place)
        assert row["weight"] == expected


@pytest.mark.parametrize(
    "objective", [Parallel(n=3), Causal(n=2), Sequential(n=2), NextToken(), Reweighted(n=3)], ids=lambda each: each.name
)
@pytest.mark.parametrize("task", [CIRCUIT, Polynomials(loss="answer")], ids=["choices", "polynomials"])
def test_terms_are_those_of_the_training_loss(task: Any, objective: Any) -> None:
    built = task.build()
    examples = built.examples("train", np.arange(12), 0)
    model = build_model(MODEL, objective, len(built.vocabulary), 0)
    n = model.objective.n
    _, nats, importance = terms(model, examples)
    batch = packed_batch(examples, examples.tokens.shape[1], n)
    whole = losses(model.objective, model.decoder, batch, [1.0] * n)
    there = valid(examples, n)
    assert there.sum(axis=(0, 1)).tolist() == whole.targets.tolist()
    assert (nats.detach().numpy()[~there[:, : nats.shape[1]]] == 0).all()
    assert nats.detach().sum(dim=(0, 1)).tolist() == pytest.approx(whole.nats.tolist(), rel=1e-4)
    weighed = nats if importance is None else nats * importance[..., None]
    total = (weighed.sum(dim=(0, 1)) / whole.targets).sum()
    assert float(total.detach()) == pytest.approx(float(whole.total.detach()), rel=1e-5)


def twice(examples: Examples) -> Examples:
    """Every document two times, side by side: both halves of the documents are then the same."""
    rows = np.repeat(np.arange(len(examples.lengths)), 2)
    fields = {name: value[rows] for name, value in vars(examples).items() if isinstance(value, np.ndarray)}
    parts = {
        name: {key: value[rows] for key, value in getattr(examples, name).items()}
        for name in ("slices", "token_features")
    }
    return Examples(**{**vars(examples), **fields, **parts})


@pytest.mark.parametrize("objective", [Parallel(n=3), Reweighted(n=2)], ids=["parallel", "reweighted"])
def test_gradients_of_kinds_are_autograds(objective: Any) -> None:
    """Term by term, each asked of autograd by itself in float64, added up by kind."""
    task = CIRCUIT.build()
    examples = task.examples("test", np.arange(2), 0)
    model = build_model(MODEL, objective, len(task.vocabulary), 0).double()
    n, kind, spans = model.objective.n, task.token_type(examples), examples.horizons
    assert spans is not None
    rows = {row["kind"]: row for row in loss_weights._by_kind(model, task, twice(examples), [1.0] * n)}

    trunk = [model.decoder.embedding.weight, *model.decoder.trunk.parameters()]
    trunk_BTD, nats, importance = terms(model, examples)
    counts = valid(examples, n).sum(axis=(0, 1))
    length = examples.tokens.shape[1]
    sums: dict[str, Any] = {}
    for row, place, head in itertools.product(range(2), range(length), range(1, n + 1)):
        if place + head >= length:
            continue
        target = place + head
        owner = next(t for t in range(place + 1, target + 1) if t + spans[row, t] > target)
        scale = (1.0 if importance is None else float(importance[row, place])) / counts[head - 1]
        name = task.token_types[kind[row, owner]]
        sums[name] = sums.get(name, 0.0) + nats[row, place, head - 1] * scale
    assert rows.keys() == sums.keys()
    for name, loss in sums.items():
        gradients = torch.autograd.grad(loss, (trunk_BTD, *trunk), retain_graph=True)
        assert rows[name]["loss"] == pytest.approx(float(loss), rel=1e-9)
        # of two equal documents each has half of the scale: the sum is the same, the squares' root is not
        assert rows[name]["arriving"] == pytest.approx(float(gradients[0].norm()) / math.sqrt(2), rel=1e-6)
        norm = math.sqrt(sum(float(each.square().sum()) for each in gradients[1:]))
        assert rows[name]["gradient"] == pytest.approx(norm, rel=1e-6)


def test_noise_is_no_gradient() -> None:
    """Of a model that is at the source's entropy the mean gradient is 0, and what arrives is not."""
    config = Choices(stations=[Station(branches=2, span=1)], road=1, laps=2)
    task = config.build()
    examples = task.examples("train", np.arange(4000), 0)
    model = build_model(Model(layers=2, width=16, heads=2), NextToken(), len(task.vocabulary), 0)

    def of_choices() -> dict[str, Any]:
        return next(row for row in loss_weights._by_kind(model, task, examples, [1.0]) if row["kind"] == "A choice")

    before = of_choices()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 if step < 100 else 1e-3
        batch = packed_batch(task.examples("train", np.arange(256) + 256 * step, 1), 4, 1)
        losses(model.objective, model.decoder, batch, [1.0]).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    after = of_choices()
    assert after["excess"] < 0.002
    assert after["gradient"] / after["arriving"] < 0.25 * before["gradient"] / before["arriving"]


def test_passes_take_every_document_once_in_two_even_halves() -> None:
    task = Polynomials().build()
    examples = task.examples("test", np.arange(0, 20_000, 40), 0)
    model = build_model(MODEL, Parallel(n=3), len(task.vocabulary), 0)
    parts = list(passes(model, examples))
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))
    halves = [sum(map(len, parts[first::2])) for first in (0, 1)]
    assert abs(halves[0] - halves[1]) <= len(parts)


def test_choices_against_one() -> None:
    """By hand: stations differ threefold, heads add the count, seeds a factor that cancels in the geometric mean."""
    runs: list[dict[str, Any]] = [
        {"identity": f"{n}{seed}", "objective": "parallel", "n": n, "seed": seed} for n in (1, 4) for seed in (0, 1)
    ]
    kinds = []
    for run in runs:
        for kind, span in (("A choice", 1.0), ("B choice", 4.0)):
            value = (3.0 if span > 1 else 1.0) * (7.0 if run["n"] == 4 else 1.0)
            value *= 2.5 * 2.0 ** (2 * run["seed"] - 1) if (run["n"], span) == (4, 4.0) else 1.0
            lost = 0.0 if (run["seed"], span, run["n"]) == (1, 4.0, 4) else value
            measured = {"loss": value, "arriving": value, "gradient": lost}
            kinds.append({"identity": run["identity"], "step": 0, "kind": kind, "span": span, **measured})
    loss, _, gradient = against_one({"runs": runs, "kinds": kinds}).to_dict("records")
    assert loss["mean"] == pytest.approx(2.5)
    assert loss["low"] < 1.25 < 5 < loss["high"]
    assert (loss["measure"], loss["seeds"], loss["complete"]) == ("loss", 2, True)
    assert (gradient["measure"], gradient["seeds"], gradient["complete"]) == ("gradient", 1, False)


# --- on runs ---


def choices_run(store: Path, *objective: str) -> Experiment:
    """A small run on choices that has kept weights."""
    return tiny(
        "task={name: choices, road: 3, laps: 2, test_examples: 40, validation_examples: 10, "
        "stations: [{branches: 3, span: 1, entropy: 0.4}, {branches: 3, span: 3, entropy: 0.4}]}",
        *objective, "train.context=32", "train.steps=30", "execution.snapshots=10", "evaluation.every=30",
        "train.lr=1e-2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run of two heads and one of none further, on choices; of polynomials; of sequential heads."""
    folder = tmp_path_factory.mktemp("store")
    for objective in ("objective.n=2", "objective=next_token", "objective={name: sequential, n: 2}"):
        execute(choices_run(folder, objective), folder)
    execute(tiny(), folder)
    return folder


def test_snapshots_are_the_weights_on_the_way(store: Path, tmp_path: Path) -> None:
    experiment = choices_run(store, "objective.n=2")
    [run] = open_runs(experiment.identity, "cpu", store)
    assert run.steps == [0, 10, 20, 30]
    start = build_model(experiment.model, experiment.objective, len(run.task.vocabulary), experiment.seed)
    for step, model in run.models(every=True):
        same = all(torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True))
        assert same == (step == 0)
    final = load_file(run.directory.final)
    assert all(torch.equal(final[name], value) for name, value in run.model(30).state_dict().items())
    asked = iter(range(100))
    assert execute(experiment, tmp_path, stop=lambda: next(asked) == 14) is None  # between two of them
    execute(experiment, tmp_path)
    same_end(RunDirectory(tmp_path, experiment), run.directory)


def test_balanced_heads_weigh_as_they_did(tmp_path: Path) -> None:
    """The loss of all kinds together is the training loss with the weights that the run logged there."""
    experiment = choices_run(tmp_path, "objective={name: parallel, n: 2, weights: {name: balanced, every: 1}}")
    execute(experiment, tmp_path)
    run = FinishedRun(RunDirectory(tmp_path, experiment))
    weights = run.head_weights(30)
    assert sum(weights) == pytest.approx(2)
    assert weights[0] != pytest.approx(1, abs=1e-3)
    told = sum(row["loss"] for row in loss_weights.measure(run, 40, every=False))
    examples = run.test_examples(40)
    batch = packed_batch(examples, examples.tokens.shape[1], 2)
    model = run.model(30)
    assert told == pytest.approx(float(losses(model.objective, model.decoder, batch, weights).total.detach()), rel=1e-4)


def test_information_is_a_difference_of_losses(store: Path) -> None:
    [run] = open_runs(choices_run(store, "objective.n=2").identity, "cpu", store)
    [row] = [row for row in information.losses(run, 40, every=False) if row["kind"] == "all"]
    examples = run.test_examples(40)
    model = run.model(30)
    tokens = torch.from_numpy(examples.tokens.astype(np.int64))
    context = model.decoder.context(tokens, None)
    one, two = (
        each.log_softmax(-1)
        for each in model.objective.logits(model.decoder, model.decoder(tokens, context), context, 2)
    )
    far = -two[:, :-2].gather(2, tokens[:, 2:, None]).mean()
    near = -one[:, 1:-1].gather(2, tokens[:, 2:, None]).mean()
    assert row["loss"] == pytest.approx(float(far), rel=1e-4)
    assert row["information"] == pytest.approx(float(far - near), rel=1e-3)
    floors = run.task.entropies(examples, 2)  # type: ignore[attr-defined]
    assert row["true_information"] == pytest.approx((floors[:, :-2, 1] - floors[:, 1:-1, 0]).mean(), rel=1e-6)


def test_gaps_are_those_of_adding_up_every_token(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "MASS", 1.0)
    [run] = open_runs(choices_run(store, "objective.n=2").identity, "cpu", store)
    model, examples = run.model(30), run.test_examples(1)
    prompt = examples.tokens[0, :7]
    divergence, distance, mass = information._gap(model, prompt)
    tokens = torch.from_numpy(prompt.astype(np.int64))[None]
    vocabulary = len(run.task.vocabulary)

    def say(tokens: torch.Tensor, head: int) -> torch.Tensor:
        context = model.decoder.context(tokens, None)
        found = list(model.objective.logits(model.decoder, model.decoder(tokens, context), context, 2))
        return found[head - 1][0, -1].softmax(-1).detach().double()

    marginal = sum(
        say(tokens, 1)[x] * say(torch.cat((tokens, torch.tensor([[x]])), dim=1), 1) for x in range(vocabulary)
    )
    assert isinstance(marginal, torch.Tensor)
    second = say(tokens, 2)
    assert mass == pytest.approx(1.0, abs=1e-5)
    assert divergence == pytest.approx(float((marginal * (marginal / second).log()).sum()), rel=1e-4)
    assert distance == pytest.approx(float((marginal - second).abs().sum() / 2), rel=1e-4)


def test_heads_that_read_ahead_or_are_alone_have_no_gap(store: Path) -> None:
    for objective in ("objective=next_token", "objective={name: sequential, n: 2}"):
        [run] = open_runs(choices_run(store, objective).identity, "cpu", store)
        assert information.gaps(run, 8) == []


def test_running_free_first_agrees_with_the_teacher(store: Path) -> None:
    """The first token is the same question both ways; a whole answer right in one is right in the other."""
    for experiment in (choices_run(store, "objective.n=2"), tiny()):
        rows = information.mismatch(open_runs(experiment.identity, "cpu", store)[0], 40)
        assert rows[0]["teacher_forced"] == rows[0]["free_running"]
        assert [row["ahead"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) == (3 if experiment.task.name == "polynomials" else 7)  # to the end of a document


def test_free_running_repeats_the_right_answers_of_one_who_knows(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    [run] = open_runs(choices_run(store, "objective.n=2").identity, "cpu", store)
    truth = run.test_examples(40)

    def knows(model: Any, prompts: torch.Tensor, lengths: torch.Tensor, tokens: int) -> torch.Tensor:
        rows = [row for row in range(40) if truth.score_mask[row].any()]
        return torch.stack(
            [
                torch.from_numpy(np.append(truth.tokens[row], np.zeros(tokens)).astype(np.int64))[
                    length : length + tokens
                ]
                for row, length in zip(rows, lengths.tolist(), strict=True)
            ]
        )

    monkeypatch.setattr(information, "greedy", knows)
    assert {row["free_running"] for row in information.mismatch(run, 40)} == {1.0}


@pytest.mark.parametrize("analysis", ["weights", "information"])
def test_commands_on_any_run(store: Path, analysis: str) -> None:
    runs = [choices_run(store, "objective.n=2"), choices_run(store, "objective={name: sequential, n: 2}"), tiny()]
    for experiment in runs:
        arguments = ["analyze", analysis, experiment.identity, "--store", str(store), "--examples", "20"]
        told = CliRunner().invoke(cli, [*arguments, "--json"])
        assert told.exit_code == 0, told.output
        document = json.loads(told.stdout.splitlines()[-1])
        assert document["runs"][0]["identity"] == experiment.identity
        assert {row["identity"] for row in document["kinds" if analysis == "weights" else "losses"]} == {
            experiment.identity
        }
        shown = CliRunner().invoke(cli, arguments)
        assert shown.exit_code == 0, shown.output
        assert "proved" in shown.stdout
        assert "DOES NOT HOLD" not in shown.stdout


def test_weights_of_a_run_are_the_closed_form(store: Path) -> None:
    [run] = open_runs(choices_run(store, "objective.n=2").identity, "cpu", store)
    rows = {row["kind"]: row for row in loss_weights.measure(run, 40, every=False)}
    assert (rows["A choice"]["weight"], rows["A choice"]["span"]) == (2, 1.0)
    assert (rows["B choice"]["weight"], rows["B choice"]["span"]) == (3, 3.0)
    there = valid(run.test_examples(40), 2).sum()
    assert sum(row["terms"] for row in rows.values()) == there
    assert all(row["excess"] <= row["loss"] for row in rows.values())


def test_a_sweep_is_analysed_when_it_is_done(tmp_path: Path, store: Path) -> None:
    import yaml

    base = yaml.safe_load(dump_yaml(choices_run(store, "objective.n=2")))
    sweep = {
        "question": "?", "endpoint": "!", "baseline": base, "axes": {"objective.n": [1, 2]},
        "scales": {"cpu": {"budget": "seconds"}},
    }  # fmt: skip
    path = tmp_path / "it.yaml"
    path.write_text(yaml.safe_dump(sweep))
    with pytest.raises(Missing, match="1 of 2 runs have no weights"):
        open_runs(str(path), "cpu", store)
    execute(choices_run(store, "objective.n=1"), store)
    runs = open_runs(str(path), "cpu", store)
    assert [run.about["objective.n"] for run in runs] == [1, 2]
    assert isinstance(runs[0], FinishedRun)


def test_what_only_results_has_is_run_again_for_its_weights(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = choices_run(store, "objective.n=2")
    kept = {experiment.identity: RunDirectory(store, experiment).read_result()}
    monkeypatch.setattr(sweeps, "kept_results", lambda: kept)
    sweep = sweeps.Sweep("it", "it.yaml", "cpu", None, (), (sweeps.Cell(experiment, {}),))  # type: ignore[arg-type]
    for weights, state in ((False, "done"), (True, "waiting")):
        assert [each.name for _, each in sweeps.runs(sweep, tmp_path, weights)] == [state]


def test_runs_that_cannot_be_opened(tmp_path: Path, store: Path) -> None:
    with pytest.raises(BadInput, match=r"^RUN: 'nothing' is not allowed: should be the directory, label or identity"):
        open_runs("nothing", "cpu", store)
    experiment = tiny("seed=9")
    assert execute(experiment, tmp_path, stop=lambda: True) is None
    with pytest.raises(BadInput, match=r"^RUN: .* is not finished; go on with: lab train"):
        open_runs(experiment.identity, "cpu", tmp_path)
    execute(experiment, tmp_path)
    directory = RunDirectory(tmp_path, experiment)
    directory.final.write_bytes(b"junk")
    with pytest.raises(BadInput, match=r"^RUN: .*final.safetensors cannot be read"):
        open_runs(experiment.identity, "cpu", tmp_path)
    directory.final.unlink()
    with pytest.raises(BadInput, match=r"^RUN: .*final.safetensors is gone"):
        open_runs(experiment.identity, "cpu", tmp_path)


def test_agreement_trains(tmp_path: Path) -> None:
    """A task without keys goes through a run like any other (its entropies: tests/test_known_sources.py)."""
    task = "task={name: agreement, clauses: 2, test_examples: 20, validation_examples: 10}"
    result = execute(tiny(task, "train.context=12", "train.steps=20"), tmp_path)
    assert result
    assert {row["slot"] for row in result["scores"]} == {"all", "adjective", "noun", "verb"}


def test_kinds_of_tokens() -> None:
    """Names' tokens come in pairs, later second tokens are what is scored; of polynomials that is the answer."""
    stories = Stories(pronouns=0.0).build()
    examples = stories.examples("train", np.arange(30), 0)
    kind = stories.token_type(examples)
    first = [name == "first token" for name in stories.token_types].index(True)
    assert ((kind == 3) == examples.score_mask).all()
    assert (np.roll(kind == first, 1, axis=1) == (kind >= 2)).all()
    for row in range(30):
        names = stories.record(examples, row)["names"].values()
        for place in np.flatnonzero(kind[row] == first):
            assert examples.tokens[row, place : place + 2].tolist() in names
        assert (kind[row] == 2).sum() == len(names)  # each is introduced once
    arithmetic = Polynomials().build()
    examples = arithmetic.examples("train", np.arange(30), 0)
    assert (arithmetic.token_type(examples).astype(bool) == examples.score_mask).all()
