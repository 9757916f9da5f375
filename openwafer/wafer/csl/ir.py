"""The typed program of one PE between sema and codegen.

Low enough that codegen knows no CSL type: aggregates live in memory, a value is a scalar (isa.T), a DSD or nothing.
High enough that sema knows no slot and no address. Dataclasses compare by identity where codegen keys on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from openwafer.wafer.csl.ast import Span
from openwafer.wafer.image import Filter, Location, Pop, TaskKind
from openwafer.wafer.isa import Block, DsdKind, DsrFile, Op, Priority, Sys, T, V


class Special(Enum):
    """Types of a value that are not a scalar."""

    DSD = "dsd"
    VOID = "void"


Type = T | Special


# Storage


@dataclass(eq=False)
class Variable:
    """Something in the PE's memory. `initial`: its bytes; `relocations`: byte offset -> address put there as uint16."""

    name: str
    size_bytes: int
    align_bytes: int = 2
    initial: bytes = b""
    relocations: dict[int, Address] = field(default_factory=dict)
    address: int | None = None
    """A place the program demands (linksection), or None."""
    span: Span | None = None
    """Where it is declared, for diagnostics."""


@dataclass(eq=False)
class Local:
    """A local or argument that lives in slots: scalar or DSD. A local whose address is taken is a Variable."""

    name: str
    type: Type


@dataclass(eq=False)
class Function:
    """A function or task body; `place` and `span` for diagnostics."""

    name: str
    parameters: list[Local]
    result: Type
    body: list[Stmt]
    place: Location | None = None
    span: Span | None = None
    memory: list[Variable] = field(default_factory=list)
    """Its variables that do not live in slots."""


# Expressions. Each has `type`, and `place` where it can fail at run time.


@dataclass(eq=False)
class Const:
    """Bits of a scalar: an int as its value, f16 and f32 as their bits."""

    value: int
    type: T


@dataclass(eq=False)
class Address:
    """The address of a variable plus bytes, U16."""

    variable: Variable
    offset: int = 0
    type: Type = T.U16


@dataclass(eq=False)
class GetLocal:
    local: Local

    @property
    def type(self) -> Type:
        return self.local.type


@dataclass(eq=False)
class Load:
    """A scalar or a DSD (24 bytes) in memory; `address` is U16."""

    type: Type
    address: Expr
    offset: int = 0
    place: Location | None = None


@dataclass(eq=False)
class LoadIndexed:
    """memory[address + index * size of type]."""

    type: T
    address: Expr
    index: Expr
    place: Location | None = None


@dataclass(eq=False)
class Binary:
    """op: ADD SUB MUL DIV REM AND OR XOR SHL SHR, both operands of `type` (a shift count: any unsigned)."""

    op: Op
    type: T
    left: Expr
    right: Expr
    place: Location | None = None


@dataclass(eq=False)
class Compare:
    """op: EQ NE LT LE on operands of `operand_type`; gives U8 0 or 1. Sema turns > and >= around."""

    op: Op
    operand_type: T
    left: Expr
    right: Expr
    type: Type = T.U8


@dataclass(eq=False)
class Negate:
    type: T
    operand: Expr


@dataclass(eq=False)
class Invert:
    type: T
    operand: Expr


@dataclass(eq=False)
class LogicalNot:
    operand: Expr
    type: Type = T.U8


@dataclass(eq=False)
class Logical:
    """Short-circuit `and` (is_and) or `or`."""

    is_and: bool
    left: Expr
    right: Expr
    type: Type = T.U8


@dataclass(eq=False)
class Convert:
    """To `type` from `source`, as CVT."""

    type: T
    source: T
    operand: Expr


@dataclass(eq=False)
class Reinterpret:
    """@bitcast between scalars of one size: the bits stay; codegen mends the extension in the slot."""

    type: T
    source: T
    operand: Expr


@dataclass(eq=False)
class Select:
    """If-expression: only the chosen side is evaluated."""

    type: Type
    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(eq=False)
class Call:
    function: Function
    arguments: list[Expr]
    place: Location | None = None

    @property
    def type(self) -> Type:
        return self.function.result


@dataclass(eq=False)
class Sequence:
    """Statements, then a value: inlined blocks, switch expressions."""

    statements: list[Stmt]
    value: Expr

    @property
    def type(self) -> Type:
        return self.value.type


