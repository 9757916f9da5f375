"""Ids, queues, tasks: binding, activating, blocking."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.arch import NUM_COLORS, NUM_CONTROL_TASKS, NUM_MICROTHREADS, TEARDOWN_TASK_ID
from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import at_run_time, at_start, config, count, in_program, known_id, number
from openwafer.wafer.csl.comptime import VOID, Const
from openwafer.wafer.csl.diagnostics import CslError, Diagnostic
from openwafer.wafer.csl.scope import FunctionValue, Run, Value
from openwafer.wafer.image import TaskKind
from openwafer.wafer.isa import Block, Op, Sys, T


def _id(kind: ty.Opaque, limit: Any) -> Any:
    def get(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 1)
        value = sema.value(frame, node.arguments[0])
        if isinstance(value, Run):
            if not isinstance(value.type, ty.Int | ty.Opaque):
                raise CslError(node.arguments[0].span, f"@{node.name} needs an integer, found {value.type}")
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


def _task(sema: Any, frame: Any, node: ast.BuiltinCall, kind: TaskKind, allowed: range) -> tuple[FunctionValue, int]:
    """The task and the id that it is bound to from here on."""
    count(node, 2)
    at_start(sema, frame, node)
    function = task_function(sema, frame, node.arguments[0])
    name = function.declaration.name
    key = id(function.instance), name
    before = sema.bindings.get(key)
    sema.bindings[key] = (kind, None, node.span)  # known even if what follows has an error
    value = sema.constant(frame, node.arguments[1])
    number = known_id(value, node.arguments[1], f"the id of {name}", allowed, _ID_TYPES[kind])
    if before is not None:
        raise CslError(node.span, f"{name} is bound twice", ("it is bound here already", before[2]))
    bind(sema, node, function, kind, number)
    return function, number


def task_function(sema: Any, frame: Any, argument: ast.Expr) -> FunctionValue:
    """A task by its name."""
    found = sema.constant(frame, argument)
    if not isinstance(found.value, FunctionValue):
        raise CslError(argument.span, f"expected the name of a task, found a value of type {found.type}")
    declaration = found.value.declaration
    if not declaration.is_task:
        declared = ("a task is declared with task, not fn", declaration.span)
        raise CslError(argument.span, f"expected the name of a task, {declaration.name} is a function", declared)
    return found.value


def bind(sema: Any, node: ast.BuiltinCall, function: FunctionValue, kind: TaskKind, number: int) -> None:
    """Give a task its id."""
    key = id(function.instance), function.declaration.name
    _check_free(sema, node, function.declaration.name, kind, number)
    sema.bindings[key] = (kind, number, node.span)


def _check_free(sema: Any, node: ast.BuiltinCall, name: str, kind: TaskKind, number: int) -> None:
    """No other task has the id; a data task of WSE-2 shares the numbers of local tasks."""
    for other, (other_kind, other_number, span) in sema.bindings.items():
        same_space = kind == other_kind or (
            TaskKind.CONTROL not in (kind, other_kind) and not sema.arch.data_task_is_queue
        )
        if same_space and other_number == number:
            text = f"id {number} is bound twice, to {other[1]} and to {name}"
            raise CslError(node.span, text, (f"{other[1]} is bound to it here", span), "give one of them another id")


_ID_TYPES = {TaskKind.LOCAL: ty.LOCAL_TASK, TaskKind.DATA: ty.DATA_TASK, TaskKind.CONTROL: ty.CONTROL_TASK}


def lower(sema: Any, function: FunctionValue) -> ir.Function:
    """The IR of a task."""
    kinds = sema.function_type(function.instance, function.declaration).parameters
    names = [p.name for p in function.declaration.parameters]
    return sema.lower(function, {}, dict(zip(names, kinds, strict=True)), ty.VOID)


def bind_local_task(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    function, number = _task(sema, frame, node, TaskKind.LOCAL, range(64))
    if number not in sema.arch.local_task_ids:
        ids = sema.arch.local_task_ids
        text = f"local task id {number} does not exist on {sema.arch.name} ({ids[0]} to {ids[-1]})"
        raise CslError(node.arguments[1].span, text)
    if function.declaration.parameters:
        declared = ("declared here", function.declaration.span)
        raise CslError(node.span, f"a local task takes no arguments; {function.declaration.name} does", declared)
    sema.later.append(lambda: sema.program.tasks.append(ir.Task(TaskKind.LOCAL, number, lower(sema, function))))
    return VOID


def data_ids(arch: Any) -> range:
    """Input queues or colors."""
    return range(arch.num_input_queues) if arch.data_task_is_queue else range(NUM_COLORS)


def wavelet_arguments(
    sema: Any, node: ast.BuiltinCall, function: FunctionValue, kind: TaskKind
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Widths and signs of what a wavelet brings to a task."""
    kinds = sema.function_type(function.instance, function.declaration).parameters
    bits = tuple(ty.size_bytes(k) * 8 for k in kinds)
    name, declared = function.declaration.name, ("declared here", function.declaration.span)
    for own, size in zip(kinds, bits, strict=True):
        if isinstance(own, ty.Int) and own.bits != size:
            raise CslError(node.span, f"a task takes no argument of type {own}; use one of 8, 16 or 32 bits", declared)
        if ty.scalar(own) is None:
            text = f"{name} takes a {own}; a wavelet brings integers, floats, bools and ids"
            raise CslError(node.span, text, declared)
    limit = 32 if kind == TaskKind.DATA else 16
    if sum(bits) > limit:
        text = f"{name} takes {sum(bits)} bits of arguments; a wavelet brings {limit}"
        raise CslError(node.span, text, declared)
    return bits, tuple(isinstance(k, ty.Int) and k.signed for k in kinds)


