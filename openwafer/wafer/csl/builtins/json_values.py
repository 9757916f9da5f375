"""@import_comptime_value: a JSON file as a value. Fields of an object are labelled "name:type"."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from openwafer.wafer.csl import ast
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import count
from openwafer.wafer.csl.comptime import Const, StructValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import Value
from openwafer.wafer.csl.source import SourceError, read_source


def import_comptime_value(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind, name = sema.type(frame, node.arguments[0]), sema.string(frame, node.arguments[1])
    path = Path(frame.instance.path).parent / name
    try:
        content = json.loads(read_source(path, name).text)
    except SourceError as error:
        raise CslError(node.arguments[1].span, str(error)) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise CslError(node.arguments[1].span, f"{name} is not JSON: {error}") from None
    return _value(sema, kind, content, node, name)


def _value(sema: Any, kind: ty.Type, content: Any, node: ast.Node, where: str) -> Const:
    """One JSON value as a value of a type; `where` leads to it from the file."""
    if kind == ty.COMPTIME_STRUCT and isinstance(content, dict):
        return Const(kind, StructValue(tuple(_field(sema, *item, node, where) for item in content.items())))
    if isinstance(kind, ty.Array) and isinstance(content, list):
        elements = [_value(sema, kind.element, item, node, f"{where}[{i}]") for i, item in enumerate(content)]
        if len(elements) != kind.count:
            raise CslError(node.span, f"{where} has {len(elements)} elements, {kind} has {kind.count}")
        return Const(kind, sema.array(ty.Array((kind.count,), kind.element), elements, node.span).value)
    if (kind == ty.BOOL and isinstance(content, bool)) or (kind == ty.COMPTIME_STRING and isinstance(content, str)):
        return Const(kind, content)
    if isinstance(content, int | float) and not isinstance(content, bool):
        number = Const(ty.COMPTIME_INT if isinstance(content, int) else ty.COMPTIME_FLOAT, content)
        if kind == ty.COLOR and isinstance(content, int):
            return Const(kind, content)
        if kind in ty.NUMBERS or isinstance(kind, ty.Int | ty.Float):
            return sema.coerce(number, kind, node.span)
    shown = {dict: "an object", list: "an array", str: "a string", type(None): "null"}.get(type(content), repr(content))
    raise CslError(node.span, f"{where} is {shown}, which is no value of type {kind}")


def _field(sema: Any, label: str, content: Any, node: ast.Node, where: str) -> tuple[str, Const]:
    found = re.fullmatch(r"(\w+):(?:\[([\d, ]+)\])?(\w+)", label)
    element = ty.named(found[3]) if found else None
    if found is None or element is None:
        hint = 'a field is labelled "name:type", as "n:u16" or "a:[4]f32"'
        raise CslError(node.span, f'{where} has the field "{label}"; {hint}')
    extents = tuple(int(part) for part in found[2].split(",")) if found[2] else ()
    kind = ty.Array(extents, element) if extents else element
    return found[1], _value(sema, kind, content, node, f"{where}.{found[1]}")


BUILTINS = {"import_comptime_value": import_comptime_value}
