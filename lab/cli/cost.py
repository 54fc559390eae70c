"""`lab cost`: what a shape costs in closed form."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import as_json, print_json, print_table

if TYPE_CHECKING:
    from lab.bench.costs import Architecture, Chip

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Positive(click.ParamType[float]):
    """A number above 0 and at most a million."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number <= 1e6:
            self.fail(f"'{value}' is not allowed: should be a number above 0, at most a million", param, ctx)
        return number


def of_a_shape(command: Callable[..., None]) -> Callable[..., None]:
    """The shape by name, or by its parts."""
    options = (
        click.argument("name", metavar="[SHAPE]", required=False),
        click.option("--layers", type=int, help="Of a shape without a name: layers in all, N."),
        click.option("--width", type=int, help="Of a shape without a name: width of the residual stream, d."),
        click.option("--heads", type=int, help="Of a shape without a name: attention heads a layer."),
        click.option(
            "--inner", type=click.IntRange(1, 2**24),
            help="Of a shape without a name: SwiGLU's inner width, F.  [default: 8d/3 to a multiple of 8]",
        ),
        click.option("--vocabulary", type=click.IntRange(1, 2**24), default=32_000, show_default=True, help="Tokens."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def cost() -> None:
    """Compute costs of a shape in closed form: training with n heads, and decoding on a roofline.

    SHAPE is a size of Table S14 (1M to 1B, and 0.3B, 0.6B, 1.3B, 3B, 6.7B, 13B) or llama-2-7b, which is the default; or
    give --layers, --width and --heads.
    """


@cost.command()
@of_a_shape
@click.option(
    "--n", "ns", type=click.IntRange(1, 64), multiple=True,
    help="Heads; can be given several times.  [default: of 1, 2, 4, 8 those that leave a trunk]",
)  # fmt: skip
@click.option("--context", type=click.IntRange(1, 2**24), default=4096, show_default=True, help="Positions of a row.")
@click.option("--tokens", type=click.IntRange(1, 2**30), default=4096, show_default=True, help="Positions of a step.")
@click.option(
    "--precision", type=click.Choice(("bf16", "fp32")), default="bf16", show_default=True,
    help="bf16: as on a GPU, by autocast; fp32: as on a CPU.",
)  # fmt: skip
@as_json
def training(
    name: str | None, layers: int | None, width: int | None, heads: int | None, inner: int | None, vocabulary: int,
    ns: tuple[int, ...], context: int, tokens: int, precision: str, as_json: bool,
) -> None:  # fmt: skip
    """Parameters, FLOPs and memory of training with n parallel heads.

    With N layers in all, and with n-1 layers added. Memory is one device's, at the peak of a step, by backward order;
    `net` is less weights and AdamW's moments: activations, logits and gradients. fp32 is what `lab bench memory`
    measured on a CPU, within 2 %; bf16 follows from what the layers keep, and is not measured yet.
    """
    from lab.bench import costs
    from lab.errors import BadInput

    shape = _shape(name, layers, width, heads, inner, vocabulary)
    if tokens % context:
        raise BadInput(f"--tokens: {tokens} is not allowed: should be a multiple of --context, {context}")
    ns = ns or tuple(n for n in (1, 2, 4, 8) if n < shape.layers)
    rows = costs.training(shape, ns, context, tokens, precision)  # type: ignore[arg-type]
    if as_json:
        about = {"precision": precision, "tokens": tokens, "context": context}
        print_json({"shape": _fields(shape), **about, "rows": rows})
        return
    words = f"{_in_words(shape)}; {precision}, {tokens:,} tokens a step in rows of {context:,}"
    _print_costs(words, rows)
    _print_memory(rows)
    _print_lines(_first_estimate(shape, rows, context, tokens))


@cost.command()
@of_a_shape
@click.option("--n", type=click.IntRange(1, 64), default=4, show_default=True, help="Heads that were trained.")
@click.option(
    "--context", "contexts", type=click.IntRange(0, 2**24), multiple=True, default=(768,), show_default=True,
    help="Positions in the cache of each row; can be given several times.",
)  # fmt: skip
@click.option(
    "--batch", "batches", type=click.IntRange(1, 2**20), multiple=True, default=BATCHES, show_default=True,
    help="Rows decoded at once; can be given several times.",
)  # fmt: skip
@click.option(
    "--tokens-per-forward", type=float, multiple=True,
    help="Tokens of a forward pass with k = 2, 3, … heads, one value for each k.  [default: the paper's for code, "
    "1.94, 2.78, 3.5]",
)  # fmt: skip
@click.option(
    "--device", "devices", multiple=True,
    help="L4, L40S, 'RTX 4090', A100, H100, H200 or B200; can be given several times.  [default: all, or none beside "
    "--bandwidth]",
)  # fmt: skip
@click.option("--bandwidth", type=Positive(), help="Of another chip: GB/s to and from its memory.")
@click.option("--peak", type=Positive(), help="Of another chip: TFLOP/s.  [default: no bound]")
@as_json
def decoding(
    name: str | None, layers: int | None, width: int | None, heads: int | None, inner: int | None, vocabulary: int,
    n: int, contexts: tuple[int, ...], batches: tuple[int, ...], tokens_per_forward: tuple[float, ...],
    devices: tuple[str, ...], bandwidth: float | None, peak: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Self-speculative decoding with k of n heads on a roofline.

    A forward pass verifies k-1 drafts a row and makes new ones; it takes as long as its bytes (weights and cache, bf16)
    or its FLOPs, whichever is longer. `speed-up` is over k = 1, the model's next-token path of N-n+1 layers; `over
    n = 1` over a model of all N layers with one head. A pass wins from `break-even` tokens on.
    """
    from lab.bench import costs
    from lab.paper import SPEED_UPS

    shape = _shape(name, layers, width, heads, inner, vocabulary)
    known = tuple(tokens for tokens, _ in SPEED_UPS["code"].values())
    contexts, batches = tuple(sorted({*contexts})), tuple(sorted({*batches}))
    chips = _chips(devices, bandwidth, peak)
    told = costs.decoding(shape, n, contexts, batches, tokens_per_forward or known[: n - 1], chips)
    told["shape"] = _fields(shape)
    told["two_heads"] = costs.two_heads(shape, contexts[0], known[0]) if shape.layers > 2 else None
    of_paper = shape.name in ("6.7B", "llama-2-7b") and n == 4
    told["table_s2"] = list(costs.against_paper(shape)) if of_paper else []
    if as_json:
        print_json(told)
        return
    _print_passes(f"{_in_words(shape)}; n = {n}, bf16", told)
    for context in contexts:
        _print_speeds(context, told)
    _print_lines(_second_estimate(shape, told))


def _shape(
    name: str | None, layers: int | None, width: int | None, heads: int | None, inner: int | None, vocabulary: int
) -> "Architecture":
    """Return the shape that the options of `of_a_shape` name.

    Raises:
        BadInput: there is no such shape.
    """
    from lab.bench.costs import architecture

    explicit = {"layers": layers, "width": width, "heads": heads}
    if name is None and inner is None and not any(each is not None for each in explicit.values()):
        name = "llama-2-7b"
    return architecture(name, explicit, inner, vocabulary)


def _chips(devices: tuple[str, ...], bandwidth: float | None, peak: float | None) -> list["Chip"]:
    """The named devices, and the one that is given by its numbers.

    Raises:
        BadInput: there is no such device, or a peak without a bandwidth.
    """
    from lab.bench.costs import Chip, named_chips
    from lab.bench.devices import BANDWIDTHS
    from lab.errors import BadInput

    if bandwidth is None:
        if peak is not None:
            raise BadInput("--bandwidth: missing: a chip of its own --peak needs one")
        return named_chips(devices or tuple(BANDWIDTHS))
    return [*named_chips(devices), Chip("other", bandwidth * 1e9, None if peak is None else peak * 1e12)]


def _fields(shape: "Architecture") -> dict[str, Any]:
    return {**shape._asdict(), "parameters": shape.parameters}


def _in_words(shape: "Architecture") -> str:
    return (
        f"{shape.name}: N = {shape.layers} layers, d = {shape.width:,}, F = {shape.inner:,}, V = {shape.vocabulary:,}, "
        f"{shape.parameters:,} parameters"
    )


def _print_costs(words: str, rows: list[dict[str, Any]]) -> None:
    lines = [
        [
            str(row["n"]),
            str(row["added_layers"] or ""),
            f"{row['trunk_layers']} + {row['n']}",
            f"{row['parameters']:,}",
            f"{row['parameters_to_n1']:.3f}",
            f"{row['flops_per_token'] / 1e9:.4g}",
            f"{row['flops_to_n1']:.3f}",
            f"{row['paper_time_to_n1']:.2f}" if row["paper_time_to_n1"] else "",
            *(_gibibytes(row[f"{part}_bytes"]) for part in ("weight", "gradient", "optimizer")),
            f"{row['activation_bytes_per_token'] / 2**20:.3g}",
        ]
        for row in rows
    ]
    heads = (
        "n", "layers\nadded", "trunk +\nheads", "parameters", "against\nn = 1", "training\nGFLOP/token",
        "against\nn = 1", "paper's\ntime (S5)", "weights\nGiB", "gradients\nGiB", "AdamW\nGiB",
        "activations\nMiB/token",
    )  # fmt: skip
    _print_table(words, heads, lines)


def _print_memory(rows: list[dict[str, Any]]) -> None:
    lines = [
        [
            order,
            str(row["n"]),
            str(row["added_layers"] or ""),
            _gibibytes(memory["logits_bytes"]),
            _gibibytes(memory["net_bytes"]),
            f"{memory['net_to_n1']:.3f}",
            _gibibytes(memory["peak_bytes"]),
            f"{memory['peak_to_n1']:.3f}",
        ]
        for order in rows[0]["memory"]
        for row in rows
        for memory in [row["memory"][order]]
    ]
    heads = (
        "order", "n", "layers\nadded", "logits\nGiB", "net\nGiB", "against\nn = 1", "peak\nGiB", "against\nn = 1",
    )  # fmt: skip
    _print_table("peak of a training step", heads, lines)


def _first_estimate(shape: "Architecture", rows: list[dict[str, Any]], context: int, tokens: int) -> Iterator[str]:
    """Return lines that compare the cost of n heads with that of n models."""
    more = [row for row in rows if row["n"] > 1]
    if not more:
        return
    n = 4 if any(row["n"] == 4 for row in more) else more[-1]["n"]
    first, (matched, added) = rows[0], [row for row in more if row["n"] == n]
    unembeddings = (matched["flops_per_token"] - first["flops_per_token"]) / 1e9
    logits = 4 * (n - 1) * tokens * shape.vocabulary
    paper = matched["paper_time_to_n1"]

    def memory(part: str) -> str:
        ratios = ((order, each[f"{part}_to_n1"]) for order, each in matched["memory"].items())
        return ", ".join(f"{ratio:.3f} × ({order})" for order, ratio in ratios)

    yield f"Does training on {n} tokens cost +{100 * (n - 1)} % compute and {n} × the memory, as is often said? No."
    yield (
        f"- A token's FLOPs are 3 (2 (N P + n V d) + N 4 T d), with P = 4 d² + 3 d F and T = {context:,}. Heads are "
        f"layers taken from the trunk: N stays, and n = {n} adds {n - 1} unembeddings, 6 (n-1) V d = "
        f"{unembeddings:.3g} GFLOP to {first['flops_per_token'] / 1e9:.4g}: {_percent(matched['flops_to_n1'])}"
        f"{f' (the paper timed {_percent(paper)})' if paper else ''}. With {n - 1} layers added to N it is "
        f"{_percent(added['flops_to_n1'])}; +{100 * (n - 1)} % would be {n} models."
    )
    yield (
        "- Parameters are equal, and with them weights, gradients and AdamW's moments; with layers added "
        f"{_percent(added['parameters_to_n1'])}."
    )
    yield (
        f"- What is {n} × are the logits that wait for the backward pass in the joint order: 4 (n-1) V bytes a "
        f"position more, here {_gibibytes(logits)} GiB. Sequential and fused make one head's at a time; they keep "
        f"{n - 1} layers' activations less, and have the heads' gradients sooner."
    )
    yield f"- The peak against n = 1: {memory('peak')}; net of weights and AdamW's moments: {memory('net')}."


def _print_passes(words: str, told: dict[str, Any]) -> None:
    lines = [
        [
            f"{each['context']:,}",
            str(each["k"]),
            str(each["layers"]),
            f"{each['weight_bytes'] / 1e9:.4g}",
            f"{each['row_bytes'] / 1e6:,.1f}",
            f"{each['row_flops'] / 1e9:.4g}",
            f"{each['row_flops'] / each['row_bytes']:.1f}",
            _number(each["tokens_per_forward"]),
        ]
        for each in told["passes"]
    ]
    heads = (
        "positions\nin cache", "k", "layers", "weights\nGB", "cache of\na row, MB", "GFLOP\na row",
        "FLOP/byte\nof a row", "tokens a\nforward",
    )  # fmt: skip
    _print_table(words, heads, lines)


def _print_speeds(context: int, told: dict[str, Any]) -> None:
    """A line for each chip and k, with speed-ups by batch."""
    lines = []
    for row in (row for row in told["rows"] if row["context"] == context):
        (chip,) = (each for each in told["chips"] if each["name"] == row["chip"])
        ridge, bound = chip["ridge"], row["compute_bound_from"]
        rate, over, ups = (
            row[name] or [None] * len(told["batches"]) for name in ("tokens_per_second", "speed_up_over_n1", "speed_up")
        )
        lines.append(
            [
                *([chip["name"], f"{chip['bandwidth'] / 1e9:,.4g}"] if row["k"] == 1 else ["", ""]),
                f"{ridge:.0f}" if ridge and row["k"] == 1 else "",
                str(row["k"]),
                _number(rate[0], ",.0f" if row["seconds"][0] < 0.1 else ",.3g"),
                _number(over[0]),
                f"{row['break_even_tokens_per_forward'][0]:.2f}",
                "never" if bound is None else f"{math.ceil(bound):,}",
                *(_number(up) if fits else "·" for up, fits in zip(ups, row["fits"], strict=True)),
            ]
        )
    first, *more = told["batches"]
    heads_of_columns = (
        "", "GB/s", "ridge\nFLOP/byte", "k", "\ntokens/s", "over\nn = 1", "break-\neven", "compute-\nbound from",
        f"speed-up\nbatch {first}", *(f"\n{batch}" for batch in more),
    )  # fmt: skip
    about = f"tokens/s, over n = 1 and break-even at batch {first}; ·: more than the device holds"
    _print_table(f"{context:,} positions in the cache of each row; {about}", heads_of_columns, lines)


def _second_estimate(shape: "Architecture", told: dict[str, Any]) -> Iterator[str]:
    """Return lines that compare the speed of two heads with twice the speed of one."""
    two = told["two_heads"]
    if two is None:
        return
    tokens = two["tokens_per_forward"]
    yield "Does a memory-bound chip decode 2 × faster with n = 2, as is often said? At most."
    yield (
        "- Speed-up = tokens of a forward pass / (bytes with k = 2 / bytes without). The tokens are 2 if every draft "
        f"is accepted; of the paper's they were {tokens} on code, 1.88 and 1.87 on text."
    )
    yield (
        f"- Over n = 1 of the same {shape.layers} layers, bytes are equal: at most {two['at_most_n1']:.2f}, and "
        f"{two['speed_up_n1']:.2f} at {tokens}. Over the model's own next-token path of {shape.layers - 1} layers, a "
        f"pass moves {two['cost_own']:.3f} × the bytes: at most {two['at_most_own']:.2f}, and "
        f"{two['speed_up_own']:.2f} at {tokens}."
    )
    yield (
        f"- Where compute bounds, as with many rows, two positions and a head more take {two['cost_compute']:.2f} × as "
        f"long: {two['speed_up_compute']:.2f} at {tokens}, slower than without."
    )
    last = next(each for each in reversed(told["passes"]) if each["context"] == told["contexts"][0])
    yield (
        "- But a row brings its cache along: where its FLOP/byte are below a chip's ridge, no number of rows is bound "
        f"by compute, if the chip attains its peak. With k = {last['k']} a row has "
        f"{last['row_flops'] / last['row_bytes']:.0f} at {last['context']:,} positions. The paper found speed-ups that "
        "hardly depend on the batch (Fig. S10)."
    )
    if not told["table_s2"]:
        return
    compared = "; ".join(
        f"k = {row['k']}: {row['tokens_per_forward']:.2f} / {row['roofline_cost']:.3f} = "
        f"{row['roofline_speed_up']:.2f}, measured {row['speed_up']:.2f}"
        for row in told["table_s2"]
        if row["text"] == "code"
    )
    rest = [100 * (row["unexplained"] - 1) for row in told["table_s2"]]
    yield f"- The paper's Table S2 (n = 4, code, batch 42, 768 positions), if memory bounds: {compared}."
    yield (
        f"- What is left, {min(rest):.1f} to {max(rest):.1f} % over all texts, is not in these bytes: logits of k "
        "heads at k positions, activations, verifying, rows of uneven progress."
    )


def _print_table(title: str, heads: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table

    click.echo(title)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head in ("order", "") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def _print_lines(lines: Iterable[str]) -> None:
    import textwrap

    for line in lines:
        click.echo(textwrap.fill(line, 120, subsequent_indent="  "))


def _gibibytes(number: float) -> str:
    return f"{number / 2**30:,.3f}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _number(number: float | None, form: str = ".2f") -> str:
    return "" if number is None else format(number, form)
