"""The peak meter against allocations whose sizes are known, and small training steps; which cells are run."""

import json
import runpy
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from matplotlib import pyplot as plt

from lab.bench import memory
from lab.bench.memory import Meter, available, bound, cells, estimate
from lab.bench.speed import Setting
from lab.cli.bench import ByteSize
from lab.cli.main import cli
from lab.errors import BadInput
from lab.home import home
from lab.models.sizes import Model
from lab.objectives import backward
from lab.objectives.backward import Order

CPU = torch.device("cpu")
ORDERS: tuple[Order, ...] = ("joint", "sequential", "fused")
LARGE = 2**40


def setting(tokens: int = 64, objective: str = "parallel") -> Setting:
    """Positions in rows of 32, on a model of 6 layers of width 32."""
    return Setting(Model(layers=6, width=32, heads=2), objective, tokens, 32, CPU, "fp32")


def test_the_meter_counts_to_the_byte() -> None:
    kept = torch.empty(7)
    with Meter(CPU) as meter:
        early = torch.empty(1000)  # 4000 bytes
        gone = torch.empty(9000)
        del gone  # over before the peak counts
        meter.start()
        first = torch.empty(500)  # 6000
        second = torch.empty(250, dtype=torch.float64)  # 8000, the peak
        del first, kept  # and what was made before counts for nothing, nor does its end
        third = torch.empty(300)  # 7200
        del early, second, third
    assert meter.peak == 8000


@pytest.mark.parametrize("part", ["matrix product", "view", "in place"])
def test_the_meter_hears_of_what_operations_allocate(part: str) -> None:
    with Meter(CPU) as meter:
        a, b = torch.ones(64, 32), torch.ones(32, 16)
        meter.start()
        _ = {"matrix product": lambda: a @ b, "view": lambda: a.view(-1)[5:], "in place": lambda: a.zero_()}[part]()
    assert meter.peak == 4 * (64 * 32 + 32 * 16 + (64 * 16 if part == "matrix product" else 0))


def test_the_meter_hears_of_gradients() -> None:
    with Meter(CPU) as meter:
        weight = torch.ones(1000, requires_grad=True)
        meter.start()
        weight.exp().sum().backward()  # type: ignore[no-untyped-call]
    assert 3 * 4000 <= meter.peak <= 3 * 4000 + 64  # weight, exponential, gradient; the loss and what it begins with


def test_peaks_repeat_and_do_not_depend_on_cells_before() -> None:
    rows = cells(setting(), (1, 3), (400, 50), ("joint", "fused"), LARGE)
    assert [(row["vocabulary"], row["order"], row["n"]) for row in rows] == [
        (vocabulary, order, n) for vocabulary in (400, 50) for order in ("joint", "fused") for n in (1, 3)
    ]
    (alone,) = cells(setting(), (3,), (50,), ("fused",), LARGE)
    assert alone["peak_bytes"] == rows[-1]["peak_bytes"]
    assert alone["ratio_to_n1"] is None


def test_what_a_row_says() -> None:
    model = setting().instantiated(2, 100)
    parameters = 4 * sum(each.numel() for each in model.parameters())
    (row,) = cells(setting(), (2,), (100,), ("joint",), LARGE)
    assert row["parameter_bytes"] == parameters
    steps = 4 * len(list(model.parameters()))  # AdamW counts its steps for each parameter
    assert row["optimizer_bytes"] == 2 * parameters + steps
    assert row["net_bytes"] == row["peak_bytes"] - row["parameter_bytes"] - row["optimizer_bytes"]
    assert row["net_bytes"] > parameters  # the gradients


def test_logits_grow_with_n_unless_heads_are_done_with_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one head's logits are more than all activations; those of a chunk are an eighth."""
    monkeypatch.setattr(backward, "CHUNK_BYTES", 2**20)
    rows = cells(setting(tokens=512), (1, 4), (4000,), ORDERS, LARGE)
    ratios = {row["order"]: row["ratio_to_n1"] for row in rows if row["n"] == 4}
    joint, sequential, fused = (row["net_bytes"] for row in rows if row["n"] == 4)
    assert ratios["joint"] > 1.6
    assert ratios["sequential"] <= memory.BOUND
    assert ratios["fused"] <= memory.BOUND
    assert fused < 0.8 * sequential < 0.5 * joint


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("objective", "vocabulary"), [("parallel", 4000), ("parallel", 50), ("causal", 1000)])
def test_estimates_are_near_what_is_measured(objective: str, vocabulary: int, order: Order) -> None:
    for row in cells(setting(512, objective), (1, 4), (vocabulary,), (order,), LARGE):
        assert row["estimated_net_bytes"] == pytest.approx(row["net_bytes"], rel=0.05), row


