"""Layers of settings from several files, laid one over another to give one experiment.

A recipe is the lowest layer; a sweep's baseline, a scale's baseline and what moves a run (axes, or the overrides of a
command) are laid over it, the later over the earlier. What a mapping means depends on the field, as its type says:

- of fields (a `Config`), it sets those that it names and leaves the others. Naming another of several configs (a task,
  an objective) leaves nothing of the former one's.
- as a value (a `dict`: weights by name, the parts of a mixture), it replaces the whole. A path that goes on into it
  (`task.parts.novels.weight`) sets one entry, and leaves the others.

Within one layer no field may be set twice: the parts of a layer have no order, and what each sets is found in the run.
"""

from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic_core import PydanticUndefined, to_jsonable_python

from lab.config import Config, InPlaceOf
from lab.errors import BadInput

Path = tuple[str, ...]
"""The names that lead to a field."""


class Entries(dict[str, Any]):
    """Entries of a mapping that is a value, each set by its path: the value's others stay as they are."""


def at(annotation: Any, path: Path, value: Any) -> Any:
    """The mapping that sets one field, or one entry of a value: where `path` leads, from `annotation` on."""
    if not path:
        return value
    inside = {path[0]: at(_inside(annotation, path[0]), path[1:], value)}
    return Entries(inside) if _entries(annotation) is not None else inside


def spelled_out(annotation: Any, value: Any) -> Any:
    """A value in which configs that are given by their name alone (`objective: parallel`) are mappings."""
    if isinstance(value, str) and _named(annotation):
        return {"name": value}
    if not isinstance(value, dict):
        return value
    annotation = _narrowed(annotation, value.get("name"))
    return type(value)({key: spelled_out(_inside(annotation, key), each) for key, each in value.items()})


def merge(annotation: Any, below: Any, value: Any, default: Any = None) -> Any:
    """`value` laid over `below`, in a field of this annotation and this default; both spelled out."""
    if not isinstance(value, dict):
        return value
    if _entries(annotation) is not None:
        if not isinstance(value, Entries):
            return value
        below = default if below is None else below
    elif not _configs(annotation):
        return value
    below = below if isinstance(below, dict) else {}

    # Another config's fields are not this one's.
    if _named(annotation):
        former = below.get("name", default.get("name") if isinstance(default, dict) else None)
        name = value.get("name", former)
        below = below if name == former else {}
        annotation = _narrowed(annotation, name)
    merged = {key: each for key, each in below.items() if key not in _undone(annotation, value)}
    for key, each in value.items():
        merged[key] = merge(_inside(annotation, key), below.get(key), each, _default(annotation, key))
    return merged


def combine(annotation: Any, parts: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The mapping that sets all that the parts of a layer set. Each part: its name in messages, and a mapping.

    Raises:
        BadInput: two parts set one field, or one a field and the other the whole that it is a part of.
    """
    combined: dict[str, Any] = {}
    setters: dict[Path, str] = {}
    for name, part in parts:
        part = spelled_out(annotation, part)
        for path, _ in leaves(annotation, part):
            for other, setter in setters.items():
                if _overlap(path, other):
                    raise BadInput(_clash(other, setter, path, name))
            setters[path] = name
        combined = _union(combined, part)
    return combined


def leaves(annotation: Any, mapping: dict[str, Any], place: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The fields that a mapping sets, and their values; of values that are set by entries, the entries."""
    annotation = _narrowed(annotation, mapping.get("name"))
    for key, value in mapping.items():
        inside = _inside(annotation, key)
        if isinstance(value, Entries) or (isinstance(value, dict) and _configs(inside)):
            yield from leaves(inside, value, (*place, key))
        else:
            yield (*place, key), value


def lost(annotation: Any, mapping: dict[str, Any], found: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The fields that `mapping` sets and none of the mappings `found` has at that value, and their values."""
    left = dict(leaves(annotation, spelled_out(annotation, mapping)))
    for each in found:
        left = {path: value for path, value in left.items() if _value_at(each, path) != (value,)}
    for path, value in left.items():
        yield ".".join(path), value


def _value_at(mapping: Any, path: Path) -> tuple[Any] | None:
    for key in path:
        if not isinstance(mapping, dict) or key not in mapping:
            return None
        mapping = mapping[key]
    return (mapping,)


def _union(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, of which neither undoes anything of the other."""
    both = type(one)(one)
    for key, value in other.items():
        mine = both.get(key)
        if isinstance(mine, dict) and mine and isinstance(value, dict):
            value = _union(mine, value)
        both[key] = value
    return both


def _overlap(one: Path, other: Path) -> bool:
    return all(mine == its for mine, its in zip(one, other, strict=False))


def _clash(one: Path, setter: str, other: Path, second: str) -> str:
    if one == other:
        return f"{'.'.join(one)}: is set by {setter} and by {second}; a field is set once"
    (outer, by), (inner, within) = sorted(((one, setter), (other, second)), key=lambda each: len(each[0]))
    return f"{'.'.join(inner)}: is set by {within}, and all of {'.'.join(outer)} by {by}; a field is set once"


# What a field's annotation says


def _configs(annotation: Any) -> list[type[Config]]:
    """The configs of which a mapping of fields is one."""
    return [each for each in _members(annotation) if isinstance(each, type) and issubclass(each, Config)]


def _entries(annotation: Any) -> Any:
    """The annotation of the entries of a mapping that is a value; None where there is no such."""
    return next((get_args(each)[1] for each in _members(annotation) if get_origin(each) is dict), None)


def _members(annotation: Any) -> Iterator[Any]:
    """Return the members of a union, or of several unions."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _members(arguments[0])
    elif isinstance(annotation, tuple) or origin in (Union, UnionType):
        for each in arguments or annotation:
            yield from _members(each)
    else:
        yield annotation


def _named(annotation: Any) -> bool:
    """Return True if configs are distinguished by their field `name`."""
    configs = _configs(annotation)
    return bool(configs) and all("name" in each.model_fields for each in configs)


def _narrowed(annotation: Any, name: Any) -> Any:
    """The configs of this name alone; all, where none has it."""
    mine = [each for each in _configs(annotation) if _named(each) and each.model_fields["name"].default == name]
    return mine[0] if mine else annotation


def _inside(annotation: Any, key: str) -> Any:
    """The annotation of a field, or of a value's entry; of a field of several configs, all that it may be."""
    if (entries := _entries(annotation)) is not None:
        return entries
    return tuple(each.model_fields[key].annotation for each in _configs(annotation) if key in each.model_fields)


def _default(annotation: Any, key: str) -> Any:
    """A field's default, in JSON types; None where it has none, or configs differ in it."""
    found = [each.model_fields[key].default for each in _configs(annotation) if key in each.model_fields]
    return to_jsonable_python(found[0]) if found and found[0] is not PydanticUndefined else None


def _undone(annotation: Any, value: dict[str, Any]) -> set[str]:
    """The fields below that another one, which `value` sets, stands in place of."""
    undone = set()
    for config in _configs(annotation):
        for field, info in config.model_fields.items():
            for other in (mark.field for mark in info.metadata if isinstance(mark, InPlaceOf)):
                if field not in value and other in value:
                    undone.add(field)
                if other not in value and value.get(field) is not None:
                    undone.add(other)
    return undone