@dataclass(eq=False)
class DsdValue:
    """A DSD known at compile time, its base a variable plus bytes for memory kinds. Fields as in isa.Dsd."""

    kind: DsdKind
    base: Address | None = None
    extents: tuple[int, ...] = (0,)
    strides: tuple[int, ...] = (0,)
    queue: int = 0
    color: int = 0xFF
    flags: int = 0
    type: Type = Special.DSD


@dataclass(eq=False)
class DsdWith:
    """A DSD with one field set at run time. op: DSDBASE DSDLEN DSDSTRIDE DSDMOVE; value U16."""

    op: Op
    dsd: Expr
    value: Expr
    type: Type = Special.DSD


@dataclass(eq=False)
class ReadCounter:
    type: Type = T.U64


@dataclass(eq=False)
class ReadConfig:
    address: Expr
    type: Type = T.U16


@dataclass(eq=False)
class Random16:
    type: Type = T.U16


@dataclass(eq=False)
class SysQuery:
    """TEARDOWN_PENDING, QUEUE_FLUSHED."""

    sys: Sys
    argument: Expr
    type: Type = T.U8


@dataclass(eq=False)
class IterGet:
    """Next element of an iterator opened by IterOpen."""

    iterator: int
    type: T
    place: Location | None = None


Expr = (
    Const | Address | GetLocal | Load | LoadIndexed | Binary | Compare | Negate | Invert | LogicalNot | Logical
    | Convert | Reinterpret | Select | Call | Sequence | DsdValue | DsdWith | ReadCounter | ReadConfig | Random16
    | SysQuery | IterGet
)  # fmt: skip


def calls(expr: Expr) -> bool:
    """Whether an expression calls a function, so that it cannot be computed twice."""
    if isinstance(expr, Call | Sequence | IterGet | Random16):
        return True
    parts = vars(expr).values() if not isinstance(expr, Const | Address | GetLocal | DsdValue) else ()
    return any(calls(part) for part in parts if isinstance(part, Expr))


# Statements


@dataclass(eq=False)
class SetLocal:
    local: Local
    value: Expr


@dataclass(eq=False)
class Store:
    """value (scalar or DSD) to memory[address + offset]."""

    type: Type
    address: Expr
    offset: int
    value: Expr
    place: Location | None = None


@dataclass(eq=False)
class StoreIndexed:
    type: T
    address: Expr
    index: Expr
    value: Expr
    place: Location | None = None


@dataclass(eq=False)
class CopyBytes:
    """Aggregate assignment: `num_bytes` from one address to another; they do not overlap."""

    target: Expr
    source: Expr
    num_bytes: int
    place: Location | None = None


@dataclass(eq=False)
class Evaluate:
    value: Expr


@dataclass(eq=False)
class If:
    condition: Expr
    then: list[Stmt]
    otherwise: list[Stmt]


@dataclass(eq=False)
class Loop:
    """while (condition) { body; step }; `continue` goes to step. Break and Continue name their loop."""

    condition: Expr
    body: list[Stmt]
    step: list[Stmt]
    is_left: bool = False


@dataclass(eq=False)
class Labeled:
    """Statements that a Break may leave; `is_left`: there is one that does."""

    body: list[Stmt]
    is_left: bool = False


@dataclass(eq=False)
class Break:
    loop: Loop | Labeled


@dataclass(eq=False)
class Continue:
    loop: Loop


@dataclass(eq=False)
class Return:
    value: Expr | None


@dataclass(eq=False)
class Assert:
    condition: Expr
    message: str
    place: Location | None = None


class OperandKind(Enum):
    SCALAR = "scalar"
    POINTER = "pointer"
    DSD = "dsd"
    DSR = "dsr"
    FIFO = "fifo"


@dataclass(eq=False)
class Operand:
    """Of a vector operation: `value` for SCALAR, POINTER and DSD; `dsr` = (file, register); `fifo`."""

    kind: OperandKind
    value: Expr | None = None
    dsr: tuple[DsrFile, int] | None = None
    fifo: Fifo | None = None


@dataclass(eq=False)
class Completion:
    """`activate` and `unblock_id`: ids, known at compile time."""

    activate: int | None = None
    unblock_kind: Block = Block.NONE
    unblock_id: int = 0


