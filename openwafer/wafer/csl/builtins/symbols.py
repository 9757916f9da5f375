"""What the host may name, seen from the PE: ids, values and pointers of exported symbols.

The id of a symbol is the place of its name among the layout's @export_name calls, as SdkRuntime's get_id has it.
Everything here waits until all symbols are exported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import at_run_time, count, in_program
from openwafer.wafer.csl.comptime import Const, PointerValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import FunctionValue, MemoryPlace, Run, Value
from openwafer.wafer.isa import Op, T

_POINTER = ty.Pointer(ty.U16, True)


def symbol_id(sema: Any, name: str, span: ast.Span) -> int:
    """The id of an exported name."""
    names = list(sema.compilation.exports or {})
    if name not in names:
        raise CslError(span, f'the layout does not export "{name}"; call @export_name("{name}", ...) there')
    return names.index(name)


def get_symbol_id(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    in_program(sema, node)
    target = _target(sema, sema.expr(frame, node.arguments[0]))
    if target is None:
        raise CslError(node.span, "@get_symbol_id needs the name of an exported variable or function")

    def found() -> int:
        name = next((name for name, other in sema.exported.items() if other == target), None)
        if name is None:
            raise CslError(node.span, "this symbol is not exported; call @export_symbol in a comptime block")
        return symbol_id(sema, name, node.span)

    if frame.is_comptime:
        return Const(ty.U16, found())
    made = ir.Const(0, T.U16)
    sema.later.append(lambda: setattr(made, "value", found()))
    return Run(ty.U16, made)


def get_symbol_value(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    at_run_time(frame, node)
    kind = sema.type(frame, node.arguments[0])
    own = ty.scalar(kind)
    if own is None:
        raise CslError(node.arguments[0].span, f"a value of type {kind} does not fit into a register")

    def cases() -> list[tuple[str, ir.Expr]]:
        made = [(name, value) for name, (other, value) in sema.exported_values.items() if other == kind]
        if not made:
            raise CslError(node.span, f"no symbol of type {kind} is exported")
        return made

    function = _chooser(sema, f"symbol value {kind}", own, cases, node)
    number = sema.runtime(sema.value(frame, node.arguments[1], ty.U16), node.arguments[1].span)
    return Run(kind, ir.Call(function, [number], sema.place_of(node.span)))


def get_tensor_ptr(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    at_run_time(frame, node)
    function = _chooser(sema, "tensor pointer", T.U16, lambda: _pointers(sema), node)
    number = sema.runtime(sema.value(frame, node.arguments[0], ty.U16), node.arguments[0].span)
    return Run(_POINTER, ir.Call(function, [number], sema.place_of(node.span)))


def note(sema: Any, found: Any, name: str) -> None:
    """Remember what @export_symbol exports."""
    target = _target(sema, found)
    if target is not None:
        sema.exported.setdefault(name, target)
    own = ty.scalar(found.type)
    if isinstance(found, MemoryPlace) and own is not None:
        sema.exported_values[name] = found.type, ir.Load(own, found.address, found.offset)
    elif isinstance(found, Const) and isinstance(found.value, PointerValue):
        sema.exported_values[name] = found.type, ir.Address(found.value.variable, found.value.offset)


def _target(sema: Any, found: Any) -> Any:
    """What makes two mentions of a symbol the same."""
    if isinstance(found, Const) and isinstance(found.value, FunctionValue):
        return id(found.value.instance), found.value.declaration.name
    if isinstance(found, Const) and isinstance(found.value, PointerValue):
        return found.value
    if isinstance(found, MemoryPlace) and isinstance(found.address, ir.Address):
        return found.address.variable, found.address.offset + found.offset
    return None


def _pointers(sema: Any) -> list[tuple[str, ir.Expr]]:
    return [(name, value) for name, (kind, value) in sema.exported_values.items() if isinstance(kind, ty.Pointer)]


def _chooser(
    sema: Any, name: str, result: T, cases: Callable[[], list[tuple[str, ir.Expr]]], node: ast.BuiltinCall
) -> ir.Function:
    """A function from an id to a value, one for all its uses."""
    if name in sema.choosers:
        return sema.choosers[name]
    number = ir.Local("id", T.U16)
    function = sema.choosers[name] = ir.Function(name, [number], result, [], sema.place_of(node.span))
    sema.program.functions.append(function)

    def fill() -> None:
        for symbol, value in cases():
            own = ir.Const(symbol_id(sema, symbol, node.span), T.U16)
            same = ir.Compare(Op.EQ, T.U16, ir.GetLocal(number), own)
            function.body.append(ir.If(same, [ir.Return(value)], []))
        never = f"@{node.name}: no such symbol is exported with this id"
        function.body += [ir.Assert(ir.Const(0, T.U8), never, function.place), ir.Return(ir.Const(0, result))]

    sema.later.append(fill)
    return function


BUILTINS = {
    "get_symbol_id": get_symbol_id,
    "get_symbol_value": get_symbol_value,
    "get_tensor_ptr": get_tensor_ptr,
}
