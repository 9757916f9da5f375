"""What break and continue leave: loops, unrolled loops, and labelled blocks with the values that breaks give them.

The type of a block is known when all of it has been seen, so a break first leaves a gap where its value will be stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.aggregates import temporary
from openwafer.wafer.csl.comptime import VOID, Const
from openwafer.wafer.csl.diagnostics import Cascade, CslError
from openwafer.wafer.csl.scope import Broken, Frame, Left, LoopMark, Value
from openwafer.wafer.csl.types import Type


def labeled_block(sema: Any, frame: Frame, node: ast.LabeledBlock, want: Type | None) -> Value:
    """The value of the block: what its breaks give, else void."""
    if any(mark.label == node.label for mark in frame.loops):
        raise CslError(node.span, f'the label "{node.label}" is in use here', "give this one another name")
    mark = LoopMark(node.label, None if frame.is_comptime else ir.Labeled([]), want=want, values=[])
    before = sema.compilation.diagnostics.num_failures
    frame.loops.append(mark)
    try:
        if mark.loop is None:
            return _known(sema, frame, node, mark)
        mark.loop.body = sema.emitted(frame, node.block)
    finally:
        frame.loops.remove(mark)
    if before != sema.compilation.diagnostics.num_failures:
        raise Cascade
    value = _value(sema, frame, mark, node)
    assert isinstance(mark.loop, ir.Labeled)
    _append(frame.out, mark.loop)
    return value


def leave(sema: Any, frame: Frame, node: ast.Break | ast.Continue) -> None:
    """`break` and `continue`."""
    mark = _mark(frame, node)
    value: Value = VOID
    if isinstance(node, ast.Break) and node.value is not None:
        if mark.values is None:
            raise CslError(node.span, f'"{node.label}" is a loop, which has no value', "only a labelled block has one")
        value = sema.value(frame, node.value, mark.want)
    again = isinstance(node, ast.Continue)
    target = mark.again if again and mark.again is not None else mark.loop
    if target is None:
        raise Left(mark, again, value)
    assert frame.out is not None
    if again and isinstance(target, ir.Loop):
        frame.out.append(ir.Continue(target))
        return
    target.is_left = True
    left = ir.Break(target)
    if mark.values is not None:
        mark.values.append(Broken(value, ir.Labeled([]), left, node.span))
        frame.out.append(mark.values[-1].store)
    frame.out.append(left)


def _mark(frame: Frame, node: ast.Break | ast.Continue) -> LoopMark:
    """The loop or block that is meant; without a label the innermost loop."""
    is_break = isinstance(node, ast.Break)
    for mark in reversed(frame.loops):
        is_loop = mark.values is None
        if (mark.label == node.label and (is_loop or is_break)) if node.label is not None else is_loop:
            return mark
    kind = "loop or block" if is_break else "loop"
    outside = f"{'break' if is_break else 'continue'} outside of a loop"
    raise CslError(node.span, f'no {kind} "{node.label}" here' if node.label else outside)


@contextmanager
def unrolled(frame: Frame, mark: LoopMark) -> Iterator[None]:
    """Around the rounds of an unrolled loop: what break leaves at run time."""
    if frame.out is None:
        yield
        return
    outer, whole = frame.out, ir.Labeled([])
    mark.loop, frame.out = whole, whole.body
    try:
        yield
    finally:
        frame.out = outer
    _append(outer, whole)


def one_round(sema: Any, frame: Frame, body: ast.Stmt, mark: LoopMark) -> bool:
    """One round of an unrolled loop at run time; whether another may follow."""
    mark.again = again = ir.Labeled([])
    again.body = sema.emitted(frame, body)
    _append(frame.out, again)
    return not any(isinstance(s, ir.Break) and s.loop is mark.loop for s in again.body)


def _append(out: list[ir.Stmt] | None, block: ir.Labeled) -> None:
    assert out is not None
    if block.is_left:
        out.append(block)
    else:
        out += block.body


def _known(sema: Any, frame: Frame, node: ast.LabeledBlock, mark: LoopMark) -> Value:
    """At compile time a break is an exception."""
    try:
        sema.scoped(frame, node.block)
    except Left as left:
        if left.mark is not mark:
            raise
        return left.value
    return VOID


def _value(sema: Any, frame: Frame, mark: LoopMark, node: ast.LabeledBlock) -> Value:
    """The value of a block that has been seen; fills the gaps before its breaks."""
    assert isinstance(mark.loop, ir.Labeled) and mark.values is not None
    body, ends = mark.loop.body, mark.values
    valued = [end for end in ends if end.value.type != ty.VOID]
    if not valued:
        return VOID
    if len(valued) < len(ends) or not never_ends(body):
        raise CslError(valued[0].span, "this block may end without a value", ("the block", node.span))
    if len(ends) == 1 and isinstance(ends[0].value, Const) and body[-1] is ends[0].leave:
        del body[-1]
        mark.loop.is_left = False
        return ends[0].value
    kind = mark.want or next((end.value.type for end in ends if end.value.type not in ty.NUMBERS), None)
    if kind is None:
        raise CslError(node.span, "the values of this block need a sized type", "convert one with @as")
    place = temporary(sema, frame, kind, node.label, node.span)
    for end in ends:
        value = sema.coerce(end.value, kind, end.span)
        sema.store(replace(frame, out=end.store.body), place, value, end.span)
    if body[-1] is ends[-1].leave:
        del body[-1]
        mark.loop.is_left = len(ends) > 1
    return sema.load(frame, place, node.span)


def never_ends(body: list[ir.Stmt]) -> bool:
    """Whether control cannot come to the end of these statements."""
    return any(_leaves(statement) for statement in body)


def _leaves(node: ir.Stmt) -> bool:
    if isinstance(node, ir.Break | ir.Continue | ir.Return):
        return True
    if isinstance(node, ir.If):
        return never_ends(node.then) and never_ends(node.otherwise)
    if isinstance(node, ir.Labeled):
        return not node.is_left and never_ends(node.body)
    if not isinstance(node, ir.Loop) or node.is_left:
        return False
    return isinstance(node.condition, ir.Const) and bool(node.condition.value)
