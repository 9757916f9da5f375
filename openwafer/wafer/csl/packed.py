"""Packed structs and unions: a value is its backing integer, a field is some of the bits.

Known bits are Python integers; the rest is shifts and masks on the container of the integer. A field that fills whole
bytes of a variable is loaded and stored by itself.
"""

from __future__ import annotations

from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.comptime import Const, PointerValue, StructValue, of_bits, to_bits
from openwafer.wafer.csl.diagnostics import CslError, nearest
from openwafer.wafer.csl.scope import Frame, MemoryPlace, PackedPlace, Place, Run, Value
from openwafer.wafer.csl.types import Type
from openwafer.wafer.isa import SIZE_BYTES, Op, T

_UNSIGNED = {1: T.U8, 2: T.U16, 4: T.U32, 8: T.U64}
_SIGNED = (T.I8, T.I16, T.I32, T.I64)


def packed_type(words: str, fields: tuple[tuple[str, Type], ...], identity: tuple, node: ast.StructType) -> ty.Packed:
    """The type of a `packed struct` or `packed union`."""
    for (name, kind), field in zip(fields, node.fields, strict=True):
        if ty.bit_width(kind) is None:
            raise CslError(
                field.span, f'the field "{name}" of a {words} has type {kind}, which has no fixed number of bits',
                "allowed: integers, floats, bool, enums, pointers, packed structs and unions",
            )  # fmt: skip
    kind = ty.Packed(words, fields, identity)
    widths = {ty.bit_width(k) for _, k in fields}
    if kind.is_union and len(widths) != 1:
        listed = ", ".join(f"{name} {ty.bit_width(k)}" for name, k in fields)
        raise CslError(
            node.span, f"the fields of a packed union have the same number of bits, found {listed or 'none'}"
        )
    return kind


def field(sema: Any, base: Value | Place, name: str, span: Span) -> Value | Place:
    """`base.name`."""
    kind = base.type
    assert isinstance(kind, ty.Packed)
    fields = dict(kind.fields)
    if name not in fields:
        raise CslError(span, f'{kind} has no field "{name}"{nearest(name, fields)}')
    if isinstance(base, Const | Run):
        return _extracted(sema, base, kind, name, span)
    return PackedPlace(fields[name], base, name)


def load(sema: Any, frame: Frame, place: PackedPlace, span: Span) -> Value:
    own = _by_itself(place)
    if own is not None:
        return sema.load(frame, own, span)
    assert isinstance(place.base.type, ty.Packed)
    return _extracted(sema, sema.load(frame, place.base, span), place.base.type, place.name, span)


def store(sema: Any, frame: Frame, place: PackedPlace, value: Value, span: Span) -> None:
    own = _by_itself(place)
    if own is not None and frame.out is not None:
        sema.store(frame, own, value, span)
        return
    kind = place.base.type
    assert isinstance(kind, ty.Packed)
    old = sema.load(frame, place.base, span)
    sema.store(frame, place.base, _inserted(sema, old, kind, place.name, value, span), span)


def literal(sema: Any, kind: ty.Packed, given: dict[str, Value], span: Span) -> Value:
    """`T{ .a = 1, ... }`: all fields of a struct, one of a union."""
    sema.check_fields(kind, list(given), span)
    made: Value = Const(kind, 0)
    for name, field_type in kind.fields:
        if name in given:
            made = _inserted(sema, made, kind, name, sema.coerce(given[name], field_type, span), span)
    return made


def as_bits(sema: Any, value: Run, span: Span) -> ir.Expr:
    """A scalar as an unsigned integer of its container: its own bits, zeros above."""
    own, width = ty.scalar(value.type), ty.bit_width(value.type)
    if own is None or width is None:
        raise CslError(span, f"a value of type {value.type} has no bits of its own")
    unsigned = _UNSIGNED[SIZE_BYTES[own]]
    expr = value.expr if own == unsigned else ir.Reinterpret(unsigned, own, value.expr)
    signed = own in _SIGNED and width < SIZE_BYTES[own] * 8
    return ir.Binary(Op.AND, unsigned, expr, ir.Const((1 << width) - 1, unsigned)) if signed else expr


