"""The DSD operations, one table row each, and @map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import Config, at_run_time, config, count, flag, number
from openwafer.wafer.csl.builtins.dsd import priority
from openwafer.wafer.csl.builtins.forms import form
from openwafer.wafer.csl.builtins.tasks import completion
from openwafer.wafer.csl.comptime import VOID, Const, DsrValue, StructValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import FunctionValue, Run, Value
from openwafer.wafer.isa import DsdKind, Sys, T, V

MAX_ITERATORS = 7
"""DSDs that one @map reads; one more iterator takes its result."""
_OPTIONS = ("async", "activate", "unblock", "ut_id", "priority", "index", "on_control")


@dataclass(frozen=True)
class Row:
    """Types of destination and sources; `scalar`: the last source is the factor of a multiply-add."""

    op: V
    dest: ty.Type
    sources: tuple[ty.Type, ...]
    scalar: bool = False


def _rows() -> dict[str, Row]:
    h, s, u, w = ty.F16, ty.F32, ty.U16, ty.U32
    rows: dict[str, Row] = {}
    for name in ("add16", "addc16", "sub16", "and16", "or16", "xor16", "sll16", "slr16", "sar16"):
        rows[name] = Row(V[name.upper()], u, (u, u))
    for name in ("clz", "ctz", "popcnt", "mov16"):
        rows[name] = Row(V[name.upper()], u, (u,))
    rows["mov32"] = Row(V.MOV32, w, (w,))
    for name in ("fadd", "fsub", "fmul", "fmax", "fscale"):
        for ending, kind in (("h", h), ("s", s)):
            second = ty.I16 if name == "fscale" else kind
            rows[name + ending] = Row(V[(name + ending).upper()], kind, (kind, second))
    for name in ("fabs", "fmov", "fneg", "fnorm"):
        for ending, kind in (("h", h), ("s", s)):
            rows[name + ending] = Row(V[(name + ending).upper()], kind, (kind,))
    rows["faddhs"] = Row(V.FADDHS, s, (s, h))
    rows["fmach"] = Row(V.FMACH, h, (h, h, h), scalar=True)
    rows["fmacs"] = Row(V.FMACS, s, (s, s, s), scalar=True)
    rows["fmachs"] = Row(V.FMACHS, s, (s, h, h), scalar=True)
    conversions = (
        ("fh2s", s, h), ("fs2h", h, s), ("fh2xp16", ty.I16, h), ("fs2xp16", ty.I16, s), ("xp162fh", h, ty.I16),
        ("xp162fs", s, ty.I16),
    )  # fmt: skip
    for name, dest, source in conversions:
        rows[name] = Row(V[name.upper()], dest, (source,))
    return rows


ROWS = _rows()


def operation(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    row = ROWS[node.name]
    count(node, 1 + len(row.sources), 2 + len(row.sources))
    out = at_run_time(frame, node)
    has_options = len(node.arguments) > 1 + len(row.sources)
    options: Config = config(sema, frame, node.arguments[-1], _OPTIONS) if has_options else {}
    dest = _operand(sema, frame, node, 0, row.dest, is_dest=True)
    sources = [_operand(sema, frame, node, i + 1, kind, False) for i, kind in enumerate(row.sources)]
    _check(sema, node, dest, sources, options)
    scalar = sources.pop() if row.scalar else None
    index = None
    if "index" in options:
        value, where = options["index"]
        index = sema.runtime(_index(sema, sema.load(frame, value, where.span), where), where.span)
    vector = ir.VectorOp(
        row.op, dest, sources[0], sources[1] if len(sources) > 1 else None, scalar, flag(options, "async"),
        completion(sema, options), number(options, "ut_id", None, 0, 7), priority(options), index,
        sema.place_of(node.span), _on_control(sema, frame, options, [*sources, dest]),
    )  # fmt: skip
    out.append(vector)
    return Run(ty.BOOL, ir.SysQuery(Sys.COMPLETED, ir.Const(0, T.U16)))


def _on_control(sema: Any, frame: Any, options: Config, operands: list[ir.Operand]) -> ir.Completion | None:
    """`.on_control = .{ .terminate = true }`, or one of .activate and .unblock, which terminate too."""
    if "on_control" not in options:
        return None
    value, where = options["on_control"]
    given = value.value.fields if isinstance(value, Const) and isinstance(value.value, StructValue) else ()
    if len(given) != 1 or given[0][0] not in ("terminate", "activate", "unblock"):
        raise CslError(
            where.span, ".on_control is one of .terminate, .activate and .unblock", "as .{ .terminate = true }"
        )
    if not flag(options, "async") or not any(_kind(operand) == DsdKind.FABIN for operand in operands):
        raise CslError(where.span, ".on_control belongs to an asynchronous operation that reads from the fabric")
    name, action = given[0]
    if name == "terminate":
        return ir.Completion() if action.value else None
    return completion(sema, {name: (action, where)})


def _index(sema: Any, value: Value, where: ast.Node) -> Value:
    return sema.coerce(value, ty.U16, where.span) if isinstance(value, Const) else value


def _operand(sema: Any, frame: Any, node: ast.BuiltinCall, index: int, kind: ty.Type, is_dest: bool) -> ir.Operand:
    argument = node.arguments[index]
    value = sema.value(frame, argument)
    have = value.type
    if isinstance(have, ty.DsdType):
        return ir.Operand(ir.OperandKind.DSD, sema.runtime(value, argument.span))
    if isinstance(value, Const) and isinstance(value.value, DsrValue):
        return ir.Operand(ir.OperandKind.DSR, dsr=(value.value.file, value.value.register))  # pyright: ignore
    if isinstance(value, Const) and isinstance(value.value, ir.Fifo):
        return ir.Operand(ir.OperandKind.FIFO, fifo=value.value)
    if isinstance(have, ty.Pointer):
        target = have.target.element if isinstance(have.target, ty.Array) else have.target
        if ty.size_bytes(target) != ty.size_bytes(kind):
            text = f"@{node.name} needs elements of {ty.size_bytes(kind)} bytes, {target} has {ty.size_bytes(target)}"
            raise CslError(argument.span, text)
        return ir.Operand(ir.OperandKind.POINTER, sema.runtime(value, argument.span))
    if is_dest:
        raise CslError(argument.span, f"a destination is a DSD, a DSR, a FIFO or a pointer, not a value of type {have}")
    return ir.Operand(ir.OperandKind.SCALAR, _scalar(sema, value, kind, argument, node))


def _scalar(sema: Any, value: Value, kind: ty.Type, argument: ast.Expr, node: ast.BuiltinCall) -> ir.Expr:
    have = value.type
    if have in (ty.COMPTIME_INT, ty.COMPTIME_FLOAT):
        assert isinstance(value, Const)
        if isinstance(kind, ty.Int) and have == ty.COMPTIME_INT:
            if not -(1 << kind.bits - 1) <= value.value < 1 << kind.bits:
                low, high = -(1 << kind.bits - 1), (1 << kind.bits) - 1
                raise CslError(argument.span, f"value {value.value} does not fit {kind.bits} bits ({low} to {high})")
            return ir.Const(kind.wrap(value.value), ty.scalar(kind))  # pyright: ignore[reportArgumentType]
        return sema.runtime(sema.coerce(value, kind, argument.span), argument.span)
    if ty.scalar(have) is None or ty.size_bytes(have) != ty.size_bytes(kind):
        text = f"@{node.name} needs a DSD or a value of type {kind} here, found {have}"
        raise CslError(argument.span, text, *([f"convert it with @as({kind}, ...)"] if ty.scalar(have) else []))
    return sema.runtime(value, argument.span)


def _kind(operand: ir.Operand) -> DsdKind | None:
    value = operand.value
    while isinstance(value, ir.DsdWith):
        value = value.dsd
    return value.kind if isinstance(value, ir.DsdValue) else None


def _check(sema: Any, node: ast.BuiltinCall, dest: ir.Operand, sources: list[ir.Operand], options: Config) -> None:
    if _kind(dest) == DsdKind.FABIN:
        raise CslError(node.arguments[0].span, "a fabin_dsd cannot be a destination")
    inputs = 0
    for source, argument in zip(sources, node.arguments[1:], strict=False):
        if _kind(source) == DsdKind.FABOUT:
            raise CslError(argument.span, "a fabout_dsd cannot be a source")
        inputs += _kind(source) == DsdKind.FABIN
    if inputs > sema.arch.fabric_inputs:
        most = f"an operation of {sema.arch.name} reads at most {sema.arch.fabric_inputs} fabric operand"
        raise CslError(node.span, f"{most}, this reads {inputs}", "receive one of them into memory or a FIFO first")
    operands = [dest, *sources]
    local = all(
        o.kind in (ir.OperandKind.SCALAR, ir.OperandKind.POINTER) or _kind(o) in (DsdKind.MEM1D, DsdKind.MEM4D)
        for o in operands
    )
    if flag(options, "async") and local:
        text = "an asynchronous operation needs a fabric or FIFO operand"
        raise CslError(options["async"][1].span, text, "operations on memory alone are done when the next begins")
    for name in ("activate", "unblock"):
        if name in options and not flag(options, "async"):
            raise CslError(options[name][1].span, f".{name} needs .async = true")


def map_(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    """A loop that calls a function for every element; iterators bring elements and take the result."""
    if len(node.arguments) < 2:
        raise CslError(node.span, "@map takes a function and its operands", f"its form is {form('map', 1)}")
    out = at_run_time(frame, node)
    found = sema.constant(frame, node.arguments[0])
    if not isinstance(found.value, FunctionValue):
        raise CslError(node.arguments[0].span, f"@map needs a function, found {found.type}")
    function = found.value
    parameters = function.declaration.parameters
    kinds = list(found.type.parameters)
    given = len(node.arguments) - 1
    returns = found.type.result != ty.VOID
    if given != len(parameters) + returns:
        raise CslError(
            node.span,
            f"@map of {function.declaration.name} takes {len(parameters) + returns} operands, found {given}",
            ("one for each parameter, and one for the result if there is one", function.declaration.span),
        )
    iterators: list[int] = []
    passed: list[Any] = []
    opened: list[ir.Stmt] = []
    for parameter, kind, argument in zip(parameters, kinds, node.arguments[1:], strict=False):
        passed.append(_map_argument(sema, frame, parameter, kind, argument, iterators, opened))
    out += opened
    actual = {p.name: kind for p, (kind, _) in zip(parameters, passed, strict=True)}
    inner = [expr for _, expr in passed]
    result = found.type.result
    target = sema.lower(function, {}, actual, result)
    call = ir.Call(target, inner, sema.place_of(node.span))
    if not returns:
        out.append(ir.IterLoop(iterators, [ir.Evaluate(call)]))
        return VOID
    out += _map_result(sema, frame, node, result, call, iterators)
    return VOID


def _map_argument(
    sema: Any,
    frame: Any,
    parameter: ast.Parameter,
    kind: ty.Type,
    argument: ast.Expr,
    iterators: list[int],
    opened: list[ir.Stmt],
) -> tuple[ty.Type, ir.Expr]:
    value = sema.value(frame, argument)
    own = ty.scalar(kind)
    operand = None
    if isinstance(value.type, ty.DsdType):
        operand = ir.Operand(ir.OperandKind.DSD, sema.runtime(value, argument.span))
    elif isinstance(value, Const) and isinstance(value.value, DsrValue):
        operand = ir.Operand(ir.OperandKind.DSR, dsr=(value.value.file, value.value.register))  # pyright: ignore
    elif isinstance(value, Const) and isinstance(value.value, ir.Fifo):
        operand = ir.Operand(ir.OperandKind.FIFO, fifo=value.value)
    if operand is None:
        value = sema.coerce(value, kind, argument.span) if kind != ty.ANYTYPE else value
        return value.type, sema.runtime(value, argument.span)
    if own is None:
        raise CslError(argument.span, f"not supported yet: @map over elements of type {kind}")
    number = len(iterators)
    if number == MAX_ITERATORS:
        raise CslError(argument.span, f"@map goes over at most {MAX_ITERATORS} DSDs")
    iterators.append(number)
    opened.append(ir.IterOpen(number, operand, sema.place_of(argument.span)))
    return kind, ir.IterGet(number, own, sema.place_of(argument.span))


def _map_result(
    sema: Any, frame: Any, node: ast.BuiltinCall, result: ty.Type, call: ir.Call, iterators: list[int]
) -> list[ir.Stmt]:
    argument = node.arguments[-1]
    value = sema.value(frame, argument)
    own = ty.scalar(result)
    assert own is not None
    place = sema.place_of(argument.span)
    if isinstance(value.type, ty.Pointer):
        store = ir.Store(own, sema.runtime(value, argument.span), 0, call, place)
        return [ir.IterLoop(iterators, [store])]
    number = len(iterators)
    if isinstance(value.type, ty.DsdType):
        operand = ir.Operand(ir.OperandKind.DSD, sema.runtime(value, argument.span))
    elif isinstance(value, Const) and isinstance(value.value, ir.Fifo):
        operand = ir.Operand(ir.OperandKind.FIFO, fifo=value.value)
    elif isinstance(value, Const) and isinstance(value.value, DsrValue):
        operand = ir.Operand(ir.OperandKind.DSR, dsr=(value.value.file, value.value.register))  # pyright: ignore
    else:
        text = f"the result of @map goes to a DSD, a FIFO or a pointer, not to a value of type {value.type}"
        raise CslError(argument.span, text)
    opened = ir.IterOpen(number, operand, place)
    return [opened, ir.IterLoop([*iterators, number], [ir.IterPut(number, own, call, place)])]


BUILTINS = {**dict.fromkeys(ROWS, operation), "map": map_}
