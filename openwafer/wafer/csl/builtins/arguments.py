"""What builtins share: checking arguments, and configurations like `.{ .async = true }`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from openwafer.wafer.csl import ast
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.comptime import Const, StructValue
from openwafer.wafer.csl.diagnostics import CslError, nearest
from openwafer.wafer.csl.scope import CellPlace, FunctionValue, Place, Value

Config = dict[str, tuple[Value | Place, ast.Node]]


def count(node: ast.BuiltinCall, low: int, high: int | None = None) -> None:
    """Checks the number of arguments."""
    high = low if high is None else high
    given = len(node.arguments)
    if not low <= given <= high:
        wanted = f"{low}" if low == high else f"{low} to {high}"
        raise CslError(node.span, f"@{node.name} takes {wanted} arguments, {given} are given")


def config(sema: Any, frame: Any, node: ast.Expr, known: Collection[str] | None = None) -> Config:
    """A struct literal as name -> (value, node); fields may be run-time values."""
    found = _fields(sema, frame, node)
    for name, (_, where) in found.items():
        if known is not None and name not in known:
            raise CslError(where.span, f'there is no option ".{name}" here{nearest(name, known)}', _listed(known))
    return found


def _listed(known: Collection[str]) -> str:
    return "known: " + ", ".join(f".{name}" for name in sorted(known))


def _fields(sema: Any, frame: Any, node: ast.Expr) -> Config:
    if isinstance(node, ast.IfExpr):
        if sema.constant(frame, node.condition, ty.BOOL).value:
            return _fields(sema, frame, node.then)
        if node.otherwise is None:
            raise CslError(node.span, "no branch of this if is taken, so it has no value")
        return _fields(sema, frame, node.otherwise)
    if isinstance(node, ast.StructLiteral) and node.type is None:
        return {item.name: (_known(sema, frame, item.value), item) for item in node.fields}
    value = sema.constant(frame, node)
    if not isinstance(value.value, StructValue):
        raise CslError(node.span, f"expected options like .{{ .name = value }}, found {value.type}")
    return {name: (own, node) for name, own in value.value.fields}


def _known(sema: Any, frame: Any, node: ast.Expr) -> Value | Place:
    """A value; of a compile-time variable what it holds now."""
    found = sema.expr(frame, node)
    return sema.load(frame, found, node.span) if isinstance(found, CellPlace) else found


def flag(options: Config, name: str) -> bool:
    """A bool that must be known, False if not given."""
    if name not in options:
        return False
    value, node = options[name]
    if not isinstance(value, Const) or value.type != ty.BOOL:
        raise CslError(node.span, f".{name} must be true or false")
    return value.value


def number(options: Config, name: str, default: int | None = None, low: int = 0, high: int = 0xFFFF) -> int | None:
    """An integer that must be known."""
    if name not in options:
        return default
    value, node = options[name]
    if not isinstance(value, Const) or not isinstance(value.value, int):
        raise CslError(node.span, f".{name} must be an integer known at compile time")
    if not low <= value.value <= high:
        raise CslError(node.span, f".{name} = {value.value} is out of range ({low} to {high})")
    return int(value.value)


def known_id(value: Any, node: ast.Node, what: str) -> int:
    """The number of a hardware id or integer."""
    if isinstance(value, Const) and isinstance(value.value, int) and not isinstance(value.value, bool):
        return value.value
    if isinstance(value, Const) and isinstance(value.value, FunctionValue):
        raise CslError(
            node.span, f"{what} needs an id, found {value.value.declaration.name}", "use the id it is bound to"
        )
    raise CslError(node.span, f"{what} must be known at compile time")
