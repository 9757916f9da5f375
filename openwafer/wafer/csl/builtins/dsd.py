"""Data structure descriptors, explicit registers for them, FIFOs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openwafer.wafer.arch import NUM_COLORS
from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins import access
from openwafer.wafer.csl.builtins.arguments import (
    Config,
    at_run_time,
    config,
    count,
    flag,
    in_program,
    known_id,
    number,
)
from openwafer.wafer.csl.builtins.tasks import completion
from openwafer.wafer.csl.comptime import VOID, Const, StructValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import MemoryPlace, Run, Value
from openwafer.wafer.csl.sema import offset_by
from openwafer.wafer.isa import (
    ADVANCE_SWITCH_BIT,
    CONTROL_BIT,
    INDEX_OFFSET_BIT,
    NO_COLOR,
    PAIR_BIT,
    QUAD_BIT,
    TRANSFORM_BIT,
    DsdKind,
    Op,
    Priority,
    Sys,
    T,
)  # fmt: skip

_MEMORY = ("tensor_access", "base_address", "extent", "stride", "offset", "wavelet_index_offset", "extents", "strides")
_FABIN = (
    "extent", "fabric_color", "input_queue", "priority", "simd_mode", "wavelet_index_offset", "on_control",
    "control_transform",
)  # fmt: skip
_FABOUT = (
    "extent", "fabric_color", "output_queue", "control", "priority", "simd_mode", "wavelet_index_offset", "index",
    "advance_switch", "control_transform", "zero",
)  # fmt: skip
_SIMD_MODES = {"simd_32": PAIR_BIT, "simd_64": PAIR_BIT | QUAD_BIT, "simd_32_or_64": PAIR_BIT}
_ACCESS_FIELDS = ("base_address", "offset", "stride", "extent")


def get_dsd(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind = sema.type(frame, node.arguments[0])
    if kind in (ty.MEM1D, ty.MEM4D):
        return _memory(sema, frame, node, kind)
    if kind == ty.FABIN:
        return _fabric(sema, frame, node, kind, DsdKind.FABIN, _FABIN, "input_queue")
    if kind == ty.FABOUT:
        return _fabric(sema, frame, node, kind, DsdKind.FABOUT, _FABOUT, "output_queue")
    raise CslError(node.arguments[0].span, f"@get_dsd makes mem1d_dsd, mem4d_dsd, fabin_dsd and fabout_dsd, not {kind}")


def _fabric(
    sema: Any,
    frame: Any,
    node: ast.BuiltinCall,
    kind: ty.DsdType,
    own: DsdKind,
    known: tuple[str, ...],
    queue_name: str,
) -> Value:
    options = config(sema, frame, node.arguments[1], known)
    for name in ("zero", "on_control"):
        if name in options:
            raise CslError(options[name][1].span, f"not supported yet: .{name}")
    color = NO_COLOR
    if "fabric_color" in options:
        color = known_id(*options["fabric_color"], ".fabric_color", range(NUM_COLORS), ty.COLOR)
    queue = _queue(sema, options, own, queue_name) if queue_name in options else _default_queue(sema, own, color, node)
    if sema.program is not None and color != NO_COLOR and own == DsdKind.FABIN:
        _take_color(sema, queue, color, node)
    flags = CONTROL_BIT * flag(options, "control") | ADVANCE_SWITCH_BIT * flag(options, "advance_switch")
    flags |= INDEX_OFFSET_BIT * flag(options, "wavelet_index_offset")
    flags |= _simd_mode(options) | TRANSFORM_BIT * flag(options, "control_transform")
    if own == DsdKind.FABOUT and sema.arch.data_task_is_queue:
        color = NO_COLOR
    elif own == DsdKind.FABOUT and color == NO_COLOR:
        text = f"a fabout_dsd of {sema.arch.name} needs .fabric_color"
        raise CslError(node.span, text, "an output queue of this architecture has no color of its own")
    extent = _extent(sema, frame, options, node)
    made = ir.DsdValue(own, None, (extent if isinstance(extent, int) else 0,), (0,), queue, color, flags)
    return _with_extent(kind, made, extent)


def _simd_mode(options: Config) -> int:
    """The flags of `.simd_mode`: 16-bit elements go in pairs, with .simd_64 two pairs a step."""
    if "simd_mode" not in options:
        return 0
    value, node = options["simd_mode"]
    modes = value.value.fields if isinstance(value, Const) and isinstance(value.value, StructValue) else ()
    chosen = [name for name, on in modes if on.value is True]
    if len(chosen) == 1 and chosen[0] in _SIMD_MODES:
        return _SIMD_MODES[chosen[0]]
    raise CslError(node.span, ".simd_mode is one of .{ .simd_32 = true }, .simd_64, .simd_32_or_64")


def _queue(sema: Any, options: Config, own: DsdKind, name: str) -> int:
    is_input = own == DsdKind.FABIN
    count = sema.arch.num_input_queues if is_input else sema.arch.num_output_queues
    return known_id(*options[name], f".{name}", range(count), ty.INPUT_QUEUE if is_input else ty.OUTPUT_QUEUE)


def _default_queue(sema: Any, own: DsdKind, color: int, node: ast.BuiltinCall) -> int:
    if sema.program is not None and own == DsdKind.FABIN:
        for queue, other in sema.program.input_queue_colors.items():
            if other == color:
                return queue
    if sema.arch.data_task_is_queue:
        name = "input_queue" if own == DsdKind.FABIN else "output_queue"
        hint = f"add .{name} = @get_{name}(n)"
        raise CslError(node.span, f"a fabric DSD of {sema.arch.name} needs .{name}", hint)
    return 0


def _take_color(sema: Any, queue: int, color: int, node: ast.BuiltinCall) -> None:
    if sema.arch.data_task_is_queue:
        return
    sema.program.input_queue_of_color[color] = queue


def _extent(sema: Any, frame: Any, options: Config, node: ast.BuiltinCall) -> Any:
    if "extent" not in options:
        raise CslError(node.span, "a DSD needs .extent", "the number of elements: .extent = n")
    value, where = options["extent"]
    value = sema.load(frame, value, where.span)
    if isinstance(value, Const):
        return known_id(value, where, ".extent", access.EXTENTS)
    if not isinstance(value.type, ty.Int):
        raise CslError(where.span, f".extent must be an integer, found {value.type}")
    return value


def _with_extent(kind: ty.DsdType, made: ir.DsdValue, extent: Any) -> Value:
    if isinstance(extent, int):
        return Const(kind, made)
    return Run(kind, ir.DsdWith(Op.DSDLEN, made, extent.expr))


def _memory(sema: Any, frame: Any, node: ast.BuiltinCall, kind: ty.DsdType) -> Value:
    options = config(sema, frame, node.arguments[1], _MEMORY)
    own = DsdKind.MEM1D if kind == ty.MEM1D else DsdKind.MEM4D
    flags = INDEX_OFFSET_BIT * flag(options, "wavelet_index_offset")
    if "tensor_access" in options:
        value, where = options["tensor_access"]
        if isinstance(value, Const) and value.type == ty.ACCESS:
            return _access(sema, value, kind, own, flags)
        if not isinstance(value, Const) or not isinstance(value.value, StructValue):
            raise CslError(where.span, f"expected an access like |i|{{N}} -> a[i], found {value.type}")
        options = _spread(options, value.value, where)
    if "base_address" not in options:
        raise CslError(
            node.span, "a memory DSD needs .tensor_access or .base_address", "as in .tensor_access = |i|{4} -> a[i]"
        )
    address, size = access.address_of(sema, frame, *options["base_address"])
    offset = number(options, "offset", 0, -0x8000) or 0
    if own == DsdKind.MEM4D or "extents" in options:
        return _explicit_4d(sema, options, kind, address, size, offset, flags, node)
    options = _single(options)
    extent = _extent(sema, frame, options, node)
    stride = number(options, "stride", 1, -0x80, 0x7F)
    assert stride is not None
    made = ir.DsdValue(own, None, (extent if isinstance(extent, int) else 0,), (stride,), flags=flags)
    return _at(_with_extent(kind, made, extent), address, offset * size)


def _at(value: Value, address: ir.Expr, offset: int) -> Value:
    """A DSD with its base address."""
    address = offset_by(address, offset)
    if isinstance(value, Const) and isinstance(address, ir.Address):
        return Const(value.type, replace(value.value, base=address))
    dsd = value.value if isinstance(value, Const) else value.expr
    return Run(value.type, ir.DsdWith(Op.DSDBASE, dsd, address))


def _explicit_4d(
    sema: Any,
    options: Config,
    kind: ty.DsdType,
    address: ir.Expr,
    size: int,
    offset: int,
    flags: int,
    node: ast.BuiltinCall,
) -> Value:
    name = "extents" if "extents" in options else "extent"
    extents, strides = (_numbers(options, n, node) for n in (name, "strides" if "strides" in options else "stride"))
    if len(extents) != len(strides) or not 1 <= len(extents) <= 4:
        given = f"found {len(extents)} and {len(strides)}"
        raise CslError(node.span, f"a mem4d_dsd needs 1 to 4 extents and as many strides, {given}")
    absolute, walked = [], 0
    extents.reverse()  # as documented, extents begin with the outermost, strides with the innermost dimension
    for extent, stride in zip(extents, strides, strict=True):
        step = stride + walked
        absolute.append(step)
        walked += step * (extent - 1)
    made = ir.DsdValue(DsdKind.MEM4D, None, tuple(extents), tuple(absolute), flags=flags)
    return _at(Const(kind, made), address, offset * size)


def _numbers(options: Config, name: str, node: ast.BuiltinCall) -> list[int]:
    if name not in options:
        raise CslError(node.span, f"a {_word(node)} needs .{name}")
    value, where = options[name]
    if isinstance(value, Const) and isinstance(value.value, StructValue):
        return [known_id(own, where, f".{name}", _allowed(name)) for _, own in value.value.fields]
    return [known_id(value, where, f".{name}", _allowed(name))]


def _word(node: ast.BuiltinCall) -> str:
    """The kind of DSD as it is written."""
    kind = node.arguments[0]
    return kind.text if isinstance(kind, ast.Name) else "DSD"


def _allowed(name: str) -> range:
    return access.EXTENTS if name.startswith("extent") else range(-0x8000, 0x8000)


def _access(sema: Any, value: Const, kind: ty.DsdType, own: DsdKind, flags: int) -> Value:
    """The DSD of an access like `|i|{4} -> a[i]`."""
    limit = 1 if own == DsdKind.MEM1D else 4
    where = access.lay_out(sema, value)
    if len(where.extents) > limit and own == DsdKind.MEM4D:
        raise CslError(where.span, f"a mem4d_dsd has at most 4 indices, found {len(where.extents)}")
    extents, strides = where.extents, where.strides
    if own == DsdKind.MEM1D and len(extents) > 1:
        extents, strides = _flatten(extents, strides, where.span)
    made = ir.DsdValue(own, None, tuple(reversed(extents)), tuple(reversed(strides)), flags=flags)
    return _at(Const(kind, made), where.address, where.offset * where.element_bytes)


def _spread(options: Config, fields: StructValue, where: ast.Node) -> Config:
    """The options with what a struct says in place of .tensor_access."""
    given: Config = {name: (own, where) for name, own in fields.fields}
    for name in given:
        if name not in _ACCESS_FIELDS:
            raise CslError(where.span, f'an access has no field "{name}"', f"its fields: {', '.join(_ACCESS_FIELDS)}")
        if name in options:
            raise CslError(where.span, f".{name} is given twice, in .tensor_access and beside it")
    return {**{name: own for name, own in options.items() if name != "tensor_access"}, **given}


def _single(options: Config) -> Config:
    """The options with values in place of tuples of one."""
    made = dict(options)
    for name, (value, where) in options.items():
        if isinstance(value, Const) and isinstance(value.value, StructValue) and len(value.value.fields) == 1:
            made[name] = value.value.fields[0][1], where
    return made


def _flatten(extents: list[int], strides: list[int], span: ast.Span) -> tuple[list[int], list[int]]:
    """Several indices that walk memory in one stride."""
    extent, stride = extents[-1], strides[-1]
    for outer_extent, outer_stride in zip(reversed(extents[:-1]), reversed(strides[:-1]), strict=True):
        if outer_extent != 1 and extent != 1 and outer_stride != stride * extent:
            text = f"a mem1d_dsd walks memory in one stride, these indices need {outer_stride} and {stride}"
            raise CslError(span, text, "use mem4d_dsd")
        if extent == 1:
            stride = outer_stride
        extent *= outer_extent
    return [extent], [stride]


def dsd_of(sema: Any, frame: Any, node: ast.BuiltinCall, index: int = 0) -> Value:
    value = sema.value(frame, node.arguments[index])
    if not isinstance(value.type, ty.DsdType):
        raise CslError(node.arguments[index].span, f"@{node.name} needs a DSD, found {value.type}")
    return value


def _whole(sema: Any, frame: Any, node: ast.BuiltinCall, allowed: range) -> Value:
    """The second argument, an integer; in range if it is known."""
    argument = node.arguments[1]
    value = sema.value(frame, argument)
    if isinstance(value, Const):
        known_id(value, argument, f"the second argument of @{node.name}", allowed)
    elif not isinstance(value.type, ty.Int):
        raise CslError(argument.span, f"@{node.name} needs an integer, found {value.type}")
    return value


def increment_dsd_offset(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 3)
    dsd = dsd_of(sema, frame, node)
    elements = _whole(sema, frame, node, range(-0x10000, 0x10000))
    size = ty.size_bytes(sema.type(frame, node.arguments[2]))
    if isinstance(dsd, Const) and isinstance(elements, Const) and dsd.value.base is not None:
        base = offset_by(dsd.value.base, elements.value * size)
        return Const(dsd.type, replace(dsd.value, base=base))
    if isinstance(elements, Const):
        amount: ir.Expr = ir.Const(elements.value * size & 0xFFFF, T.U16)
    else:
        amount = elements.expr if size == 1 else ir.Binary(Op.MUL, T.U16, elements.expr, ir.Const(size, T.U16))
    return Run(dsd.type, ir.DsdWith(Op.DSDMOVE, sema.runtime(dsd, node.span), amount))


def set_dsd_base_addr(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    dsd = dsd_of(sema, frame, node)
    address, _ = access.address_of(sema, frame, sema.expr(frame, node.arguments[1]), node.arguments[1])
    return _at(dsd, address, 0)


def set_dsd_length(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    dsd = dsd_of(sema, frame, node)
    length = _whole(sema, frame, node, access.EXTENTS)
    if isinstance(dsd, Const) and isinstance(length, Const):
        return Const(dsd.type, replace(dsd.value, extents=(length.value, *dsd.value.extents[1:])))
    return Run(dsd.type, ir.DsdWith(Op.DSDLEN, sema.runtime(dsd, node.span), _u16(sema, length, node)))


def _u16(sema: Any, value: Value, node: ast.BuiltinCall) -> ir.Expr:
    return ir.Const(value.value & 0xFFFF, T.U16) if isinstance(value, Const) else value.expr


def set_dsd_stride(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    dsd = dsd_of(sema, frame, node)
    stride = _whole(sema, frame, node, range(-0x80, 0x80))
    if isinstance(dsd, Const) and isinstance(stride, Const):
        return Const(dsd.type, replace(dsd.value, strides=(stride.value, *dsd.value.strides[1:])))
    return Run(dsd.type, ir.DsdWith(Op.DSDSTRIDE, sema.runtime(dsd, node.span), _u16(sema, stride, node)))


def priority(options: Config) -> Priority:
    """`.priority = .{ .high = true }`."""
    if "priority" not in options:
        return Priority.MEDIUM
    value, node = options["priority"]
    if isinstance(value, Const) and isinstance(value.value, StructValue):
        for name, own in value.value.fields:
            if own.value and name.upper() in Priority.__members__:
                return Priority[name.upper()]
    raise CslError(node.span, "a priority is .{ .high = true }, .{ .medium = true } or .{ .low = true }")


def allocate_fifo(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    program = in_program(sema, node)
    found = sema.expr(frame, node.arguments[0])
    if (
        not isinstance(found, MemoryPlace)
        or not isinstance(found.type, ty.Array)
        or not isinstance(found.address, ir.Address)
    ):
        text = f"@allocate_fifo needs a global array, found {found.type}"
        raise CslError(node.arguments[0].span, text, "declare one: var buffer = @zeros([16]u32);")
    known = ("activate_push", "activate_pop", "priority_push", "priority_pop", "priority")
    options = config(sema, frame, node.arguments[1], known) if len(node.arguments) > 1 else {}
    push, pop = ({"activate": options[n]} if n in options else {} for n in ("activate_push", "activate_pop"))
    size = ty.size_bytes(found.type.element)
    fifo = ir.Fifo(found.address.variable, found.type.count, size, completion(sema, push), completion(sema, pop))
    program.fifos.append(fifo)
    return Const(ty.FIFO, fifo)


def _fifo_length(call: Sys) -> Any:
    def change(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 2)
        out = at_run_time(frame, node)
        fifo = sema.value(frame, node.arguments[0])
        if not isinstance(fifo, Const) or not isinstance(fifo.value, ir.Fifo):
            raise CslError(node.arguments[0].span, f"@{node.name} needs a FIFO, found {fifo.type}")
        length = _u16(sema, _whole(sema, frame, node, range(0x10000)), node)
        number = ir.Const(in_program(sema, node).fifos.index(fifo.value), T.U16)
        out.append(ir.SysCall(call, number, length, place=sema.place_of(node.span)))
        return VOID

    return change


BUILTINS = {
    "get_dsd": get_dsd,
    "set_fifo_read_length": _fifo_length(Sys.FIFO_READ_LENGTH),
    "set_fifo_write_length": _fifo_length(Sys.FIFO_WRITE_LENGTH),
    "increment_dsd_offset": increment_dsd_offset,
    "set_dsd_base_addr": set_dsd_base_addr,
    "set_dsd_length": set_dsd_length,
    "set_dsd_stride": set_dsd_stride,
    "allocate_fifo": allocate_fifo,
}
