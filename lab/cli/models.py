"""`lab models`: sizes, heads, parameters, FLOPs."""

from collections.abc import Iterator
from typing import Any

import click

from lab.cli.console import as_json, print_json, print_table


@click.command()
@click.option("--objective", help="Only this objective, beside next_token.  [default: all]")
@click.option("--vocabulary", type=click.IntRange(1, 2**24), default=32_000, show_default=True, help="Tokens.")
@click.option("--context", type=click.IntRange(1, 2**24), default=1024, show_default=True, help="Row length in tokens.")
@as_json
def models(objective: str | None, vocabulary: int, context: int, as_json: bool) -> None:
    """Sizes × n × objective: layers, parameters, training FLOPs per token.

    Parameters are counted on instantiated models (without memory for their weights), embedding and unembedding apart.
    FLOPs count every matrix product of forward and backward at the given context, each head's unembedding included.
    A size that leaves n heads no trunk is left out.
    """
    rows = list(_rows(objective, vocabulary, context))
    if as_json:
        print_json(rows)
        return
    from rich import box
    from rich.table import Table

    table = Table(title=f"vocabulary {vocabulary:,}, context {context:,}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("objective")
    heads = ("size", "n", "layers", "trunk", "width", "attention\nheads", "non-embedding\nparameters", "against\nn = 1")
    for name in (*heads, "embedding\nparameters", "training\nGFLOP/token"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row["n"], row["layers"], row["trunk_layers"], row["width"], row["heads"])
        table.add_row(
            row["objective"], row["size"], *map(str, numbers),
            f"{row['non_embedding_parameters']:,}",
            f"{row['more_than_next_token']:+,}" if row["more_than_next_token"] else "equal",
            f"{row['embedding_parameters']:,}", f"{row['flops_per_token'] / 1e9:.4g}",
        )  # fmt: skip
    print_table(table)


def _rows(only: str | None, vocabulary: int, context: int) -> Iterator[dict[str, Any]]:
    from lab.config import configs_in, did_you_mean, validated
    from lab.errors import BadInput
    from lab.models.sizes import SIZES, Model
    from lab.objectives import ObjectiveConfig
    from lab.objectives.flops import (
        embedding_parameters,
        instantiate,
        non_embedding_parameters,
        training_flops_per_token,
    )

    next_token, *others = configs_in(ObjectiveConfig)
    names = [each.model_fields["name"].default for each in others]
    if only not in (None, *names):
        raise BadInput(
            f"--objective: '{only}' is not allowed: should be one of {', '.join(names)}{did_you_mean(only, names)}"
        )
    others = [each for each, name in zip(others, names, strict=True) if only in (None, name)]
    objectives: list[Any] = [next_token(), *(validated(each, {"n": n}) for each in others for n in (2, 4, 8))]

    for size, shape in SIZES.items():
        base = None
        for objective in objectives:
            if objective.head_layers() >= shape.layers:
                continue
            model = instantiate(Model(size=size), objective, vocabulary)
            parameters = non_embedding_parameters(model)
            base = parameters if base is None else base
            yield {
                "size": size,
                "n": objective.n,
                "objective": objective.name,
                "layers": shape.layers,
                "trunk_layers": len(model.decoder.trunk),
                "width": shape.width,
                "heads": shape.attention_heads,
                "non_embedding_parameters": parameters,
                "more_than_next_token": parameters - base,
                "embedding_parameters": embedding_parameters(model),
                "flops_per_token": training_flops_per_token(model, context),
            }
