"""Symbols shared by name: `extern` declarations meet the `export` of the same program.

A program is compiled as a whole, so whatever is declared extern must be exported by one of its modules. Which may be
analysed later: a variable is made by whoever comes first, a function gets its body when all exports are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.comptime import Const
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import Frame, FunctionValue, MemoryPlace
from openwafer.wafer.csl.types import Type


@dataclass(eq=False)
class Linked:
    """A symbol that was declared extern or export; `owner`: where it is exported."""

    type: Type
    is_const: bool
    span: Span
    variable: ir.Variable | None = None
    function: FunctionValue | None = None
    owner: Span | None = None


def symbol_name(sema: Any, frame: Frame, node: ast.VarDecl | ast.FunctionDecl) -> str:
    return sema.string(frame, node.linkname) if node.linkname is not None else node.name


def declared(sema: Any, frame: Frame, node: ast.VarDecl | ast.FunctionDecl, kind: Type) -> Linked:
    """What all declarations of a symbol share; they agree on type and constness."""
    name = symbol_name(sema, frame, node)
    is_const = isinstance(node, ast.FunctionDecl) or node.is_const
    if not _may_be_shared(kind):
        raise CslError(node.span, f"a value of type {kind} cannot be {node.linkage}")
    known = sema.linked.setdefault(name, Linked(kind, is_const, node.span))
    if (known.type, known.is_const) != (kind, is_const):
        word = "const" if known.is_const else "var"
        raise CslError(
            node.span, f'the symbol "{name}" is declared elsewhere as {word} of type {known.type}',
            ("declared here", known.span),
        )  # fmt: skip
    if node.linkage == "export":
        if known.owner is not None and known.owner != node.span:
            raise CslError(node.span, f'the symbol "{name}" is exported twice', ("the first is here", known.owner))
        if known.owner is not None:
            raise CslError(node.span, f'two copies of this module export "{name}"', "give each a linkname of its own")
        known.owner = node.span
    return known


def extern_variable(sema: Any, frame: Frame, node: ast.VarDecl, kind: Type | None) -> MemoryPlace:
    if node.value is not None or kind is None:
        raise CslError(node.span, "an extern variable has a type and no value")
    if sema.program is None:
        raise CslError(node.span, "an extern variable belongs to a PE program")
    linked = declared(sema, frame, node, kind)
    return MemoryPlace(kind, ir.Address(variable(linked, symbol_name(sema, frame, node))), 0, node.is_const)


def variable(linked: Linked, name: str) -> ir.Variable:
    """The memory behind a symbol; the exporting declaration fills it."""
    if linked.variable is None:
        linked.variable = ir.Variable(name, ty.size_bytes(linked.type))
    return linked.variable


def export_function(sema: Any, found: Const) -> None:
    """A function that extern declarations may name."""
    assert isinstance(found.value, FunctionValue)
    frame = Frame(found.value.instance, [{}])
    declared(sema, frame, found.value.declaration, found.type).function = found.value


def bind(sema: Any, function: FunctionValue, lowered: ir.Function) -> None:
    """The body of an extern function: a call of the exported one."""
    frame = Frame(function.instance, [{}])
    kind = sema.function_type(function.instance, function.declaration)
    linked = declared(sema, frame, function.declaration, kind)
    if linked.function is None:
        return  # reported by check
    names = [p.name for p in linked.function.declaration.parameters]
    target = sema.lower(linked.function, {}, dict(zip(names, kind.parameters, strict=True)), kind.result)
    call = ir.Call(target, [ir.GetLocal(p) for p in lowered.parameters], lowered.place)
    lowered.body = [ir.Evaluate(call) if call.type == ir.Special.VOID else ir.Return(call)]


def check(sema: Any) -> None:
    """Everything that is declared extern and used is exported."""
    for name, linked in sema.linked.items():
        if linked.owner is None:
            sema.guarded(lambda name=name, linked=linked: _missing(name, linked))


def _missing(name: str, linked: Linked) -> None:
    raise CslError(linked.span, f'no module of this program exports "{name}"', "programs are not linked with others")


def _may_be_shared(kind: Type) -> bool:
    """Whether a type is export compatible (documented); integers of 8 and 64 bits were up to SDK 1.4."""
    if isinstance(kind, ty.Array):
        return _may_be_shared(kind.element)
    if isinstance(kind, ty.FunctionType):
        return all(_may_be_shared(k) for k in kind.parameters) and (
            kind.result == ty.VOID or _may_be_shared(kind.result)
        )
    if isinstance(kind, ty.Struct):
        return kind.name.startswith("extern")
    if isinstance(kind, ty.Int | ty.Packed):
        return ty.bit_width(kind) in (8, 16, 32, 64)
    return kind != ty.DIRECTION and not isinstance(kind, ty.DsdType) and not ty.is_comptime_only(kind)
