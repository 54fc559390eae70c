"""Costs of a shape in closed form: training with n heads by backward order, and decoding on a roofline.

Parameters and FLOPs are those that `lab.objectives.flops` counts on instantiated parallel models, here for any inner
width. Symbols: N layers in all, d width, F inner width, V vocabulary, T positions of a row, n heads, k heads that
decoding uses, C positions in the cache; P = 4 d² + 3 d F weights in the products of a layer, which has 2 d more in its
norms.

Two estimates are copied widely, and settled here.

**"Training Llama-2-7B on 4 tokens costs +300 % compute and 4 × memory."** Heads are layers taken from the trunk, so
N P, most of all, stays as it is. A position's training FLOPs are 3 (2 (N P + n V d) + N · 4 T d): n heads add the
products with n-1 more unembeddings, 6 (n-1) V d, and where n-1 layers are added to the model, 3 (n-1) (2 P + 4 T d)
more. Parameters are equal, so weights, gradients and AdamW's moments are. What the backward pass waits for grows by
4 (n-1) V bytes a position if all heads' logits are kept (`joint`), and by none if heads are done with one by one
(`sequential`, `fused`), which keeps n-1 layers' activations less, but has the heads' gradients sooner. +300 % are four
models, and 4 × is what the joint order keeps of logits alone.

**"A memory-bound chip decodes 2 × faster with n = 2."** Such a pass takes as long as its bytes, so the speed-up is the
tokens of a forward pass, at most k, divided by the bytes with k heads over those without. Against n = 1 of the same N
layers the bytes are equal, and 2 is the bound, reached when every draft is accepted; against the same model's
next-token path, N-n+1 layers, the k-1 heads' layers come on top, and it is not reached even then. Where a chip is bound
by compute, k positions cost k times as much and nothing is won.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from lab.bench.devices import BANDWIDTHS, PEAKS
from lab.config import did_you_mean, validated
from lab.errors import BadInput
from lab.models.decoder import inner_width
from lab.models.sizes import SIZES, Model, Shape
from lab.objectives.backward import CHUNK_BYTES, Order
from lab.paper import REAL_DATA_SIZES, SPEED_UPS, SPEED_UPS_BATCH, SPEED_UPS_CONTEXT, TRAINING_TIMES

Precision = Literal["fp32", "bf16"]
"""fp32: as the lab trains on a CPU. bf16: as it trains on a GPU, products by autocast and all else in fp32."""

ORDERS: tuple[Order, ...] = ("joint", "sequential", "fused")

CACHED = 2
"""Bytes of a weight and of an element of the key-value cache in decoding: bf16."""


class Architecture(NamedTuple):
    """A decoder as the lab builds it: pre-norm, SwiGLU, no biases, untied embeddings; of any inner width."""

    name: str
    layers: int
    """N in all: the trunk's, and one for each head."""
    width: int
    heads: int
    """Attention heads a layer, each with keys and values of its own."""
    inner: int
    vocabulary: int

    @property
    def layer_products(self) -> int:
        """P, the weights in the matrix products of a layer."""
        return 4 * self.width**2 + 3 * self.width * self.inner

    @property
    def layer_parameters(self) -> int:
        """Products and two norms."""
        return self.layer_products + 2 * self.width

    @property
    def unembedding(self) -> int:
        """V d."""
        return self.vocabulary * self.width

    @property
    def non_embedding_parameters(self) -> int:
        """Layers and the final norm."""
        return self.layers * self.layer_parameters + self.width

    @property
    def parameters(self) -> int:
        """All, whatever n: the embedding and one unembedding included."""
        return self.non_embedding_parameters + 2 * self.unembedding

    def training_flops(self, n: int, context: int) -> int:
        """Floating-point operations of forward and backward for one position of a row of `context` (T).

        Counted as in `lab.objectives.flops.training_flops_per_token`: a multiply-add is two, backward costs twice
        forward, attention reads the whole row.
        """
        products = self.layers * self.layer_products + n * self.unembedding
        return 3 * (2 * products + self.layers * 4 * context * self.width)


NAMED: dict[str, tuple[Shape, int]] = {
    **{name: (shape, inner_width(shape.width)) for name, shape in SIZES.items()},
    **{name: (Shape(*shape), inner_width(shape[1])) for name, shape in REAL_DATA_SIZES.items()},
    "llama-2-7b": (Shape(32, 4096, 32), 11008),
}
"""Shapes and inner widths by name: Table S14 in the lab's inner width, and Llama-2-7B (arXiv 2307.09288)."""


