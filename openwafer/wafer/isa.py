"""The code of a PE: what the compiler emits and both engines run. docs/machine.md gives the meaning of each piece.

A register machine over frames of 64-bit slots. It is ours, not the wafer's instruction set: one scalar instruction
stands for about one machine instruction, one VEC for a whole vector instruction. An integer lies in a slot sign- or
zero-extended by its type; f16 and f32 lie as their bits; bool is 0 or 1; a DSD takes three slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class T(IntEnum):
    """Scalar types; the low four bits of an opcode word."""

    I8 = 0
    U8 = 1
    I16 = 2
    U16 = 3
    I32 = 4
    U32 = 5
    I64 = 6
    U64 = 7
    F16 = 8
    F32 = 9
    BF16 = 10


SIZE_BYTES = {
    T.I8: 1, T.U8: 1, T.I16: 2, T.U16: 2, T.I32: 4, T.U32: 4, T.I64: 8, T.U64: 8, T.F16: 2, T.F32: 4, T.BF16: 2,
}  # fmt: skip


class Op(IntEnum):
    """Operations; an instruction is four uint16 words (op << 4 | type, a, b, c). `r` is the frame, k is b | c << 16."""

    HALT = 0  # ends the task (RET of an empty call stack does the same)
    MOV = 1  # r[a] = r[b]
    MOV3 = 2  # r[a..a+2] = r[b..b+2]
    LDI = 3  # r[a] = k as int32, sign-extended
    LDK = 4  # r[a] = constants[k]
    LDK3 = 5  # r[a..a+2] = constants[k..k+2]
    ADD = 6  # typed, r[a] = r[b] + r[c]; integers wrap
    SUB = 7
    MUL = 8
    DIV = 9  # integers truncate; a zero divisor is a run-time error
    REM = 10
    AND = 11
    OR = 12
    XOR = 13
    SHL = 14  # a count of the width or more gives 0 (SHR of a negative value: -1)
    SHR = 15  # arithmetic for signed types
    NEG = 16  # r[a] = -r[b]
    NOT = 17  # bitwise; logical not is XOR with 1
    ADDI = 18  # r[a] = r[b] + c as int16
    EQ = 19  # typed, r[a] = 1 or 0; float comparisons as in IEEE
    NE = 20
    LT = 21
    LE = 22
    JMP = 23  # to instruction k
    JZ = 24  # to k if r[a] == 0
    JNZ = 25
    CALL = 26  # function k; its frame begins at the caller's slot a: arguments in, results out from its slot 0
    RET = 27
    LD = 28  # typed, r[a] = memory[r[b] + c]
    ST = 29  # typed, memory[r[b] + c] = r[a]
    LDX = 30  # typed, r[a] = memory[r[b] + r[c] * size]
    STX = 31  # typed, memory[r[b] + r[c] * size] = r[a]
    CVT = 32  # r[a] = r[b] converted from type c to the type of the opcode
    ACTIVATE = 33  # task id r[a]
    BLOCK = 34  # id r[a]; type field: Block
    UNBLOCK = 35
    VEC = 36  # vector operation vectors[k]
    LDDSR = 37  # dsr_loads[k]
    DSDBASE = 38  # r[a..a+2] = DSD r[b..b+2] with base address r[c]
    DSDLEN = 39  # ... with extent r[c] of dimension 0
    DSDSTRIDE = 40  # ... with stride r[c] of dimension 0, in elements
    DSDMOVE = 41  # ... with base address + r[c] bytes
    IOPEN = 42  # iterator a over the operand (kind b, value c), see Kind; ICLOSE is implicit
    IMORE = 43  # to k if iterator a is exhausted
    IGET = 44  # typed, r[a] = next element of iterator b; waits for it
    IPUT = 45  # typed, next element of iterator b = r[a]; waits for room
    TSC = 46  # r[a] = the cycle counter
    CFGRD = 47  # r[a] = configuration register r[b]
    CFGWR = 48  # configuration register r[a] = r[b]
    SYS = 49  # system call c with slots a, b, see Sys
    ASSERT = 50  # run-time error messages[k] if r[a] == 0
    RAND16 = 51  # r[a] = 16 random bits
    TSCST = 52  # memory[r[a]..r[a]+5] = the cycle counter, three words of 16 bits, the lowest first
    DSRPRE = 53  # a DSDs go into registers ahead of a loop: takes its time and does nothing else


class Block(IntEnum):
    """What BLOCK and UNBLOCK name, and Vector.unblock_kind."""

    TASK = 0  # a color, data task, local task or input queue id: one number space
    MICROTHREAD = 1
    NONE = 15


class Sys(IntEnum):
    """System calls."""

    UNBLOCK_CMD_STREAM = 0  # the host's next command may start on this PE
    TEARDOWN_PENDING = 1  # r[a] = 1 if color r[b] was put in teardown by a wavelet and has not left it
    TEARDOWN_EXIT = 2  # color r[a] leaves teardown
    QUEUE_FLUSH = 3  # task 29 runs when output queue r[a] is empty
    QUEUE_FLUSHED = 4  # r[a] = 1 if the flush of output queue r[b] is done and not left
    QUEUE_FLUSH_EXIT = 5
    SET_INPUT_QUEUE = 6  # input queue r[a] takes color r[b]
    SET_OUTPUT_QUEUE = 7  # output queue r[a] sends on color r[b]
    SET_ROUTE = 8  # color r[a]: rx mask | tx mask << 8 in r[b] for position 0
    SET_SWITCH_RX = 9  # color r[a]: position | rx mask << 8 in r[b]
    SET_SWITCH_TX = 10
    SET_SWITCH_POSITION = 11  # color r[a] to position r[b]
    INVALIDATE_SWITCHES = 12  # color r[a]: positions 1 to 3 no longer exist
    LOG_STRING = 13  # messages[r[a]] to sim.log
    LOG_VALUE = 14  # r[a] in the format r[b], see numerics.formatted
    LOG_FLUSH = 15  # ends the line
    SEED_RANDOM = 16  # the state of RAND16 becomes r[a]
    RESET_COUNTER = 17  # TSC and TSCST count from now on
    FILTER = 18  # r[a] = a number of the counter filter of color r[b] & 0xFF: FilterNumber r[b] >> 8
    SET_FILTER = 19  # the number r[a], named in the same way, becomes r[b]
    QUEUE_STATUS = 20  # r[a] = bit masks of queues, empty | full << 8: input queues for r[b] 0, output queues for 1
    TASK_PRIORITY = 21  # task id r[a]: high if r[b]
    MAIN_PRIORITY = 22  # the main thread's class becomes r[a]: 0 as high microthreads, 2 medium, 1 and 3 below each
    CONTROL_MASK = 23  # what DSDs with TRANSFORM_BIT combine with the index of a control wavelet they send: r[a] & 63
    ROUTE = 24  # r[a] = rx mask | tx mask << 8 of position 0 of color r[b]
    POP_MODE = 25  # color r[a]: image.Pop r[b]
    RING_MODE = 26  # color r[a]: ring mode if r[b]
    COMPLETED = 27  # r[a] = 0 if the last vector operation ended early, at a FIFO that was empty or full
    FIFO_READ_LENGTH = 28  # FIFO r[a] is r[b] elements long for who reads it and has no length of its own; 0: as it is
    FIFO_WRITE_LENGTH = 29


class FilterNumber(IntEnum):
    """What may change in a counter filter."""

    COUNTER = 0
    MAX_COUNTER = 1
    LIMIT = 2  # the one at which the counter goes back to 0 next


class Kind(IntEnum):
    """Kinds of an operand."""

    NONE = 0
    SCALAR = 1  # the value in r[v]
    POINTER = 2  # the element at address r[v]; as destination: an accumulator
    DSD = 3  # the DSD in r[v..v+2]
    DSR = 4  # explicit register: file << 8 | index, see DsrFile
    FIFO = 5  # fifos[v]


class DsrFile(IntEnum):
    """The three files of explicit DSRs."""

    DEST = 0
    SRC0 = 1
    SRC1 = 2


class DsdKind(IntEnum):
    """Bits 0 to 2 of a DSD's first slot."""

    MEM1D = 0
    MEM4D = 1
    FABIN = 2
    FABOUT = 3


