"""Whether a loaded image keeps what engines rely on: slots, jumps and table indices in range, buffers in memory.

A compiler's images always do; a damaged or hostile file may not, and the fast engine would read beyond its tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from openwafer.wafer.arch import ARCHITECTURES, MEMORY_BYTES, NUM_COLORS, NUM_CONTROL_TASKS, NUM_DSRS, NUM_MICROTHREADS
from openwafer.wafer.image import Fifo, Image, Program, Route, Task, TaskKind
from openwafer.wafer.isa import Completion, DsrLoad, Kind, Op, Sys, T, V

MAX_SLOTS = 4096
MAX_FIFO = MEMORY_BYTES
_ITERATORS = 8
_BEFORE_START = (Sys.TASK_PRIORITY, Sys.MAIN_PRIORITY, Sys.CONTROL_MASK)
_NUM_PORTS = 6

# Slots an instruction uses: (offset of a, b, c; how many), by operation.
_A, _B, _C = 1, 2, 3
_SLOTS: dict[Op, tuple[tuple[int, int], ...]] = {
    Op.MOV: ((_A, 1), (_B, 1)), Op.MOV3: ((_A, 3), (_B, 3)), Op.LDI: ((_A, 1),), Op.LDK: ((_A, 1),),
    Op.LDK3: ((_A, 3),),
    **{op: ((_A, 1), (_B, 1), (_C, 1)) for op in (
        Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.REM, Op.AND, Op.OR, Op.XOR, Op.SHL, Op.SHR, Op.EQ, Op.NE, Op.LT, Op.LE,
        Op.LDX, Op.STX,
    )},
    **{op: ((_A, 1), (_B, 1)) for op in (
        Op.NEG, Op.NOT, Op.ADDI, Op.LD, Op.ST, Op.CVT, Op.CFGRD, Op.CFGWR, Op.SYS,
    )},
    **{op: ((_A, 1),) for op in (
        Op.JZ, Op.JNZ, Op.ACTIVATE, Op.BLOCK, Op.UNBLOCK, Op.TSC, Op.ASSERT, Op.RAND16, Op.TSCST, Op.IGET,
    )},
    **{op: ((_A, 3), (_B, 3), (_C, 1)) for op in (Op.DSDBASE, Op.DSDLEN, Op.DSDSTRIDE, Op.DSDMOVE)},
    Op.IPUT: ((_B, 1),),
}  # fmt: skip
_WIDTHS = np.zeros((max(Op) + 1, 3), np.int64)
for _op, _uses in _SLOTS.items():
    for _column, _width in _uses:
        _WIDTHS[_op, _column - 1] = _width
_TYPED = {
    Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.REM, Op.EQ, Op.NE, Op.LT, Op.LE, Op.NEG, Op.LD, Op.ST, Op.LDX, Op.STX, Op.CVT,
    Op.IGET, Op.IPUT,
}  # fmt: skip
_INTEGER = {Op.AND, Op.OR, Op.XOR, Op.SHL, Op.SHR, Op.NOT, Op.ADDI}
_JUMPS = {Op.JMP, Op.JZ, Op.JNZ, Op.IMORE}
_OPERATION, _TYPE = 4, 15


class DamagedImage(ValueError):
    """What is wrong with an image."""


def check(image: Image) -> None:
    """Raises DamagedImage."""
    if image.arch not in ARCHITECTURES:
        raise DamagedImage(f"there is no architecture {image.arch!r}")
    width, height = image.size
    limit = ARCHITECTURES[image.arch].max_fabric
    if not (1 <= width <= limit[0] and 1 <= height <= limit[1]):
        raise DamagedImage(f"a rectangle of {width} x {height} PEs")
    _indices("program", image.program_of, (height, width), -1, len(image.programs))
    _indices("route table", image.routes_of, (height, width), 0, len(image.route_tables))
    for number, program in enumerate(image.programs):
        for problem in _problems(program):
            raise DamagedImage(f"program {number}: {problem}")
    for table in image.route_tables:
        for color, route in table.items():
            _route(color, route)
    for own in image.preloads:
        if not (0 <= own.x < width and 0 <= own.y < height and _inside(own.address, own.data.size)):
            raise DamagedImage("initial data outside of the rectangle or of a PE's memory")
        if own.data.dtype != np.uint8 or own.data.ndim != 1:
            raise DamagedImage("initial data that are no bytes")


def _indices(name: str, array: np.ndarray, shape: tuple[int, int], low: int, high: int) -> None:
    if array.shape != shape or array.dtype.kind != "i":
        raise DamagedImage(f"{name} numbers of shape {array.shape} and type {array.dtype}")
    if array.min() < low or array.max() >= high:
        raise DamagedImage(f"{name} number {int(array.min())} or {int(array.max())}, there are {high}")


def _inside(address: int, size: int) -> bool:
    return address >= 0 and size >= 0 and address + size <= MEMORY_BYTES


def _route(color: int, route: Route) -> None:
    masks = [mask for position in route.positions if position is not None for mask in position]
    numbers = vars(route.filter).values() if route.filter is not None else ()
    if not (0 <= color < NUM_COLORS and 1 <= len(route.positions) <= 4 and 0 <= route.position < 4):
        raise DamagedImage(f"a route of color {color} with {len(route.positions)} positions")
    if any(not 0 <= mask < 1 << _NUM_PORTS for mask in masks) or not 0 <= route.swap < 4:
        raise DamagedImage(f"ports of color {color} that do not exist")
    if any(not 0 <= int(n) < 1 << 31 for n in numbers):
        raise DamagedImage(f"a filter of color {color} with a number out of range")


def _problems(program: Program) -> Iterator[str]:
    code, count = program.code, len(program.code)
    if code.dtype != np.uint16 or code.ndim != 2 or code.shape[1] != 4 or not count:
        yield f"code of shape {code.shape} and type {code.dtype}"
        return
    if program.constants.dtype != np.uint64 or program.constants.ndim != 1:
        yield "constants that are no words"
        return
    if program.memory.dtype != np.uint8 or program.memory.ndim != 1 or len(program.memory) > MEMORY_BYTES:
        yield f"{program.memory.size} bytes of memory, a PE has {MEMORY_BYTES}"
        return
    if program.locations.shape != (count,) or program.locations.dtype.kind != "i":
        yield "source places that do not fit the code"
        return
    if count and (program.locations.max() >= len(program.places)):
        yield "a source place that does not exist"
    if not program.functions:
        yield "no function"
        return
    yield from _tables(program)
    yield from _code(program)


def _code(program: Program) -> Iterator[str]:
    """Every instruction within the limits of its function; functions lie one after another."""
    code, count = program.code.astype(np.int64), len(program.code)
    entries = np.array([f.entry for f in program.functions])
    slots = np.array([f.num_slots for f in program.functions])
    if entries[0] != 0 or (np.diff(entries) <= 0).any() or entries[-1] >= count:
        yield "functions that do not lie one after another"
        return
    if (
        (slots < 0).any()
        or (slots > MAX_SLOTS).any()
        or any(not 0 <= f.num_args <= MAX_SLOTS for f in program.functions)
    ):
        yield f"a function with more than {MAX_SLOTS} slots"
        return
    owner = np.searchsorted(entries, np.arange(count), side="right") - 1
    first, end = entries[owner], np.append(entries[1:], count)[owner]
    room = slots[owner]
    ops, kinds, wide = code[:, 0] >> _OPERATION, code[:, 0] & _TYPE, code[:, 2] | code[:, 3] << 16
    if ops.max() > max(Op):
        yield f"an operation {int(ops.max())}"
        return
    last = ops[np.append(entries[1:], count) - 1]
    if not np.isin(last, [Op.RET, Op.HALT, Op.JMP]).all():
        yield "a function that does not end"
    reach = code[:, 1:] + _WIDTHS[ops]
    beyond = (_WIDTHS[ops] > 0) & (reach > room[:, None])
    if beyond.any():
        yield f"{Op(int(ops[beyond.any(1)][0])).name} with a slot beyond its frame"
    jumps = np.isin(ops, list(_JUMPS))
    if ((wide[jumps] < first[jumps]) | (wide[jumps] >= end[jumps])).any():
        yield "a jump out of its function"
    tables = {
        Op.CALL: len(program.functions), Op.VEC: len(program.vectors), Op.LDDSR: len(program.dsr_loads),
        Op.ASSERT: len(program.messages), Op.LDK: len(program.constants), Op.LDK3: len(program.constants) - 2,
    }  # fmt: skip
    for op, size in tables.items():
        if (wide[ops == op] >= size).any():
            yield f"{op.name} beyond its table of {size}"
    if (kinds[np.isin(ops, list(_TYPED))] > T.F32).any() or (kinds[np.isin(ops, list(_INTEGER))] > T.U64).any():
        yield "an operation of an unknown type"
    if (code[ops == Op.CVT, 3] > T.F32).any() or (code[ops == Op.SYS, 3] > max(Sys)).any():
        yield "a conversion or system call that does not exist"
    for op, column in ((Op.IOPEN, _A), (Op.IMORE, _A), (Op.IGET, _B), (Op.IPUT, _A)):
        if (code[ops == op, column] >= _ITERATORS).any():
            yield f"{op.name} of an iterator beyond {_ITERATORS}"
    for row, limit in zip(code[ops == Op.IOPEN], room[ops == Op.IOPEN], strict=True):
        yield from _operand(program, int(row[2]), int(row[3]), int(limit))
    yield from _started(program, code, ops, wide, room)


def _started(program: Program, code: np.ndarray, ops: np.ndarray, wide: np.ndarray, room: np.ndarray) -> Iterator[str]:
    """Operands of vector operations and loads, in the frame that starts them; calls within the stack."""
    for k, limit in {(int(k), int(r)) for k, r in zip(wide[ops == Op.VEC], room[ops == Op.VEC], strict=True)}:
        if k < len(program.vectors):
            vector = program.vectors[k]
            for operand in (vector.dest, vector.src0, vector.src1, vector.scalar):
                yield from _operand(program, int(operand.kind), operand.value, limit)
            if vector.index is not None and not 0 <= vector.index < limit:
                yield "an index beyond its frame"
    for k, limit in zip(wide[ops == Op.LDDSR], room[ops == Op.LDDSR], strict=True):
        if k < len(program.dsr_loads) and not 0 <= program.dsr_loads[k].slot <= limit - 3:
            yield "a DSR loaded from beyond its frame"
    logged = (ops == Op.SYS) & (code[:, 3] == Sys.LOG_STRING)
    if logged.any() and not program.messages:
        yield "a printed text that does not exist"


def _operand(program: Program, kind: int, value: int, limit: int) -> Iterator[str]:
    width = {Kind.SCALAR: 1, Kind.POINTER: 1, Kind.DSD: 3}.get(Kind(kind), 0) if kind in set(Kind) else -1
    if width < 0 or not 0 <= value < 1 << 16 or (width and not 0 <= value <= limit - width):
        yield "an operand beyond its frame"
    if kind == Kind.FIFO and not 0 <= value < len(program.fifos):
        yield f"a FIFO {value}"
    if kind == Kind.DSR and not (0 <= value >> 8 < 3 and 0 <= value & 0xFF < NUM_DSRS):
        yield f"a DSR {value >> 8}, {value & 0xFF}"


def _tables(program: Program) -> Iterator[str]:
    for vector in program.vectors:
        if vector.op == V.DFILT or not 0 <= vector.loads <= 4 or not 0 <= vector.priority <= 2:
            yield f"a vector operation {vector.op!r}"
        numbers = [o.value for o in (vector.dest, vector.src0, vector.src1, vector.scalar)]
        if any(not 0 <= number < 1 << 16 for number in (*numbers, vector.index or 0)):
            yield "a vector operation with an operand out of range"
        yield from _thread(vector.microthread)
        yield from _completion(vector.completion)
        if vector.on_control is not None:
            yield from _completion(vector.on_control)
    for load in (*program.dsr_loads, *(load for load, _ in program.initial_dsr_loads)):
        yield from _load(load)
    for _, slots in program.initial_dsr_loads:
        if any(not 0 <= word < 1 << 64 for word in slots):
            yield "a DSD that is no three words"
    for fifo in program.fifos:
        yield from _fifo(fifo)
    for task in program.tasks:
        yield from _task(program, task)
    for call, *arguments in program.setup:
        if call not in _BEFORE_START or any(not 0 <= value < 1 << 16 for value in arguments):
            yield f"a system call {call} before the start"
    for masks in (program.activated, program.blocked):
        if not 0 <= masks < 1 << 32:
            yield "task bits beyond 32"
    queues = (*program.input_queue_colors, *program.output_queue_colors)
    if len(program.input_queue_colors) != 8 or len(program.output_queue_colors) != 8:
        yield "other than eight queues"
    if any(color is not None and not 0 <= color < NUM_COLORS for color in queues):
        yield "a queue with a color that does not exist"
    if any(not (0 <= c < NUM_COLORS and 0 <= q < 8) for c, q in program.input_queue_of_color.items()):
        yield "a color with an input queue that does not exist"
    for symbol in program.symbols:
        if symbol.kind == 2 and not 0 <= symbol.value < len(program.functions):
            yield f"a function {symbol.value}"
        if symbol.kind != 2 and not _inside(symbol.value, symbol.size_bytes):
            yield f"a variable at {symbol.value}"


def _load(load: DsrLoad) -> Iterator[str]:
    known = 0 <= load.file < 3 and 0 <= load.register < NUM_DSRS and 0 <= load.slot < 1 << 16
    if not known or not 0 <= load.priority <= 2:
        yield f"a DSR {load.file}, {load.register}"
    yield from _thread(load.microthread)
    yield from _completion(load.completion)


def _fifo(fifo: Fifo) -> Iterator[str]:
    if not 1 <= fifo.capacity <= MAX_FIFO or not _inside(fifo.base, fifo.capacity * max(1, fifo.element_bytes)):
        yield f"a FIFO of {fifo.capacity} elements at {fifo.base}"
    yield from _completion(fifo.on_push)
    yield from _completion(fifo.on_pop)


def _task(program: Program, task: Task) -> Iterator[str]:
    limit = NUM_CONTROL_TASKS if task.kind == TaskKind.CONTROL else 32
    if not (0 <= task.id < limit and 0 <= task.function < len(program.functions)):
        yield f"a task {task.id}"
        return
    bits = task.arg_bits
    if len(bits) > 4 or len(bits) != len(task.arg_signed) or any(not 1 <= b <= 32 for b in bits) or sum(bits) > 32:
        yield f"a task with arguments of {bits} bits"
    if len(bits) > program.functions[task.function].num_slots:
        yield "a task with more arguments than slots"


def _thread(number: int | None) -> Iterable[str]:
    if number is not None and not 0 <= number < NUM_MICROTHREADS:
        yield f"a microthread {number}"


def _completion(made: Completion) -> Iterable[str]:
    if made.activate is not None and not 0 <= made.activate < 64:
        yield f"a task {made.activate}"
    if not 0 <= made.unblock_id < 32:
        yield f"an id {made.unblock_id}"
