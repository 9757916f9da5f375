"""Values at compile time and pure operations on them. Nothing here walks a tree or emits code.

A Const is a type and a value: int (integers, bool, enums, opaque ids), float, str, or one of the classes below.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.types import Type

MAX_SHOWN = 40
MAX_BITS = 4096
"""Of a comptime_int; chosen, so that no computation runs away."""
_LARGEST = {16: 65504.0, 32: 3.4028235e38, 64: 1.797e308}


class ComptimeError(Exception):
    """An operation has no result; the walker adds the place."""


@dataclass(slots=True, unsafe_hash=True)
class Const:
    """Never changed once made; not frozen because layouts make millions."""

    type: Type
    value: Any


VOID = Const(ty.VOID, None)


@dataclass(frozen=True)
class StructValue:
    """Fields in order. A tuple's fields are named "0", "1", ..."""

    fields: tuple[tuple[str, Const], ...]

    def get(self, name: str) -> Const | None:
        return next((value for key, value in self.fields if key == name), None)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.fields]

    @property
    def is_tuple(self) -> bool:
        return all(name.isdigit() for name, _ in self.fields)


@dataclass(frozen=True, eq=False)
class ArrayValue:
    """Elements in row-major order: Python values of the element type; `fill` stands for all of a uniform array."""

    count: int
    elements: tuple[Any, ...] | None = None
    fill: Any = 0

    def at(self, index: int) -> Any:
        return self.fill if self.elements is None else self.elements[index]

    def key(self) -> tuple:
        return (self.count, self.elements, self.fill if self.elements is None else None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayValue) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())


@dataclass(frozen=True, eq=False)
class PointerValue:
    """The address of `variable` (an ir.Variable) plus bytes."""

    variable: Any
    offset: int = 0

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, PointerValue) and other.variable is self.variable
        return same and isinstance(other, PointerValue) and other.offset == self.offset

    def __hash__(self) -> int:
        return hash((id(self.variable), self.offset))


@dataclass(frozen=True)
class DsrValue:
    file: int
    register: int


@dataclass(eq=False)
class Cell:
    """A variable at compile time."""

    type: Type
    value: Const
    name: str = ""
    written: bool = field(default=False)


def to_float(value: float, bits: int) -> float:
    """Rounded once to a float of 16 or 32 bits."""
    with np.errstate(over="ignore"):
        return float(np.float16(value) if bits == 16 else np.float32(value))


def float_bits(value: float, bits: int) -> int:
    """IEEE bits."""
    with np.errstate(over="ignore"):
        rounded = np.float16(value) if bits == 16 else np.float32(value)
    return int(rounded.view(np.uint16 if bits == 16 else np.uint32))


def bits_float(pattern: int, bits: int) -> float:
    """The number behind IEEE bits."""
    return float(
        np.array(pattern, np.uint16 if bits == 16 else np.uint32).view(np.float16 if bits == 16 else np.float32)
    )


def check_range(value: int, kind: Type) -> None:
    """Raises ComptimeError if an integer type cannot hold a value."""
    if isinstance(kind, ty.Int) and not kind.low <= value <= kind.high:
        raise ComptimeError(f"value {shown(value)} does not fit {kind} ({kind.low} to {kind.high})")