CONTROL_BIT = 1 << 3
INDEX_OFFSET_BIT = 1 << 4  # wavelet_index_offset
ADVANCE_SWITCH_BIT = 1 << 5
PAIR_BIT = 1 << 6  # two 16-bit elements in a wavelet, the first in the low half
QUAD_BIT = 1 << 7  # and two wavelets a step
TRANSFORM_BIT = 1 << 24  # control_transform; of a DSD of the fabric: control wavelets are elements
CONTROL_MARK = 3 << 30  # what marks such an element
NO_COLOR = 0xFF
ENDLESS = 0x7FFF


@dataclass(frozen=True)
class Dsd:
    """A DSD as the compiler knows it.

    Args:
        kind: of the four
        base: byte address, memory kinds
        extents: elements per dimension, innermost first; one entry unless MEM4D
        strides: per dimension, innermost first, each from the start of its dimension; in elements of the operation
        queue: input or output queue id, fabric kinds
        color: NO_COLOR where the queue decides
        flags: CONTROL_BIT and its like
    """

    kind: DsdKind
    base: int = 0
    extents: tuple[int, ...] = (0,)
    strides: tuple[int, ...] = (0,)
    queue: int = 0
    color: int = NO_COLOR
    flags: int = 0

    def slots(self) -> tuple[int, int, int]:
        """The three uint64 slots.

        Slot 0: kind and flags bits 0-7, queue 8-15, color 16-23, TRANSFORM_BIT, base 32-47, extent of dimension 0
        48-63.
        Slot 1: strides of dimensions 0 to 3, int16 each. Slot 2: extents of dimensions 1 to 3, uint16 each
        (0 where the dimension does not exist), then 16 bits unused.
        """
        extents = (*self.extents, 0, 0, 0)[:4]
        strides = (*self.strides, 0, 0, 0)[:4]
        first = self.kind | self.flags | self.queue << 8 | self.color << 16 | self.base << 32 | extents[0] << 48
        second = sum((stride & 0xFFFF) << 16 * i for i, stride in enumerate(strides))
        third = sum(extent << 16 * i for i, extent in enumerate(extents[1:]))
        return first, second, third


