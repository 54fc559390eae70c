"""What decoding tells of a run: on a clock that counts passes, on tokens that are known; and the command."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from lab.analysis import speculation
from lab.analysis.finished_run import FinishedRun
from lab.analysis.speculation import Prompts, end_token, given_prompt, longest, paper, prompts_of, ways
from lab.bench import decoding_speed
from lab.bench.decoding_speed import beside_transformers, characters_per_token, measure
from lab.bench.peers import NotInstalled
from lab.cli import decode as command
from lab.cli.main import cli
from lab.decoding import decode as decoding
from lab.decoding.decode import decode
from lab.decoding.sampling import Sampling
from lab.decoding.state import Step
from lab.errors import BadInput
from lab.experiments.experiment import Experiment
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory
from lab.models.decoder import Context, Decoder
from lab.models.sizes import Shape
from lab.objectives import build_model
from tests.conftest import tiny

CHOICES = "task={name: choices, stations: [{branches: 2, span: 1}, {branches: 3, span: 3, entropy: 0.5}]}"


def polynomials(*more: str) -> Experiment:
    return tiny("objective.n=3", "train.steps=80", "train.lr=3e-3", *more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs: a parallel one of three heads, one without further heads, and one of a task without end tokens."""
    folder = tmp_path_factory.mktemp("store")
    for experiment in (polynomials(), tiny("objective=next_token"), choices()):
        assert execute(experiment, folder)
    return folder


def choices() -> Experiment:
    return tiny(CHOICES, "objective={name: sequential, n: 2}", "evaluation.examples=10", "train.context=64")


def opened(store: Path, experiment: Experiment) -> FinishedRun:
    return FinishedRun(RunDirectory(store, experiment))


# Prompts


def test_prompts_end_where_the_score_begins_to_look(store: Path) -> None:
    run = opened(store, polynomials())
    prompts, examples = prompts_of(run, 12), run.test_examples(12)
    assert run.task.vocabulary[prompts.end or 0] == "."
    for row, length in enumerate(prompts.lengths.tolist()):
        assert run.task.vocabulary[examples.tokens[row, length - 1]] == "="
        assert prompts.tokens[row, :length].tolist() == examples.tokens[row, :length].tolist()
    assert longest(run) == max(32, run.task.max_length("test"))


