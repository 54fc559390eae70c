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

from lab.bench import loops, peers, speed
from lab.bench.devices import device_peak
from lab.bench.lightning_loop import in_lightning
from lab.bench.loops import OURS, WARMUP, at_least, compare, several_heads, take_turns
from lab.bench.peers import PEERS, build_peer, flops_per_token, inner_parameters
from lab.bench.speed import DOCUMENTS, PRESETS, Setting, Taken, causal_loss, medians, step_times, take_step
from lab.cli import bench_train
from lab.cli.main import cli
from lab.models.sizes import Model, Shape
from lab.objectives.backward import losses
from lab.objectives.base import Batch
from lab.objectives.flops import instantiate, non_embedding_parameters, training_flops_per_token
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel

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
    owner = setting().batch(2, V, 4).document_ids
    assert owner.tolist() == [[0] * 8 + [1] * 8 + [2] * 8 + [3] * 10] * 2
    assert not setting().batch(2, V).document_ids.any()


def test_lightning_and_the_bare_loop_end_with_the_same_weights() -> None:
    trainer, batch = setting().trainer(1, V), setting().batch(1, V, DOCUMENTS)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for _ in range(5):
        trainer.step(batch, "joint")
    trained = in_lightning(setting(), V, 4, iter(()))
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name])
        assert not torch.equal(weight, start[name])


@pytest.mark.parametrize(("n", "vocabulary", "order"), [(2, V, "joint"), (4, 2**17, "sequential")])
def test_further_heads_train_on_documents_in_the_order_of_a_run(
    n: int, vocabulary: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Batch, str]] = []

    def record(objective: Any, decoder: Any, batch: Batch, weights: Any, order: str) -> Any:
        seen.append((objective.n, batch, order))
        return losses(objective, decoder, batch, weights)

    small = setting()._replace(model=Model(layers=5, width=2, heads=1))
    contender = several_heads(small, vocabulary, n)
    monkeypatch.setattr(speed, "losses", record)
    assert contender.step is not None
    contender.step()
    [(heads, batch, taken)] = seen
    assert (heads, taken) == (n, order)
    assert sorted(set(batch.document_ids[0].tolist())) == [*range(DOCUMENTS)]
    same = instantiate(small.model, Parallel(n=n), vocabulary)
    assert (contender.n, contender.flops) == (n, training_flops_per_token(same, T))
    assert contender.parameters == non_embedding_parameters(same)


# Presets


def test_the_sweeps_shape_and_the_bounds() -> None:
    sweeps = PRESETS["sweeps"]
    assert sweeps.model.shape == Shape(layers=6, width=64, attention_heads=4)
    assert (sweeps.context, sweeps.tokens, sweeps.threads, sweeps.vocabulary) == (64, 1024, 1, 32)
    stated = {name: each.ahead for name, each in PRESETS.items() if each.ahead != 1}
    assert stated == {"sweeps": 1.2, "1M": 1.1, "30M": 1.05}


