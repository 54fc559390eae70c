"""The experiment's fields, for help."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lab.config import Config, configs_in
from lab.experiments.experiment import Experiment


def fields() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A section for the experiment's own fields, then one for each config inside it: its title and its rows.

    Configs that one can choose between and that have the same fields share a section.
    """
    own = {name: info for name, info in Experiment.model_fields.items() if not list(configs_in(info.annotation))}
    yield "Fields", [_row(name, info) for name, info in own.items()]
    shown = {config for info in Experiment.model_fields.values() for config in configs_in(info.annotation)}
    for name, info in Experiment.model_fields.items():
        alike: dict[tuple[tuple[str, str], ...], list[tuple[str, str]]] = {}
        for config in configs_in(info.annotation):
            choice = config.model_fields.get("name")
            title = f"{name}={choice.default}" if choice else name
            about = " ".join((config.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")
            alike.setdefault(tuple(_rows(name, config, shown)), []).append((title, about))
        for rows, titles in alike.items():
            if len(titles) == 1:
                yield ": ".join(titles[0]), list(rows)
            else:
                yield name, [*titles, *rows]


def _rows(place: str, config: type[Config], shown: set[type[Config]]) -> Iterator[tuple[str, str]]:
    """A row for each field of a config, and for those of configs inside it that are not `shown` on their own."""
    for field, info in config.model_fields.items():
        name, inside = f"{place}.{field}", list(configs_in(info.annotation))
        if field == "name":
            continue
        if len(inside) != 1:
            yield _row(name, info)
        if get_origin(info.annotation) is dict and inside:
            name += ".NAME"
        if get_origin(info.annotation) is list and inside:
            name += "[]"
        for each in inside:
            if each not in shown:
                which = each.model_fields.get("name")
                for row, text in _rows(name, each, shown):
                    yield row, f"({which.default}) {text}" if which else text


def _row(name: str, info: FieldInfo) -> tuple[str, str]:
    parts = [" ".join((info.description or "").split())]
    if info.default is not PydanticUndefined:
        default = info.default
        if isinstance(default, Config):  # by name alone, as it can be given
            default = getattr(default, "name", default.model_dump())
        parts.append(f"[default: {_plain(default)}]")
    elif info.default_factory is None:
        parts.append("[required]")
    return f"{name}  {_type(info.annotation)}", "  ".join(parts)


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(each)}" for key, each in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if (configs := list(configs_in(annotation))) and origin is not dict:
        return "|".join(str(each.model_fields["name"].default) for each in configs)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is Union or origin is type(int | None):
        return "|".join(_type(each) for each in arguments)
    if origin is list or (origin is tuple and Ellipsis in arguments):
        return f"[{_type(arguments[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    if origin is dict:
        return f"{{{_type(arguments[0])}: {_type(arguments[1])}}}"
    return {int: "integer", float: "number", bool: "true|false", str: "text", type(None): "null"}.get(
        annotation, "mapping"
    )
