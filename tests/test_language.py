"""The language of the code: openings of docstrings, nesting of comprehensions, names that mean one thing."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from lab.home import home

OPENING = re.compile(r"(what|how|whether|where|who|which|when|that|why)\b", re.IGNORECASE)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LOCALS = (ast.FunctionDef, ast.AsyncFunctionDef)

ALLOWED: dict[str, int] = {
    "figures/effects.py": 1,
    "lab/analysis/attention.py": 1,
    "lab/analysis/information.py": 2,
    "lab/analysis/loss_weights.py": 2,
    "lab/analysis/speculation.py": 1,
    "lab/analysis/terms.py": 1,
    "lab/bench/costs.py": 1,
    "lab/bench/memory.py": 1,
    "lab/cli/analyze.py": 2,
    "lab/cli/bench_train.py": 5,
    "lab/cli/cost.py": 1,
    "lab/cli/heads.py": 1,
    "lab/cli/landmarks.py": 2,
    "lab/cli/scores.py": 4,
    "lab/experiments/store.py": 1,
    "lab/experiments/study.py": 2,
    "lab/experiments/trials.py": 1,
    "lab/models/cache.py": 1,
    "lab/report/drawing.py": 1,
    "lab/report/page.py": 2,
    "lab/report/tables.py": 1,
    "lab/report/verdicts.py": 3,
}
"""Violations that a file still has. It may have no more of them; when it has fewer, its number is lowered."""


def openings(tree: ast.AST) -> list[str]:
    """Return docstrings, and string literals that document attributes, that open with a word of `OPENING`."""
    texts = []
    for node in ast.walk(tree):
        if not isinstance(node, DOCUMENTED):
            continue
        # In a function only the docstring; in a module or class also what documents an attribute above it.
        body = node.body[:1] if isinstance(node, LOCALS) else node.body
        for statement in body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts.append(value.value.strip())
    return [text for text in texts if OPENING.match(text)]


def nested(tree: ast.AST) -> list[int]:
    """Return the lines of comprehensions that stand inside another one."""
    lines = set()
    for outer in ast.walk(tree):
        if isinstance(outer, COMPREHENSIONS):
            inside = (node for node in ast.walk(outer) if node is not outer)
            lines |= {node.lineno for node in inside if isinstance(node, COMPREHENSIONS)}
    return sorted(lines)


def files() -> list[Path]:
    return sorted(path for folder in ("lab", "figures") for path in (home() / folder).rglob("*.py"))


def violations(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    opened = [f"docstring opens with {text.split()[0]!r}: {text[:60]!r}" for text in openings(tree)]
    return opened + [f"line {line}: a comprehension in a comprehension" for line in nested(tree)]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(home())))
def test_docstrings_say_what_things_are_and_comprehensions_are_not_nested(path: Path) -> None:
    found, allowed = violations(path), ALLOWED.get(path.relative_to(home()).as_posix(), 0)
    assert len(found) <= allowed, "\n".join(found)
    assert len(found) == allowed, f"lower the number in ALLOWED to {len(found)}"


def test_the_rule_finds_what_it_is_for() -> None:
    source = '"""What it is."""\nclass A:\n    x: int\n    """Whether x."""\n\n    def f(self):\n        "How."\n'
    tree = ast.parse(source)
    assert len(openings(tree)) == 3
    assert not openings(ast.parse('def f():\n    "Return what is asked."\n    x = 1\n    "What is no docstring."\n'))
    assert nested(ast.parse("[[y for y in x] for x in z]")) == [1]
    assert nested(ast.parse("sum(len(x) for x in f(a for a in b))")) == [1]
    assert not nested(ast.parse("[x for x in y] + [x for x in z]"))


def test_a_public_class_is_one_thing() -> None:
    names: Counter[str] = Counter()
    for path in (home() / "lab").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name] += 1
    assert [name for name, count in names.items() if count > 1] == []
