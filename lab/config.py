"""The base of every configuration: strict typed fields, and one clear line for bad input."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from lab.errors import BadInput


@dataclass(frozen=True)
class Neutral:
    """Marks a field that came after its config was first used: at `value` it does not enter the identity.

    Used as `field: Annotated[int, Neutral(0)] = 0`, so that runs made before the field existed keep their identity.
    """

    value: object


@dataclass(frozen=True)
class InPlaceOf:
    """Marks a field that stands in place of another: set in a layer, each of the two undoes the other below."""

    field: str


class Location:
    """Marks a field that says where something is, not what it is: recorded, but no part of the identity."""


class Config(BaseModel):
    """Base of every configuration: immutable, strictly typed, unknown fields refused.

    `version` is part of a run's identity. Raise it when the meaning of the same fields changes.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    version: ClassVar[int] = 1


ConfigT = TypeVar("ConfigT", bound=Config)


def validated(config: type[ConfigT], mapping: dict[str, Any]) -> ConfigT:
    """A config from a mapping as YAML gives it.

    Raises:
        BadInput: naming the first wrong field, its value and what is allowed.
    """
    try:
        # JSON mode is as strict about types, yet takes a list where a tuple is meant, as YAML has to write it.
        return config.model_validate_json(json.dumps(mapping))
    except ValidationError as error:
        # Of several errors an unknown field says most: it may be why another is missing.
        first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
        raise BadInput(_one_line(config, mapping, first)) from None


def canonical(config: Config) -> dict[str, Any]:
    """Return the fields that identify a config: its version, and all fields except locations and neutral values."""
    fields: dict[str, Any] = {"version": config.version}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if any(isinstance(mark, Location) or mark == Neutral(value) for mark in info.metadata):
            continue
        fields[name] = _canonical(value)
    return fields


def _canonical(value: Any) -> Any:
    if isinstance(value, Config):
        return canonical(value)
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    return {key: _canonical(each) for key, each in value.items()} if isinstance(value, dict) else value


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word nearest to `word`, or nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def configs_in(annotation: Any) -> Iterator[type[Config]]:
    """The config classes that an annotation names, through unions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from configs_in(part)


def _one_line(config: type[Config], mapping: dict[str, Any], error: ErrorDetails) -> str:
    """A pydantic error as `field: value is not allowed: what is`."""
    place: list[str] = []  # where the error is, as the user wrote it
    value: Any = mapping  # what the user gave there
    owners = [config]  # the configs that the next part may be a field of
    structured = True  # whether a config is meant to be there
    *_, last = error["loc"] or ("",)
    for position, part in enumerate(error["loc"], start=1):
        at_end = position == len(error["loc"])
        if part == "[key]":
            value, structured = place.pop(), False
            continue
        inside = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if inside:
            value = value[part]
        tag = not inside and len(owners) > 1 and part in (each.model_fields["name"].default for each in owners)
        if inside or (at_end and not tag):
            place.append(str(part))
        fields = [each.model_fields[str(part)] for each in owners if str(part) in each.model_fields]
        if fields and not at_end:
            owners = list(configs_in(fields[0].annotation))
        elif tag:  # which pydantic puts before the fields of a union's member
            owners = [each for each in owners if each.model_fields["name"].default == part]
        if not isinstance(part, int):  # an item of a list is what the list's items are meant to be
            structured = tag or bool(fields and list(configs_in(fields[0].annotation)))
    field, known = ".".join(place), [name for each in owners for name in each.model_fields]
    given = json.dumps(value)
    given = given if len(given) <= 80 else given[:77] + "..."
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{field}: unknown field; allowed: {', '.join(known)}{did_you_mean(last, known)}"
    if kind == "missing":
        return f"{field}: missing{_description(owners, str(last))}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        members = (each.model_fields[last].annotation for each in owners if last in each.model_fields)
        tags = [str(each.model_fields["name"].default) for each in configs_in(next(members, None))]
        if kind == "union_tag_not_found":
            return f"{field}.name: missing: should be one of {', '.join(tags)}"
        name = value["name"]
        return f"{field}: '{name}' is not allowed: should be one of {', '.join(tags)}{did_you_mean(name, tags)}"
    if kind == "value_error" and structured:  # a check across fields, which names them itself
        said = str(context["error"])
        joint = "." if re.match(r"[\w.]+: ", said) else ": "
        return f"{field}{joint}{said}" if field else said
    allowed = str(context["error"]) if kind == "value_error" else error["msg"].removeprefix("Input ")
    allowed = allowed.replace("valid array", "list").replace("an object", "a mapping")
    allowed = allowed.replace("a valid boolean", "true or false")
    if kind == "string_type" and isinstance(value, bool | int | float):
        allowed += "; quotes make text of it"
    for words_of_pydantic in ("Dictionary ", "List ", "Tuple ", "String "):
        allowed = allowed.removeprefix(words_of_pydantic)
    allowed = allowed.replace(" after validation", "")
    words = [word.strip("' ") for word in str(context.get("expected", "")).replace(" or ", ",").split(",")]
    return f"{field}: {given} is not allowed: {allowed}{did_you_mean(value, words) if words != [''] else ''}"


def _description(owners: list[type[Config]], field: str) -> str:
    infos = [each.model_fields[field] for each in owners if field in each.model_fields]
    return f": {' '.join(infos[0].description.split())}" if infos and infos[0].description else ""
