"""Random images for the engines: programs of random instructions, vector operations and tasks on random routes.

They are valid in what a compiler guarantees (slots, jumps, tables) and free in everything else: they may deadlock,
read out of memory, lose wavelets or collide. Engines must agree on all of it.
"""

from __future__ import annotations

import random

import numpy as np

from openwafer.wafer.image import (
    Fifo,
    Filter,
    FilterKind,
    Function,
    Image,
    Location,
    Pop,
    Program,
    Route,
    Task,
    TaskKind,
)  # fmt: skip
from openwafer.wafer.isa import (
    ADVANCE_SWITCH_BIT,
    CONTROL_BIT,
    INDEX_OFFSET_BIT,
    NO_COLOR,
    PAIR_BIT,
    QUAD_BIT,
    TRANSFORM_BIT,
    Block,
    Completion,
    Dsd,
    DsdKind,
    DsrFile,
    DsrLoad,
    Kind,
    Op,
    Operand,
    Priority,
    Sys,
    T,
    V,
    Vector,
)  # fmt: skip

SLOTS = 40
DSDS = 8
"""Each takes three slots from slot 10 on; slots below are scalars."""
MEMORY = 1024
TYPES = (T.I8, T.U8, T.I16, T.U16, T.I32, T.U32, T.I64, T.U64, T.F16, T.F32)
OPS = [op for op in V if op != V.DFILT]


def random_image(seed: int) -> Image:
    """The image of a seed: up to 4 x 3 PEs, one to three programs."""
    r = random.Random(seed)
    arch = r.choice(("wse2", "wse3"))
    width, height = r.randint(1, 4), r.randint(1, 3)
    programs = tuple(_program(r, arch, number) for number in range(r.randint(1, 3)))
    tables = tuple(_routes(r, arch) for _ in range(r.randint(1, 3)))
    program_of = np.array([[r.randrange(len(programs)) for _ in range(width)] for _ in range(height)], np.int32)
    if r.random() < 0.2:
        program_of[r.randrange(height), r.randrange(width)] = -1
    routes_of = np.array([[r.randrange(len(tables)) for _ in range(width)] for _ in range(height)], np.int32)
    return Image(arch, (width, height), (0, 0), (width, height), programs, program_of, tables, routes_of)


def _routes(r: random.Random, arch: str) -> dict[int, Route]:
    table = {}
    for color in range(6):
        if r.random() < 0.1:
            continue
        positions: list[tuple[int, int] | None] = [(_mask(r, 0.3), _mask(r, 0.35))]
        for _ in range(r.choice((0, 0, 1, 3))):
            positions.append(None if r.random() < 0.2 else (_mask(r, 0.3), _mask(r, 0.3)))
        kind = r.choice([None, None, None, *FilterKind])
        numbers = [r.randint(0, 4) for _ in range(4)]
        made = kind is not None and Filter(
            kind, r.random() < 0.7, r.random() < 0.5, r.random() < 0.5, *numbers, r.randint(0, 3), r.randint(2, 9)
        )
        swap = r.choice((0, 0, 0, 1, 2, 3)) if arch == "wse2" else 0
        table[color] = Route(
            tuple(positions), 0, r.random() < 0.5, r.choice(list(Pop)), made or None, r.random() < 0.05, swap
        )
    return table


def _mask(r: random.Random, share: float) -> int:
    return sum(1 << port for port in range(6) if r.random() < share) or 1 << r.randrange(6)


