"""Ids, queues, tasks: binding, activating, blocking."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.arch import NUM_CONTROL_TASKS, NUM_MICROTHREADS, TEARDOWN_TASK_ID
from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import config, count, known_id
from openwafer.wafer.csl.comptime import VOID, Const
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import FunctionValue, Run, Value
from openwafer.wafer.image import TaskKind
from openwafer.wafer.isa import Block, Op, Sys, T


def _id(kind: ty.Opaque, limit: Any) -> Any:
    def get(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 1)
        value = sema.value(frame, node.arguments[0])
        if isinstance(value, Run):
            return Run(kind, value.expr)
        number = known_id(value, node.arguments[0], f"@{node.name}")
        allowed = limit(sema.arch)
        if number not in allowed:
            raise CslError(
                node.span, f"{kind} {number} does not exist on {sema.arch.name} ({allowed[0]} to {allowed[-1]})"
            )
        return Const(kind, number)

    return get


def get_data_task_id(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    value = sema.constant(frame, node.arguments[0])
    queue = value.type == ty.INPUT_QUEUE
    if value.type == ty.COLOR and sema.arch.data_task_is_queue:
        raise CslError(
            node.span,
            f"a data task of {sema.arch.name} belongs to an input queue, not to a color",
            "use @get_data_task_id(@get_input_queue(n))",
        )
    if queue and not sema.arch.data_task_is_queue:
        raise CslError(node.span, f"a data task of {sema.arch.name} belongs to a color, not to an input queue")
    return Const(ty.DATA_TASK, known_id(value, node.arguments[0], "@get_data_task_id"))


def _task(sema: Any, frame: Any, node: ast.BuiltinCall) -> tuple[FunctionValue, int]:
    count(node, 2)
    if sema.program is None:
        raise CslError(node.span, f"@{node.name} belongs to a comptime block of a PE program")
    found = sema.constant(frame, node.arguments[0])
    if not isinstance(found.value, FunctionValue) or not found.value.declaration.is_task:
        raise CslError(node.arguments[0].span, "expected the name of a task", "a task is declared with task, not fn")
    return found.value, known_id(sema.constant(frame, node.arguments[1]), node.arguments[1], f"@{node.name}")


def _bind(sema: Any, node: ast.BuiltinCall, function: FunctionValue, kind: TaskKind, number: int) -> None:
    key = (id(function.instance), function.declaration.name)
    for other, (other_kind, other_number, span) in sema.bindings.items():
        same_space = (kind == TaskKind.CONTROL) == (other_kind == TaskKind.CONTROL)
        if same_space and other_number == number:
            raise CslError(node.span, f"id {number} is bound twice", (f"the first, to {other[1]}, is here", span))
    sema.bindings[key] = (kind, number, node.span)


def _lower(sema: Any, function: FunctionValue) -> ir.Function:
    kinds = sema.function_type(function.instance, function.declaration).parameters
    names = [p.name for p in function.declaration.parameters]
    return sema.lower(function, {}, dict(zip(names, kinds, strict=True)), ty.VOID)


def bind_local_task(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    function, number = _task(sema, frame, node)
    if number not in sema.arch.local_task_ids:
        ids = sema.arch.local_task_ids
        raise CslError(node.span, f"local task id {number} does not exist on {sema.arch.name} ({ids[0]} to {ids[-1]})")
    if function.declaration.parameters:
        raise CslError(node.span, f"a local task takes no arguments; {function.declaration.name} does")
    _bind(sema, node, function, TaskKind.LOCAL, number)
    sema.later.append(lambda: sema.program.tasks.append(ir.Task(TaskKind.LOCAL, number, _lower(sema, function))))
    return VOID


def _wavelet_task(kind: TaskKind) -> Any:
    def bind(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        function, number = _task(sema, frame, node)
        kinds = sema.function_type(function.instance, function.declaration).parameters
        bits = tuple(ty.size_bytes(k) * 8 for k in kinds)
        limit = 32 if kind == TaskKind.DATA else 16
        if any(ty.scalar(k) is None for k in kinds) or sum(bits) > limit:
            raise CslError(node.span, f"the arguments of {function.declaration.name} must fit into {limit} bits")
        signed = tuple(isinstance(k, ty.Int) and k.signed for k in kinds)
        _bind(sema, node, function, kind, number)
        sema.later.append(
            lambda: sema.program.tasks.append(ir.Task(kind, number, _lower(sema, function), bits, signed))
        )
        return VOID

    return bind


def completion(sema: Any, options: Any) -> ir.Completion:
    """`.activate` and `.unblock`; a task's name stands for the id it is bound to."""
    made = ir.Completion()
    if "activate" in options:
        value, node = options["activate"]
        _later_id(sema, value, node, lambda number: setattr(made, "activate", number))
    if "unblock" in options:
        value, node = options["unblock"]
        kind = Block.MICROTHREAD if value.type == ty.UT_ID else Block.TASK
        made.unblock_kind = kind
        _later_id(sema, value, node, lambda number: setattr(made, "unblock_id", number))
    return made


def _later_id(sema: Any, value: Any, node: ast.Node, give: Any) -> None:
    if not (isinstance(value, Const) and isinstance(value.value, FunctionValue)):
        give(known_id(value, node, "the id"))
        return
    function = value.value
    key = (id(function.instance), function.declaration.name)

    def resolve() -> None:
        if key not in sema.bindings:
            raise CslError(
                node.span,
                f"{function.declaration.name} is never bound to an id",
                ("declared here", function.declaration.span),
            )
        give(sema.bindings[key][1])

    if key in sema.bindings:
        resolve()
    else:
        sema.later.append(resolve)