@dataclass(eq=False)
class VectorOp:
    """See isa.Vector."""

    op: V
    dest: Operand
    src0: Operand | None = None
    src1: Operand | None = None
    scalar: Operand | None = None
    is_async: bool = False
    completion: Completion = field(default_factory=Completion)
    microthread: int | None = None
    priority: Priority = Priority.MEDIUM
    index: Expr | None = None
    place: Location | None = None
    on_control: Completion | None = None


@dataclass(eq=False)
class LoadDsr:
    """See isa.DsrLoad. In IrProgram.initial_dsr_loads the DSD is a DsdValue."""

    file: DsrFile
    register: int
    dsd: Expr
    save_address: bool = False
    is_async: bool = False
    completion: Completion = field(default_factory=Completion)
    microthread: int | None = None
    priority: Priority = Priority.MEDIUM
    place: Location | None = None


@dataclass(eq=False)
class TaskBit:
    """op: ACTIVATE, BLOCK or UNBLOCK; kind for the latter two."""

    op: Op
    id: Expr
    kind: Block = Block.TASK
    place: Location | None = None


@dataclass(eq=False)
class SysCall:
    sys: Sys
    first: Expr | None = None
    second: Expr | None = None
    text: str | None = None
    """For LOG_STRING, in place of the first slot."""
    place: Location | None = None


@dataclass(eq=False)
class WriteConfig:
    address: Expr
    value: Expr


@dataclass(eq=False)
class StoreCounter:
    """The cycle counter into three words at an address."""

    address: Expr
    place: Location | None = None


@dataclass(eq=False)
class IterOpen:
    """Opens iterator 0 to 7 over an operand; a scalar operand has no iterator."""

    iterator: int
    operand: Operand
    place: Location | None = None


@dataclass(eq=False)
class IterPut:
    iterator: int
    type: T
    value: Expr
    place: Location | None = None


@dataclass(eq=False)
class IterLoop:
    """Runs body until one of the iterators is exhausted, tested in this order before each round."""

    iterators: list[int]
    body: list[Stmt]


Stmt = (
    SetLocal | Store | StoreIndexed | CopyBytes | Evaluate | If | Loop | Labeled | Break | Continue | Return | Assert
    | VectorOp | LoadDsr | TaskBit | SysCall | WriteConfig | StoreCounter | IterOpen | IterPut | IterLoop
)  # fmt: skip


# The program


@dataclass(eq=False)
class Fifo:
    """See image.Fifo."""

    buffer: Variable
    capacity: int
    element_bytes: int
    on_push: Completion = field(default_factory=Completion)
    on_pop: Completion = field(default_factory=Completion)
    push_priority: Priority = Priority.MEDIUM
    pop_priority: Priority = Priority.MEDIUM


@dataclass(eq=False)
class Task:
    """See image.Task."""

    kind: TaskKind
    id: int
    function: Function
    arg_bits: tuple[int, ...] = ()
    arg_signed: tuple[bool, ...] = ()


@dataclass(eq=False)
class Symbol:
    """See image.Symbol: exactly one of `variable` and `function`; a pointer symbol's variable holds the address."""

    name: str
    variable: Variable | None
    function: Function | None
    is_pointer: bool
    element_type: str
    mutable: bool
    arg_types: tuple[str, ...] = ()
    exported: bool = True


@dataclass(frozen=True)
class ColorConfig:
    """@set_color_config and @set_local_color_config as said; None: not said."""

    positions: tuple[tuple[int, int] | None, ...] | None = None
    position: int = 0
    ring: bool = False
    pop: Pop = Pop.NO_POP
    filter: Filter | None = None
    teardown: bool = False
    swap: int = 0
    span: Span | None = None


@dataclass(eq=False)
class IrProgram:
    """One PE type. `colors`: from @set_local_color_config, merged with the layout's by the driver."""

    name: str
    functions: list[Function] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    fifos: list[Fifo] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    initial_dsr_loads: list[LoadDsr] = field(default_factory=list)
    setup: list[tuple[int, int, int]] = field(default_factory=list)
    activated: int = 0
    blocked: int = 0
    input_queue_colors: dict[int, int] = field(default_factory=dict)
    output_queue_colors: dict[int, int] = field(default_factory=dict)
    input_queue_of_color: dict[int, int] = field(default_factory=dict)
    colors: dict[int, ColorConfig] = field(default_factory=dict)
