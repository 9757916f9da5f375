"""Anonymous structs with fields that are known only at run time, and how they go into a function.

Such a struct is a compile-time value, `Const` of `StructValue`, in which some fields are `Run`: each stands in a local.
In a call every one of these becomes a parameter of its own, and the callee puts its struct together again.
"""

from __future__ import annotations

from dataclasses import dataclass

from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.comptime import Const, StructValue
from openwafer.wafer.csl.scope import LocalPlace, Run, Value
from openwafer.wafer.csl.types import Type


@dataclass(frozen=True)
class Hole:
    """A field that a parameter of this name fills."""

    parameter: str
    type: Type


def is_open(value: object) -> bool:
    """Whether a value has fields that are known only at run time."""
    if not isinstance(value, Const) or not isinstance(value.value, StructValue):
        return False
    return any(isinstance(own, Run) or is_open(own) for _, own in value.value.fields)


def template(value: Const, name: str, found: dict[str, Run]) -> Const:
    """The struct with holes for its run-time fields, which go to `found` by the name of their parameter."""
    fields = []
    for field, own in value.value.fields:
        parameter = f"{name}.{field}"
        if isinstance(own, Run):
            found[parameter] = own
            own = Hole(parameter, own.type)
        elif is_open(own):
            own = template(own, parameter, found)
        fields.append((field, own))
    return Const(ty.COMPTIME_STRUCT, StructValue(tuple(fields)))


def filled(value: Const, places: dict[str, LocalPlace], read: object) -> Const:
    """The struct of a template, its holes read from the callee's parameters by `read(place)`."""
    fields: list[tuple[str, Value]] = []
    for field, own in value.value.fields:
        if isinstance(own, Hole):
            own = read(places[own.parameter])  # pyright: ignore[reportCallIssue]
        elif isinstance(own, Const) and isinstance(own.value, StructValue):
            own = filled(own, places, read)
        fields.append((field, own))
    return Const(value.type, StructValue(tuple(fields)))  # pyright: ignore[reportArgumentType]
