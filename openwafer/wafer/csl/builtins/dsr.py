"""Explicit registers for DSDs: DSRs, and the XDSRs and stride registers that some kinds of DSD need besides.

XDSRs and stride registers hold nothing here that the DSR does not: the builtins check what is documented.
"""

from __future__ import annotations

from typing import Any

from openwafer.wafer.arch import NUM_DSRS
from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import Config, config, count, flag, in_program, number
from openwafer.wafer.csl.builtins.dsd import dsd_of, priority
from openwafer.wafer.csl.builtins.tasks import completion
from openwafer.wafer.csl.comptime import VOID, Const, DsrValue, StructValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.scope import Value
from openwafer.wafer.isa import DsrFile

_OPTIONS = ("async", "activate", "unblock", "ut_id", "priority", "save_address", "single_step")
_MEMORY_OPTIONS = ("save_address", "single_step")
NUM_XDSRS = 16
NUM_STRIDE_REGISTERS = 16
"""How many there are is not documented; chosen."""


def _register(kind: ty.Type, limit: int) -> Any:
    def get(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
        count(node, 1)
        register = sema.integer(frame, node.arguments[0])
        if not 0 <= register < limit:
            raise CslError(node.span, f"{kind} {register} does not exist (0 to {limit - 1})")
        return Const(kind, register)

    return get


def get_dsr(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    kind = sema.type(frame, node.arguments[0])
    files = {ty.DSR_DEST: DsrFile.DEST, ty.DSR_SRC0: DsrFile.SRC0, ty.DSR_SRC1: DsrFile.SRC1}
    if kind not in files:
        raise CslError(node.arguments[0].span, f"@get_dsr needs dsr_dest, dsr_src0 or dsr_src1, found {kind}")
    register = sema.integer(frame, node.arguments[1])
    if not 0 <= register < NUM_DSRS:
        raise CslError(node.arguments[1].span, f"{kind} {register} does not exist (0 to {NUM_DSRS - 1})")
    return Const(kind, DsrValue(files[kind], register))


def load_to_dsr(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2, 3)
    return _load(sema, frame, node, dsd_of(sema, frame, node, 1), node.arguments[2:], _OPTIONS)


def _load(
    sema: Any, frame: Any, node: ast.BuiltinCall, dsd: Value, rest: tuple[ast.Expr, ...], known: tuple[str, ...]
) -> Value:
    program = in_program(sema, node)
    register = sema.constant(frame, node.arguments[0])
    if not isinstance(register.value, DsrValue):
        text = f"@{node.name} needs a DSR, found {register.type}"
        raise CslError(node.arguments[0].span, text, "make one with @get_dsr(dsr_dest, n)")
    options: Config = config(sema, frame, rest[0], known) if rest else {}
    load = ir.LoadDsr(
        DsrFile(register.value.file), register.value.register, sema.runtime(dsd, node.span),
        flag(options, "save_address"), flag(options, "async"), completion(sema, options),
        number(options, "ut_id", None, 0, 7), priority(options), sema.place_of(node.span),
    )  # fmt: skip
    if frame.is_comptime:
        program.initial_dsr_loads.append(load)
    else:
        frame.out.append(load)
    return VOID


def load_to_dsr_xdsr_sr(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    """A mem4d_dsd into its registers; what the strides need is documented."""
    count(node, 4, 5)
    _check_xdsr(sema, frame, node)
    registers = sema.constant(frame, node.arguments[2])
    given = registers.value.fields if isinstance(registers.value, StructValue) else None
    if given is None or any(own.type != ty.SR for _, own in given):
        raise CslError(node.arguments[2].span, "expected stride registers like .{ sr1, sr2 }")
    dsd = dsd_of(sema, frame, node, 3)
    if dsd.type != ty.MEM4D:
        raise CslError(node.arguments[3].span, f"@load_to_dsr_xdsr_sr takes a mem4d_dsd, found {dsd.type}")
    needed = _num_strides(dsd)
    if len(given) != needed:
        raise CslError(node.arguments[2].span, f"this DSD needs {needed} stride registers, {len(given)} are given")
    return _load(sema, frame, node, dsd, node.arguments[4:], _MEMORY_OPTIONS)


def _num_strides(dsd: Value) -> int:
    """The innermost dimension needs no stride register; the second needs none if the innermost stride is 1."""
    if not isinstance(dsd, Const):
        return 3
    dimensions = len(dsd.value.extents)
    return max(0, dimensions - 1 - (dsd.value.strides[0] == 1 and dimensions > 1))


def _check_xdsr(sema: Any, frame: Any, node: ast.BuiltinCall) -> None:
    xdsr = sema.constant(frame, node.arguments[1])
    if xdsr.type != ty.XDSR:
        raise CslError(node.arguments[1].span, f"@{node.name} needs an XDSR from @get_xdsr, found {xdsr.type}")


BUILTINS = {
    "get_dsr": get_dsr,
    "get_xdsr": _register(ty.XDSR, NUM_XDSRS),
    "get_sr": _register(ty.SR, NUM_STRIDE_REGISTERS),
    "load_to_dsr": load_to_dsr,
    "load_to_dsr_xdsr_sr": load_to_dsr_xdsr_sr,
}
