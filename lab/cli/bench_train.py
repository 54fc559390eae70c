"""`lab bench train`: time of a training step, beside other libraries' models and by the number of heads."""

import os
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import as_json, counting, print_json, say
from lab.cli.measured import holds, in_words, measured_on, print_rows, setting_of, shape, where

if TYPE_CHECKING:
    from lab.bench.profiling import Profile
    from lab.bench.speed import Preset, Setting

PEERS = ("nanogpt", "litgpt", "transformers-gpt2", "transformers-llama", "x-transformers")  # lab.bench.peers.PEERS
PROFILED = 10
"""Steps of a profile at most."""
SHOWN = 12
"""Operations of each profile that a table has: those that take most."""


@click.command()
@click.option("--only", type=click.Choice(("loops", "heads")), help="Measure one part alone.  [default: both]")
@click.option(
    "--peer",
    "peers",
    type=click.Choice(PEERS),
    multiple=True,
    default=PEERS,
    help="Loops: whose models train beside ours; can be given several times.  [default: all]",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Loops: then profile a step of ours with masks, and of the first --peer, by part and by operation (CPU).",
)
@click.option(
    "--n",
    "ns",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1, 2, 4),
    help="Heads; can be given several times.  [default: 1, 2, 4]",
)
@measured_on("Heads: ")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    help="The model: sweeps (6 layers of width 64, 4 attention heads), or a size as in `lab models`; can be given "
    "several times.  [default: loops sweeps, 1M and 30M; heads 30M]",
)
@click.option(
    "--vocabulary", type=click.IntRange(1, 2**24), help="Tokens.  [default: loops 256; heads 32000; sweeps 32]"
)
@click.option(
    "--tokens", type=click.IntRange(1, 2**24), help="Positions of a step.  [default: 1024; loops of size 1M 4096]"
)
@click.option("--context", type=click.IntRange(1, 2**24), help="Positions of a row.  [default: 256; sweeps 64]")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of each that count.  [default: loops 20; loops of sweeps 100; heads 5]",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: all cores; sweeps 1]")
@as_json
def train(
    only: str | None, peers: tuple[str, ...], profile: bool, ns: tuple[int, ...], objective: str,
    orders: tuple[str, ...], device: str, sizes: tuple[str, ...], vocabulary: int | None, tokens: int | None,
    context: int | None, steps: int | None, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Time of a training step, in two parts: loops and heads.

    Loops: next-token prediction in our bare loop, attention plainly causal as the peers'; with the masks of several
    documents in a row, as runs train; those in Lightning; and by other libraries' models in the same shape. One that
    is not installed is said to be (pip install 'mtp-lab[peers]'). Beside them ours with masks and n parallel heads.

    Heads: by n and backward order, on rows of one document.

    `beyond FLOPs` is the time against n = 1 (of the same loop or order), divided by the FLOPs against n = 1. Whoever is
    compared takes one step in turn, and medians count: of wall-clock seconds, and of processor seconds, which are
    those of all threads added up (threads that spin while they wait included) and steadier on a shared machine. Ratios
    are of wall-clock time where nothing else is said. Options that name no part are both's. On 2 cores the loops take
    about eight minutes, the heads about five.
    """
    if profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines, before it is loaded
    from lab.errors import BadInput

    if profile and only == "heads":
        raise BadInput("--profile: is not allowed with --only heads: it is of the loops")

    # Everything is checked before anything is measured.
    loops, heads = [], []
    if only != "heads":
        for each in map(preset, sizes or ("sweeps", "1M", "30M")):
            setting = setting_of(each.model, "next_token", tokens or each.tokens, context or each.context, device, (1,))
            loops.append((each, setting))
    if only != "loops":
        for each in map(preset, sizes or ("30M",)):
            setting = setting_of(each.model, objective, tokens or 1024, context or each.context, device, ns)
            heads.append((each, setting))
    place = (loops + heads)[0][1]
    if profile and place.device.type != "cpu":
        raise BadInput("--profile: is not allowed on a GPU: it is of the CPU's operations (--device cpu)")

    told: dict[str, list[dict[str, Any]]] = {"loops": [], "heads": []}
    for each, setting in loops:
        _use_threads(threads or each.threads)
        counted = steps or each.steps
        part = _time_loops(setting, vocabulary or each.vocabulary, ns, peers, counted, not as_json)
        part["profile"] = _profile(setting, part["vocabulary"], peers, counted, not as_json) if profile else None
        told["loops"].append(part)
    for each, setting in heads:
        _use_threads(threads or each.threads)
        known = vocabulary or each.heads_vocabulary
        told["heads"].append(_time_heads(setting, ns, known, orders, steps or 5, not as_json))
    if as_json:
        about = where(place)
        del about["hardware"]["threads"]  # each part's own
        print_json({**about, **told})


def preset(size: str) -> "Preset":
    """Return the model of a size, and what it is measured on by default.

    Raises:
        BadInput: there is no such size.
    """
    from lab.bench.speed import PRESETS
    from lab.config import did_you_mean
    from lab.errors import BadInput

    if size not in PRESETS:
        allowed = f"should be one of {', '.join(PRESETS)}{did_you_mean(size, PRESETS)}"
        raise BadInput(f"--size: '{size}' is not allowed: {allowed}")
    return PRESETS[size]


def _use_threads(threads: int | None) -> None:
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)


def _time_loops(
    setting: "Setting", vocabulary: int, ns: tuple[int, ...], peers: tuple[str, ...], steps: int, show: bool
) -> dict[str, Any]:
    """Measure the first part of `train` for one size, and return its JSON object."""
    from lab.bench.loops import WARMUP, compare

    words = f"{in_words(setting)}, V = {vocabulary:,}"
    say(f"loops: {words}; {steps} steps of each")
    with counting("rounds of steps", steps + WARMUP) as count:
        told = compare(setting, vocabulary, ns, peers, steps, lambda turn: count())
    if show:
        _print_loops(setting, words, told)
    return told


def _print_loops(setting: "Setting", words: str, told: dict[str, Any]) -> None:
    names = {"bare": "ours", "masks": "ours, documents' masks", "lightning": "ours, masks, Lightning"}
    lines = []
    for row in told["loops"]:
        if row["missing"]:
            lines.append([f"{names.get(row['loop'], row['loop'])} (missing)", *[""] * 11])
            continue
        name = names.get(row["loop"], row["loop"]) if row["n"] == 1 else f"ours, masks, n = {row['n']}"
        low, high = row["seconds_quartiles"]
        share = row["share_of_peak"]
        lines.append(
            [
                name,
                f"{row['non_embedding_parameters'] / 1e6:.3f}",
                f"{row['flops_per_token'] / 1e6:.2f}",
                f"{row['seconds']:.4g}",
                f"{low:.4g}–{high:.4g}",
                f"{row['processor_seconds']:.4g}",
                f"{row['tokens_per_second']:,.0f}",
                _ratio(row["of_fastest_peer"]),
                _ratio(row["of_fastest_peer_by_processor"]),
                _ratio(row["beyond_flops"]),
                f"{row['flops_per_second'] / 1e9:,.0f}",
                f"{100 * share:.0f} %" if share else "n/a",
            ]
        )
    heads = (
        "loop", "M inner\nparameters", "MFLOP/\ntoken", "seconds\na step", "quartiles", "processor\nseconds",
        "tokens/s", "of fastest\npeer's speed", "by pro-\ncessor time", "beyond\nFLOPs", "GFLOP/s", "of\npeak",
    )  # fmt: skip
    print_rows(words, heads, lines)
    click.echo(_machine(setting))
    for row in told["loops"]:
        if row["missing"]:
            click.echo(f"{row['loop']}: {row['missing']}")
    peak = told["peak_flops_per_second"]
    by = "of the fastest matrix product" if told["peak_of"] == "products" else f"of {told['peak_of']}"
    click.echo(f"peak, {by}: {f'{peak / 1e9:,.0f} GFLOP/s' if peak else 'n/a'}")
    _print_bounds(told["bounds"])


def _print_bounds(bounds: dict[str, Any]) -> None:
    ahead, heads, lightning = bounds["ahead_of_peers"], bounds["heads"], bounds["lightning"]
    if ahead:
        missing = f"; not measured: {', '.join(ahead['missing'])}" if ahead["missing"] else ""
        click.echo(
            f"bound, ours with masks ahead of the fastest peer ({ahead['peer']}): {ahead['of_fastest_peer']:.3f} ≥ "
            f"{ahead['at_least']} {holds(ahead['holds'])}; by processor time {ahead['by_processor']:.3f}{missing}"
        )
    if heads:
        click.echo(
            f"bound, n = {heads['n']} beyond its FLOPs: {heads['beyond_flops']:.3f} ≤ {heads['at_most']} "
            f"{holds(heads['holds'])}"
        )
    ratio, at_most = lightning["of_bare_loop"], lightning["at_most"]
    click.echo(f"bound, Lightning against the bare loop: {ratio:.3f} ≤ {at_most} {holds(lightning['holds'])}")


def _profile(
    setting: "Setting", vocabulary: int, peers: tuple[str, ...], steps: int, show: bool
) -> list[dict[str, Any]]:
    """Profile a step of ours and of a peer for one size, and return a JSON object for each."""
    from lab.bench.loops import profiles

    steps = min(steps, PROFILED)
    say(f"profile: {steps} steps of each")
    found = profiles(setting, vocabulary, peers, steps)
    if show:
        _print_profiles(f"profile of a step: {in_words(setting)}, V = {vocabulary:,}", found)
    return [{"loop": name, "steps": steps, **profile.json()} for name, profile in found.items()]


def _print_profiles(words: str, found: dict[str, "Profile"]) -> None:
    names = {"masks": "ours"}
    columns = [(names.get(name, name), profile) for name, profile in found.items()]
    heads = [f"{name}\n{unit}" for name, _ in columns for unit in ("ms", "share", "calls")]

    # By part, and in all.
    parts = [entry.name for entry in columns[0][1].parts]
    by_part = [{entry.name: entry for entry in profile.parts} for _, profile in columns]
    lines = [[part, *(cell for entries in by_part for cell in _cells(entries[part]))] for part in parts]
    total = [cell for _, profile in columns for cell in (f"{1e3 * profile.seconds:.2f}", "", f"{profile.calls:,.0f}")]
    print_rows(words, ("part", *heads), [*lines, ["all", *total]])

    # By operation: those that take most in either, by what they take in all columns.
    by_operation = [{(entry.part, entry.name): entry for entry in profile.operations} for _, profile in columns]
    most = {(entry.part, entry.name) for _, profile in columns for entry in profile.operations[:SHOWN]}
    ordered = sorted(most, key=lambda key: -sum(entries[key].seconds for entries in by_operation if key in entries))
    lines = [
        [name, part, *(cell for entries in by_operation for cell in _cells(entries.get((part, name))))]
        for part, name in ordered
    ]
    print_rows("", ("operation", "part", *heads), lines)


def _cells(entry: Any) -> list[str]:
    """Return milliseconds, share and calls of an entry of a profile; blanks where it has none."""
    if entry is None:
        return [""] * 3
    return [f"{1e3 * entry.seconds:.2f}", f"{100 * entry.share:.1f} %", f"{entry.calls:,.0f}"]


def _time_heads(
    setting: "Setting", ns: tuple[int, ...], vocabulary: int, orders: tuple[str, ...], steps: int, show: bool
) -> dict[str, Any]:
    """Measure the second part of `train` for one size, and return its JSON object."""
    import torch

    from lab.bench.speed import TIME_BOUND, step_times

    words = f"{in_words(setting)}, V = {vocabulary:,}"
    say(f"heads: {words}; {steps} steps of each")
    with counting("rounds of steps", steps + 1) as count:
        rows = step_times(setting, ns, vocabulary, orders, steps, lambda turn: count())  # type: ignore[arg-type]
    held = {row["order"]: row["beyond_flops"] <= TIME_BOUND for row in rows if row["n"] == 4 and 1 in ns}
    if show:
        lines = [
            [
                row["order"],
                str(row["n"]),
                f"{row['seconds']:.3f}",
                f"{row['processor_seconds']:.3f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['flops_per_token'] / 1e9:.4g}",
                f"{row['flops_per_second'] / 1e9:,.0f}",
                *(_ratio(row[name]) for name in ("relative_to_n1", "beyond_flops")),
            ]
            for row in rows
        ]
        heads = (
            "order", "n", "seconds\na step", "processor\nseconds", "tokens/s", "GFLOP/\ntoken", "GFLOP/s",
            "time against\nn = 1", f"beyond FLOPs\n(n = 4: ≤ {TIME_BOUND})",
        )  # fmt: skip
        print_rows(words, heads, lines)
        click.echo(_machine(setting))
    return {
        **shape(setting),
        "vocabulary": vocabulary,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "cells": rows,
        "bound": {"n": 4, "at_most": TIME_BOUND, "holds": held},
    }


def _machine(setting: "Setting") -> str:
    """Return what measured, in words."""
    about = where(setting)["hardware"]
    device = "" if about["device"] == "cpu" else f"{about['device']}; "
    return f"{device}{about['cpu']}, {about['instructions']}, threads: {about['threads']}, kernels: {about['kernels']}"


def _ratio(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"