def _program(r: random.Random, arch: str, number: int) -> Program:
    fifos = tuple(
        Fifo(900 + 40 * i, r.randint(1, 6), r.choice((2, 4)), _completion(r), _completion(r)) for i in range(2)
    )
    loads = tuple(_load(r) for _ in range(4))
    vectors = tuple(_vector(r) for _ in range(12))
    code: list[tuple[int, int, int, int]] = []
    functions = []
    for index in range(6):
        entry = len(code)
        code += _body(r, len(vectors), len(loads), index)
        functions.append(Function(f"f{index}", entry, SLOTS, 4))
    ids = r.sample(range(8, 29), 3)
    tasks = [Task(TaskKind.LOCAL, ids[i], i) for i in range(3)]
    payload = r.choice((((32,), (False,)), ((16, 16), (True, False)), ((16,), (True,))))
    tasks.append(Task(TaskKind.DATA, r.randrange(6), 3, *payload))
    tasks.append(Task(TaskKind.CONTROL, r.choice((0, 5, 31)), 4, (16,), (False,)))
    constants = np.array([s for _ in range(6) for s in _dsd(r).slots()], np.uint64)
    initial = tuple((load, _dsd(r).slots()) for load in loads[:3])
    queues = (
        tuple(r.choice((None, color)) for color in range(8))
        if arch == "wse2"
        else tuple(r.sample(range(6), 6)) + (None,) * 2
    )
    memory = np.frombuffer(r.randbytes(MEMORY), np.uint8).copy()
    return Program(
        f"p{number}", np.array(code, np.uint16), constants, tuple(functions), vectors, loads, ("no", "yes\nand"),
        tuple(tasks), fifos, (), memory, 0, initial, sum(1 << i for i in ids if r.random() < 0.7),
        1 << r.randrange(32) if r.random() < 0.3 else 0, queues, tuple(r.randrange(6) for _ in range(8)),
        {color: color for color in range(6)}, np.arange(len(code), dtype=np.int32) % 5,
        tuple(Location("p.csl", line, 1) for line in range(1, 6)),
    )  # fmt: skip


def _dsd(r: random.Random) -> Dsd:
    kind = r.choice(list(DsdKind))
    if kind in (DsdKind.FABIN, DsdKind.FABOUT):
        flags = sum(
            bit for bit in (CONTROL_BIT, INDEX_OFFSET_BIT, ADVANCE_SWITCH_BIT, TRANSFORM_BIT) if r.random() < 0.1
        )
        flags |= r.choice((0, 0, PAIR_BIT, PAIR_BIT | QUAD_BIT))
        queue = r.randrange(6) if kind == DsdKind.FABOUT else r.randrange(8)
        return Dsd(kind, 0, (_extent(r),), (0,), queue, r.choice((NO_COLOR, *range(6))), flags)
    dims = r.randint(2, 4) if kind == DsdKind.MEM4D else 1
    extents = tuple(r.randint(1, 5) for _ in range(dims)) if dims > 1 else (_extent(r),)
    flags = INDEX_OFFSET_BIT if r.random() < 0.1 else 0
    return Dsd(kind, 2 * r.randrange(200), extents, tuple(r.randint(-2, 4) for _ in range(dims)), 0, NO_COLOR, flags)


def _extent(r: random.Random) -> int:
    return r.choice((0, 1, 2, 3, 5, 8, 13, 0x7FFF)) if r.random() < 0.3 else r.randint(1, 9)


def _completion(r: random.Random) -> Completion:
    if r.random() < 0.6:
        return Completion()
    kind = r.choice(list(Block))
    return Completion(r.choice((None, None, r.randrange(8, 29))), kind, r.randrange(8))


def _load(r: random.Random) -> DsrLoad:
    return DsrLoad(
        r.choice(list(DsrFile)), r.randrange(3), 10 + 3 * r.randrange(DSDS), r.random() < 0.3, r.random() < 0.2,
        _completion(r), r.choice((None, r.randrange(8))), r.choice(list(Priority)),
    )  # fmt: skip


def _operand(r: random.Random) -> Operand:
    kind = r.choice((Kind.SCALAR, Kind.POINTER, Kind.DSD, Kind.DSD, Kind.DSD, Kind.DSD, Kind.DSR, Kind.FIFO))
    if kind in (Kind.SCALAR, Kind.POINTER):
        return Operand(kind, r.randrange(4, 8) if kind == Kind.POINTER else r.randrange(10))
    if kind == Kind.DSD:
        return Operand(kind, 10 + 3 * r.randrange(DSDS))
    if kind == Kind.DSR:
        return Operand(kind, r.randrange(3) << 8 | r.randrange(3))
    return Operand(kind, r.randrange(2))


def _vector(r: random.Random) -> Vector:
    dest = _operand(r)
    while dest.kind == Kind.SCALAR:
        dest = _operand(r)
    op = r.choice(OPS)
    sources = [_operand(r), _operand(r) if r.random() < 0.7 else Operand()]
    scalar = _operand(r) if "MAC" in op.name else Operand()
    return Vector(
        op, dest, *sources, scalar, r.random() < 0.4, _completion(r), r.choice((None, None, r.randrange(8))),
        r.choice(list(Priority)), r.choice((None, None, None, r.randrange(10))), r.randrange(4),
        _completion(r) if r.random() < 0.2 else None,
    )  # fmt: skip


_REGISTERS = 2 * 0x7F20