def shown(value: int) -> str:
    """A number for a message; of a very long one its first digits."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} digits)"


def checked_float(value: float, kind: Type) -> float:
    """A finite number as a float type, which must be able to hold it."""
    try:
        exact = float(value)
    except OverflowError:
        exact = math.inf
    bits = kind.bits if isinstance(kind, ty.Float) else 64
    rounded = to_float(exact, bits) if bits < 64 else exact
    if math.isinf(rounded) and not (isinstance(value, float) and math.isinf(value)):
        digits = shown(value) if isinstance(value, int) else str(value)
        raise ComptimeError(f"value {digits} does not fit {kind} (at most {_LARGEST[bits]})")
    return rounded


def _divide(a: int, b: int) -> int:
    if b == 0:
        raise ComptimeError("division by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    return a - b * _divide(a, b)


def _shift(a: int, b: int) -> int:
    if not 0 <= b < MAX_BITS:
        raise ComptimeError(f"a shift count of {shown(b)} is not allowed (0 to {MAX_BITS - 1})")
    return b


INTEGER: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": _remainder,
    "<<": lambda a, b: a << _shift(a, b),
    ">>": lambda a, b: a >> _shift(a, b),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}
FLOAT: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else math.copysign(math.inf, a) * math.copysign(1, b) if a and a == a else math.nan,
    "%": lambda a, b: math.fmod(a, b) if b else math.nan,
}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def arithmetic(operator: str, kind: Type, left: Any, right: Any) -> Any:
    """left operator right, both of type `kind`; sized integers wrap, sized floats round once."""
    if isinstance(kind, ty.Float) or kind == ty.COMPTIME_FLOAT:
        try:
            value = FLOAT[operator](left, right)
        except OverflowError:
            value = math.inf
        return to_float(value, kind.bits) if isinstance(kind, ty.Float) else value
    value = INTEGER[operator](left, right)
    if isinstance(kind, ty.Int):
        return kind.wrap(value)
    if value.bit_length() > MAX_BITS:
        raise ComptimeError(f"the result has {value.bit_length()} bits, a comptime_int has at most {MAX_BITS}")
    return value


def encode(const: Const) -> tuple[bytes, dict[int, PointerValue]]:
    """The bytes of a value in memory, and which two-byte places hold addresses."""
    kind, value = const.type, const.value
    own = ty.scalar(kind)
    if isinstance(value, PointerValue):
        return b"\0\0", {0: value}
    if own is not None:
        return scalar_bytes(kind, value), {}
    if isinstance(kind, ty.Array):
        size = ty.size_bytes(kind.element)
        if ty.scalar(kind.element) is not None and value.elements is None and not isinstance(value.fill, PointerValue):
            return scalar_bytes(kind.element, value.fill) * value.count, {}
        return _encode_many([Const(kind.element, value.at(i)) for i in range(value.count)], [size] * value.count)
    if isinstance(kind, ty.Struct):
        types = dict(kind.fields)
        data, pointers = bytearray(ty.size_bytes(kind)), {}
        for name, part in value.fields:
            own_bytes, own_pointers = encode(Const(types[name], part.value))
            start = kind.offset(name)
            data[start : start + len(own_bytes)] = own_bytes
            pointers |= {start + at: p for at, p in own_pointers.items()}
        return bytes(data), pointers
    raise ComptimeError(f"a value of type {kind} does not exist at run time")


def _encode_many(parts: list[Const], sizes: list[int]) -> tuple[bytes, dict[int, PointerValue]]:
    data, pointers, at = [], {}, 0
    for part, size in zip(parts, sizes, strict=True):
        own, places = encode(part)
        data.append(own)
        pointers |= {at + offset: p for offset, p in places.items()}
        at += size
    return b"".join(data), pointers


def scalar_bits(kind: Type, value: Any) -> int:
    """What a slot holds: an integer as it is, a float as its bits."""
    return float_bits(value, kind.bits) if isinstance(kind, ty.Float) else int(value)


def to_bits(kind: Type, value: Any) -> int:
    """The bits of a scalar, as many as its type has."""
    width = ty.bit_width(kind)
    assert width is not None
    return scalar_bits(kind, value) & (1 << width) - 1


def of_bits(kind: Type, pattern: int) -> Any:
    """The value behind bits."""
    if isinstance(kind, ty.Float):
        return bits_float(pattern, kind.bits)
    if kind == ty.BOOL:
        return bool(pattern)
    base = kind.base if isinstance(kind, ty.Enum) else kind
    return base.wrap(pattern) if isinstance(base, ty.Int) else pattern


def scalar_bytes(kind: Type, value: Any) -> bytes:
    size = ty.size_bytes(kind)
    return struct.pack("<Q", scalar_bits(kind, value) & (1 << 64) - 1)[:size]
