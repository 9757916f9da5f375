"""What builtins share: checking arguments, and configurations like `.{ .async = true }`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from openwafer.wafer.csl import ast
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.forms import form
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
        text = f"@{node.name} takes {wanted} argument{'' if wanted == '1' else 's'}, found {given}"
        raise CslError(node.span, text, f"its form is {form(node.name, low)}")


def in_program(sema: Any, node: ast.BuiltinCall) -> Any:
    """The program under analysis; a layout has none."""
    if sema.program is None:
        raise CslError(node.span, f"@{node.name} belongs to a PE program, not to the layout")
    return sema.program


def at_start(sema: Any, frame: Any, node: ast.BuiltinCall) -> Any:
    """The program, for what is said about it once, at compile time."""
    program = in_program(sema, node)
    if not frame.is_comptime:
        raise CslError(
            node.span, f"@{node.name} belongs to a comptime block", f"comptime {{ @{node.name}(...); }} at top level"
        )
    return program


def at_run_time(frame: Any, node: ast.BuiltinCall) -> Any:
    """Where to emit, for what happens on the PE."""
    if frame.is_comptime:
        raise CslError(node.span, f"@{node.name} happens at run time only", "call it in a function or task")
    return frame.out


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
        raise CslError(node.span, f".{name} must be true or false, known at compile time; found {value.type}")
    return value.value


def number(options: Config, name: str, default: int | None = None, low: int = 0, high: int = 0xFFFF) -> int | None:
    """An integer that must be known."""
    if name not in options:
        return default
    value, node = options[name]
    if not isinstance(value, Const):
        raise CslError(node.span, f".{name} must be known at compile time")
    if not isinstance(value.value, int) or isinstance(value.value, bool):
        raise CslError(node.span, f".{name} must be an integer, found {value.type}")
    if not low <= value.value <= high:
        raise CslError(node.span, f".{name} = {value.value} is out of range ({low} to {high})")
    return int(value.value)


def known_id(value: Any, node: ast.Node, what: str, allowed: range | None = None, kind: ty.Opaque | None = None) -> int:
    """The number of a hardware id or integer; of one of another kind only if `kind` is None."""
    if not isinstance(value, Const):
        raise CslError(node.span, f"{what} must be known at compile time")
    if isinstance(value.value, FunctionValue):
        name = value.value.declaration.name
        raise CslError(node.span, f"{what} must be an id, found the function {name}", "use the id it is bound to")
    if not isinstance(value.value, int) or isinstance(value.value, bool):
        raise CslError(node.span, f"{what} must be an integer or an id, found {value.type}")
    if kind is not None and isinstance(value.type, ty.Opaque) and value.type != kind:
        raise CslError(node.span, f"{what} must be of type {kind}, found {value.type}")
    if allowed is not None and value.value not in allowed:
        raise CslError(node.span, f"{what} is {value.value}, out of range ({allowed[0]} to {allowed[-1]})")
    return value.value
