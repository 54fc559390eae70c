"""`lab decode`: continue prompts with a run's own drafts, see which are accepted, and what that is worth."""

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import as_json, counting, print_json, print_table, rich_console, say, store_option

if TYPE_CHECKING:
    from rich.text import Text

    from lab.analysis.speculation import Prompts
    from lab.decoding.sampling import Sampling
    from lab.decoding.state import Step
    from lab.tasks.base import Task

SHOWN = 3
"""Continuations that are shown."""
BEFORE = 24
"""Tokens of a prompt that are shown, the last."""
MARKS = {"accepted": ("green", "[", "]"), "rejected": ("red strike", "{", "}"), "own": ("", "", "")}
"""Of tokens: their style on a terminal, and what stands around them elsewhere."""


class Whole(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas or spaces between."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = re.split(r"[\s,]+", str(value).strip("[] "))
        if not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
            self.fail(f"'{value}' is not allowed: should be whole numbers with commas between", param, ctx)
        return tuple(map(int, parts))


@click.command()
@click.argument("run")
@click.option("--heads", type=int, help="Heads that are used, k; 1 decodes plainly.  [default: all, n]")
@click.option(
    "--tree", type=Whole(), help="Verify a tree: candidates of head 2, of head 3, … as in 3,2.  [default: none]"
)
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="What logits are divided by; 0: the likeliest."
)  # fmt: skip
@click.option("--top-p", type=float, default=1.0, show_default=True, help="The share of probability drawn from.")
@click.option("--count", type=click.IntRange(1), default=32, show_default=True, help="Test examples continued.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Rows decoded at once.")
@click.option(
    "--new-tokens", type=click.IntRange(1, 2**20), default=64, show_default=True, help="The most added to a prompt."
)  # fmt: skip
@click.option(
    "--prompt", type=Whole(), help="Continue these token ids, as `lab data show --json` gives them, not test examples."
)  # fmt: skip
@store_option
@as_json
def decode(
    run: str, heads: int | None, tree: tuple[int, ...] | None, temperature: float, top_p: float, count: int, batch: int,
    new_tokens: int, prompt: tuple[int, ...] | None, store: Path, as_json: bool,
) -> None:  # fmt: skip
    """Decode with a finished run's further heads as drafts, and tell what it is worth (Section 3.2 of the paper).

    RUN is a run's directory, label or identity. Prompts are test examples up to where the score begins to look, or half
    way, whichever is later. Shown are some continuations, with the drafts that head 1 accepted and those that it did
    not; then, for k = 1 to all heads, tokens a forward pass, the share of drafts accepted by depth, speed-up over k = 1
    on this machine, all in turn in one run, and what a pass costs; beside the paper's Tables S2 and S3.

    Greedy decoding gives the same tokens with any k; sampling gives the same distribution.
    """
    from lab.analysis.finished_run import FinishedRun
    from lab.analysis.speculation import beyond, given_prompt, paper, prompts_of, speculation, ways
    from lab.decoding import decode as decoding
    from lab.errors import BadInput
    from lab.experiments.store import find_run

    opened = FinishedRun(find_run(run, store, "RUN"))
    objective = opened.experiment.objective
    sampling = _sampling(temperature, top_p)
    model = opened.model(opened.steps[-1])
    n = model.objective.n
    if n == 1 and (heads != 1 or tree):
        raise BadInput(f"RUN: {objective.name} has no heads beyond the first; --heads 1 decodes plainly")
    if heads is not None and not 1 <= heads <= n:
        raise BadInput(f"--heads: {heads} is not allowed: the run has n = {n}")
    if tree and heads is not None and heads != len(tree) + 1:
        raise BadInput(f"--tree: {len(tree)} numbers take {len(tree) + 1} heads, not --heads {heads}")
    if tree and len(tree) >= n:
        raise BadInput(f"--tree: {len(tree)} numbers are not allowed: the run has n = {n}, {n - 1} heads that draft")
    prompts = given_prompt(opened, prompt) if prompt else prompts_of(opened, count)
    if warning := beyond(opened, prompts, new_tokens):
        say(warning)
    compared = ways(heads or (len(tree) + 1 if tree else n), tree)
    first = prompts.tokens[:SHOWN], prompts.lengths[:SHOWN]
    shown = decoding.decode(model, *first, new_tokens, compared[-1], sampling, prompts.end, record=True)
    rounds = 3
    with counting("batches decoded", rounds * len(compared) * -(-len(prompts.lengths) // batch)) as listen:
        rows = speculation(model, prompts, compared, new_tokens, batch, sampling, rounds, listen)
    if as_json:
        about = {"temperature": temperature, "top_p": top_p, "new_tokens": new_tokens, "end": prompts.end}
        continuations = list(_continuations(opened.task, prompts, shown.tokens, shown.steps))
        print_json({**_about(opened), **about, "rows": rows, "paper": list(paper()), "continuations": continuations})
        return
    _print_continuations(opened.task, prompts, shown.steps)
    _print_rows(f"{opened.directory.path}, step {opened.steps[-1]}", rows, n)


def _sampling(temperature: float, top_p: float) -> "Sampling | None":
    """Return the sampling parameters of the options; None for greedy decoding.

    Raises:
        BadInput: top-p without a temperature.
    """
    from lab.decoding.sampling import Sampling
    from lab.errors import BadInput

    if temperature < 0:
        raise BadInput(f"--temperature: {temperature} is not allowed: should be 0, the likeliest, or above")
    if temperature == 0:
        if top_p != 1:
            raise BadInput(f"--top-p: {top_p} is not allowed with --temperature 0: the likeliest is always inside")
        return None
    return Sampling(temperature, top_p)


def _about(run: Any) -> dict[str, Any]:
    """Return the provenance of the document."""
    from lab.experiments import provenance

    return {
        "run": {**run.about, "label": run.experiment.label, "task": run.experiment.task.name, "step": run.steps[-1]},
        **provenance.here(),
    }


def _continuations(
    task: "Task", prompts: "Prompts", tokens: list[list[int]], steps: list[list["Step"]]
) -> Iterator[dict[str, Any]]:
    """Continuations for machines: `prompt` and `tokens`, their `text`, and what each pass gave."""
    for row, made in enumerate(tokens):
        prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
        yield {
            "prompt": prompt, "tokens": made, "text": task.text([*prompt, *made]),
            "steps": [step._asdict() for step in steps[row]],
        }  # fmt: skip


def _print_continuations(task: "Task", prompts: "Prompts", steps: list[list["Step"]]) -> None:
    """Some continuations: drafts accepted and rejected, and head 1's own tokens."""
    from rich.text import Text

    console = rich_console(width=None if sys.stdout.isatty() else 120)
    legend = Text("drafts that head 1 accepted: ")
    for kind, words in (("accepted", "so"), ("rejected", "so"), ("own", "plain")):
        legend.append_text(_marked(kind, words, console.is_terminal))
        legend.append({"accepted": "; rejected: ", "rejected": "; its own tokens: ", "own": "\n"}[kind])
    console.print(legend, highlight=False)
    for row, of_row in enumerate(steps):
        prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
        line = Text("… " if len(prompt) > BEFORE else "")
        line.append(task.text(prompt[-BEFORE:]), "dim")
        text = prompt[-BEFORE:]
        for step in of_row:
            own = [step.own] if step.own is not None else []
            for kind, tokens in (("accepted", step.accepted), ("rejected", step.rejected), ("own", own)):
                if tokens:
                    space, words = _words(task, text, tokens)
                    line.append(space)
                    line.append_text(_marked(kind, words, console.is_terminal))
                text = text if kind == "rejected" else [*text, *tokens]
        console.print(line, highlight=False)
        console.print()


def _needed(share: float | None) -> str:
    """From which share of drafts they pay."""
    if share is None or math.isnan(share):
        return ""
    return "never" if share > 1 else f"{max(0.0, share):.2f}"


def _marked(kind: str, words: str, colour: bool) -> "Text":
    from rich.text import Text

    style, left, right = MARKS[kind]
    return Text(words, style) if colour else Text(f"{left}{words}{right}")


def _words(task: "Task", before: list[int], tokens: list[int]) -> tuple[str, str]:
    """Tokens as people read them after others: the space before them, and the rest."""
    start, whole = task.text(before), task.text([*before, *tokens])
    apart = whole.startswith(start)  # if not, their text does not tell where they begin
    words = whole[len(start) :] if apart else "".join(task.vocabulary[token] for token in tokens)
    return words[: len(words) - len(words.lstrip())], words.lstrip() or "␣"


def _print_rows(title: str, rows: list[dict[str, Any]], n: int) -> None:
    """The table, with the paper's numbers for as many heads."""
    from rich import box
    from rich.table import Table

    from lab.paper import BYTE_SPEED_UPS, SPEED_UPS

    heads = min((each for each in BYTE_SPEED_UPS if each >= n), default=max(BYTE_SPEED_UPS))
    columns = (
        "k", "tree", "tokens a\nforward", "drafts\naccepted", "tokens/s", "speed-up", "cost of\na pass",
        "by\nwaiting", "pays from\nshare", "layers", "layers\nallow", "S2, code\nn = 4", f"S3, bytes\nn = {heads}",
    )  # fmt: skip
    click.echo(f"{title}; {rows[0]['prompts']} prompts in batches of {rows[0]['batch']}, {rows[0]['tokens']:,} tokens")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        published = (measured.get(row["k"]) for measured in (SPEED_UPS["code"], BYTE_SPEED_UPS[heads]))
        table.add_row(
            str(row["k"]),
            ",".join(map(str, row["drafts"])) if max(row["drafts"], default=1) > 1 else "",
            f"{row['tokens_per_forward']:.2f}",
            f"{row['accepted_length']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed_up']:.2f}",
            f"{row['cost_per_forward']:.2f}",
            f"{row['waiting']:.2f}",
            _needed(row["break_even_acceptance"]),
            str(row["layers"]),
            f"{row['layers_allow']:.2f}",
            *("" if each is None or max(row["drafts"]) > 1 else "{:.2f}, {:.2f} ×".format(*each) for each in published),
        )
    print_table(table)
    largest = next(row for row in reversed(rows) if max(row["drafts"], default=1) == 1)
    for row in (largest, *rows[rows.index(largest) + 1 :]):  # the longest chain, and the tree
        if not row["drafts"]:
            continue
        shares = " ".join(f"{share:.2f}" for share in row["accepted"])
        how = ",".join(map(str, row["drafts"]))
        click.echo(
            f"share accepted of the drafts of head 2, 3, … that were verified ({how} candidates of each): {shares}"
        )
    click.echo(
        "Without reading the prompt and the token that it gives. Cost of a pass: in plain passes, tokens a forward / "
        "speed-up;\nby waiting: the factor in it by which rows of a batch wait for each other, against k = 1.\n"
        "Pays from: the share of verified drafts to be accepted. Layers allow: the speed-up if passes took time by "
        "their layers.\nS2, S3: the paper's tokens a forward and speed-up (7B, GPUs)."
    )
    changed = [row for row in rows if row["identical"] is not None and row["identical"] < 1]
    for row in changed:
        differ = f"{1 - row['identical']:.1%} of prompts differ from k = 1, as rounding at ties may have it"
        say(f"drafts {row['drafts']}: {differ}")