class V(IntEnum):
    """Vector operations: the names of the CSL builtins."""

    ADD16 = 0
    ADDC16 = 1
    SUB16 = 2
    AND16 = 3
    OR16 = 4
    XOR16 = 5
    SLL16 = 6
    SLR16 = 7
    SAR16 = 8
    CLZ = 9
    CTZ = 10
    POPCNT = 11
    MOV16 = 12
    MOV32 = 13
    FABSH = 14
    FABSS = 15
    FADDH = 16
    FADDHS = 17
    FADDS = 18
    FSUBH = 19
    FSUBS = 20
    FMULH = 21
    FMULS = 22
    FMACH = 23
    FMACHS = 24
    FMACS = 25
    FMAXH = 26
    FMAXS = 27
    FMOVH = 28
    FMOVS = 29
    FNEGH = 30
    FNEGS = 31
    FNORMH = 32
    FNORMS = 33
    FSCALEH = 34
    FSCALES = 35
    FH2S = 36
    FS2H = 37
    FH2XP16 = 38
    FS2XP16 = 39
    XP162FH = 40
    XP162FS = 41
    DFILT = 42


class Priority(IntEnum):
    """Of a microthread. The main thread stands between MEDIUM and LOW. Documented."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


@dataclass(frozen=True)
class Operand:
    """Kind and value; see Kind."""

    kind: Kind = Kind.NONE
    value: int = 0


@dataclass(frozen=True)
class Completion:
    """What an asynchronous operation does when it ends.

    Args:
        activate: task id, or None
        unblock_kind, unblock_id: see Block
    """

    activate: int | None = None
    unblock_kind: Block = Block.NONE
    unblock_id: int = 0


ABSENT = Operand()
NOTHING = Completion()


@dataclass(frozen=True)
class Vector:
    """One vector operation.

    Args:
        op: what to do
        dest, src0, src1: operands; a missing source is NONE
        scalar: the scalar factor of the multiply-adds (dest = src0 + src1 * scalar)
        is_async: runs in a microthread
        completion: for an asynchronous one; operands in explicit DSRs may bring their own
        microthread: id, or None: the queue of the fabric destination, else of the first fabric source, else 7
        priority: of the microthread
        index: slot that holds `.index` (wavelet index, in 16-bit words), or None
        loads: DSDs that are put into registers when it starts; the others stand there since before the loop
        on_control: what a control wavelet does that comes in a fabric source: it is taken and ends the operation, and
            this is done in place of `completion`; None: it waits for a control task
    """

    op: V
    dest: Operand
    src0: Operand = ABSENT
    src1: Operand = ABSENT
    scalar: Operand = ABSENT
    is_async: bool = False
    completion: Completion = NOTHING
    microthread: int | None = None
    priority: Priority = Priority.MEDIUM
    index: int | None = None
    loads: int = 0
    on_control: Completion | None = None


@dataclass(frozen=True)
class DsrLoad:
    """`@load_to_dsr`: the DSD in three slots into an explicit DSR.

    Args:
        file, register: which DSR
        slot: first of the DSD's three slots
        save_address: after an operation the DSR goes on where it ended
        is_async, completion, microthread, priority: for operations that use this DSR
    """

    file: DsrFile
    register: int
    slot: int
    save_address: bool = False
    is_async: bool = False
    completion: Completion = NOTHING
    microthread: int | None = None
    priority: Priority = Priority.MEDIUM
