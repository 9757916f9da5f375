"""Numbers, types and reflection."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.csl import ast, ir, packed
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import at_run_time, count
from openwafer.wafer.csl.comptime import (
    VOID,
    ArrayValue,
    Const,
    DsrValue,
    PointerValue,
    StructValue,
    of_bits,
    scalar_bits,
    to_bits,
    to_float,
)  # fmt: skip
from openwafer.wafer.csl.diagnostics import CslError, Diagnostic, among
from openwafer.wafer.csl.scope import RangeValue, Run, Value
from openwafer.wafer.csl.sema import RANGE, convert
from openwafer.wafer.isa import SIZE_BYTES


def as_(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind = sema.type(frame, node.arguments[0])
    value = sema.value(frame, node.arguments[1])
    have = value.type
    if isinstance(value, Const):
        return Const(kind, cast(kind, value, node))
    own = ty.scalar(have)
    if kind == ty.BOOL and own is not None:
        return Run(kind, ir.Compare(ir.Op.NE, own, value.expr, ir.Const(0, own)))
    if ty.scalar(kind) is None or own is None or isinstance(kind, ty.Pointer) or ty.Packed in (type(kind), type(have)):
        raise CslError(node.span, f"@as cannot turn {have} into {kind}", _AS)
    if isinstance(have, ty.Float) and isinstance(kind, ty.Int) and kind.bits != ty.size_bytes(kind) * 8:
        raise CslError(node.span, f"not supported yet: {have} to {kind} at run time", "convert to an i32 first")
    return Run(kind, convert(value.expr, have, kind))


def cast(kind: ty.Type, value: Const, node: ast.BuiltinCall) -> Any:
    """The value in another type; floats truncate, integers wrap."""
    known = value.value
    if isinstance(known, bool | int | float):
        if kind == ty.BOOL:
            return known != 0
        if isinstance(kind, ty.Float):
            return to_float(float(known), kind.bits)
        if kind == ty.COMPTIME_FLOAT:
            return float(known)
        if isinstance(kind, ty.Int | ty.Enum) or kind == ty.COMPTIME_INT:
            base = kind.base if isinstance(kind, ty.Enum) else kind
            if known != known or known in (float("inf"), float("-inf")):
                raise CslError(node.arguments[1].span, f"{known} has no integer value")
            whole = int(known)
            if isinstance(base, ty.Int) and isinstance(known, float):
                return max(base.low, min(base.high, whole))
            return base.wrap(whole) if isinstance(base, ty.Int) else whole
        if isinstance(kind, ty.Opaque):
            return known
    if kind == value.type:
        return known
    raise CslError(node.span, f"@as cannot turn {value.type} into {kind}", _AS)


_AS = "@as converts numbers, bools, enums and ids; @bitcast keeps the bits, @ptrcast changes what a pointer points to"


def bitcast(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind = sema.type(frame, node.arguments[0])
    value = sema.value(frame, node.arguments[1])
    have = value.type
    if have == ty.COMPTIME_INT:
        have = ty.Int(ty.bit_width(kind) or ty.size_bytes(kind) * 8, value.value < 0)
        value = sema.coerce(value, have, node.span)
    if have == ty.COMPTIME_FLOAT:
        have = ty.Float(ty.size_bytes(kind) * 8)
        value = sema.coerce(value, have, node.span)
    source, target = ty.scalar(have), ty.scalar(kind)
    sizes = [ty.bit_width(k) or ty.size_bytes(k) * 8 for k in (have, kind)]
    has_widths = None not in (ty.bit_width(have), ty.bit_width(kind))
    if isinstance(value, Const) and has_widths and sizes[0] == sizes[1] and not isinstance(value.value, PointerValue):
        return Const(kind, of_bits(kind, to_bits(have, value.value)))
    if source is None or target is None or sizes[0] != sizes[1]:
        words = [f"{k} of {bits} bits" if ty.scalar(k) else str(k) for k, bits in zip((have, kind), sizes, strict=True)]
        raise CslError(node.span, f"@bitcast needs two scalars of one size, found {' and '.join(words)}")
    if isinstance(value, Const) and not isinstance(value.value, PointerValue):
        return Const(kind, of_bits(kind, scalar_bits(have, value.value) & (1 << sizes[0]) - 1))
    expr = sema.runtime(value, node.span)
    if sizes[0] == SIZE_BYTES[source] * 8:
        return Run(kind, ir.Reinterpret(target, source, expr))
    unsigned = ir.T[f"U{SIZE_BYTES[source] * 8}"]
    return Run(kind, packed.from_bits(packed.as_bits(sema, Run(have, expr), node.span), unsigned, kind))


def ptrcast(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind = sema.type(frame, node.arguments[0])
    value = sema.value(frame, node.arguments[1])
    if not isinstance(kind, ty.Pointer) or not isinstance(value.type, ty.Pointer):
        wrong = f"a value of type {value.type}" if isinstance(kind, ty.Pointer) else f"the type {kind}"
        raise CslError(node.span, f"@ptrcast turns a pointer into a pointer, found {wrong}")
    return Const(kind, value.value) if isinstance(value, Const) else Run(kind, value.expr)


def zeros(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    return sema.zero(sema.type(frame, node.arguments[0]), node.span)


def constants(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind = sema.type(frame, node.arguments[0])
    if not isinstance(kind, ty.Array):
        raise CslError(node.arguments[0].span, f"@constants needs an array type, found {kind}")
    fill = sema.constant(frame, node.arguments[1], kind.element)
    return Const(kind, ArrayValue(kind.count, None, fill.value))


def range_(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2, 4)
    kind = sema.type(frame, node.arguments[0])
    if not isinstance(kind, ty.Int) and kind != ty.COMPTIME_INT:
        raise CslError(node.arguments[0].span, f"@range counts in integers, found {kind}")
    values = [sema.value(frame, a, kind) for a in node.arguments[1:]]
    zero, one = Const(kind, 0), Const(kind, 1)
    start, stop = (zero, values[0]) if len(values) == 1 else values[:2]
    step = values[2] if len(values) > 2 else one
    if isinstance(step, Const) and step.value == 0:
        raise CslError(node.arguments[3].span, "a range cannot have steps of 0")
    return Const(RANGE, RangeValue(kind, start, stop, step))


def is_arch(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    name = sema.string(frame, node.arguments[0])
    if name not in ("wse1", "wse2", "wse3"):
        raise CslError(node.arguments[0].span, f'there is no architecture "{name}"; known: wse2, wse3')
    return Const(ty.BOOL, name == sema.arch.name)


def comptime_assert(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    if not sema.constant(frame, node.arguments[0], ty.BOOL).value:
        text = sema.string(frame, node.arguments[1]) if len(node.arguments) > 1 else "the assertion does not hold"
        raise CslError(node.span, f"@comptime_assert: {text}")
    return VOID


def assert_(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    value = sema.value(frame, node.arguments[0], ty.BOOL)
    text = sema.string(frame, node.arguments[1]) if len(node.arguments) > 1 else "the assertion does not hold"
    if frame.is_comptime:
        if not value.value:
            raise CslError(node.span, f"@assert: {text}")
        return VOID
    frame.out.append(ir.Assert(sema.runtime(value, node.span), text, sema.place_of(node.span)))
    return VOID


def comptime_print(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    text = " ".join(str(sema.constant(frame, a).value) for a in node.arguments)
    sema.compilation.diagnostics.add(Diagnostic(text, node.span, (), "note"))
    return VOID


def type_of(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    return Const(ty.TYPE, sema.expr(frame, node.arguments[0]).type)


def is_same_type(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    return Const(ty.BOOL, sema.type(frame, node.arguments[0]) == sema.type(frame, node.arguments[1]))


def get_int(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    value = sema.value(frame, node.arguments[0])
    if isinstance(value.type, ty.DsrType) and isinstance(value, Const):
        return Const(ty.U16, value.value.register if isinstance(value.value, DsrValue) else value.value)
    if not isinstance(value.type, ty.Opaque | ty.Enum | ty.Int) and value.type != ty.COMPTIME_INT:
        raise CslError(node.arguments[0].span, f"@get_int needs a color or an id, found {value.type}")
    return Const(ty.U16, value.value) if isinstance(value, Const) else Run(ty.U16, value.expr)


def concat_structs(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    fields: list[tuple[str, Const]] = []
    for argument in node.arguments:
        value = sema.constant(frame, argument)
        if not isinstance(value.value, StructValue):
            raise CslError(argument.span, f"@concat_structs needs structs, found {value.type}")
        for name, own in value.value.fields:
            if value.value.is_tuple:
                name = str(len(fields))
            if any(name == other for other, _ in fields):
                raise CslError(argument.span, f'both structs have a field "{name}"')
            fields.append((name, own))
    return Const(ty.COMPTIME_STRUCT, StructValue(tuple(fields)))


def _array_type(sema: Any, frame: Any, node: ast.BuiltinCall) -> ty.Array:
    count(node, 1)
    kind = sema.type(frame, node.arguments[0])
    if not isinstance(kind, ty.Array):
        text = f"@{node.name} needs an array type, found {kind}"
        raise CslError(node.arguments[0].span, text)
    return kind


def element_type(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    return Const(ty.TYPE, _array_type(sema, frame, node).element)


def element_count(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    return Const(ty.COMPTIME_INT, _array_type(sema, frame, node).count)


def rank(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    return Const(ty.COMPTIME_INT, len(_array_type(sema, frame, node).extents))


def dimensions(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    extents = _array_type(sema, frame, node).extents
    return Const(ty.Array((len(extents),), ty.U16), ArrayValue(len(extents), extents))


def _field_of(sema: Any, frame: Any, node: ast.BuiltinCall) -> Const | None:
    count(node, 2)
    value = sema.constant(frame, node.arguments[0])
    if isinstance(value.type, ty.Packed):
        value = Const(value.type, packed.const_struct(value))
    if not isinstance(value.value, StructValue):
        raise CslError(node.arguments[0].span, f"@{node.name} needs a struct, found {value.type}")
    return value.value.get(sema.string(frame, node.arguments[1]))


def has_field(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    return Const(ty.BOOL, _field_of(sema, frame, node) is not None)


def field(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    found = _field_of(sema, frame, node)
    if found is None:
        name, names = sema.string(frame, node.arguments[1]), sema.constant(frame, node.arguments[0]).value.names
        raise CslError(node.arguments[1].span, f'the struct has no field "{name}"{among(name, names)}')
    return found


def strlen(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    return Const(ty.COMPTIME_INT, len(_bytes_of(sema.string(frame, node.arguments[0]))))


def _bytes_of(text: str) -> bytes:
    """The bytes of a string, of which some may be no character."""
    return text.encode(errors="surrogateescape")


def get_string_from_byte(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    byte = sema.integer(frame, node.arguments[0])
    if not 0 <= byte <= 255:
        raise CslError(node.arguments[0].span, f"{byte} is no byte (0 to 255)")
    return Const(ty.COMPTIME_STRING, bytes([byte]).decode(errors="surrogateescape"))


def strcat(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    joined = b"".join(_bytes_of(sema.string(frame, a)) for a in node.arguments)
    return Const(ty.COMPTIME_STRING, joined.decode(errors="surrogateescape"))


def get_array(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    data = _bytes_of(sema.string(frame, node.arguments[0]))
    return Const(ty.Array((len(data),), ty.U8), ArrayValue(len(data), tuple(data)))


def is_comptime(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    return Const(ty.BOOL, frame.is_comptime)


def random16(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 0)
    at_run_time(frame, node)
    return Run(ty.U16, ir.Random16())


def get_config(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    at_run_time(frame, node)
    return Run(ty.U16, ir.ReadConfig(sema.runtime(sema.value(frame, node.arguments[0], ty.U16), node.span)))


def set_config(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    out = at_run_time(frame, node)
    address, value = (sema.runtime(sema.value(frame, a, ty.U16), a.span) for a in node.arguments)
    out.append(ir.WriteConfig(address, value))
    return VOID


def _range_part(part: str) -> Any:
    def read(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 1)
        value = sema.value(frame, node.arguments[0])
        if not isinstance(value, Const) or not isinstance(value.value, RangeValue):
            raise CslError(node.arguments[0].span, f"@range_{part} takes a @range, found {value.type}")
        return getattr(value.value, part)

    return read


BUILTINS = {
    "as": as_,
    "range_start": _range_part("start"),
    "range_stop": _range_part("stop"),
    "range_step": _range_part("step"),
    "bitcast": bitcast,
    "ptrcast": ptrcast,
    "zeros": zeros,
    "constants": constants,
    "range": range_,
    "is_arch": is_arch,
    "comptime_assert": comptime_assert,
    "assert": assert_,
    "comptime_print": comptime_print,
    "type_of": type_of,
    "is_same_type": is_same_type,
    "get_int": get_int,
    "concat_structs": concat_structs,
    "element_type": element_type,
    "element_count": element_count,
    "rank": rank,
    "dimensions": dimensions,
    "has_field": has_field,
    "field": field,
    "strlen": strlen,
    "strcat": strcat,
    "get_array": get_array,
    "get_string_from_byte": get_string_from_byte,
    "is_comptime": is_comptime,
    "random16": random16,
    "get_config": get_config,
    "set_config": set_config,
    "set_config_unchecked": set_config,
}