def test_a_cell_beyond_the_limit_is_estimated_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def run(_: Setting, row: dict[str, Any]) -> dict[str, Any]:
        measured.append(row["n"])
        return {"net_bytes": 10}

    monkeypatch.setattr(memory, "_measured", run)
    peaks = [row["estimated_peak_bytes"] for row in cells(setting(), (1, 4), (4000,), ("joint",), 0)]
    assert not measured
    assert peaks[0] < peaks[1]
    told: list[tuple[str, float]] = []
    one, four = cells(
        setting(), (1, 4), (4000,), ("joint",), peaks[0] + memory.BESIDES, lambda *words: told.append(words)
    )
    assert (one["ran"], four["ran"], measured) == (True, False, [1])
    assert (one["ratio_to_n1"], four["ratio_to_n1"], four["net_bytes"]) == (1.0, None, None)
    assert four["estimated_net_bytes"] == estimate(setting().instantiated(4, 4000), 64, 32, "joint")
    assert told == [("V = 4,000, joint, n = 1", 0.0)]


def test_the_bound_is_told_in_its_own_setting_alone() -> None:
    stated = Setting(memory.BOUND_MODEL, "parallel", memory.BOUND_TOKENS, 256, CPU, "fp32")
    ratios = {"joint": 1.46, "sequential": 0.9, "fused": None}
    rows = [
        {"order": order, "n": n, "vocabulary": vocabulary, "ratio_to_n1": ratio}
        for order, ratio in ratios.items()
        for n in (1, 4)
        for vocabulary in (256, 32_000)
    ]
    told = bound(stated, rows)
    assert told is not None
    assert told["ratio_to_n1"] == {"joint": 1.46, "sequential": 0.9}
    assert told["holds"] == {"joint": False, "sequential": True}
    assert bound(setting(), rows) is None


def test_some_memory_is_available() -> None:
    assert 2**20 < available(CPU) < 2**50


SMALL = ["--size", "1M", "--tokens", "32", "--context", "16", "--vocabulary", "50", "--device", "cpu"]


def test_bench_memory_prints_json_last() -> None:
    ran = CliRunner().invoke(cli, ["bench", "memory", *SMALL, "--n", "1", "--n", "4", "--order", "fused", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout.splitlines()[-1])
    assert [(row["n"], row["order"], row["vocabulary"], row["ran"]) for row in told["cells"]] == [
        (1, "fused", 50, True),
        (4, "fused", 50, True),
    ]
    assert (told["objective"], told["size"], told["tokens"], told["bound"]) == ("parallel", "1M", 32, None)
    assert {"hardware", "versions", "commit", "limit_bytes", "precision", "context"} <= told.keys()


def test_bench_memory_for_people() -> None:
    shown = CliRunner().invoke(cli, ["bench", "memory", *SMALL, "--n", "2", "--limit", "1MiB"]).stdout
    assert shown.count("not run: takes about") == 3
    assert all(order in shown for order in ORDERS)


def test_amounts_of_memory() -> None:
    assert ByteSize().convert("512MiB", None, None) == 2**29
    assert ByteSize().convert("1.5GiB", None, None) == 3 * 2**29


def test_the_objective_of_a_setting_is_checked_before_anything_runs() -> None:
    with pytest.raises(BadInput, match="at most 5"):
        cells(setting(), (1, 6), (50,), ORDERS, LARGE)


def test_the_figure_shows_what_was_not_run_hollow() -> None:
    rows = cells(setting(), (1, 2, 4), (50, 4000), ORDERS, 0)
    for row in rows:
        row["ran"] = row["n"] < 4
        row["net_bytes"] = 2 * row["estimated_net_bytes"] if row["ran"] else None
    table = {"objective": "parallel", "size": "L6", "tokens": 64, "precision": "fp32", "hardware": {"device": "cpu"}}
    figure = runpy.run_path(str(home() / "figures" / "memory_by_order.py"))["draw"]({**table, "cells": rows})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["vocabulary 50", "vocabulary 4,000"]
    for axes, vocabulary in zip(figure.axes, (50, 4000), strict=True):
        for order in ORDERS:
            mine = [row for row in rows if (row["vocabulary"], row["order"]) == (vocabulary, order)]
            drawn = [line for line in axes.lines if line.get_label() == order]
            assert [2**30 * y for line in drawn for y in line.get_ydata()] == pytest.approx(
                [row["net_bytes"] for row in mine if row["ran"]]
            )
        hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert [len(line.get_ydata()) for line in hollow] == [1, 1, 1]
    plt.close("all")
