"""Training loops side by side: that they are comparable, that all take the same turns, and what is told of them."""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lab.analysis import peers
from lab.analysis.devices import device_peak
from lab.analysis.loops import DOCUMENTS, OURS, WARMUP, compare, in_lightning, take_turns
from lab.analysis.peers import PEERS, build_peer, flops_per_token, inner_parameters
from lab.analysis.speed import Setting, causal_loss, step_times, take_step
from lab.cli import bench
from lab.cli.main import cli
from lab.models.sizes import Model
from lab.objectives.backward import losses
from lab.objectives.cost import instantiate, non_embedding_parameters, training_flops_per_token
from lab.objectives.next_token import NextToken

CPU = torch.device("cpu")
V, T = 48, 32


def setting(objective: str = "next_token") -> Setting:
    """Two rows of 32, on a model of 6 layers of width 32."""
    return Setting(Model(layers=6, width=32, heads=2), objective, 2 * T, T, CPU, "fp32")


@pytest.fixture(params=PEERS)
def name(request: pytest.FixtureRequest) -> str:
    """A peer that is installed."""
    if module := PEERS[request.param].module:
        pytest.importorskip(module)
    return str(request.param)


# Peers


@pytest.mark.parametrize("size", ["1M", "30M"])
def test_peers_have_our_parameters(name: str, size: Any) -> None:
    model = Model(size=size)
    ours = non_embedding_parameters(instantiate(model, NextToken(), 256))
    theirs = inner_parameters(build_peer(name, model.shape, 256, 256))
    assert sum(each.numel() for each in theirs) == pytest.approx(ours, rel=0.01)


