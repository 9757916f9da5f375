"""The types of CSL, as values that compare by content; sizes as they lie in a PE's memory.

A type here knows no value. bool and 8-bit integers take a byte, pointers, enums and opaque ids two, a DSD 24.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from openwafer.wafer.isa import SIZE_BYTES, T


@dataclass(frozen=True)
class Int:
    bits: int
    signed: bool

    def __str__(self) -> str:
        return f"{'i' if self.signed else 'u'}{self.bits}"

    @property
    def low(self) -> int:
        return -(1 << self.bits - 1) if self.signed and self.bits else 0

    @property
    def high(self) -> int:
        return (1 << self.bits - self.signed) - 1 if self.bits else 0

    def wrap(self, value: int) -> int:
        """The value that a register of this type holds after an overflow."""
        value &= (1 << self.bits) - 1
        return value - (1 << self.bits) if self.signed and value > self.high else value


@dataclass(frozen=True)
class Float:
    bits: int

    def __str__(self) -> str:
        return f"f{self.bits}"


@dataclass(frozen=True)
class Simple:
    """A type that its name says all about."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Opaque:
    """A hardware id with an integer inside: color, direction, queues, task ids, microthread ids."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DsdType:
    """One of the four kinds of DSD."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DsrType:
    """One of the three files of explicit DSRs, XDSRs, or stride registers."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pointer:
    target: Type
    is_many: bool = False
    is_const: bool = False

    def __str__(self) -> str:
        return f"{'[*]' if self.is_many else '*'}{'const ' if self.is_const else ''}{self.target}"


@dataclass(frozen=True)
class Array:
    extents: tuple[int, ...]
    element: Type

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.extents))}]{self.element}"

    @property
    def count(self) -> int:
        return math.prod(self.extents)


@dataclass(frozen=True)
class FunctionType:
    parameters: tuple[Type, ...]
    result: Type
    is_task: bool = False

    def __str__(self) -> str:
        return f"{'task' if self.is_task else 'fn'}({', '.join(map(str, self.parameters))}) {self.result}"


@dataclass(frozen=True)
class Enum:
    """`identity` keeps two enums of one shape apart: where it was written."""

    name: str = field(compare=False)
    base: Int
    members: tuple[tuple[str, int], ...]
    identity: tuple

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Struct:
    """`identity`: where it was written. Fields lie in order, aligned to 2 bytes; those of a union all at 0."""

    name: str = field(compare=False)
    fields: tuple[tuple[str, Type], ...]
    identity: tuple
    is_union: bool = False

    def __str__(self) -> str:
        return self.name

    def offset(self, name: str) -> int:
        """Bytes from the start of the struct to a field."""
        at = 0
        for own, kind in self.fields:
            at = align(at, min(2, max(1, size_bytes(kind))))
            if own == name:
                return at
            at += 0 if self.is_union else size_bytes(kind)
        raise KeyError(name)


@dataclass(frozen=True)
class Packed:
    """A packed struct or union: an unsigned integer whose bits, from the lowest, are the fields."""

    name: str
    fields: tuple[tuple[str, Type], ...]
    identity: tuple

    def __str__(self) -> str:
        return self.name

    @property
    def is_union(self) -> bool:
        return self.name.endswith("union")

    @property
    def backing(self) -> Int:
        widths = [bit_width(kind) or 0 for _, kind in self.fields]
        return Int(max(widths, default=0) if self.is_union else sum(widths), False)

    def bit_offset(self, name: str) -> int:
        """Bits below a field."""
        at = 0
        for own, kind in self.fields:
            if own == name:
                return 0 if self.is_union else at
            at += bit_width(kind) or 0
        raise KeyError(name)


Type = Int | Float | Simple | Opaque | DsdType | DsrType | Pointer | Array | FunctionType | Enum | Struct | Packed

BOOL, VOID, TYPE, ANYTYPE = Simple("bool"), Simple("void"), Simple("type"), Simple("anytype")
COMPTIME_INT, COMPTIME_FLOAT = Simple("comptime_int"), Simple("comptime_float")
COMPTIME_STRING, COMPTIME_STRUCT = Simple("comptime_string"), Simple("comptime_struct")
ANYOPAQUE = Simple("anyopaque")
MODULE, FIFO, ACCESS = Simple("imported_module"), Simple("fifo"), Simple("tensor access")
I16, U16, I32, U32, U8, U64 = (
    Int(16, True),
    Int(16, False),
    Int(32, True),
    Int(32, False),
    Int(8, False),
    Int(64, False),
)
F16, F32 = Float(16), Float(32)
COLOR, DIRECTION = Opaque("color"), Opaque("direction")
INPUT_QUEUE, OUTPUT_QUEUE, UT_ID = Opaque("input_queue"), Opaque("output_queue"), Opaque("ut_id")
LOCAL_TASK, DATA_TASK, CONTROL_TASK = Opaque("local_task_id"), Opaque("data_task_id"), Opaque("control_task_id")
XDSR, SR = DsrType("xdsr"), DsrType("sr")
MEM1D, MEM4D, FABIN, FABOUT = (DsdType(f"{name}_dsd") for name in ("mem1d", "mem4d", "fabin", "fabout"))
DSR_DEST, DSR_SRC0, DSR_SRC1 = DsrType("dsr_dest"), DsrType("dsr_src0"), DsrType("dsr_src1")

NAMED: dict[str, Type] = {
    str(t): t
    for t in (
        *(Int(bits, signed) for bits in (8, 16, 32, 64) for signed in (True, False)),
        F16, F32, BOOL, VOID, TYPE, ANYTYPE, COMPTIME_INT, COMPTIME_FLOAT, COMPTIME_STRING, COMPTIME_STRUCT, MODULE,
        ANYOPAQUE, COLOR, DIRECTION, INPUT_QUEUE, OUTPUT_QUEUE, UT_ID, LOCAL_TASK, DATA_TASK, CONTROL_TASK,
        MEM1D, MEM4D, FABIN, FABOUT, DSR_DEST, DSR_SRC0, DSR_SRC1, XDSR, SR,
    )
}  # fmt: skip

NUMBERS = (COMPTIME_INT, COMPTIME_FLOAT)
_COMPTIME_ONLY = (
    TYPE, ANYTYPE, COMPTIME_INT, COMPTIME_FLOAT, COMPTIME_STRING, COMPTIME_STRUCT, MODULE, FIFO, ACCESS, ANYOPAQUE,
)  # fmt: skip


MAX_INT_BITS = 0xFFFFFF


def named(name: str) -> Type | None:
    """The type of a name, also `iN` and `uN` of any width."""
    if name in NAMED:
        return NAMED[name]
    digits = name[1:]
    if name[:1] not in ("i", "u") or not digits.isascii() or not digits.isdigit() or digits != str(int(digits)):
        return None
    return Int(int(digits), name[0] == "i") if int(digits) <= MAX_INT_BITS else None


def align(offset: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-offset // to) * to


def is_comptime_only(kind: Type) -> bool:
    """Values of this type do not exist at run time."""
    if isinstance(kind, Array):
        return is_comptime_only(kind.element)
    if isinstance(kind, Struct):
        return any(is_comptime_only(own) for _, own in kind.fields)
    if isinstance(kind, Int | Packed):
        return scalar(kind) is None
    return kind in _COMPTIME_ONLY or isinstance(kind, FunctionType | DsrType)


def bit_width(kind: Type) -> int | None:
    """Bits of a value in a packed struct; None if it cannot be in one."""
    if isinstance(kind, Int | Float):
        return kind.bits
    if isinstance(kind, Enum):
        return kind.base.bits
    if isinstance(kind, Packed):
        return kind.backing.bits
    if kind == BOOL:
        return 1
    return 16 if isinstance(kind, Pointer) else None


def scalar(kind: Type) -> T | None:
    """How a value of this type lies in a slot; None if it is no scalar, or an integer of more than 64 bits."""
    if isinstance(kind, Int):
        bits = next((size for size in (8, 16, 32, 64) if kind.bits <= size), None)
        return T[f"{'I' if kind.signed else 'U'}{bits}"] if bits is not None else None
    if isinstance(kind, Packed):
        return scalar(kind.backing)
    if isinstance(kind, Float):
        return T[f"F{kind.bits}"]
    if isinstance(kind, Enum):
        return scalar(kind.base)
    if kind == BOOL:
        return T.U8
    if isinstance(kind, Pointer | Opaque):
        return T.U16
    return None


def size_bytes(kind: Type) -> int:
    """Bytes in memory; 0 for what has none."""
    own = scalar(kind)
    if own is not None:
        return SIZE_BYTES[own]
    if isinstance(kind, Array):
        return kind.count * size_bytes(kind.element)
    if isinstance(kind, Struct) and kind.is_union:
        return align(max((size_bytes(own) for _, own in kind.fields), default=0), 2)
    if isinstance(kind, Struct):
        at = 0
        for _, own in kind.fields:
            at = align(at, min(2, max(1, size_bytes(own)))) + size_bytes(own)
        return align(at, 2)
    return 24 if isinstance(kind, DsdType) else 0
