"""Arrays and structs at run time: they live in memory, and functions take and give the addresses of structs.

The caller owns what it passes: it copies a variable, so that nothing the callee does can change the argument, and
makes room for the result, whose address goes first.
"""

from __future__ import annotations

from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.scope import Frame, LocalPlace, MemoryPlace, Place, Run, Value
from openwafer.wafer.csl.types import Type

_FRESH = (ast.Call, ast.BuiltinCall, ast.StructLiteral, ast.TupleLiteral, ast.LabeledBlock)
"""Expressions whose value nothing else can reach."""


def is_aggregate(kind: Type) -> bool:
    return isinstance(kind, ty.Array | ty.Struct)


def own(sema: Any, frame: Frame, name: str, kind: Type) -> ir.Variable:
    """Memory of a function."""
    size = ty.size_bytes(kind)
    variable = ir.Variable(f"{frame.name}.{name}", size, 4 if size >= 4 else 2)
    assert sema.program is not None
    sema.program.variables.append(variable)
    frame.memory.append(variable)
    return variable


def temporary(sema: Any, frame: Frame, kind: Type, name: str, span: Span) -> Place:
    """A place for a value of the function at hand: slots, or memory."""
    if is_aggregate(kind):
        return MemoryPlace(kind, ir.Address(own(sema, frame, name, kind)))
    return LocalPlace(kind, ir.Local(name, sema.slot_type(kind, span)))


def passed(sema: Any, frame: Frame, value: Value, node: ast.Expr | None, span: Span) -> ir.Expr:
    """An argument as IR; `node`: how it is written, None for what stands in a temporary already."""
    if not is_aggregate(value.type) or not isinstance(value, Run) or node is None or isinstance(node, _FRESH):
        return sema.runtime(value, span)
    return kept(sema, frame, value, "argument", span).expr


def kept(sema: Any, frame: Frame, value: Run, name: str, span: Span) -> Run:
    """A value in memory of its own."""
    place = temporary(sema, frame, value.type, name, span)
    sema.store(frame, place, value, span)
    return sema.load(frame, place, span)


def call(sema: Any, frame: Frame, call: ir.Call, result: Type, span: Span) -> Value:
    """The value of a call; where the result is an aggregate, the call happens here."""
    if not isinstance(result, ty.Struct):
        return Run(result, call)
    place = temporary(sema, frame, result, "result", span)
    address = sema.load(frame, place, span).expr
    call.arguments.insert(0, address)
    assert frame.out is not None
    frame.out.append(ir.Evaluate(call))
    return Run(result, address)