def test_what_peers_cost_is_what_torch_counts(name: str) -> None:
    shape, positions = Model(size="1M").shape, 2 * T
    peer = build_peer(name, shape, V, T)
    tokens = torch.zeros(2, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        peer.logits(tokens).sum().backward()  # type: ignore[no-untyped-call]
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    products = counts.get("aten.mm", 0) + counts.get("aten.addmm", 0)  # attention is another operation on each device
    attention = 3 * shape.layers * 4 * T * shape.width
    told = flops_per_token(peer, shape, V, T)
    assert told == products / positions + attention
    assert told == pytest.approx(training_flops_per_token(instantiate(Model(), NextToken(), V), T), rel=0.01)


def test_peers_learn(name: str) -> None:
    torch.manual_seed(0)
    peer = build_peer(name, Model(layers=2, width=32, heads=2).shape, V, T)
    optimizer = torch.optim.AdamW(peer.model.parameters(), lr=1e-2)
    tokens_BT = torch.randint(V, (2, T + 1))
    told: list[float] = []

    def loss() -> torch.Tensor:
        value = F.cross_entropy(peer.logits(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())
        told.append(value.item())
        return value

    loss().backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None for each in peer.model.parameters())
    for _ in range(20):
        take_step(peer.model, optimizer, "fp32", loss)
    assert told[-1] < 0.7 * told[0]


def test_peers_look_back_alone(name: str) -> None:
    peer = build_peer(name, Model(layers=2, width=32, heads=2).shape, V, T)
    tokens_BT = torch.randint(V, (1, T))
    before = peer.logits(tokens_BT)
    tokens_BT[0, T // 2] = (tokens_BT[0, T // 2] + 1) % V
    after = peer.logits(tokens_BT)
    assert before.shape == (1, T, V)
    assert torch.allclose(before[0, : T // 2], after[0, : T // 2], atol=1e-5)
    assert not torch.allclose(before[0, T // 2 :], after[0, T // 2 :], atol=1e-5)


# Our loops


def test_without_masks_the_loss_is_the_same() -> None:
    model, batch = setting().trainer(1, V).model, setting().batch(1, V)
    masked = losses(model.objective, model.decoder, batch, [1.0]).total
    assert causal_loss(model, batch).item() == pytest.approx(masked.item(), rel=1e-6)


def test_rows_hold_documents() -> None:
    owner = setting().batch(2, V, 4).documents
    assert owner.tolist() == [[0] * 8 + [1] * 8 + [2] * 8 + [3] * 10] * 2
    assert not setting().batch(2, V).documents.any()


def test_lightning_and_the_bare_loop_end_with_the_same_weights() -> None:
    trainer, batch = setting().trainer(1, V), setting().batch(1, V, DOCUMENTS)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for _ in range(5):
        trainer.step(batch, "joint")
    trained = in_lightning(setting(), V, 4, iter(()))
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name])
        assert not torch.equal(weight, start[name])


# Turns


def test_everyone_takes_a_step_in_each_round_in_another_order() -> None:
    taken: list[str] = []
    rounds: list[int] = []
    steps: dict[str, Callable[[], None] | None] = {name: partial(taken.append, name) for name in "abc"}
    steps["suspended"] = None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in take_turns(steps, 5, seconds, CPU, rounds.append):
        taken.append("suspended")
    in_rounds = [tuple(taken[start : start + 4]) for start in range(0, len(taken), 4)]
    assert in_rounds == [
        ("a", "b", "c", "suspended"),
        ("a", "suspended", "c", "b"),  # from b on, backwards
        ("c", "suspended", "a", "b"),
        ("c", "b", "a", "suspended"),
        ("a", "b", "c", "suspended"),
    ]
    assert [len(each) for each in seconds.values()] == [5] * 4
    assert rounds == [*range(5)]


def test_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: each reading of it is a second later, so every step takes one."""
    now = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    rounds: list[int] = []
    told = compare(setting(), V, ("nanogpt",), 3, rounds.append)
    assert rounds == [*range(3 + WARMUP)]
    assert [row["loop"] for row in told["loops"]] == [*OURS, "nanogpt"]
    assert (told["layers"], told["width"], told["heads"], told["tokens"], told["context"]) == (6, 32, 2, 2 * T, T)
    assert (told["vocabulary"], told["steps"], told["documents_in_a_row"]) == (V, 3, DOCUMENTS)
    bare, _, lightning, nanogpt = told["loops"]
    assert bare["non_embedding_parameters"] == lightning["non_embedding_parameters"]
    assert lightning["seconds"] > bare["seconds"] == nanogpt["seconds"] == 1  # callbacks look at the clock as well
    assert nanogpt["seconds_quartiles"] == [1, 1]
    assert nanogpt["tokens_per_second"] == 2 * T
    assert nanogpt["flops_per_second"] == nanogpt["flops_per_token"] * 2 * T
    assert nanogpt["share_of_peak"] == nanogpt["flops_per_second"] / told["peak_flops_per_second"]
    assert nanogpt["of_fastest_peer"] == bare["of_fastest_peer"] == 1
    assert told["bounds"]["ahead_of_peers"] == {
        "peer": "nanogpt",
        "of_fastest_peer": 1,
        "above": 1,
        "holds": False,
        "missing": [],
    }
    assert told["bounds"]["lightning"] == {"of_bare_loop": lightning["seconds"], "at_most": 1.03, "holds": False}


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("Tesla K80", None),
    ],
)
def test_peaks_of_devices(device: str, peak: float | None) -> None:
    assert device_peak(device) == peak


# The command

SMALL = ["--tokens", "64", "--context", "16", "--vocabulary", "50", "--device", "cpu", "--steps", "1", "--threads", "1"]


def run(*arguments: str) -> Any:
    ran = CliRunner().invoke(cli, ["bench", "train", *SMALL, *arguments])
    assert ran.exit_code == 0, ran.output
    return ran


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for each in [each for each in sys.modules if each.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, module, None)


def test_one_document_holds_both_parts() -> None:
    told = json.loads(run("--size", "1M", "--peer", "nanogpt", "--json").stdout.splitlines()[-1])
    assert told.keys() == {"hardware", "versions", "commit", "loops", "heads"}
    [one], [two] = told["loops"], told["heads"]
    assert [row["loop"] for row in one["loops"]] == [*OURS, "nanogpt"]
    assert one["bounds"].keys() == {"ahead_of_peers", "lightning"}
    assert len(two["cells"]) == 9
    assert two["bound"]["holds"].keys() == {"joint", "sequential", "fused"}
    assert (two["objective"], two["size"], two["vocabulary"], two["steps"]) == ("parallel", "1M", 50, 1)


def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "litgpt")
    arguments = ("--only", "loops", "--size", "1M", "--peer", "litgpt", "--peer", "nanogpt")
    told = json.loads(run(*arguments, "--json").stdout.splitlines()[-1])
    assert told["heads"] == []
    [one] = told["loops"]
    assert one["loops"][3] == {"loop": "litgpt", "missing": "not installed: pip install litgpt"}
    assert one["loops"][4]["missing"] is None
    assert one["bounds"]["ahead_of_peers"]["missing"] == ["litgpt"]
    shown = run(*arguments).stdout
    assert "not installed: pip install litgpt" in shown
    assert "not measured: litgpt" in shown
    assert "Lightning against the bare loop" in shown


def test_without_peers_nothing_is_said_of_being_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "x_transformers")
    shown = run("--only", "loops", "--size", "1M", "--peer", "x-transformers").stdout
    assert "ahead" not in shown
    assert "not installed: pip install x-transformers" in shown


def test_what_else_a_library_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")

    monkeypatch.setitem(PEERS, "litgpt", PEERS["litgpt"]._replace(build=build))
    with pytest.raises(peers.NotInstalled, match="psutil is missing; pip install litgpt"):
        build_peer("litgpt", Model().shape, V, T)


def test_heads_for_people() -> None:
    shown = run("--only", "heads", "--size", "1M", "--n", "1", "--n", "2", "--order", "joint").stdout
    assert "beyond FLOPs" in shown
    assert "nanogpt" not in shown


def test_the_command_knows_the_peers() -> None:
    assert tuple(PEERS) == bench.PEERS


def test_step_times() -> None:
    rounds: list[int] = []
    rows = step_times(setting("parallel"), (1, 2), 100, ("joint", "fused"), 2, rounds.append)
    assert rounds == [0, 1, 2]
    assert [(row["order"], row["n"]) for row in rows] == [("joint", 1), ("joint", 2), ("fused", 1), ("fused", 2)]
    for one, two in (rows[:2], rows[2:]):
        assert one["relative_to_n1"] == one["beyond_flops"] == 1
        assert two["relative_to_n1"] == pytest.approx(two["seconds"] / one["seconds"])
        more = two["flops_per_token"] - one["flops_per_token"]
        assert more == 6 * 32 * 100  # one more unembedding
        assert two["beyond_flops"] == pytest.approx(
            two["relative_to_n1"] / (two["flops_per_token"] / one["flops_per_token"])
        )
    (alone,) = step_times(setting("parallel"), (2,), 100, ("joint",), 1)
    assert alone["relative_to_n1"] is alone["beyond_flops"] is None
