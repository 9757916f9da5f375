"""Imports and what the host may see."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins import symbols
from openwafer.wafer.csl.builtins.arguments import at_start, config, count
from openwafer.wafer.csl.comptime import VOID, Const, PointerValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import FunctionValue, MemoryPlace, Value


def import_module(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    path = sema.string(frame, node.arguments[0])
    params: dict[str, Const] = {}
    if len(node.arguments) > 1:
        for name, (value, where) in config(sema, frame.comptime(), node.arguments[1]).items():
            known = sema.load(frame.comptime(), value, where.span)
            params[name] = known
    return Const(ty.MODULE, sema.import_module(frame, path, params, node.span))


def export_name(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2, 3)
    if sema.placement is None:
        raise CslError(node.span, "@export_name belongs to the layout", "a PE program uses @export_symbol")
    name = sema.string(frame, node.arguments[0])
    if name in sema.placement.exports:
        first = ("it is declared here", sema.spans[node.name, name])
        raise CslError(node.arguments[0].span, f'@export_name declares "{name}" twice', first)
    sema.spans[node.name, name] = node.span
    kind = sema.type(frame, node.arguments[1])
    mutable = len(node.arguments) > 2 and sema.constant(frame, node.arguments[2], ty.BOOL).value
    sema.placement.exports[name] = (str(kind), mutable)
    return VOID


def export_symbol(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    if sema.program is None:
        raise CslError(node.span, "@export_symbol belongs to a PE program", "the layout uses @export_name")
    at_start(sema, frame, node)
    target = node.arguments[0]
    found = sema.expr(frame, target)
    if len(node.arguments) > 1:
        name = sema.string(frame, node.arguments[1])
    elif isinstance(target, ast.Name):
        name = target.text
    else:
        raise CslError(node.span, "@export_symbol needs a name here", '@export_symbol(value, "name")')
    first = sema.spans.setdefault((node.name, name), node.span)
    if first is not node.span:
        raise CslError(node.span, f'"{name}" is exported twice', ("it is exported here", first))
    sema.program.symbols.append(_symbol(sema, found, name, node))
    symbols.note(sema, found, name)
    return VOID


def _symbol(sema: Any, found: Any, name: str, node: ast.BuiltinCall) -> ir.Symbol:
    if isinstance(found, Const) and isinstance(found.value, FunctionValue):
        declaration = found.value.declaration
        assert isinstance(found.type, ty.FunctionType)
        kinds = dict(zip((p.name for p in declaration.parameters), found.type.parameters, strict=True))
        if len(kinds) > 15:
            text = f"{name} takes {len(kinds)} arguments; the host can give at most 15"
            raise CslError(node.span, text, ("declared here", declaration.span))
        function = sema.lower(found.value, {}, kinds, found.type.result)
        return ir.Symbol(name, None, function, False, str(found.type), False, tuple(map(str, kinds.values())))
    if isinstance(found, Const) and isinstance(found.value, PointerValue) and isinstance(found.type, ty.Pointer):
        pointer = ir.Variable(
            f"{name}.pointer", 2, 2, b"\0\0", {0: ir.Address(found.value.variable, found.value.offset)}
        )
        sema.program.variables.append(pointer)
        return ir.Symbol(name, pointer, None, True, str(found.type.target), not found.type.is_const)
    if isinstance(found, MemoryPlace) and isinstance(found.address, ir.Address):
        kind = found.type
        if isinstance(kind, ty.Pointer):
            return ir.Symbol(name, found.address.variable, None, True, str(kind.target), not kind.is_const)
        element = kind.element if isinstance(kind, ty.Array) else kind
        return ir.Symbol(name, found.address.variable, None, False, str(element), not found.is_const)
    raise CslError(
        node.span, f"a value of type {found.type} cannot be exported; export a pointer, an array or a function"
    )


def has_exported_tensors(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 0)
    if sema.compilation.exports is None:
        raise CslError(node.span, "@has_exported_tensors belongs to the functions of a PE program")
    return Const(ty.BOOL, any(kind.startswith(("[", "*")) for kind, _ in sema.compilation.exports.values()))


BUILTINS = {
    "import_module": import_module,
    "export_name": export_name,
    "export_symbol": export_symbol,
    "has_exported_tensors": has_exported_tensors,
}
