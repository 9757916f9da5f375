"""Labelled blocks and the values that breaks give them. At run time such a block is a loop that runs once."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.comptime import VOID, Const
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import Frame, Left, LoopMark, Run, Value
from openwafer.wafer.csl.types import Type
from openwafer.wafer.isa import T


def labeled_block(sema: Any, frame: Frame, node: ast.LabeledBlock, want: Type | None) -> Value:
    """The value of the block: what its breaks give, else void."""
    if any(mark.label == node.label for mark in frame.loops):
        raise CslError(node.span, f'the label "{node.label}" is in use here', "give this one another name")
    mark = LoopMark(node.label, None, want, [])
    frame.loops.append(mark)
    try:
        return _known(sema, frame, node, mark) if frame.is_comptime else _emitted(sema, frame, node, mark)
    finally:
        frame.loops.remove(mark)


def _known(sema: Any, frame: Frame, node: ast.LabeledBlock, mark: LoopMark) -> Value:
    try:
        sema.scoped(frame, node.block)
    except Left as left:
        if left.mark is not mark:
            raise
        return left.value
    return VOID


def _emitted(sema: Any, frame: Frame, node: ast.LabeledBlock, mark: LoopMark) -> Value:
    assert frame.out is not None and mark.values is not None
    mark.loop = ir.Loop(ir.Const(1, T.U8), [], [])
    mark.loop.body = sema.emitted(frame, node.block)
    mark.loop.body.append(ir.Break(mark.loop))
    frame.out.append(mark.loop)
    given = [(value, where, kept) for value, where, kept in mark.values if value.type != ty.VOID]
    if not given:
        return VOID
    last = node.block.statements[-1] if node.block.statements else None
    if not isinstance(last, ast.Break | ast.Return):
        raise CslError(given[0][1].span, "this block may end without a value", ("the block", node.span))
    if len(mark.values) == 1 and isinstance(given[0][0], Const):
        return given[0][0]
    kind = mark.want or next((v.type for v, _, _ in given if v.type not in ty.NUMBERS), given[0][0].type)
    local = ir.Local(node.label, sema.slot_type(kind, node.span))
    for value, where, kept in mark.values:
        assert kept is not None
        kept.local, kept.value = local, sema.runtime(sema.coerce(value, kind, where.span), where.span)
    return Run(kind, ir.GetLocal(local))


def leave_block(sema: Any, frame: Frame, node: ast.Break, mark: LoopMark) -> None:
    """`break :label value`."""
    if mark.values is None:
        raise CslError(node.span, f'"{node.label}" is a loop, which has no value', "only a labelled block has one")
    value = sema.value(frame, node.value, mark.want) if node.value is not None else VOID
    if frame.is_comptime:
        raise Left(mark, False, value)
    assert frame.out is not None
    if mark.loop is None:
        raise CslError(node.span, "this block is left at run time, and known at compile time only")
    kept = None
    if value.type != ty.VOID:
        kept = ir.SetLocal(ir.Local(mark.label or "", T.U8), ir.Const(0, T.U8))
        frame.out.append(kept)
    mark.values.append((value, node, kept))
    frame.out.append(ir.Break(mark.loop))