def test_a_bound_holds_for_its_own_setting_alone() -> None:
    for preset in PRESETS.values():
        own = Setting(preset.model, "next_token", preset.tokens, preset.context, CPU, "fp32")
        assert at_least(own) == preset.ahead
        assert at_least(own._replace(context=preset.context // 2)) == 1
        assert at_least(own._replace(device=torch.device("cuda"))) == 1
    assert at_least(setting()) == 1


# Turns


def test_everyone_takes_a_step_in_each_round_in_another_order() -> None:
    taken: list[str] = []
    rounds: list[int] = []
    steps: dict[str, Callable[[], None] | None] = {name: partial(taken.append, name) for name in "abc"}
    steps["suspended"] = None
    times: dict[str, list[Taken]] = {name: [] for name in steps}
    for _ in take_turns(steps, 5, times, CPU, rounds.append):
        taken.append("suspended")
    in_rounds = [tuple(taken[start : start + 4]) for start in range(0, len(taken), 4)]
    assert in_rounds == [
        ("a", "b", "c", "suspended"),
        ("a", "suspended", "c", "b"),  # from b on, backwards
        ("c", "suspended", "a", "b"),
        ("c", "b", "a", "suspended"),
        ("a", "b", "c", "suspended"),
    ]
    assert [len(each) for each in times.values()] == [5] * 4
    assert rounds == [*range(5)]


def test_medians_of_both_times() -> None:
    taken = [Taken(3, 9) - Taken(1, 2), Taken(10, 5) - Taken(5, 5), Taken(4, 4) - Taken(0, 3)]
    assert taken == [(2, 7), (5, 0), (4, 1)]
    assert medians(taken) == (4, 1)


def test_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """With clocks of our own: each reading of one is a second later, of the other three, so that is what steps take."""
    wall, processor = iter(range(10**6)), iter(range(0, 10**7, 3))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(wall)))
    monkeypatch.setattr(time, "process_time", lambda: float(next(processor)))
    rounds: list[int] = []
    told = compare(setting(), V, (1, 4, 6), ("nanogpt",), 3, rounds.append)
    assert rounds == [*range(3 + WARMUP)]
    assert [row["loop"] for row in told["loops"]] == [*OURS, "n4", "n6", "nanogpt"]
    assert (told["layers"], told["width"], told["heads"], told["tokens"], told["context"]) == (6, 32, 2, 2 * T, T)
    assert (told["vocabulary"], told["steps"], told["documents_in_a_row"]) == (V, 3, DOCUMENTS)
    assert told["threads"] == torch.get_num_threads()
    bare, masks, lightning, four, six, nanogpt = told["loops"]
    assert six == {"loop": "n6", "missing": six["missing"]}
    assert "at most 5" in six["missing"]
    assert [row["n"] for row in (bare, masks, lightning, four, nanogpt)] == [1, 1, 1, 4, 1]
    assert masks["beyond_flops"] is nanogpt["beyond_flops"] is None
    more = four["flops_per_token"] - masks["flops_per_token"]
    assert more == 3 * 6 * 32 * V  # three more unembeddings
    beyond = masks["flops_per_token"] / four["flops_per_token"]  # it took the same time
    assert four["beyond_flops"] == pytest.approx(beyond)
    assert told["bounds"]["heads"] == {
        "n": 4,
        "beyond_flops": four["beyond_flops"],
        "at_most": 1.03,
        "holds": True,
    }
    assert bare["processor_seconds"] == nanogpt["processor_seconds"] == 3
    assert nanogpt["of_fastest_peer_by_processor"] == 1
    assert bare["non_embedding_parameters"] == lightning["non_embedding_parameters"]
    assert lightning["seconds"] > bare["seconds"] == nanogpt["seconds"] == 1  # callbacks look at the clock as well
    assert nanogpt["seconds_quartiles"] == [1, 1]
    assert nanogpt["tokens_per_second"] == 2 * T
    assert nanogpt["flops_per_second"] == nanogpt["flops_per_token"] * 2 * T
    assert nanogpt["share_of_peak"] == nanogpt["flops_per_second"] / told["peak_flops_per_second"]
    assert nanogpt["of_fastest_peer"] == bare["of_fastest_peer"] == 1
    assert told["bounds"]["ahead_of_peers"] == {
        "loop": "masks",
        "peer": "nanogpt",
        "of_fastest_peer": 1,
        "by_processor": 1,
        "at_least": 1,
        "holds": True,
        "missing": [],
    }
    assert told["bounds"]["lightning"] == {"of_bare_loop": lightning["seconds"], "at_most": 1.03, "holds": False}


def test_bounds_that_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step with masks takes two seconds, one with n = 4 three, and all others one."""
    lasts = {"masks": 2.0, "n4": 3.0}
    real = take_turns

    def turns(steps: Any, rounds: int, taken: dict[str, list[Taken]], *more: Any) -> Any:
        yield from real(steps, rounds, taken, *more)
        for name, times in taken.items():
            times[:] = [Taken(lasts.get(name, 1.0), 5 * lasts.get(name, 1.0))] * len(times)

    monkeypatch.setattr(loops, "take_turns", turns)
    monkeypatch.setattr(loops, "at_least", lambda _: 0.5)
    bounds = compare(setting(), V, (1, 4), ("nanogpt",), 1)["bounds"]
    assert (bounds["ahead_of_peers"]["of_fastest_peer"], bounds["ahead_of_peers"]["holds"]) == (0.5, True)
    assert bounds["ahead_of_peers"]["by_processor"] == 0.5
    assert bounds["lightning"]["holds"]
    assert bounds["heads"]["beyond_flops"] > 1.03
    assert not bounds["heads"]["holds"]
    monkeypatch.setattr(loops, "at_least", lambda _: 0.51)
    bounds = compare(setting(), V, (1, 2), ("nanogpt",), 1)["bounds"]
    assert not bounds["ahead_of_peers"]["holds"]
    assert bounds["heads"] is None


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


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds of large matrix products, by which a CPU's peak is known."""
    monkeypatch.setattr(loops, "matmuls", lambda _: {"product": (lambda: None, 1)})