def from_bits(expr: ir.Expr, have: T, kind: Type) -> ir.Expr:
    """The value of a scalar type whose bits are the low ones of an unsigned integer, whatever lies above."""
    own, width = ty.scalar(kind), ty.bit_width(kind)
    assert own is not None and width is not None
    unsigned = _UNSIGNED[SIZE_BYTES[own]]
    if unsigned != have:
        expr = ir.Convert(unsigned, have, expr)
    integer = kind.base if isinstance(kind, ty.Enum) else kind
    if isinstance(integer, ty.Int):
        expr = expr if own == unsigned else ir.Reinterpret(own, unsigned, expr)
        return narrow(expr, integer)
    if width < SIZE_BYTES[own] * 8:
        expr = ir.Binary(Op.AND, unsigned, expr, ir.Const((1 << width) - 1, unsigned))
    return expr if own == unsigned else ir.Reinterpret(own, unsigned, expr)


def narrow(expr: ir.Expr, kind: Type) -> ir.Expr:
    """The result of an operation on the container of an integer, wrapped to its width."""
    own = ty.scalar(kind)
    if not isinstance(kind, ty.Int) or own is None or kind.bits == SIZE_BYTES[own] * 8:
        return expr
    if not kind.signed:
        return ir.Binary(Op.AND, own, expr, ir.Const((1 << kind.bits) - 1, own))
    spare = ir.Const(SIZE_BYTES[own] * 8 - kind.bits, T.U16)
    return ir.Binary(Op.SHR, own, ir.Binary(Op.SHL, own, expr, spare), spare)


def _by_itself(place: PackedPlace) -> MemoryPlace | None:
    """The memory of a field that fills whole bytes."""
    base, kind = place.base, place.base.type
    assert isinstance(kind, ty.Packed)
    if isinstance(base, PackedPlace):
        base = _by_itself(base)
    if not isinstance(base, MemoryPlace) or base.known is not None or ty.scalar(place.type) is None:
        return None
    at, width = kind.bit_offset(place.name), ty.bit_width(place.type)
    size = ty.size_bytes(place.type)
    if width != size * 8 or at % min(16, size * 8):
        return None
    return MemoryPlace(place.type, base.address, base.offset + at // 8, base.is_const)


def _extracted(sema: Any, value: Value, kind: ty.Packed, name: str, span: Span) -> Value:
    field_type, at = dict(kind.fields)[name], kind.bit_offset(name)
    width = ty.bit_width(field_type)
    assert width is not None
    if isinstance(value, Const):
        return Const(field_type, of_bits(field_type, value.value >> at & (1 << width) - 1))
    own = ty.scalar(kind)
    assert own is not None
    expr = ir.Binary(Op.SHR, own, value.expr, ir.Const(at, T.U16)) if at else value.expr
    return Run(field_type, from_bits(expr, own, field_type))


def _inserted(sema: Any, old: Value, kind: ty.Packed, name: str, value: Value, span: Span) -> Value:
    """A value with one field replaced."""
    field_type, at = dict(kind.fields)[name], kind.bit_offset(name)
    width = ty.bit_width(field_type)
    assert width is not None
    mask = (1 << width) - 1 << at
    if isinstance(old, Const) and isinstance(value, Const) and not isinstance(value.value, PointerValue):
        return Const(kind, old.value & ~mask | to_bits(field_type, value.value) << at)
    own = ty.scalar(kind)
    if own is None:
        raise CslError(span, f"a {kind} of {ty.bit_width(kind)} bits does not exist at run time; the most is 64")
    whole = (1 << SIZE_BYTES[own] * 8) - 1
    if isinstance(value, Const) and not isinstance(value.value, PointerValue):
        bits: ir.Expr = ir.Const(to_bits(field_type, value.value) << at, own)
    else:
        bits = as_bits(sema, Run(field_type, sema.runtime(value, span)), span)
        have = _UNSIGNED[ty.size_bytes(field_type)]
        bits = bits if have == own else ir.Convert(own, have, bits)
        bits = ir.Binary(Op.SHL, own, bits, ir.Const(at, T.U16)) if at else bits
    if isinstance(old, Const):
        return Run(kind, ir.Binary(Op.OR, own, bits, ir.Const(old.value, own)) if old.value else bits)
    kept = ir.Binary(Op.AND, own, old.expr, ir.Const(whole & ~mask, own))
    return Run(kind, ir.Binary(Op.OR, own, kept, bits))


def const_struct(value: Const) -> StructValue:
    """A known value as its fields."""
    kind, fields = value.type, []
    assert isinstance(kind, ty.Packed)
    for name, field_type in kind.fields:
        pattern = value.value >> kind.bit_offset(name) & (1 << (ty.bit_width(field_type) or 0)) - 1
        fields.append((name, Const(field_type, of_bits(field_type, pattern))))
    return StructValue(tuple(fields))