def architecture(name: str | None, explicit: dict[str, int | None], inner: int | None, vocabulary: int) -> Architecture:
    """The shape of that name, or the explicit one.

    Args:
        name: one of NAMED, or None.
        explicit: layers, width and heads; all None with a name.
        inner: SwiGLU's inner width of an explicit shape; None is the lab's.
        vocabulary: tokens.

    Raises:
        BadInput: no such name; not all of layers, width and heads; or heads that do not divide the width.
    """
    given = [f"--{field}" for field, value in {**explicit, "inner": inner}.items() if value is not None]
    if name is not None:
        if given:
            raise BadInput(f"{given[0]}: is not allowed beside '{name}': give a shape's name, or layers, width, heads")
        known = {each.lower(): each for each in NAMED}
        if name.lower() not in known:
            allowed = f"should be one of {', '.join(NAMED)}, or --layers, --width and --heads"
            raise BadInput(f"SHAPE: '{name}' is not allowed: {allowed}{did_you_mean(name, NAMED)}")
        shape, inner = NAMED[known[name.lower()]]
        return Architecture(known[name.lower()], *shape, inner, vocabulary)
    missing = [f"--{field}" for field, value in explicit.items() if value is None]
    if missing:
        raise BadInput(f"{missing[0]}: missing: a shape without a name needs --layers, --width and --heads")
    try:
        model = validated(Model, explicit)
    except BadInput as error:
        raise BadInput(f"--{error}") from None
    layers, width, heads = model.shape
    inner = inner or inner_width(width)
    label = model.label if inner == inner_width(width) else f"{model.label}-F{inner}"
    return Architecture(label, layers, width, heads, inner, vocabulary)


# Training


def kept_per_layer(shape: Architecture, context: int, precision: Precision) -> float:
    """Bytes that a layer keeps for a position from its forward to its backward pass, without recomputing.

    - fp32 on a CPU: as `lab.bench.memory.estimate` has it, which measurements confirm.
    - bf16 on a GPU, read off `lab.models.decoder`, and what autograd saves under autocast: the residual stream into
      both norms in fp32 (8 d); both norms' outputs (4 d); queries, keys and values before rotation, of which attention
      keeps the values (6 d), the rotated queries and keys (4 d), and attention's output (2 d), in bf16; its
      log-sum-exp in fp32 (4 a head); gate and value (4 F), silu(gate) (2 F) and their product (2 F) in bf16. Attention
      keeps no probabilities (flash), and rows are one document each, so that there is no mask. Not yet measured.
    """
    width, inner = shape.width, shape.inner
    if precision == "bf16":
        return 24 * width + 8 * inner + 4 * shape.heads
    from lab.bench.memory import numbers_kept_per_layer

    return 4 * numbers_kept_per_layer(width, inner, shape.heads, context)