def test_prompts_are_half_a_document_where_the_score_begins_earlier(store: Path) -> None:
    run = opened(store, choices())
    prompts, examples = prompts_of(run, 5), run.test_examples(5)
    assert (examples.score_mask.argmax(axis=1) < examples.lengths // 2).all()
    assert prompts.lengths.tolist() == (examples.lengths // 2).tolist()
    assert end_token(run) is None


def test_prompts_of_ones_own(store: Path) -> None:
    run = opened(store, polynomials())
    given = given_prompt(run, [3, 1, 2])
    assert (given.tokens.tolist(), given.lengths.tolist()) == ([[3, 1, 2]], [3])
    size, most = len(run.task.vocabulary), longest(run)
    given_prompt(run, [size - 1] * most)
    with pytest.raises(BadInput, match=rf"^prompt: token {size} is not allowed: should be from 0 to {size - 1}$"):
        given_prompt(run, [1, size])
    for count in (0, most + 1):
        with pytest.raises(BadInput, match=rf"^prompt: {count} tokens are not allowed: should be from 1 to {most}, "):
            given_prompt(run, [1] * count)


# Rows


class Clock:
    """A clock on which a pass takes 1 and a quarter more for each token a row beyond the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time, forward = 0.0, Decoder.forward

        def timed(decoder: Decoder, tokens: Tensor, context: Context) -> Tensor:
            self.time += 0.75 + tokens.shape[1] / 4
            return forward(decoder, tokens, context)

        monkeypatch.setattr(Decoder, "forward", timed)
        monkeypatch.setattr(decoding, "now", lambda device: self.time)


def test_rows_of_known_times(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    run = opened(store, polynomials())
    model, prompts = run.model(run.steps[-1]), prompts_of(run, 12)
    Clock(monkeypatch)
    calls: list[int] = []
    table = speculation.speculation(
        model, prompts, ways(3, (2, 2)), 6, batch=1, rounds=2, listen=lambda: calls.append(1)
    )
    assert len(calls) == 12 * 4 * 2
    assert [(row["k"], row["drafts"]) for row in table] == [(1, []), (2, [1]), (3, [1, 1]), (3, [2, 2])]
    for row, cost in zip(table, (1.0, 1.25, 1.5, 2.5), strict=True):
        alone = decode(model, prompts.tokens, prompts.lengths, 6, row["drafts"], end=prompts.end)
        assert row["tokens"] == sum(map(len, alone.tokens))
        assert row["passes"] == alone.forward_passes.sum()
        assert row["tokens_per_forward"] == pytest.approx((row["tokens"] - 12) / row["passes"])
        assert row["tokens_per_forward"] == alone.tokens_per_forward
        assert row["accepted"] == pytest.approx((alone.accepted / alone.proposed).tolist())
        assert row["accepted_length"] == pytest.approx(alone.accepted.sum() / row["passes"])
        assert row["seconds"] == pytest.approx(cost * row["passes"])
        assert row["cost_per_forward"] == pytest.approx(cost)
        assert row["speed_up"] == pytest.approx(row["tokens_per_forward"] / cost)
        assert row["tokens_per_second"] == pytest.approx((row["tokens"] - 12) / row["seconds"])
        assert row["layers"] == row["k"] + 1
        assert row["layers_allow"] == pytest.approx(row["tokens_per_forward"] * 2 / (1 + row["k"]))
        assert row["identical"] == 1
        assert (row["step_cost"], row["waiting"]) == pytest.approx((cost, 1))
        if row["k"] > 1:  # at that share the tokens of a pass, drafts and head 1's own, are what it costs
            own, verified = row["tokens"] - 12 - alone.accepted.sum(), alone.proposed.sum()
            assert row["break_even_acceptance"] * verified + own == pytest.approx(cost * row["passes"])
    assert 1.2 < table[2]["tokens_per_forward"] < 3


def test_in_a_batch_waiting_is_told_from_what_a_pass_takes(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    run = opened(store, polynomials())
    model, prompts = run.model(run.steps[-1]), prompts_of(run, 12)._replace(end=None)
    Clock(monkeypatch)
    table = speculation.speculation(model, prompts, ways(3, None), 6, batch=8, rounds=1)
    for row, cost in zip(table, (1.0, 1.25, 1.5), strict=True):
        parts = [
            decode(model, prompts.tokens[rows], prompts.lengths[rows], 6, row["drafts"])
            for rows in (slice(0, 8), slice(8, 12))
        ]
        assert row["steps"] == sum(part.forward_passes.max() for part in parts) < row["passes"]
        assert row["step_cost"] == pytest.approx(cost)
        assert row["cost_per_forward"] == pytest.approx(row["step_cost"] * row["waiting"])
        assert row["speed_up"] == pytest.approx(table[0]["seconds"] / row["seconds"])
    assert table[2]["waiting"] > 1.05  # some rows accept more than others


def test_a_tree_that_is_a_chain_is_no_other_way() -> None:
    assert ways(3, (1, 1)) == ways(3, None) == [(), (1,), (1, 1)]
    assert ways(3, (1,)) == [(), (1,), (1, 1)]


def test_layers_are_those_of_any_batch(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """Where the first batch ends with its first token, heads that read ahead have not run in it."""
    run = opened(store, polynomials())
    ahead = tiny("objective={name: sequential, n: 3}")
    model = build_model(ahead.model, ahead.objective, len(run.task.vocabulary), 0).eval()
    prompts = prompts_of(run, 12)
    firsts = [tokens[0] for tokens in decode(model, prompts.tokens, prompts.lengths, 1).tokens]
    [first, *_] = firsts
    assert any(token != first for token in firsts)
    table = speculation.speculation(model, prompts._replace(end=first), ways(3, None), 6, batch=1, rounds=1)
    assert [row["layers"] for row in table] == [2, 3, 4]


def test_rows_differ_when_drafts_change_tokens(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    run = opened(store, polynomials())
    monkeypatch.setattr(
        decoding, "longest_match", lambda tree, nodes, best: torch.full((len(nodes),), len(tree.depths) - 1)
    )
    table = speculation.speculation(run.model(run.steps[-1]), prompts_of(run, 30), ways(2, None), 6, batch=8, rounds=1)
    assert table[0]["identical"] == 1
    assert table[1]["identical"] < 1
    assert table[1]["accepted"] == [1.0]


def test_sampled_rows(store: Path) -> None:
    run = opened(store, choices())
    table = speculation.speculation(
        run.model(run.steps[-1]), prompts_of(run, 6), ways(2, None), 9, batch=4, sampling=Sampling(1.0), rounds=1
    )
    assert [row["identical"] for row in table] == [None, None]
    assert [row["tokens"] for row in table] == [54, 54]
    assert 1 <= table[1]["tokens_per_forward"] <= 2


def test_one_token_a_prompt_takes_no_pass(store: Path) -> None:
    run = opened(store, choices())
    [row, _] = speculation.speculation(run.model(40), prompts_of(run, 2), ways(2, None), 1, batch=4, rounds=1)
    assert (row["passes"], row["tokens"]) == (0, 2)
    assert np.isnan([row["tokens_per_forward"], row["speed_up"], row["cost_per_forward"]]).all()


def test_the_papers_tables() -> None:
    rows = {(row["table"], row["text"], row["n"], row["k"]): row for row in paper()}
    assert len(rows) == 9 + 3 + 5 + 9
    costs = [rows["S2", "code", 4, k]["cost_per_forward"] for k in (2, 3, 4)]
    assert costs == pytest.approx([1.05, 1.09, 1.15], abs=0.006)
    assert rows["S3", "code, bytes", 8, 8]["cost_per_forward"] == pytest.approx(1.10, abs=0.005)
    assert rows["S3", "code, bytes", 32, 32]["cost_per_forward"] == pytest.approx(1.42, abs=0.005)
    assert all(1 < row["speed_up"] < row["tokens_per_forward"] < row["k"] for row in rows.values())


# The command


def lab(store: Path, experiment: Experiment, *arguments: str) -> Result:
    line = [experiment.identity, "--store", str(store), "--count", "4", *arguments]
    return CliRunner().invoke(command.decode, line, catch_exceptions=False)


def test_the_command_shows_continuations_and_the_table(store: Path) -> None:
    run = opened(store, polynomials())
    told = lab(store, polynomials(), "--new-tokens", "5").stdout
    examples = run.test_examples(4)
    plain = decode(run.model(80), *prompts_of(run, 4)[:2], 5, end=prompts_of(run, 4).end).tokens
    for row in range(command.SHOWN):
        prompt = run.task.text(examples.tokens[row, : examples.score_mask[row].argmax()].tolist())
        [line] = {each for each in told.splitlines() if each.startswith(prompt)} or [""]
        kept = re.sub(r"\{[^}]*\}", "", line).replace("[", "").replace("]", "")
        assert kept.split() == [*prompt.split(), *run.task.text(plain[row]).split()]
    assert "tokens a" in told
    assert "2.78, 2.54 ×" in told


def test_rows_longer_than_any_that_was_read_are_said(store: Path) -> None:
    run = opened(store, choices())
    room = longest(run) - int(prompts_of(run, 4).lengths.max())
    assert "the longest has" not in lab(store, choices(), "--new-tokens", str(room)).stderr
    told = lab(store, choices(), "--new-tokens", str(room + 1)).stderr
    words = f"rows get {longest(run) + 1} tokens long; in training and test the longest has {longest(run)}"
    assert words in told
    bench = ["bench", "decode", run.directory.path.name, "--store", str(store), "--rounds", "1", "--batch", "4"]
    told = CliRunner().invoke(cli, [*bench, "--count", "4", "--new-tokens", str(room + 1)]).stderr
    assert told.count(f": {words}") == 1
    rows = measure(run, (4,), 4, room, 1, torch.device("cpu"))
    assert {row["beyond"] for row in rows} == {None}


def test_the_command_in_json(store: Path) -> None:
    document = json.loads(lab(store, choices(), "--new-tokens", "7", "--json").stdout.splitlines()[-1])
    assert document["run"]["identity"] == choices().identity
    assert [row["k"] for row in document["rows"]] == [1, 2]
    for each in document["continuations"]:
        made = [token for step in each["steps"] for token in (*step["accepted"], step["own"])]
        assert [token for token in made if token is not None] == each["tokens"]
        assert len(each["tokens"]) == 7
    assert len(document["continuations"]) == command.SHOWN
    assert len(document["paper"]) == 26


def test_a_prompt_and_a_tree(store: Path) -> None:
    told = json.loads(lab(store, polynomials(), "--prompt", "1,2 3", "--tree", "3,2", "--json").stdout)
    assert [row["drafts"] for row in told["rows"]] == [[], [1], [1, 1], [3, 2]]
    assert [each["prompt"] for each in told["continuations"]] == [[1, 2, 3]]
    told = json.loads(lab(store, tiny("objective=next_token"), "--heads", "1", "--json").stdout)
    assert [row["k"] for row in told["rows"]] == [1]


def test_colours_and_marks() -> None:
    accepted, rejected, own = (command._marked(kind, "x", True) for kind in ("accepted", "rejected", "own"))
    assert (str(accepted.style), str(rejected.style), str(own.style)) == ("green", "red strike", "")
    assert [command._marked(kind, "x y", False).plain for kind in command.MARKS] == ["[x y]", "{x y}", "x y"]


def test_rejected_drafts_are_shown_before_what_took_their_place(capsys: Any, store: Path) -> None:
    run = opened(store, polynomials())
    prompts = Prompts(torch.tensor([[1]]), torch.tensor([1]), None)
    steps = [[Step([], 2, []), Step([1, 2], 0, [1]), Step([], 1, [0, 2])]]
    command._print_continuations(run.task, prompts, steps)
    words = [run.task.vocabulary[token] for token in range(3)]
    shown = capsys.readouterr().out.splitlines()
    zero, one, two = words
    assert f"{one} {two} [{one} {two}] {{{one}}} {zero} {{{zero} {two}}} {one}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", "4"), r"^--heads: 4 is not allowed: the run has n = 3$"),
        (("--heads", "0"), r"^--heads: 0 is not allowed: the run has n = 3$"),
        (("--tree", "2,2,2"), r"^--tree: 3 numbers are not allowed: the run has n = 3, 2 heads that draft$"),
        (("--tree", "2,2", "--heads", "2"), r"^--tree: 2 numbers take 3 heads, not --heads 2$"),
        (("--tree", "2,2", "--temperature", "1"), r"^tree: \[2, 2\] is not allowed with sampling"),
        (("--temperature", "-1"), r"^--temperature: -1.0 is not allowed: should be 0, the likeliest, or above$"),
        (("--top-p", "0.9"), r"^--top-p: 0.9 is not allowed with --temperature 0"),
        (("--prompt", ",".join("1" * 999)), r"^prompt: 999 tokens are not allowed: should be from 1 to \d+, the most"),
        (("--prompt", "1,99"), r"^prompt: token 99 is not allowed: should be from 0 to \d+$"),
    ],
)  # fmt: skip
def test_bad_input(store: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lab(store, polynomials(), *arguments)


def test_a_run_without_further_heads(store: Path) -> None:
    for arguments in ((), ("--heads", "2"), ("--tree", "2")):
        with pytest.raises(BadInput, match=r"^RUN: next_token has no heads beyond the first"):
            lab(store, tiny("objective=next_token"), *arguments)


def test_words_for_numbers(store: Path) -> None:
    told = lab(store, polynomials(), "--tree", "two")
    assert told.exit_code == 2
    assert "'two' is not allowed: should be whole numbers with commas between" in told.output


# lab bench decode


def test_every_batch_and_k_is_measured(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    run = opened(store, polynomials())
    Clock(monkeypatch)
    done: list[int] = []
    rows = measure(run, (1, 5), 4, 6, 1, torch.device("cpu"), lambda: done.append(1))
    assert len(done) == 2
    assert [(row["batch"], row["k"], row["prompts"]) for row in rows] == [
        *((1, k, 4) for k in (1, 2, 3)), *((5, k, 5) for k in (1, 2, 3))
    ]  # fmt: skip
    for row in rows:
        assert row["of_layers"] == pytest.approx(row["speed_up"] / row["layers_allow"])
        assert row["characters_per_second"] == pytest.approx(characters_per_token(run) * row["tokens_per_second"])
        assert (row["identity"], row["n"], row["identical"]) == (run.experiment.identity, 3, 1)
    examples = run.test_examples(100)
    texts = [run.task.record(examples, row)["text"] for row in range(len(examples.lengths))]
    assert characters_per_token(run) == pytest.approx(sum(map(len, texts)) / examples.lengths.sum())


def test_beside_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    row = beside_transformers(Shape(2, 32, 2), 19, 3, 8, 5, 2, torch.device("cpu"))
    assert row["missing"] is None
    assert row["of_peer"] == pytest.approx(row["peer_seconds"] / row["seconds"])
    assert (row["batch"], row["prompt"], row["new_tokens"], row["layers"]) == (3, 8, 5, 2)


def test_bench_decode(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    def missing(*_: Any) -> Any:
        raise NotInstalled("not installed: pip install transformers")

    monkeypatch.setattr(decoding_speed, "build_peer", missing)
    run = opened(store, polynomials())

    def lab(*line: str) -> Result:
        arguments = ["bench", "decode", run.directory.path.name, "--store", str(store), "--device", "cpu", *line]
        return CliRunner().invoke(cli, [*arguments, "--rounds", "1", "--count", "2", "--new-tokens", "6"])

    told = lab("--batch", "1", "--batch", "3", "--json")
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert [(row["batch"], row["k"]) for row in document["rows"]] == [(b, k) for b in (1, 3) for k in (1, 2, 3)]
    assert [row["missing"] for row in document["beside_transformers"]] == 2 * [
        "not installed: pip install transformers"
    ]
    [least] = [row["of_layers"] for row in document["rows"] if (row["batch"], row["k"]) == (1, 3)]
    assert document["bound"] == {"at_least": 0.9, "of_layers": least, "holds": least >= 0.9}
    assert document["commit"]
    table = lab("--batch", "1")
    assert re.search(r"bound, batch 1, all heads: \d\.\d\d ≥ 0.9 of what layers allow", table.output)
    if not torch.cuda.is_available():
        refused = lab("--device", "cuda")
        assert refused.exit_code == 1
        assert "--device: cuda is not allowed" in str(refused.exception)