def run(*arguments: str) -> Any:
    ran = CliRunner().invoke(cli, ["bench", "train", *SMALL, *arguments])
    assert ran.exit_code == 0, ran.output
    return ran


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for each in [each for each in sys.modules if each.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("small_products")
def test_one_document_holds_both_parts() -> None:
    told = json.loads(run("--size", "1M", "--peer", "nanogpt", "--json").stdout.splitlines()[-1])
    assert told.keys() == {"hardware", "versions", "commit", "loops", "heads"}
    assert {"cpu", "instructions", "kernels"} <= told["hardware"].keys()
    [one], [two] = told["loops"], told["heads"]
    assert one["threads"] == two["threads"] == 1
    assert "threads" not in told["hardware"]
    assert [row["loop"] for row in one["loops"]] == [*OURS, "n2", "n4", "nanogpt"]
    assert one["bounds"].keys() == {"ahead_of_peers", "heads", "lightning"}
    assert one["profile"] is None
    assert len(two["cells"]) == 9
    assert two["bound"]["holds"].keys() == {"joint", "sequential", "fused"}
    assert (two["objective"], two["size"], two["vocabulary"], two["steps"]) == ("parallel", "1M", 50, 1)


@pytest.mark.usefixtures("small_products")
def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "litgpt")
    arguments = ("--only", "loops", "--size", "1M", "--peer", "litgpt", "--peer", "nanogpt")
    told = json.loads(run(*arguments, "--json").stdout.splitlines()[-1])
    assert told["heads"] == []
    [one] = told["loops"]
    assert one["loops"][5] == {"loop": "litgpt", "missing": "not installed: pip install litgpt"}
    assert one["loops"][6]["missing"] is None
    assert one["bounds"]["ahead_of_peers"]["missing"] == ["litgpt"]
    shown = run(*arguments).stdout
    assert "not installed: pip install litgpt" in shown
    assert "not measured: litgpt" in shown
    assert "Lightning against the bare loop" in shown
    assert "n = 4 beyond its FLOPs" in shown
    about = told["hardware"]
    assert f"{about['cpu']}, {about['instructions']}, threads: 1, kernels: {about['kernels']}" in shown


@pytest.mark.usefixtures("small_products")
def test_without_peers_nothing_is_said_of_being_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "x_transformers")
    shown = run("--only", "loops", "--size", "1M", "--peer", "x-transformers").stdout
    assert "ahead of" not in shown
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
    assert "kernels:" in shown


@pytest.mark.parametrize(
    ("options", "context", "tokens", "vocabulary", "steps", "threads"),
    [
        ("", (64, 256, 256), (1024, 4096, 1024), (32, 256, 256), (100, 20, 20), (1, 3, 3)),
        ("--context 32 --tokens 96 --vocabulary 7", (32,) * 3, (96,) * 3, (7,) * 3, (100, 20, 20), (1, 3, 3)),
        ("--steps 2 --threads 5", (64, 256, 256), (1024, 4096, 1024), (32, 256, 256), (2,) * 3, (5,) * 3),
    ],
)
def test_each_size_has_defaults_of_its_own(
    options: str, context: Any, tokens: Any, vocabulary: Any, steps: Any, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    used: list[int] = []

    def record(setting: Setting, vocabulary: int, ns: Any, peers: Any, steps: int, _: Any) -> dict[str, Any]:
        asked.append((setting.context, setting.tokens, vocabulary, steps, used[-1]))
        return {"size": setting.model.label}

    monkeypatch.setattr(loops, "compare", record)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    ran = CliRunner().invoke(cli, ["bench", "train", "--only", "loops", "--device", "cpu", *options.split(), "--json"])
    told = json.loads(ran.stdout.splitlines()[-1])
    assert [each["size"] for each in told["loops"]] == ["L6-D64-H4", "1M", "30M"]
    assert asked == [*zip(context, tokens, vocabulary, steps, threads, strict=True)]


def test_the_command_knows_the_peers() -> None:
    assert tuple(PEERS) == bench_train.PEERS


def test_step_times() -> None:
    rounds: list[int] = []
    rows = step_times(setting("parallel"), (1, 2), 100, ("joint", "fused"), 2, rounds.append)
    assert rounds == [0, 1, 2]
    assert [(row["order"], row["n"]) for row in rows] == [("joint", 1), ("joint", 2), ("fused", 1), ("fused", 2)]
    for one, two in (rows[:2], rows[2:]):
        assert one["relative_to_n1"] == one["beyond_flops"] == 1
        assert one["processor_seconds"] > 0
        assert two["relative_to_n1"] == pytest.approx(two["seconds"] / one["seconds"])
        more = two["flops_per_token"] - one["flops_per_token"]
        assert more == 6 * 32 * 100  # one more unembedding
        assert two["beyond_flops"] == pytest.approx(
            two["relative_to_n1"] / (two["flops_per_token"] / one["flops_per_token"])
        )
    (alone,) = step_times(setting("parallel"), (2,), 100, ("joint",), 1)
    assert alone["relative_to_n1"] is alone["beyond_flops"] is None
