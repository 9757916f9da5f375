"""Accesses of arrays, `|i|{4} -> a[2 * i + 1]`: affine walks through memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import known_id
from openwafer.wafer.csl.comptime import Const, PointerValue, StructValue
from openwafer.wafer.csl.diagnostics import CslError, Diagnostic
from openwafer.wafer.csl.scope import MemoryPlace, Run, Value
from openwafer.wafer.csl.sema import offset_by

EXTENTS = range(0x8000)


@dataclass(frozen=True)
class Layout:
    """Where an access walks.

    `pointer`: the base as a value; `address` and `element_bytes`: of its elements; `offset`: elements from there to the
    first; `extents` and `strides`: outermost first, strides in elements, each from one step of its index to the next.
    """

    pointer: Value
    address: ir.Expr
    element_bytes: int
    offset: int
    extents: list[int]
    strides: list[int]
    span: ast.Span


def lay_out(sema: Any, value: Const) -> Layout:
    """What `|i, j|{4, 8} -> a[i, j]` stands for."""
    node, frame = value.value
    names = node.variables
    if len(names) != len(node.extents):
        text = f"this access has {len(names)} names of indices and {len(node.extents)} extents"
        raise CslError(node.span, text, "each index has its extent, as in |i, j|{4, 8} -> a[i, j]")
    extents = [known_id(sema.constant(frame, e), e, "an extent", EXTENTS) for e in node.extents]
    if not isinstance(node.body, ast.Index):
        raise CslError(node.body.span, "an access ends in an element of an array, like a[i, j]")
    base = sema.expr(frame, node.body.base)
    shape, element = _shape(base, node)
    address, _ = address_of(sema, frame, base, node.body.base)
    forms = [linear(sema, frame, index, names) for index in node.body.indices]
    if len(forms) != len(shape):
        raise CslError(node.body.span, f"{base.type} takes {len(shape)} indices, found {len(forms)}")
    offset, strides = 0, [0] * len(names)
    for position, (coefficients, constant) in enumerate(forms):
        step = math.prod(extent or 1 for extent in shape[position + 1 :])
        offset += constant * step
        strides = [s + coefficients.get(n, 0) * step for s, n in zip(strides, names, strict=True)]
    _bounds(sema, shape, forms, dict(zip(names, extents, strict=True)), node)
    return Layout(_pointer(base, address), address, ty.size_bytes(element), offset, extents, strides, node.span)


def as_struct(sema: Any, value: Const) -> Const:
    """The struct that an access stands for: base_address, offset, stride (innermost first) and extent."""
    where = lay_out(sema, value)
    strides, walked = [], 0
    for extent, stride in zip(reversed(where.extents), reversed(where.strides), strict=True):
        strides.append(stride - walked)
        walked += stride * (extent - 1)
    if not isinstance(where.pointer, Const):
        raise CslError(where.span, "the array of this access is not known at compile time, so it has no fields")
    fields = (
        ("base_address", where.pointer),
        ("offset", Const(ty.Int(16, True), where.offset)),
        ("stride", _tuple(strides, ty.Int(16, True))),
        ("extent", _tuple(where.extents, ty.U16)),
    )
    return Const(ty.COMPTIME_STRUCT, StructValue(fields))


def _tuple(values: list[int], kind: ty.Type) -> Const:
    return Const(ty.COMPTIME_STRUCT, StructValue(tuple((str(i), Const(kind, v)) for i, v in enumerate(values))))


def _pointer(base: Any, address: ir.Expr) -> Value:
    if isinstance(base, Const | Run):
        return base
    kind = ty.Pointer(base.type, False, getattr(base, "is_const", False))
    if isinstance(address, ir.Address):
        return Const(kind, PointerValue(address.variable, address.offset))
    return Run(kind, address)


def address_of(sema: Any, frame: Any, found: Any, node: ast.Node) -> tuple[ir.Expr, int]:
    """An address and the size of what lies there, from a pointer or an array."""
    if isinstance(found, MemoryPlace) and isinstance(found.type, ty.Array):
        return offset_by(found.address, found.offset), ty.size_bytes(found.type.element)
    value = sema.load(frame, found, node.span)
    kind = value.type
    if not isinstance(kind, ty.Pointer):
        if isinstance(kind, ty.Array):
            return sema.runtime(value, node.span), ty.size_bytes(kind.element)
        raise CslError(node.span, f"expected an array or a pointer, found {kind}", "an address is written &a")
    target = kind.target.element if isinstance(kind.target, ty.Array) else kind.target
    return sema.runtime(value, node.span), ty.size_bytes(target)


def _shape(base: Any, node: ast.AccessLambda) -> tuple[tuple[int | None, ...], ty.Type]:
    kind = base.type
    if isinstance(kind, ty.Array):
        return kind.extents, kind.element
    if isinstance(kind, ty.Pointer):
        if isinstance(kind.target, ty.Array) and not kind.is_many:
            return kind.target.extents, kind.target.element
        return (None,), kind.target
    raise CslError(node.body.span, f"expected an array or a pointer, found {kind}")


def _bounds(sema: Any, shape: Any, forms: Any, extents: dict[str, int], node: ast.AccessLambda) -> None:
    """Every index stays within its array; of one dimension a length that is set later may mend it."""
    if any(extent == 0 for extent in extents.values()) or shape == (1,):
        return  # one element stands for an array that comes later
    for limit, (coefficients, constant) in zip(shape, forms, strict=True):
        low = constant + sum(min(0, c * (extents[n] - 1)) for n, c in coefficients.items())
        high = constant + sum(max(0, c * (extents[n] - 1)) for n, c in coefficients.items())
        if limit is not None and (low < 0 or high >= limit):
            text = f"an index goes from {low} to {high}, outside of the array (0 to {limit - 1})"
            if len(shape) > 1:
                raise CslError(node.body.span, text)
            sema.compilation.diagnostics.add(Diagnostic(text, node.body.span, (), "warning"))


def linear(sema: Any, frame: Any, node: ast.Expr, names: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """An index as coefficients of the variables and a constant."""
    if isinstance(node, ast.Name) and node.text in names:
        return {node.text: 1}, 0
    if not _mentions(node, names):
        return {}, sema.integer(frame, node)
    if isinstance(node, ast.Unary) and node.operator == "-":
        coefficients, constant = linear(sema, frame, node.operand, names)
        return {n: -c for n, c in coefficients.items()}, -constant
    if isinstance(node, ast.Binary) and node.operator in ("+", "-"):
        sign = 1 if node.operator == "+" else -1
        left, right = (linear(sema, frame, side, names) for side in (node.left, node.right))
        merged = {n: left[0].get(n, 0) + sign * right[0].get(n, 0) for n in {*left[0], *right[0]}}
        return merged, left[1] + sign * right[1]
    if isinstance(node, ast.Binary) and node.operator == "*":
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if not _mentions(other, names):
                factor = sema.integer(frame, other)
                coefficients, constant = linear(sema, frame, one, names)
                return {n: c * factor for n, c in coefficients.items()}, constant * factor
    if isinstance(node, ast.BuiltinCall) and node.name == "as" and len(node.arguments) == 2:
        return linear(sema, frame, node.arguments[1], names)
    raise CslError(node.span, "an index of an access must be affine: sums of indices times constants")


def _mentions(node: Any, names: tuple[str, ...]) -> bool:
    if isinstance(node, ast.Name):
        return node.text in names
    if isinstance(node, tuple):
        return any(_mentions(item, names) for item in node)
    return isinstance(node, ast.Node) and any(_mentions(v, names) for k, v in vars(node).items() if k != "span")
