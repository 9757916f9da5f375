"""Control-task tables and rotating tasks of WSE-3.

Control tasks have ids of their own here anyway, so a table of their own changes nothing but what is allowed. Rotation
is done by the task that the wavelets start: it counts, and calls one of the two.
"""

from __future__ import annotations

from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import at_start, config, count, known_id, number
from openwafer.wafer.csl.builtins.tasks import bind, data_ids, lower, task_function, wavelet_arguments
from openwafer.wafer.csl.comptime import VOID
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import Value
from openwafer.wafer.image import TaskKind
from openwafer.wafer.isa import Op, T


def set_control_task_table(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 0, 1)
    _needs_wse3(sema, frame, node)
    if sema.control_table is not None:
        raise CslError(node.span, "@set_control_task_table is called twice", ("the first is here", sema.control_table))
    sema.control_table = node.span
    if node.arguments:
        options = config(sema, frame, node.arguments[0], ("instructions", "stride"))
        if number(options, "instructions", 4) not in (2, 4, 8):
            raise CslError(options["instructions"][1].span, ".instructions of a control-task table is 2, 4 or 8")
        number(options, "stride", 1, 1, 7)
    return VOID


def bind_rotating_tasks(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 4)
    _needs_wse3(sema, frame, node)
    main, alt = (task_function(sema, frame, argument) for argument in node.arguments[:2])
    options = config(sema, frame, node.arguments[3], ("init", "limit"))
    if "limit" not in options:
        raise CslError(node.arguments[3].span, "@bind_rotating_tasks needs .limit")
    limit = number(options, "limit") or 0
    init = number(options, "init", 0, 0, limit) or 0
    task = sema.constant(frame, node.arguments[2])
    if task.type != ty.DATA_TASK:
        raise CslError(node.arguments[2].span, f"@bind_rotating_tasks needs a data_task_id, found {task.type}")
    if any(kind == TaskKind.CONTROL and n == 0 for kind, n, _ in sema.bindings.values()):
        raise CslError(
            node.span, "control task id 0 is bound already; not supported yet: a second pair of rotating tasks"
        )
    own = known_id(task, node.arguments[2], "the id of @bind_rotating_tasks", data_ids(sema.arch))
    bits, signed = wavelet_arguments(sema, node, main, TaskKind.DATA)
    if not bits:
        raise CslError(node.span, f"{main.declaration.name} must take an argument, as a data task does")
    alt_bits, alt_signed = wavelet_arguments(sema, node, alt, TaskKind.CONTROL)
    bind(sema, node, main, TaskKind.DATA, own)
    bind(sema, node, alt, TaskKind.CONTROL, 0)

    def make() -> None:
        other = lower(sema, alt)
        rotating = _rotating(sema, lower(sema, main), other, init, limit, node)
        sema.program.tasks.append(ir.Task(TaskKind.DATA, own, rotating, bits, signed))
        sema.program.tasks.append(ir.Task(TaskKind.CONTROL, 0, other, alt_bits, alt_signed))

    sema.later.append(make)
    return VOID


def _rotating(
    sema: Any, main: ir.Function, alt: ir.Function, init: int, limit: int, node: ast.BuiltinCall
) -> ir.Function:
    """`alt` in place of `main` when the counter has come to the limit; it gets the low half of the wavelet (chosen)."""
    counter = ir.Variable(f"{main.name}.rotation", 2, 2, init.to_bytes(2, "little"))
    sema.program.variables.append(counter)
    parameters = [ir.Local(p.name, p.type) for p in main.parameters]
    place = sema.place_of(node.span)
    starts = ir.Load(T.U16, ir.Address(counter), 0)
    full = ir.Compare(Op.EQ, T.U16, starts, ir.Const(limit, T.U16))
    first = parameters[0]
    assert isinstance(first.type, T)
    bits, value = first.type, ir.GetLocal(first)
    if bits in (T.F16, T.BF16, T.F32):
        bits = T.U32 if first.type == T.F32 else T.U16
    low: list[ir.Expr] = [
        ir.Convert(T.U16, bits, value if bits == first.type else ir.Reinterpret(bits, first.type, value))
    ]
    once: list[ir.Stmt] = [
        ir.Store(T.U16, ir.Address(counter), 0, ir.Const(0, T.U16)),
        ir.Evaluate(ir.Call(alt, low[: len(alt.parameters)], place)),
    ]
    more = ir.Binary(Op.ADD, T.U16, starts, ir.Const(1, T.U16))
    often: list[ir.Stmt] = [
        ir.Store(T.U16, ir.Address(counter), 0, more),
        ir.Evaluate(ir.Call(main, [ir.GetLocal(p) for p in parameters], place)),
    ]
    function = ir.Function(f"{main.name} rotating", parameters, ir.Special.VOID, [ir.If(full, once, often)], place)
    sema.program.functions.append(function)
    return function


def _needs_wse3(sema: Any, frame: Any, node: ast.BuiltinCall) -> None:
    if sema.arch.name != "wse3":
        raise CslError(node.span, f"{sema.arch.name} has no @{node.name}; WSE-3 has")
    at_start(sema, frame, node)


BUILTINS = {"set_control_task_table": set_control_task_table, "bind_rotating_tasks": bind_rotating_tasks}