def _wavelet_task(kind: TaskKind) -> Any:
    def bind_task(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        allowed = range(NUM_CONTROL_TASKS) if kind == TaskKind.CONTROL else data_ids(sema.arch)
        function, number = _task(sema, frame, node, kind, allowed)
        bits, signed = wavelet_arguments(sema, node, function, kind)
        sema.later.append(lambda: sema.program.tasks.append(ir.Task(kind, number, lower(sema, function), bits, signed)))
        return VOID

    return bind_task


def completion(sema: Any, options: Any) -> ir.Completion:
    """`.activate` and `.unblock`; a task's name stands for the id it is bound to."""
    made = ir.Completion()
    if "activate" in options:
        value, node = options["activate"]
        _later_id(sema, value, node, ".activate", lambda number: setattr(made, "activate", number))
    if "unblock" in options:
        value, node = options["unblock"]
        kind = Block.MICROTHREAD if value.type == ty.UT_ID else Block.TASK
        made.unblock_kind = kind
        _later_id(sema, value, node, ".unblock", lambda number: setattr(made, "unblock_id", number))
    return made


def _later_id(sema: Any, value: Any, node: ast.Node, what: str, give: Any) -> None:
    if not (isinstance(value, Const) and isinstance(value.value, FunctionValue)):
        give(known_id(value, node, what, _IDS))
        return
    function = value.value
    key = (id(function.instance), function.declaration.name)

    def resolve() -> None:
        if key not in sema.bindings:
            raise CslError(
                node.span,
                f"{function.declaration.name} is never bound to an id",
                ("declared here", function.declaration.span),
                f"bind it in a comptime block, as with @bind_local_task({function.declaration.name}, id)",
            )
        if sema.bindings[key][1] is not None:
            give(sema.bindings[key][1])

    if key in sema.bindings:
        resolve()
    else:
        sema.later.append(resolve)


def _check_bound(sema: Any, number: int, node: ast.BuiltinCall, severity: str) -> None:
    """Once all tasks are bound, one has the id; an error where it is sure to be activated."""

    def check() -> None:
        bound = [own for kind, own, _ in sema.bindings.values() if kind != TaskKind.CONTROL]
        if number not in bound and None not in bound and number != TEARDOWN_TASK_ID:
            text = f"id {number} is activated and no task is bound to it"
            bound_to = ", ".join(f"{name} {own}" for (_, name), (_, own, _) in sema.bindings.items())
            hint = f"bound are {bound_to}" if bound_to else "no task is bound to any id"
            sema.compilation.diagnostics.add(Diagnostic(text, node.span, ((hint, None),), severity))

    sema.later.append(check)


_IDS = range(32)
"""Ids that can be activated and blocked: tasks, colors, queues."""


def _bit(op: Op) -> Any:
    def change(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 1)
        found = sema.expr(frame, node.arguments[0])
        value = sema.load(frame, found, node.span)
        if isinstance(value, Const) and isinstance(value.value, FunctionValue):
            raise CslError(
                node.arguments[0].span,
                f"@{node.name} takes an id, not the name of a task",
                f"use the id that {value.value.declaration.name} is bound to",
            )
        kind = Block.MICROTHREAD if value.type == ty.UT_ID else Block.TASK
        if frame.is_comptime:
            program = in_program(sema, node)
            bit = 1 << known_id(value, node.arguments[0], f"the id of @{node.name}", _IDS)
            if op == Op.ACTIVATE:
                program.activated |= bit
                _check_bound(sema, value.value, node, "error")
            elif op == Op.BLOCK:
                program.blocked |= bit
            else:
                program.blocked &= ~bit
            return VOID
        if isinstance(value, Const):
            known_id(value, node.arguments[0], f"the id of @{node.name}", _IDS)
            if op == Op.ACTIVATE:
                _check_bound(sema, value.value, node, "warning")
        elif not isinstance(value.type, ty.Int | ty.Opaque):
            raise CslError(node.arguments[0].span, f"@{node.name} needs an id, found {value.type}")
        frame.out.append(ir.TaskBit(op, sema.runtime(value, node.span), kind, sema.place_of(node.span)))
        return VOID

    return change


def initialize_queue(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1, 2)
    program = at_start(sema, frame, node)
    queue = sema.constant(frame, node.arguments[0])
    more = node.arguments[1:]
    options = config(sema, frame.comptime(), more[0], ("color", "priority", "ctrl_table_id")) if more else {}
    if queue.type not in (ty.INPUT_QUEUE, ty.OUTPUT_QUEUE):
        raise CslError(
            node.arguments[0].span, f"@initialize_queue needs a queue, found {queue.type}", "use @get_input_queue(n)"
        )
    if "ctrl_table_id" in options:
        if not sema.arch.data_task_is_queue or queue.type != ty.INPUT_QUEUE:
            raise CslError(node.span, ".ctrl_table_id belongs to an input queue of WSE-3")
        if number(options, "ctrl_table_id"):
            raise CslError(node.span, "not supported yet: .ctrl_table_id other than 0; all queues share one table")
    if "color" in options:
        color = known_id(*options["color"], "the color of a queue", range(NUM_COLORS), ty.COLOR)
        colors = program.input_queue_colors if queue.type == ty.INPUT_QUEUE else program.output_queue_colors
        before = sema.spans.setdefault((queue.type, queue.value), node.span)
        if queue.value in colors and colors[queue.value] != color:
            text = f"{queue.type} {queue.value} has color {colors[queue.value]} already, it cannot have {color} too"
            raise CslError(node.span, text, ("it gets that color here", before), "a queue serves one color")
        colors[queue.value] = color
    return VOID


def _handler(sys_pending: Sys) -> Any:
    def set_handler(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 2)
        at_start(sema, frame, node)
        found = sema.constant(frame, node.arguments[0])
        function = found.value
        value = sema.constant(frame, node.arguments[1])
        number = known_id(value, node.arguments[1], f"the second argument of @{node.name}", range(NUM_COLORS))
        if not isinstance(function, FunctionValue):
            raise CslError(node.arguments[0].span, f"@{node.name} needs a function, found {found.type}")
        before = sema.spans.setdefault((node.name, number), node.span)
        if before is not node.span:
            raise CslError(node.span, f"{number} has a handler already", ("it is set here", before))
        first = not sema.handlers
        sema.handlers[sys_pending.name, number] = None  # pyright: ignore[reportArgumentType]

        def make() -> None:
            sema.handlers[sys_pending.name, number] = lower(sema, function)

        sema.later.append(make)
        if first:
            sema.later.append(lambda: sema.later.append(lambda: _system_task(sema)))
        return VOID

    return set_handler


def _system_task(sema: Any) -> None:
    """Task 29: calls the handler of everything that is pending."""
    body: list[ir.Stmt] = []
    for (name, which), handler in sema.handlers.items():
        query = ir.SysQuery(Sys[name], ir.Const(which, T.U16))
        body.append(ir.If(query, [ir.Evaluate(ir.Call(handler, []))], []))
    function = ir.Function("system task 29", [], ir.Special.VOID, body)
    sema.program.functions.append(function)
    sema.program.tasks.append(ir.Task(TaskKind.LOCAL, TEARDOWN_TASK_ID, function))


def queue_flush(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 1)
    out = at_run_time(frame, node)
    queue = sema.value(frame, node.arguments[0])
    if queue.type != ty.OUTPUT_QUEUE:
        raise CslError(node.arguments[0].span, f"@queue_flush needs an output queue, found {queue.type}")
    out.append(ir.SysCall(Sys.QUEUE_FLUSH, sema.runtime(queue, node.span), place=sema.place_of(node.span)))
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