def net_bytes(shape: Architecture, n: int, tokens: int, context: int, order: Order, precision: Precision) -> int:
    """Peak of a training step beyond weights and AdamW's moments: activations, logits, gradients.

    The peak is where the backward pass begins, or where it has ended and all gradients are there (4 bytes a parameter),
    whichever is more: between the two activations go and gradients come layer by layer, so it is never higher. One
    step, one batch of `tokens` positions; gradients are freed after the step.

    - fp32 on a CPU: what `lab.bench.memory.estimate` says, within 5 % of what was measured.
    - bf16 on a GPU, where the backward pass begins: weights of products as bf16 copies; `kept_per_layer` of all layers
      (`joint`) or of the trunk's and one head's; the fp32 output of the trunk, of the last layers, and the final norm's
      bf16 (2 fp32 a head with `joint`, one head's and 2 gradients else, as fp32); logits, and in the orders that do
      with heads one by one, gradients that come early: the heads' layers', and the unembedding's where it is added up.
      Of logits a head takes 10 V bytes a position at most (bf16, fp32 and log-probabilities in fp32) and keeps 4 V; in
      its backward pass 6 V, when the unembedding's gradient is there in bf16 and fp32.

    Raises:
        BadInput: fp32, and the inner width is not the lab's.
    """
    gradients = 4 * shape.parameters
    if precision == "fp32":
        return max(_estimated(shape, n, tokens, context, order), gradients)
    width, vocabulary, unembedding = shape.width, shape.vocabulary, shape.unembedding
    copies = CACHED * (shape.layers * shape.layer_products + unembedding)
    layers = shape.layers if order == "joint" else shape.layers - n + 1
    kept = tokens * (
        layers * kept_per_layer(shape, context, precision) + 4 * width * (2 * n if order == "joint" else 5)
    )
    read = min(tokens, max(1, CHUNK_BYTES // (4 * vocabulary))) if order == "fused" else tokens
    early = 0
    if order != "joint":
        added_up = n > 1 or read < tokens
        early = 4 * n * shape.layer_parameters + 4 * added_up * unembedding
    waiting = 4 * (n - 1) * tokens * vocabulary if order == "joint" else 0
    readout = waiting + max(10 * read * vocabulary, 6 * read * vocabulary + 6 * unembedding)
    return max(round(copies + kept + readout + early), gradients)


def _estimated(shape: Architecture, n: int, tokens: int, context: int, order: Order) -> int:
    """`lab.bench.memory.estimate` of the same shape."""
    from lab.bench.memory import estimate
    from lab.objectives.flops import instantiate
    from lab.objectives.parallel import Parallel

    if shape.inner != inner_width(shape.width):
        raise BadInput(
            f"--precision: fp32 is not allowed with an inner width of {shape.inner}: its memory is known for the "
            f"lab's, {inner_width(shape.width)}; allowed: bf16"
        )
    model = Model(layers=shape.layers, width=shape.width, heads=shape.heads)
    return estimate(instantiate(model, Parallel(n=n), shape.vocabulary), tokens, context, order)


def logits_kept(shape: Architecture, n: int, tokens: int, order: Order) -> int:
    """Bytes of logits (as log-probabilities, fp32) that wait for the backward pass, or are being worked on."""
    one = 4 * tokens * shape.vocabulary
    return {"joint": n * one, "sequential": one, "fused": min(one, CHUNK_BYTES)}[order]


def training(
    shape: Architecture, ns: Sequence[int], context: int, tokens: int, precision: Precision
) -> list[dict[str, Any]]:
    """A row for each n, and one with n-1 layers added, so that the trunk is as with n = 1; ratios are to n = 1.

    Memory is by backward order: `net_bytes`, and `peak_bytes`, which is that with the weights and AdamW's moments; each
    against n = 1 in the same order. Of the state, `weight_bytes`, `gradient_bytes` and `optimizer_bytes` are 4, 4 and 8
    bytes a parameter in either precision; bf16 copies of weights are made in each step and count as net.

    Raises:
        BadInput: n heads leave no trunk.
    """
    for n in ns:
        if n >= shape.layers:
            raise BadInput(
                f"--n: {n} is not allowed: {n} heads leave no trunk in {shape.layers} layers; "
                f"allowed: at most {shape.layers - 1}"
            )
    variants = [(n, added) for n in sorted({1, *ns}) for added in (0, n - 1)[: 1 + (n > 1)]]
    rows = [_trained(shape, n, added, context, tokens, precision) for n, added in variants]
    first = rows[0]
    for row in rows:
        row["parameters_to_n1"] = row["parameters"] / first["parameters"]
        row["flops_to_n1"] = row["flops_per_token"] / first["flops_per_token"]
        for order, memory in row["memory"].items():
            for part in ("net", "peak"):
                memory[f"{part}_to_n1"] = memory[f"{part}_bytes"] / first["memory"][order][f"{part}_bytes"]
    return rows


def _trained(
    shape: Architecture, n: int, added: int, context: int, tokens: int, precision: Precision
) -> dict[str, Any]:
    whole = shape._replace(layers=shape.layers + added)
    state = 12 * whole.parameters
    memory: dict[str, dict[str, float]] = {}
    for order in ORDERS:
        net = net_bytes(whole, n, tokens, context, order, precision)
        logits = logits_kept(whole, n, tokens, order)
        memory[order] = {"logits_bytes": logits, "net_bytes": net, "peak_bytes": state + net}
    return {
        "n": n,
        "added_layers": added,
        "layers": whole.layers,
        "trunk_layers": whole.layers - n,
        "non_embedding_parameters": whole.non_embedding_parameters,
        "parameters": whole.parameters,
        "flops_per_token": whole.training_flops(n, context),
        "weight_bytes": 4 * whole.parameters,
        "gradient_bytes": 4 * whole.parameters,
        "optimizer_bytes": 8 * whole.parameters,
        "activation_bytes_per_token": whole.layers * kept_per_layer(whole, context, precision),
        "memory": memory,
        "paper_time_to_n1": TRAINING_TIMES.get(shape.name, {}).get(n) if not added else None,
    }


# Decoding


class Chip(NamedTuple):
    """The limits of a forward pass on a device."""

    name: str
    bandwidth: float
    """Bytes a second."""
    peak: float | None
    """FLOP/s in bf16; None bounds nothing."""
    memory: float | None = None
    """Bytes; None bounds nothing."""

    @property
    def ridge(self) -> float | None:
        """FLOP a byte from which on it is bound by compute."""
        return self.peak / self.bandwidth if self.peak else None


def named_chips(names: Sequence[str]) -> list[Chip]:
    """Devices of BANDWIDTHS.

    Raises:
        BadInput: there is none of that name.
    """
    known = {each.lower(): each for each in BANDWIDTHS}
    for name in names:
        if name.lower() not in known:
            allowed = f"should be one of {', '.join(BANDWIDTHS)}, or --bandwidth and --peak"
            raise BadInput(f"--device: '{name}' is not allowed: {allowed}{did_you_mean(name, BANDWIDTHS)}")
    chosen = dict.fromkeys(known[name.lower()] for name in names)
    return [Chip(name, BANDWIDTHS[name][0], PEAKS[name], BANDWIDTHS[name][1]) for name in chosen]


class Pass(NamedTuple):
    """One forward pass of decoding with k heads of n, which verifies k-1 drafts a row and makes new ones.

    Blockwise self-speculative decoding as in the paper's released code: every row has k positions, and every head reads
    all of them. Counted of bytes: all weights but the embedding, once; the cache, read once for all of a row's
    positions, and what is added to it. Left out: activations, logits, embedding rows. Counted of FLOPs: every matrix
    product, the k unembeddings of each position, and attention's two products over C + k keys.
    """

    k: int
    """Heads used."""
    layers: int
    """N-n+k: heads beyond k are dropped. Each has a cache."""
    weight_bytes: int
    row_bytes: int
    """Of the cache, for a row."""
    row_flops: int

    def bytes(self, batch: int) -> int:
        """Bytes moved for `batch` rows."""
        return self.weight_bytes + batch * self.row_bytes

    def intensity(self, batch: int) -> float:
        """FLOP a byte."""
        return batch * self.row_flops / self.bytes(batch)

    def seconds(self, chip: Chip, batch: int) -> float:
        """The roofline's time: the longer of moving the bytes and computing."""
        return max(self.bytes(batch) / chip.bandwidth, batch * self.row_flops / chip.peak if chip.peak else 0.0)

    def compute_bound_from(self, chip: Chip) -> float | None:
        """Rows from which on compute bounds the pass; None if never: a row's own cache takes longer than its FLOPs."""
        if not chip.peak:
            return None
        beyond = self.row_flops / chip.peak - self.row_bytes / chip.bandwidth
        return self.weight_bytes / chip.bandwidth / beyond if beyond > 0 else None

    def fits(self, chip: Chip, batch: int) -> bool:
        """Return True if the device's memory holds weights and cache (without the embedding)."""
        return chip.memory is None or self.bytes(batch) <= chip.memory


def forward_pass(shape: Architecture, n: int, k: int, cached: int) -> Pass:
    """The pass with k of n heads and `cached` (C) positions a row in the cache."""
    layers = shape.layers - n + k
    products = layers * shape.layer_products + k * shape.unembedding
    attention = layers * 4 * (cached + k) * shape.width
    return Pass(
        k,
        layers,
        CACHED * (layers * shape.layer_parameters + shape.width + shape.unembedding),
        CACHED * layers * 2 * (cached + k) * shape.width,
        k * (2 * products + attention),
    )


def decoding(
    shape: Architecture,
    n: int,
    contexts: Sequence[int],
    batches: Sequence[int],
    tokens_per_forward: Sequence[float],
    chips: Sequence[Chip],
) -> dict[str, Any]:
    """Forward passes with k = 1..n heads, and what they come to on each chip.

    Args:
        shape: N layers in all.
        n: heads that were trained.
        contexts: positions in the cache of each row.
        batches: rows.
        tokens_per_forward: those of k = 2, 3, ...; as many as are known.
        chips: rooflines.

    Returns:
        A JSON object: `passes`, which no chip is needed for; and `rows`, by chip, context and k, with lists by batch:
        speed-ups are over k = 1 of the same model (N-n+1 layers), and over n = 1 of N layers; a pass wins from
        `break_even_tokens_per_forward` on. From `compute_bound_from` rows on compute bounds it; null is never.

    Raises:
        BadInput: n heads leave no trunk, or a number of tokens is not from 1 to k.
    """
    if n >= shape.layers:
        raise BadInput(f"--n: {n} is not allowed: {n} heads leave no trunk; allowed: at most {shape.layers - 1}")
    if len(tokens_per_forward) > n - 1:
        raise BadInput(
            f"--tokens-per-forward: {len(tokens_per_forward)} values are not allowed: should be one for each of k = "
            f"2, 3, …, at most {n - 1} with --n {n}"
        )
    tokens = dict(enumerate([1.0, *tokens_per_forward], start=1))
    for k, number in tokens.items():
        if not 1 <= number <= k:
            raise BadInput(f"--tokens-per-forward: {number:g} is not allowed for k = {k}: should be 1 to {k}")
    passes, rows = [], []
    for cached in contexts:
        plain = forward_pass(shape, 1, 1, cached)
        own = [forward_pass(shape, n, k, cached) for k in range(1, n + 1)]
        for each in own:
            passes.append({"context": cached, "tokens_per_forward": tokens.get(each.k), **each._asdict()})
        for chip in chips:
            for each in own:
                told = _decoded(chip, batches, each, own[0], plain, tokens.get(each.k))
                rows.append({"chip": chip.name, "context": cached, **told})
    return {
        "shape": shape._asdict(),
        "n": n,
        "contexts": [*contexts],
        "batches": [*batches],
        "chips": [{**chip._asdict(), "ridge": chip.ridge} for chip in chips],
        "passes": passes,
        "rows": rows,
    }


def _decoded(
    chip: Chip, batches: Sequence[int], each: Pass, first: Pass, plain: Pass, tokens: float | None
) -> dict[str, Any]:
    """A pass on a chip, in lists by batch; `first` is k = 1 of the same model, `plain` n = 1 of N layers."""
    seconds = [each.seconds(chip, batch) for batch in batches]
    cost, cost_n1 = (
        [mine / other.seconds(chip, batch) for mine, batch in zip(seconds, batches, strict=True)]
        for other in (first, plain)
    )
    return {
        "k": each.k,
        "compute_bound_from": each.compute_bound_from(chip),
        "fits": [each.fits(chip, batch) for batch in batches],
        "flops_per_byte": [each.intensity(batch) for batch in batches],
        "flops_per_second": [batch * each.row_flops / mine for mine, batch in zip(seconds, batches, strict=True)],
        "seconds": seconds,
        "break_even_tokens_per_forward": cost,
        "tokens_per_second": tokens and [batch * tokens / mine for mine, batch in zip(seconds, batches, strict=True)],
        "speed_up": tokens and [tokens / each for each in cost],
        "speed_up_over_n1": tokens and [tokens / each for each in cost_n1],
    }


def two_heads(shape: Architecture, cached: int, tokens_per_forward: float) -> dict[str, float]:
    """The second estimate: what n = 2 wins of one row on a chip that is bound by memory, and by compute.

    Speed-ups with all drafts accepted (`at_most`), and at `tokens_per_forward`, over n = 1 of the same N layers, and
    over the model's own next-token path.
    """
    both, path, plain = (forward_pass(shape, n, k, cached) for n, k in ((2, 2), (2, 1), (1, 1)))
    costs = {
        "n1": both.bytes(1) / plain.bytes(1),
        "own": both.bytes(1) / path.bytes(1),
        "compute": both.row_flops / path.row_flops,
    }
    return {
        "tokens_per_forward": tokens_per_forward,
        **{f"cost_{name}": cost for name, cost in costs.items()},
        **{f"at_most_{name}": 2 / cost for name, cost in costs.items()},
        **{f"speed_up_{name}": tokens_per_forward / cost for name, cost in costs.items()},
    }


def against_paper(shape: Architecture) -> Iterator[dict[str, Any]]:
    """Table S2 beside the roofline: n = 4, SPEED_UPS_BATCH rows with SPEED_UPS_CONTEXT positions, bound by memory.

    `cost` is the time of a pass against k = 1 that the table implies; `roofline_cost` that of the bytes, `weights_cost`
    that of the weights alone; what is left of the first over the second, `unexplained`, is not in the bytes counted.
    """
    first, *others = (forward_pass(shape, 4, k, SPEED_UPS_CONTEXT) for k in (1, 2, 3, 4))
    for text, measured in SPEED_UPS.items():
        for each in others:
            tokens, speed_up = measured[each.k]
            cost = each.bytes(SPEED_UPS_BATCH) / first.bytes(SPEED_UPS_BATCH)
            yield {
                "text": text,
                "batch": SPEED_UPS_BATCH,
                "context": SPEED_UPS_CONTEXT,
                "k": each.k,
                "tokens_per_forward": tokens,
                "speed_up": speed_up,
                "cost": tokens / speed_up,
                "roofline_speed_up": tokens / cost,
                "roofline_cost": cost,
                "weights_cost": each.weight_bytes / first.weight_bytes,
                "unexplained": tokens / cost / speed_up,
            }
