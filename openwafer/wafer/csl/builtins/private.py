"""Builtins of our own library: what a CSL library needs of the machine and CSL has no word for."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.arch import Port
from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import count, in_program
from openwafer.wafer.csl.builtins.layout import color_of
from openwafer.wafer.csl.comptime import VOID, Const
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import Run, Value
from openwafer.wafer.isa import Sys

PE_X, PE_Y = 0xFFF0, 0xFFF1
_QUERIES = (Sys.TEARDOWN_PENDING, Sys.QUEUE_FLUSHED)
_NUMBERS = (Sys.FILTER, Sys.QUEUE_STATUS, Sys.ROUTE)
_BEFORE_START = (Sys.TASK_PRIORITY, Sys.MAIN_PRIORITY, Sys.CONTROL_MASK)


def sys_(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    call = Sys[sema.string(frame, node.arguments[0]).upper()]
    place = sema.place_of(node.span)
    if call == Sys.LOG_STRING:
        frame.out.append(ir.SysCall(call, text=sema.string(frame, node.arguments[1]), place=place))
        return VOID
    if frame.is_comptime:
        return _set_up(sema, frame, node, call)
    given = [sema.runtime(sema.value(frame, a, _wanted(sema, frame, a)), a.span) for a in node.arguments[1:]]
    if call in _QUERIES:
        return Run(ty.BOOL, ir.SysQuery(call, given[0]))
    if call in _NUMBERS:
        return Run(ty.U32, ir.SysQuery(call, given[0]))
    frame.out.append(ir.SysCall(call, *given, place=place))
    return VOID


def _set_up(sema: Any, frame: Any, node: ast.BuiltinCall, call: Sys) -> Value:
    """What is done before the program starts."""
    if call not in _BEFORE_START:
        raise CslError(node.span, "this is done at run time: call it from a task or a function that a task calls")
    given = [sema.integer(frame, argument) for argument in node.arguments[1:]]
    in_program(sema, node).setup.append((int(call), given[0], given[1] if len(given) > 1 else 0))
    return VOID


def _wanted(sema: Any, frame: Any, node: ast.Expr) -> ty.Type | None:
    return ty.U32 if isinstance(node, ast.IntLiteral) else None


def tsc(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 0)
    return Run(ty.U64, ir.ReadCounter())


def tsc_store(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    pointer = sema.runtime(sema.value(frame, node.arguments[0], None), node.arguments[0].span)
    frame.out.append(ir.StoreCounter(pointer, sema.place_of(node.span)))
    return VOID


def _coordinate(register: int) -> Any:
    def read(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 0)
        return Run(ty.U16, ir.ReadConfig(ir.Const(register, ir.T.U16)))

    return read


def host_route(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    color = color_of(sema, frame, node.arguments[0])
    into = sema.string(frame, node.arguments[1]) == "in"
    host, ramp = 1 << Port.HOST, 1 << Port.RAMP
    route = (host, ramp) if into else (ramp, host)
    if sema.program is None:
        raise CslError(node.span, "@__host_route belongs to a PE program")
    sema.program.colors[color] = ir.ColorConfig((route,))
    return VOID


def launch(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    """The color that stands for the host's launches, for @rpc."""
    count(node, 1)
    sema.launch_color = color_of(sema, frame, node.arguments[0])
    return VOID


def type_class(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    kind = sema.type(frame, node.arguments[0])
    if isinstance(kind, ty.Int):
        name = "signed" if kind.signed else "unsigned"
    elif kind in ty.NUMBERS:
        name = "literal"
    else:
        names = {ty.Float: "float", ty.DsdType: "dsd", ty.DsrType: "dsr"}
        name = next((name for group, name in names.items() if isinstance(kind, group)), "other")
    return Const(ty.COMPTIME_STRING, name)


def size_bytes(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    kind = sema.type(frame, node.arguments[0])
    size = ty.size_bytes(kind)
    if size == 0:
        raise CslError(node.span, f"{kind} has no size: it has no values at run time")
    return Const(ty.COMPTIME_INT, size)


BUILTINS = {
    "__type_class": type_class,
    "__size_bytes": size_bytes,
    "__sys": sys_,
    "__tsc": tsc,
    "__tsc_store": tsc_store,
    "__pe_x": _coordinate(PE_X),
    "__pe_y": _coordinate(PE_Y),
    "__host_route": host_route,
    "__launch": launch,
}
