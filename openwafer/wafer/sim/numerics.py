"""Arithmetic on slots: bits in, bits out. Floats round once, to nearest even; a NaN result is the canonical one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from openwafer.wafer.isa import SIZE_BYTES, Op, T

NAN_BITS = {16: 0x7E00, 32: 0x7FC00000}
FLOATS = {T.F16: 16, T.F32: 32}
SIGNED = (T.I8, T.I16, T.I32, T.I64)


def to_number(bits: int, width: int) -> float:
    """The number behind IEEE bits."""
    if width == 16:
        return float(np.uint16(bits & 0xFFFF).view(np.float16))
    return float(np.uint32(bits & 0xFFFFFFFF).view(np.float32))


def to_bits(value: float, width: int) -> int:
    """IEEE bits of a number that a double holds exactly, or whose rounding to a double is harmless."""
    if value != value:
        return NAN_BITS[width]
    with np.errstate(over="ignore"):
        if width == 16:
            return int(np.float16(value).view(np.uint16))
        return int(np.float32(value).view(np.uint32))


def _odd(exact: Fraction, near: float) -> float:
    """The exact number rounded to odd in a double, which a second rounding to 32 bits cannot spoil."""
    if math.isinf(near):
        return near
    if int(np.float64(near).view(np.uint64)) & 1:
        return near
    return math.nextafter(near, math.inf if exact > Fraction(near) else -math.inf)


def float_operation(op: Op, a: int, b: int, width: int) -> int:
    """ADD SUB MUL DIV REM on IEEE bits. A double holds sums and products of these widths well enough to round once."""
    x, y = to_number(a, width), to_number(b, width)
    try:
        if op == Op.ADD:
            return to_bits(x + y, width)
        if op == Op.SUB:
            return to_bits(x - y, width)
        if op == Op.MUL:
            return to_bits(x * y, width)
        if op == Op.DIV:
            if y == 0:
                invalid = x == 0 or x != x
                return to_bits(math.nan if invalid else math.copysign(math.inf, x) * math.copysign(1, y), width)
            return to_bits(x / y, width)
        return to_bits(math.fmod(x, y), width)
    except (ValueError, OverflowError):
        return NAN_BITS[width]


def wrap(value: int, kind: T) -> int:
    """An integer as a slot of its type holds it; a slot itself is read as signed, u64 too."""
    bits = SIZE_BYTES[kind] * 8
    value &= (1 << bits) - 1
    return value - (1 << bits) if (kind in SIGNED or bits == 64) and value >> bits - 1 else value


def integer_operation(op: Op, a: int, b: int, kind: T) -> int:
    """Two integers of one type; raises ZeroDivisionError."""
    bits = SIZE_BYTES[kind] * 8
    if kind == T.U64:
        a, b = a & (1 << 64) - 1, b & (1 << 64) - 1
    if op == Op.ADD:
        return wrap(a + b, kind)
    if op == Op.SUB:
        return wrap(a - b, kind)
    if op == Op.MUL:
        return wrap(a * b, kind)
    if op in (Op.DIV, Op.REM):
        if b == 0:
            raise ZeroDivisionError
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return wrap(quotient if op == Op.DIV else a - b * quotient, kind)
    if op == Op.AND:
        return wrap(a & b, kind)
    if op == Op.OR:
        return wrap(a | b, kind)
    if op == Op.XOR:
        return wrap(a ^ b, kind)
    count = b & (1 << 64) - 1
    if op == Op.SHL:
        return wrap(a << count, kind) if count < bits else 0
    return wrap(a >> count, kind) if count < bits else (-1 if a < 0 else 0)


def compare(op: Op, a: int, b: int, kind: T) -> int:
    """EQ NE LT LE."""
    if kind == T.U64:
        a, b = a & (1 << 64) - 1, b & (1 << 64) - 1
    x, y = (to_number(a, FLOATS[kind]), to_number(b, FLOATS[kind])) if kind in FLOATS else (a, b)
    if op == Op.EQ:
        return int(x == y)
    if op == Op.NE:
        return int(x != y)
    return int(x < y) if op == Op.LT else int(x <= y)


def convert(value: int, source: T, target: T) -> int:
    """CVT: floats truncate and saturate to integers, NaN gives 0; integers wrap."""
    if source in FLOATS:
        number = to_number(value, FLOATS[source])
        if target in FLOATS:
            return to_bits(number, FLOATS[target])
        bits = SIZE_BYTES[target] * 8
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if target in SIGNED else (0, (1 << bits) - 1)
        if number != number:
            return 0
        return wrap(low if number <= low else high if number >= high else int(number), target)
    if source == T.U64:
        value &= (1 << 64) - 1
    if target in FLOATS:
        width = FLOATS[target]
        if abs(value) < 1 << 53:
            return to_bits(float(value), width)
        return to_bits(_odd(Fraction(value), float(value)) if int(float(value)) != value else float(value), width)
    return wrap(value, target)


def formatted(value: int, form: int) -> str:
    """A value in the format of Sys.LOG_VALUE."""
    digits = {1: "08X", 4: "016b", 5: "032b", 6: "04X"}
    if form in digits:
        return f"{value & 0xFFFFFFFF:{digits[form]}}"
    if form == 2:
        return str(np.uint32(value & 0xFFFFFFFF).view(np.float32))
    if form == 7:
        return str(np.uint16(value & 0xFFFF).view(np.float16))
    if form == 3 and value & 1 << 31:
        return str((value & 0xFFFFFFFF) - (1 << 32))
    return str(value)