def _bit(op: Op) -> Any:
    def change(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 1)
        found = sema.expr(frame, node.arguments[0])
        value = sema.load(frame, found, node.span)
        if isinstance(value, Const) and isinstance(value.value, FunctionValue):
            raise CslError(node.span, f"@{node.name} takes an id, not the name of a task")
        kind = Block.MICROTHREAD if value.type == ty.UT_ID else Block.TASK
        if frame.is_comptime:
            if sema.program is None:
                raise CslError(node.span, f"@{node.name} belongs to a PE program")
            bit = 1 << known_id(value, node, f"@{node.name}")
            if op == Op.ACTIVATE:
                sema.program.activated |= bit
            elif op == Op.BLOCK:
                sema.program.blocked |= bit
            else:
                sema.program.blocked &= ~bit
            return VOID
        frame.out.append(ir.TaskBit(op, sema.runtime(value, node.span), kind, sema.place_of(node.span)))
        return VOID

    return change


def initialize_queue(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    queue = sema.constant(frame, node.arguments[0])
    options = (
        config(sema, frame.comptime(), node.arguments[1], ("color", "priority")) if len(node.arguments) > 1 else {}
    )
    if queue.type not in (ty.INPUT_QUEUE, ty.OUTPUT_QUEUE):
        raise CslError(node.span, f"@initialize_queue needs a queue, found {queue.type}")
    if "color" in options:
        color = known_id(*options["color"], "the color of a queue")
        colors = sema.program.input_queue_colors if queue.type == ty.INPUT_QUEUE else sema.program.output_queue_colors
        if queue.value in colors and colors[queue.value] != color:
            raise CslError(node.span, f"{queue.type} {queue.value} has color {colors[queue.value]} already")
        colors[queue.value] = color
    return VOID


def _handler(sys_pending: Sys) -> Any:
    def set_handler(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 2)
        function = sema.constant(frame, node.arguments[0]).value
        number = known_id(sema.constant(frame, node.arguments[1]), node.arguments[1], f"@{node.name}")
        if not isinstance(function, FunctionValue):
            raise CslError(node.span, f"@{node.name} needs a function")
        first = not sema.handlers
        sema.handlers[sys_pending.name, number] = None  # pyright: ignore[reportArgumentType]

        def make() -> None:
            sema.handlers[sys_pending.name, number] = _lower(sema, function)

        sema.later.append(make)
        if first:
            sema.later.append(lambda: sema.later.append(lambda: _system_task(sema)))
        return VOID

    return set_handler


def _system_task(sema: Any) -> None:
    """Task 29: calls the handler of everything that is pending."""
    body: list[ir.Stmt] = []
    for (name, number), handler in sema.handlers.items():
        query = ir.SysQuery(Sys[name], ir.Const(number, T.U16))
        body.append(ir.If(query, [ir.Evaluate(ir.Call(handler, []))], []))
    function = ir.Function("system task 29", [], ir.Special.VOID, body)
    sema.program.functions.append(function)
    sema.program.tasks.append(ir.Task(TaskKind.LOCAL, TEARDOWN_TASK_ID, function))


def queue_flush(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    queue = sema.value(frame, node.arguments[0])
    frame.out.append(ir.SysCall(Sys.QUEUE_FLUSH, sema.runtime(queue, node.span), place=sema.place_of(node.span)))
    return VOID


def rpc(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    """A server for the host's launches; memcpy brings them to the PE, so that no color is needed for them."""
    count(node, 1)
    task = known_id(sema.value(frame, node.arguments[0], None), node.arguments[0], "task id")

    def check() -> None:
        if task != sema.launch_color:
            hint = "give memcpy's .LAUNCH color to <memcpy/get_params> and its id to @rpc"
            raise CslError(node.span, f"not supported yet: an @rpc server for other senders than the host; {hint}")

    sema.later.append(check)
    return VOID


BUILTINS = {
    "get_color": _id(ty.COLOR, lambda arch: range(32)),
    "get_input_queue": _id(ty.INPUT_QUEUE, lambda arch: range(arch.num_input_queues)),
    "get_output_queue": _id(ty.OUTPUT_QUEUE, lambda arch: range(arch.num_output_queues)),
    "get_local_task_id": _id(ty.LOCAL_TASK, lambda arch: range(32)),
    "get_control_task_id": _id(ty.CONTROL_TASK, lambda arch: range(NUM_CONTROL_TASKS)),
    "get_ut_id": _id(ty.UT_ID, lambda arch: range(NUM_MICROTHREADS)),
    "get_data_task_id": get_data_task_id,
    "bind_local_task": bind_local_task,
    "bind_data_task": _wavelet_task(TaskKind.DATA),
    "bind_control_task": _wavelet_task(TaskKind.CONTROL),
    "activate": _bit(Op.ACTIVATE),
    "block": _bit(Op.BLOCK),
    "unblock": _bit(Op.UNBLOCK),
    "initialize_queue": initialize_queue,
    "set_teardown_handler": _handler(Sys.TEARDOWN_PENDING),
    "set_empty_queue_handler": _handler(Sys.QUEUE_FLUSHED),
    "queue_flush": queue_flush,
    "rpc": rpc,
}
