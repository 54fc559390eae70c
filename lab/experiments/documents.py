"""YAML documents: read as YAML 1.2 says, and written so that they read back equal, in YAML 1.1 too.

PyYAML reads YAML 1.1, in which 010 is eight, 1:30 is ninety, and on, off, yes and no are booleans. Here scalars are
resolved by the core schema of YAML 1.2.2 (Section 10.3.2), and `<<` merges, as it does in 1.1.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from lab.config import did_you_mean
from lab.errors import BadInput
from lab.files import located
from lab.home import home


def _float(text: str) -> float:
    value = float(re.sub(r"\.(?=[inIN])", "", text))
    if not value and re.match(r"[-+.0]*[1-9]", text):
        raise ValueError("too small for a float")
    return value


_TAG = "tag:yaml.org,2002:"
_CORE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"|~|null|Null|NULL", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", lambda text: int(text, 0 if text[1:2] in ("o", "x") else 10)),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _float,
    ),
}
"""The tags of plain scalars that are not text: which texts have them, in this order, and the value of such a text."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 with merge keys. A key is the word that is written; given twice in one mapping, it is an error."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {
        **{_TAG + kind: getattr(SafeConstructor, f"construct_yaml_{kind}") for kind in ("str", "seq", "map")},
        None: SafeConstructor.construct_undefined,
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, f"a {node.id} is no mapping", node.start_mark)
        return {key: self.construct_object(value, deep) for key, value in self._values(node).items()}

    def _values(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """The nodes of a mapping's values by key: its own, and beside them those of the mappings that it merges."""
        own: dict[str, yaml.Node] = {}
        merged: yaml.Node | None = None
        for key, value in node.value:
            plain = isinstance(key, yaml.ScalarNode) and key.style is None
            if not isinstance(key, yaml.ScalarNode) or (plain and not key.value):
                raise ConstructorError(None, None, "a key should be a word", key.start_mark)
            if key.value in own or (plain and key.value == "<<" and merged is not None):
                raise ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            if plain and key.value == "<<":
                merged = value
            else:
                own[key.value] = value

        # Of several mappings the first that has a key gives its value.
        several = merged.value if isinstance(merged, yaml.SequenceNode) else [merged] if merged is not None else []
        for each in several:
            if not isinstance(each, yaml.MappingNode):
                raise ConstructorError(None, None, "<< should be a mapping, or a list of them", each.start_mark)
            own = {**self._values(each), **own}
        return own


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that YAML 1.1 or 1.2 would read as anything else."""


def _constructor(kind: str) -> Callable[[yaml.SafeLoader, yaml.Node], Any]:
    pattern, value_of = _CORE[kind]

    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        text = str(loader.construct_scalar(node))  # type: ignore[arg-type]  # which refuses what is no scalar
        try:
            if re.fullmatch(pattern, text):
                return value_of(text)
        except ValueError:  # more digits than Python converts, or too small
            pass
        text = text if len(text) <= 40 else text[:37] + "..."
        raise ConstructorError(None, None, f"'{text}' is no {kind}", node.start_mark)

    return construct


for _kind, (_pattern, _) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), None)
    _Loader.add_constructor(_TAG + _kind, _constructor(_kind))
_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)


def parse_yaml(text: str, origin: str) -> Any:
    """A YAML document, in JSON types.

    Raises:
        BadInput: the text is not YAML, or holds what JSON cannot; names `origin` and, if it can, the line.
    """
    return _parsed(text, origin)[0]


def parse_value(text: str, origin: str) -> Any:
    """A value written in YAML, in JSON types; null if the text is empty.

    Raises:
        BadInput: as of `parse_yaml`, or YAML takes a part of the text for a comment or a document's mark.
    """
    content, node = _parsed(text, origin)
    around = text if node is None else text[: node.start_mark.index] + text[node.end_mark.index :]
    if around.strip():
        raise BadInput(f"{origin}: '{around.strip()}' is no part of the value in YAML; text is put in quotes")
    return content


def _parsed(text: str, origin: str) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML document, and its root node."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadInput(f"{origin}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{origin}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadInput(f"{origin}: not YAML: nested too deeply") from None
    try:
        return json.loads(json.dumps(content, ensure_ascii=False).encode()), node
    except ValueError as error:  # an alias inside of what it names, half of a character
        only = "only text, numbers, booleans, lists and mappings can be configured"
        raise BadInput(f"{origin}: {only}: {error}") from None


def yaml_text(content: Any, one_line: bool = False) -> str:
    """YAML that reads back equal; a document, or a value on one line."""
    if not one_line:
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120)
    line = yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=math.inf)
    return line.removesuffix("\n...\n").strip()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; a relative path is looked for here, then among the lab's own files.

    Raises:
        BadInput: no such file, not readable, not YAML, or not a mapping.
    """
    given = located(path)
    try:
        found = next((each for each in (given, home() / given) if each.is_file()), None)
        if found is None:
            folder = given.parent if given.parent.is_dir() else home() / given.parent
            known = [str(given.parent / each.name) for each in sorted(folder.glob("*.yaml")) if each.is_file()]
            allowed = f"; there are: {', '.join(known)}" if known else ""
            wrong = "a folder, not a file" if given.is_dir() else "no such file"
            raise BadInput(f"{path}: {wrong}{allowed}{did_you_mean(str(path), known)}")
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not readable as text: {error}") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise BadInput(f"{path}: not a mapping from field names to values")
    return content


def read_recipe(path: str | None) -> dict[str, Any]:
    """The recipe that a sweep or a study is laid over; nothing where it names none.

    Raises:
        BadInput: as of `read_yaml`; names the field.
    """
    try:
        return {} if path is None else read_yaml(path)
    except BadInput as error:
        raise BadInput(f"recipe: {error}") from None