def _body(r: random.Random, num_vectors: int, num_loads: int, index: int) -> list[tuple[int, int, int, int]]:
    """Twenty to forty instructions that begin by filling the slots; jumps go forward."""
    code: list[tuple[int, int, int, int]] = [_word(Op.LDI, slot, *_wide(r.randrange(-9, 9))) for slot in range(4)]
    code += [_word(Op.LDI, slot, *_wide(2 * r.randrange(400))) for slot in range(4, 7)]
    code += [_word(Op.LDI, 7, *_wide(_REGISTERS + 2 * r.randrange(64) if r.random() < 0.2 else 2 * r.randrange(400)))]
    code += [_word(Op.LDI, slot, *_wide(r.randrange(1 << 31))) for slot in range(8, 10)]
    code += [_word(Op.LDK3, 10 + 3 * i, 3 * r.randrange(6), 0) for i in range(DSDS)]
    length = len(code) + r.randint(8, 22)
    while len(code) < length:
        code.append(_instruction(r, num_vectors, num_loads, index))
    return [*code, _word(r.choice((Op.RET, Op.HALT)), 0, 0, 0)]


def _word(op: Op, a: int, b: int, c: int, kind: int = 0) -> tuple[int, int, int, int]:
    return (op << 4 | kind, a & 0xFFFF, b & 0xFFFF, c & 0xFFFF)


def _wide(value: int) -> tuple[int, int]:
    return value & 0xFFFF, value >> 16 & 0xFFFF


def _instruction(r: random.Random, num_vectors: int, num_loads: int, index: int) -> tuple[int, int, int, int]:
    a, b, c = (r.randrange(10) for _ in range(3))
    kind = r.choice(TYPES)
    integer = r.choice(TYPES[:8])
    choice = r.random()
    if choice < 0.35:
        return _word(Op.VEC, 0, r.randrange(num_vectors), 0)
    if choice < 0.45:
        return _word(r.choice((Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.REM)), a, b, c, kind)
    if choice < 0.53:
        return _word(r.choice((Op.AND, Op.OR, Op.XOR, Op.SHL, Op.SHR, Op.NOT)), a, b, c, integer)
    if choice < 0.58:
        return _word(r.choice((Op.EQ, Op.NE, Op.LT, Op.LE, Op.NEG)), a, b, c, kind)
    if choice < 0.63:
        return _word(Op.CVT, a, b, r.choice(TYPES), kind)
    if choice < 0.71:
        return _word(r.choice((Op.LD, Op.ST)), a, r.randrange(4, 8), 2 * r.randrange(20), kind)
    if choice < 0.75:
        return _word(r.choice((Op.DSDBASE, Op.DSDLEN, Op.DSDSTRIDE, Op.DSDMOVE)), 10 + 3 * r.randrange(DSDS), 10, b)
    if choice < 0.79:
        return _word(Op.LDDSR, 0, r.randrange(num_loads), 0)
    if choice < 0.84:
        return _word(r.choice((Op.BLOCK, Op.UNBLOCK)), r.randrange(4), 0, 0, r.choice((0, 1)))
    if choice < 0.88 and index < 5:
        return _word(Op.CALL, SLOTS, 5, 0)
    if choice < 0.90:
        return _word(Op.IOPEN, 0, Kind.DSD, 10 + 3 * r.randrange(DSDS))
    if choice < 0.93:
        call = r.choice((Sys.UNBLOCK_CMD_STREAM, Sys.QUEUE_FLUSH, Sys.TEARDOWN_EXIT, Sys.SET_ROUTE, Sys.SET_SWITCH_RX,
                         Sys.SET_SWITCH_TX, Sys.SET_SWITCH_POSITION, Sys.LOG_VALUE, Sys.LOG_FLUSH, Sys.SET_INPUT_QUEUE,
                         Sys.TEARDOWN_PENDING, Sys.QUEUE_FLUSHED, Sys.QUEUE_STATUS, Sys.TASK_PRIORITY,
                         Sys.MAIN_PRIORITY, Sys.CONTROL_MASK, Sys.ROUTE, Sys.POP_MODE, Sys.RING_MODE, Sys.FILTER,
                         Sys.SET_FILTER))  # fmt: skip
        return _word(Op.SYS, a, b, call)
    return _word(r.choice((Op.TSC, Op.RAND16, Op.TSCST, Op.CFGRD)), r.randrange(4, 8), b, 0)
