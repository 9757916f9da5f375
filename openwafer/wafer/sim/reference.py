"""The engine that defines what a program means: plain Python, one PE, one cycle at a time. docs/machine.md in code.

Slow on purpose. PEs and routers with nothing to do are skipped, and so are cycles in which nothing can happen.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from openwafer.wafer import isa
from openwafer.wafer.arch import ARCHITECTURES, MEMORY_BYTES, OPPOSITE, TEARDOWN_TASK_ID, Port
from openwafer.wafer.image import Filter, FilterKind, Image, Location, Pop, Program, Route, TaskKind
from openwafer.wafer.isa import Block, FilterNumber, Kind, Op, Sys, T
from openwafer.wafer.sim import numerics, registers
from openwafer.wafer.sim.engine import (
    Engine,
    Event,
    LogLine,
    SimulationError,
    Stats,
    Stop,
    Wait,
    check_address,
    gone_wait,
)
from openwafer.wafer.sim.vector import Operation
from openwafer.wafer.sim.watch import Watch

STACK_SLOTS = 4096
NO_ENTRY_POINT = 31
NEVER = 1 << 62
_STEP = {Port.NORTH: (0, -1), Port.SOUTH: (0, 1), Port.EAST: (1, 0), Port.WEST: (-1, 0)}


@dataclass
class Wavelet:
    data: int
    control: bool
    color: int
    ready: int
    advance: bool = False


@dataclass
class RouteState:
    """A route and where its switch stands."""

    route: Route
    positions: list[tuple[int, int] | None]
    position: int
    frozen: bool
    counter: int
    pending: bool = False
    ring: bool = False
    gone: dict[Port, int] = field(default_factory=dict)
    """Wavelets that left the rectangle, where no PE takes them."""
    laps: int = 0
    """How often a sparse counter filter went back to 0, 2 for more."""
    said: list[int] = field(default_factory=list)
    """Per position which half is its own, the other being position 0's: bit 0 rx, bit 1 tx."""

    @classmethod
    def of(cls, route: Route) -> RouteState:
        """As it is at the start."""
        base = route.positions[0] or (0, 0)
        said = [(p[0] != base[0]) | (p[1] != base[1]) << 1 if p is not None else 0 for p in route.positions]
        counter = route.filter.init_counter if route.filter else 0
        return cls(route, list(route.positions), route.position, route.teardown, counter, False, route.ring, said=said)

    def limit(self, filt: Filter) -> int:
        """Where the counter goes back to 0. A sparse counter has two limits, then none: 0."""
        return (filt.limit1, filt.limit2, 0)[self.laps]

    def count(self, filt: Filter) -> None:
        """One wavelet more for a counter filter."""
        if self.counter < self.limit(filt):
            self.counter += 1
            return
        self.counter = 0
        if filt.kind == FilterKind.SPARSE_COUNTER:
            self.laps = min(self.laps + 1, 2)

    def now(self) -> tuple[int, int] | None:
        """rx and tx masks at the present position, None where it does not exist."""
        return self.positions[self.position] if self.position < len(self.positions) else None


@dataclass
class FifoState:
    """Its elements, and whether a reader found none, or a writer no room, since the last completion for that."""

    items: deque[int] = field(default_factory=deque)
    was_empty: bool = False
    was_full: bool = False
    read_length: int = 0
    write_length: int = 0


class Pe:
    """State of one PE and its router."""

    def __init__(
        self, engine: ReferenceEngine, x: int, y: int, program: Program | None, routes: dict[int, Route]
    ) -> None:
        self.engine, self.x, self.y, self.program = engine, x, y, program
        self.memory = bytearray(MEMORY_BYTES)
        self.routes = {color: RouteState.of(route) for color, route in routes.items()}
        self.queues: dict[tuple[int, int], deque[Wavelet]] = {}
        self.host_in: dict[int, deque[Wavelet]] = {}
        self.host_out: dict[int, deque[int]] = {}
        self.inputs: dict[int, deque[Wavelet]] = {}
        self.outputs: list[deque[Wavelet]] = [deque() for _ in range(8)]
        self.activated = self.blocked = self.blocked_threads = 0
        self.flushing: set[int] = set()
        self.flushed: set[int] = set()
        self.cmd_done = True
        self.launches: deque[tuple[int, tuple[int, ...]]] = deque()
        self.iq_color: list[int | None] = [None] * 8
        self.oq_color: list[int | None] = [None] * 8
        self.threads: list[Operation | None] = [None] * 8
        self.next_issue = [0] * 8
        self.turn = [0] * 5
        self.high_tasks = 0
        self.main_class = 3
        self.transform = 0
        self.frames = [0] * 64
        self.fp = self.pc = 0
        self.calls: list[tuple[int, int]] = []
        self.running = False
        self.ready = 0
        self.sync: Operation | None = None
        self.stopped = False
        self.iterators: dict[int, Operation] = {}
        self.dsrs: dict[tuple[int, int], list] = {}
        self.fifos: list[FifoState] = []
        self.lfsr = 0xDEADBEEF
        self.counter_zero = 0
        self.last_task = 31
        self.line = ""
        self.busy = 0
        self.watch: Watch | None = None
        self.acting: Operation | None = None
        if program is not None:
            self.load(program)

    def load(self, program: Program) -> None:
        self.memory[: len(program.memory)] = program.memory.tobytes()
        self.activated, self.blocked = program.activated, program.blocked
        self.iq_color = list(program.input_queue_colors)
        self.oq_color = list(program.output_queue_colors)
        self.fifos = [FifoState() for _ in program.fifos]
        self.local_tasks = {t.id: t for t in program.tasks if t.kind == TaskKind.LOCAL}
        self.data_tasks = {t.id: t for t in program.tasks if t.kind == TaskKind.DATA}
        self.control_tasks = {t.id: t for t in program.tasks if t.kind == TaskKind.CONTROL}
        for load, slots in program.initial_dsr_loads:
            self.dsrs[load.file, load.register] = [slots, load]
        for call, a, b in program.setup:
            self.frames[:2] = a, b
            self.system(Sys(call), 0, 1)
        self.frames[:2] = 0, 0

    # --- helpers ----------------------------------------------------------------------------------------------------

    def place(self) -> Location | None:
        program = self.program
        if program is None or not 0 <= self.pc < len(program.locations):
            return None
        index = int(program.locations[self.pc])
        return program.places[index] if index >= 0 else None

    def fail(self, kind: str, message: str) -> SimulationError:
        place = self.acting.place if self.acting is not None else self.place()
        return SimulationError(kind, message, (self.x, self.y), self.engine.now, place)

    def read(self, address: int, size: int) -> int:
        self.check(address, size)
        return int.from_bytes(self.memory[address : address + size], "little")

    def write(self, address: int, size: int, value: int) -> None:
        self.check(address, size)
        self.memory[address : address + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def load_scalar(self, address: int, size: int) -> int:
        """As read; only scalar instructions reach registers."""
        register = self.register_of(address, size)
        return registers.read(*register) if register is not None else self.read(address, size)

    def store_scalar(self, address: int, size: int, value: int) -> None:
        """As write."""
        register = self.register_of(address, size)
        if register is None:
            self.write(address, size, value)
            return
        registers.write(*register, value & 0xFFFF)
        self.engine.wake_router(self)

    def register_of(self, address: int, size: int) -> tuple[RouteState, bool] | None:
        """The route behind a memory-mapped register, and whether it is the one of its switch."""
        found = registers.color_at(address) if size == 2 and not self.engine.arch.data_task_is_queue else None
        if found is None:
            return None
        color, is_switch = found
        return self.routes.setdefault(color, RouteState.of(Route(((0, 0),)))), is_switch

    def check(self, address: int, size: int) -> None:
        if not 0 <= address <= MEMORY_BYTES - size or (size > 1 and address & 1):
            raise self.fail("BadAddress", f"{size} bytes at address {address}; memory is 0 to {MEMORY_BYTES - 1}")

    def color_of_queue(self, queue: int) -> int | None:
        return self.iq_color[queue]

    def input_depth(self, color: int) -> int:
        depths = self.engine.arch.input_queue_depths
        for queue, own in enumerate(self.iq_color):
            if own == color:
                return depths[queue]
        if self.program is not None and color in self.program.input_queue_of_color:
            return depths[self.program.input_queue_of_color[color]]
        return 2

    def activate(self, task: int) -> None:
        if not 0 <= task < 32:
            raise self.fail("OutOfRange", f"task id {task}; ids are 0 to 31")
        if task not in self.local_tasks and task != TEARDOWN_TASK_ID:
            raise self.fail("UnboundTask", f"task {task} is activated and no task has this id")
        self.activated |= 1 << task

    def complete(self, made: isa.Completion) -> None:
        if made.activate is not None:
            self.activate(made.activate)
        if made.unblock_kind == Block.TASK:
            self.blocked &= ~(1 << made.unblock_id)
        elif made.unblock_kind == Block.MICROTHREAD:
            self.blocked_threads &= ~(1 << made.unblock_id)

    # --- the core's step --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One issue of one thread."""
        now = self.engine.now
        if self.watch is not None:
            self.watch.before(self, now)
        main = self.main_ready(now)
        classes: list[list[int]] = [[] for _ in self.turn]
        for number, thread in enumerate(self.threads):
            if thread is None or self.next_issue[number] > now or self.blocked_threads >> number & 1:
                continue
            if thread.can_step(self, now):
                classes[4 - 2 * thread.priority].append(number)
        if main:
            classes[self.main_class].append(8)
        for level, candidates in enumerate(classes):
            if not candidates:
                continue
            turn = self.turn[level]
            chosen = min(candidates, key=lambda c: (c - turn) % 9)
            self.turn[level] = (chosen + 1) % 9
            self.busy += 1
            if chosen == 8:
                self.main_step(now)
            else:
                self.thread_step(chosen, now)
            if self.watch is not None:
                self.watch.after(self, now)
            return

    def main_ready(self, now: int) -> bool:
        if self.program is None or self.ready > now:
            return False
        if self.sync is not None:
            return self.sync.can_step(self, now)
        if self.running:
            return self.can_issue(now)
        return self.pick(now) is not None

    def can_issue(self, now: int) -> bool:
        """Whether the next instruction can be made now."""
        assert self.program is not None
        op, a, b, c = (int(w) for w in self.program.code[self.pc])
        kind = op >> 4
        if kind == Op.VEC:
            thread = self.start_of(b | c << 16)
            return thread is None or self.threads[thread] is None
        if kind in (Op.IGET, Op.IPUT):
            iterator = self.iterators[b if kind == Op.IGET else a]
            return iterator.stuck(self, now, kind == Op.IPUT, isa.SIZE_BYTES[T(op & 15)]) is None
        return True

    def main_waits(self, now: int) -> tuple[str, Location | None]:
        """What the main thread waits for, and where."""
        assert self.program is not None
        if self.sync is not None:
            return self.sync.blocked_on(self), self.sync.place
        word, a, b, _ = (int(w) for w in self.program.code[self.pc])
        what = None
        if word >> 4 in (Op.IGET, Op.IPUT):
            iterator = self.iterators[b if word >> 4 == Op.IGET else a]
            what = iterator.stuck(self, now, word >> 4 == Op.IPUT, isa.SIZE_BYTES[T(word & 15)])
        return what or "its turn", self.place()

    def thread_step(self, number: int, now: int) -> None:
        thread = self.threads[number]
        assert thread is not None
        self.acting = thread
        self.next_issue[number] = now + thread.step(self, now)
        if thread.done:
            self.threads[number] = None
            self.complete(thread.completion)
        self.acting = None

    def main_step(self, now: int) -> None:
        if self.sync is not None:
            self.acting = self.sync
            self.ready = now + self.sync.step(self, now)
            self.acting = None
            if self.sync.done:
                self.sync = None
            return
        if self.running:
            self.instruction(now)
            while self.ready == now and self.running and self.can_issue(now):
                self.instruction(now)
            return
        picked = self.pick(now)
        assert picked is not None
        function, arguments = picked(True)
        self.start(function, arguments)
        self.ready = now + self.engine.timing["task_start"]

    # --- tasks ------------------------------------------------------------------------------------------------------

    def pick(self, now: int):
        """What can run, as a function that takes it and gives (function index, arguments)."""
        found = self.pick_among(True, now) if self.high_tasks else None
        if found is None:
            found = self.pick_among(False, now)
        if found is not None:
            return found
        if self.launches:
            return lambda take: self.launches.popleft()
        return None

    def pick_among(self, is_high: bool, now: int):
        """The same, of tasks of one priority."""
        for step in range(32):
            task = (self.last_task + 1 + step) % 32
            if self.blocked >> task & 1 or bool(self.high_tasks >> task & 1) != is_high:
                continue
            if self.activated >> task & 1 and task in self.local_tasks:
                return lambda take, task=task: self.take_local(task)
            if task in self.data_tasks:
                color = self.iq_color[task] if self.engine.arch.data_task_is_queue else task
                head = self.head(color, now)
                if color is not None and head is not None and not head.control:
                    return lambda take, task=task, color=color: self.take_data(task, color)
        for color in sorted(self.inputs):
            head = self.head(color, now)
            if head is None or not head.control or not self.control_free(color) or self.is_awaited(color):
                continue
            if bool(self.high_tasks & self.ids_of(color)) == is_high:
                return lambda take, color=color: self.take_control(color)
        return None

    def control_free(self, color: int) -> bool:
        return not self.blocked & self.ids_of(color)

    def is_awaited(self, color: int) -> bool:
        """Whether a control wavelet on a color is for an operation: to end it, or with TRANSFORM_BIT an element."""
        threads = [thread for thread in self.threads if thread is not None]
        sources = [(own, s) for own in threads for s in (own.src0, own.src1) if s is not None and s.is_input]
        return any(
            own.color_in(self, source) == color
            for own, source in sources
            if own.on_control is not None or source.flags & isa.TRANSFORM_BIT
        )

    def ids_of(self, color: int) -> int:
        """The task ids, as bits, that stand for what comes on a color: on WSE-3 of the queues that take it."""
        if self.engine.arch.data_task_is_queue:
            return sum(1 << queue for queue, own in enumerate(self.iq_color) if own == color)
        return 1 << color

    def head(self, color: int | None, now: int) -> Wavelet | None:
        queue = self.inputs.get(color) if color is not None else None
        return queue[0] if queue and queue[0].ready <= now else None

    def take_local(self, task: int) -> tuple[int, tuple[int, ...]]:
        self.activated &= ~(1 << task)
        self.last_task = task
        return self.local_tasks[task].function, ()

    def take_data(self, task: int, color: int) -> tuple[int, tuple[int, ...]]:
        self.last_task = task
        bound = self.data_tasks[task]
        word = self.inputs[color].popleft().data
        return bound.function, self.arguments(bound, word)

    def take_control(self, color: int) -> tuple[int, tuple[int, ...]]:
        wavelet = self.inputs[color][0]
        entry = wavelet.data >> 16 & 0x3F
        if entry not in self.control_tasks:
            raise self.fail(
                "UnboundTask", f"a control wavelet of color {color} asks for control task {entry}, none is bound"
            )
        self.inputs[color].popleft()
        bound = self.control_tasks[entry]
        return bound.function, self.arguments(bound, wavelet.data & 0xFFFF)

    def arguments(self, task, word: int) -> tuple[int, ...]:
        values, at = [], 0
        for bits, signed in zip(task.arg_bits, task.arg_signed, strict=True):
            value = word >> at & (1 << bits) - 1
            values.append(value - (1 << bits) if signed and value >> bits - 1 else value)
            at += bits
        return tuple(values)

    def start(self, function: int, arguments: tuple[int, ...]) -> None:
        assert self.program is not None
        made = self.program.functions[function]
        self.fp, self.pc, self.running = 0, made.entry, True
        self.calls.clear()
        self.grow(made.num_slots)
        self.frames[: len(arguments)] = arguments

    def grow(self, slots: int) -> None:
        if self.fp + slots > STACK_SLOTS:
            raise self.fail("StackOverflow", f"calls need more than {STACK_SLOTS} slots")
        if self.fp + slots > len(self.frames):
            self.frames += [0] * (self.fp + slots + 64 - len(self.frames))

    # --- instructions -----------------------------------------------------------------------------------------------

    def instruction(self, now: int) -> None:
        program, timing = self.program, self.engine.timing
        assert program is not None
        word, a, b, c = (int(w) for w in program.code[self.pc])
        op, kind, k = word >> 4, word & 15, b | c << 16
        r, fp = self.frames, self.fp
        cost, following = timing["scalar"], self.pc + 1
        self.engine.instructions += 1
        if op == Op.MOV:
            r[fp + a] = r[fp + b]
        elif op == Op.MOV3:
            r[fp + a : fp + a + 3] = r[fp + b : fp + b + 3]
        elif op == Op.LDI:
            r[fp + a] = k - (1 << 32) if k >> 31 else k
            cost = timing["immediate"]
        elif op == Op.LDK:
            value = int(program.constants[k])
            r[fp + a] = value - (1 << 64) if value >> 63 else value
            cost = timing["immediate"]
        elif op == Op.LDK3:
            r[fp + a : fp + a + 3] = [int(v) for v in program.constants[k : k + 3]]
            cost = timing["immediate"]
        elif Op.ADD <= op <= Op.SHR:
            r[fp + a], cost = self.arithmetic(Op(op), r[fp + b], r[fp + c], T(kind))
        elif op == Op.ADDI:
            step = c - 0x10000 if c & 0x8000 else c
            r[fp + a] = numerics.wrap(r[fp + b] + step, T(kind))
        elif op == Op.NEG:
            if kind in numerics.FLOATS:
                width = numerics.FLOATS[T(kind)]
                r[fp + a] = r[fp + b] ^ 1 << width - 1
            else:
                r[fp + a] = numerics.wrap(-r[fp + b], T(kind))
        elif op == Op.NOT:
            r[fp + a] = numerics.wrap(~r[fp + b], T(kind))
        elif Op.EQ <= op <= Op.LE:
            r[fp + a] = numerics.compare(Op(op), r[fp + b], r[fp + c], T(kind))
        elif op == Op.JMP:
            following, cost = k, timing["branch"]
        elif op in (Op.JZ, Op.JNZ):
            if (r[fp + a] == 0) == (op == Op.JZ):
                following, cost = k, timing["branch"]
        elif op == Op.CALL:
            if len(self.calls) >= STACK_SLOTS:
                raise self.fail("StackOverflow", f"calls need more than {STACK_SLOTS} slots")
            self.calls.append((self.pc + 1, fp))
            self.fp = fp + a
            made = program.functions[k]
            self.grow(made.num_slots)
            following, cost = made.entry, timing["call"]
        elif op in (Op.RET, Op.HALT):
            cost = timing["call"]
            if self.calls and op == Op.RET:
                following, self.fp = self.calls.pop()
            else:
                self.running = False
        elif op in (Op.LD, Op.LDX):
            size = isa.SIZE_BYTES[T(kind)]
            address = numerics.wrap(r[fp + b] + (c if op == Op.LD else r[fp + c] * size), T.I64)
            value = self.load_scalar(address, size)
            r[fp + a] = numerics.wrap(value, T(kind)) if kind < T.F16 else value
            cost = timing["load"]
        elif op in (Op.ST, Op.STX):
            size = isa.SIZE_BYTES[T(kind)]
            address = numerics.wrap(r[fp + b] + (c if op == Op.ST else r[fp + c] * size), T.I64)
            self.store_scalar(address, size, r[fp + a])
            cost = timing["store"]
        elif op == Op.CVT:
            r[fp + a] = numerics.convert(r[fp + b], T(c), T(kind))
        elif op in (Op.ACTIVATE, Op.BLOCK, Op.UNBLOCK):
            self.task_bit(Op(op), r[fp + a], kind)
            cost = timing["task_bit"]
        elif op == Op.VEC:
            cost = self.start_vector(k, now)
        elif op == Op.LDDSR:
            load = program.dsr_loads[k]
            self.dsrs[load.file, load.register] = [tuple(r[fp + load.slot : fp + load.slot + 3]), load]
            cost = timing["dsd_load"]
        elif Op.DSDBASE <= op <= Op.DSDMOVE:
            self.change_dsd(Op(op), a, b, r[fp + c])
        elif op == Op.IOPEN:
            self.iterators[a] = Operation.iterator(self, isa.Operand(Kind(b), c))
        elif op == Op.IMORE:
            if self.iterators[a].exhausted(self):
                following, cost = k, timing["branch"]
        elif op == Op.IGET:
            r[fp + a] = self.iterators[b].get(self, T(kind))
            cost = timing["load"]
        elif op == Op.IPUT:
            self.iterators[a].put(self, r[fp + b], T(kind), now)
            cost = timing["store"]
        elif op == Op.TSC:
            r[fp + a] = now - self.counter_zero
            cost = timing["timestamp"]
        elif op == Op.TSCST:
            for word in range(3):
                self.write(r[fp + a] + 2 * word, 2, (now - self.counter_zero) >> 16 * word)
            cost = timing["timestamp"]
        elif op == Op.DSRPRE:
            cost = a * timing["dsd_load"]
        elif op == Op.CFGRD:
            r[fp + a] = {0xFFF0: self.x, 0xFFF1: self.y}.get(r[fp + b], 0)
            cost = timing["config"]
        elif op == Op.CFGWR:
            raise self.fail("OutOfRange", f"configuration register {r[fp + a]:#x} cannot be written here")
        elif op == Op.SYS:
            self.system(Sys(c), fp + a, fp + b)
            cost = timing["config"]
        elif op == Op.ASSERT:
            if r[fp + a] == 0:
                raise self.fail("Assertion", program.messages[k])
        elif op == Op.RAND16:
            r[fp + a] = self.random16()
        else:
            raise AssertionError(f"operation {op}")
        self.pc = following
        self.ready = now + cost

    def arithmetic(self, op: Op, a: int, b: int, kind: T) -> tuple[int, int]:
        timing = self.engine.timing
        cost = timing["multiply"] if op == Op.MUL else timing["scalar"]
        if kind in numerics.FLOATS:
            if op in (Op.DIV, Op.REM):
                cost = timing["divide_float"]
            return numerics.float_operation(op, a, b, numerics.FLOATS[kind]), cost
        if op in (Op.DIV, Op.REM):
            cost = timing["divide_int"]
        try:
            return numerics.integer_operation(op, a, b, kind), cost
        except ZeroDivisionError:
            raise self.fail("DivideByZero", "an integer is divided by zero") from None

    def task_bit(self, op: Op, number: int, kind: int) -> None:
        if not 0 <= number < 32:
            raise self.fail("OutOfRange", f"id {number}; ids are 0 to 31")
        if op == Op.ACTIVATE:
            self.activate(number)
        elif kind == Block.MICROTHREAD:
            bit = 1 << number
            self.blocked_threads = self.blocked_threads | bit if op == Op.BLOCK else self.blocked_threads & ~bit
        else:
            bit = 1 << number
            self.blocked = self.blocked | bit if op == Op.BLOCK else self.blocked & ~bit

    def change_dsd(self, op: Op, a: int, b: int, value: int) -> None:
        r, fp = self.frames, self.fp
        first, second, third = (v & 0xFFFFFFFFFFFFFFFF for v in r[fp + b : fp + b + 3])
        value &= 0xFFFF
        if op == Op.DSDBASE:
            first = first & ~(0xFFFF << 32) | value << 32
        elif op == Op.DSDLEN:
            first = first & ~(0xFFFF << 48) | value << 48
        elif op == Op.DSDSTRIDE:
            second = second & ~0xFFFF | value
        else:
            first = first & ~(0xFFFF << 32) | ((first >> 32) + value & 0xFFFF) << 32
        r[fp + a : fp + a + 3] = [first, second, third]

    def random16(self) -> int:
        for _ in range(128):
            bit = (self.lfsr >> 22 ^ self.lfsr >> 17) & 1
            self.lfsr = (self.lfsr << 1 | bit) & 0xFFFFFFFF
        return self.lfsr & 0xFFFF

    # --- vector operations ------------------------------------------------------------------------------------------

    def start_of(self, index: int) -> int | None:
        """The microthread an operation would run in; None: the main thread."""
        assert self.program is not None
        operation = Operation.vector(self, self.program.vectors[index], peek=True)
        return operation.microthread if operation.is_async else None

    def start_vector(self, index: int, now: int) -> int:
        assert self.program is not None
        vector = self.program.vectors[index]
        operation = Operation.vector(self, vector)
        self.stopped = False
        timing = self.engine.timing
        cost = timing["vector_issue"] + vector.loads * timing["dsd_load"] + bool(vector.loads) * timing["dsd_setup"]
        if operation.done:
            if operation.is_async:
                self.complete(operation.completion)
        elif operation.is_async:
            self.threads[operation.microthread] = operation
            self.next_issue[operation.microthread] = now + cost
        else:
            self.sync = operation
        return cost

    # --- system -----------------------------------------------------------------------------------------------------

    def system(self, call: Sys, a: int, b: int) -> None:
        r = self.frames
        first, second = r[a], r[b]
        if call == Sys.UNBLOCK_CMD_STREAM:
            self.cmd_done = True
        elif call == Sys.TEARDOWN_PENDING:
            state = self.routes.get(second)
            r[a] = int(state is not None and state.pending)
        elif call == Sys.QUEUE_FLUSHED:
            r[a] = int(second in self.flushed)
        elif call == Sys.QUEUE_FLUSH:
            self.flushing.add(self.in_range(first, 8, "output queue"))
            self.engine.wake_router(self)
        elif call == Sys.QUEUE_FLUSH_EXIT:
            self.flushed.discard(first)
        elif call == Sys.SET_INPUT_QUEUE:
            queue, color = self.in_range(first, 8, "input queue"), self.in_range(second, 24, "color")
            self.iq_color[queue] = color
            self.engine.wake_router(self)
        elif call == Sys.SET_OUTPUT_QUEUE:
            queue, color = self.in_range(first, 8, "output queue"), self.in_range(second, 24, "color")
            self.oq_color[queue] = color
        elif call == Sys.LOG_STRING:
            assert self.program is not None
            *ended, self.line = (self.line + self.program.message(first)).split("\n")
            self.engine.lines += [LogLine(self.engine.now, (self.x, self.y), text) for text in ended]
        elif call == Sys.LOG_VALUE:
            self.line += numerics.formatted(first, second)
        elif call == Sys.LOG_FLUSH:
            self.engine.lines.append(LogLine(self.engine.now, (self.x, self.y), self.line))
            self.line = ""
        elif call == Sys.SEED_RANDOM:
            self.lfsr = first & 0xFFFFFFFF
        elif call == Sys.RESET_COUNTER:
            self.counter_zero = self.engine.now
        elif call == Sys.FILTER:
            r[a] = self.filter_number(*self.filter_of(second))
        elif call == Sys.SET_FILTER:
            self.set_filter_number(*self.filter_of(first), second)
        elif call == Sys.QUEUE_STATUS:
            r[a] = self.queue_status(bool(second))
        elif call == Sys.TASK_PRIORITY:
            bit = 1 << self.in_range(first, 32, "task id")
            self.high_tasks = self.high_tasks | bit if second else self.high_tasks & ~bit
        elif call == Sys.MAIN_PRIORITY:
            self.main_class = self.in_range(first, 4, "priority")
        elif call == Sys.COMPLETED:
            r[a] = int(not self.stopped)
        elif call == Sys.FIFO_READ_LENGTH:
            self.fifos[self.in_range(first, len(self.fifos), "FIFO")].read_length = second & 0xFFFF
        elif call == Sys.FIFO_WRITE_LENGTH:
            self.fifos[self.in_range(first, len(self.fifos), "FIFO")].write_length = second & 0xFFFF
        elif call == Sys.CONTROL_MASK:
            self.transform = (first & 63) << 16
        elif call == Sys.ROUTE:
            state = self.routes.get(self.in_range(second, 24, "color"))
            rx, tx = (state.positions[0] if state is not None else None) or (0, 0)
            r[a] = rx | tx << 8
        else:
            self.reroute(call, self.in_range(first, 24, "color"), second)

    def in_range(self, value: int, limit: int, what: str) -> int:
        if not 0 <= value < limit:
            raise self.fail("OutOfRange", f"{what} {value}; allowed are 0 to {limit - 1}")
        return value

    def filter_of(self, which: int) -> tuple[RouteState, Filter, FilterNumber]:
        color, number = which & 0xFF, self.in_range(which >> 8, len(FilterNumber), "number of a filter")
        state = self.routes.get(self.in_range(color, 24, "color"))
        if state is None or state.route.filter is None or state.route.filter.kind == FilterKind.RANGE:
            raise self.fail("OutOfRange", f"filter {color}: the color has no counter filter here")
        return state, state.route.filter, FilterNumber(number)

    def filter_number(self, state: RouteState, filt: Filter, number: FilterNumber) -> int:
        return (state.counter, filt.max_counter, state.limit(filt))[number]

    def set_filter_number(self, state: RouteState, filt: Filter, number: FilterNumber, value: int) -> None:
        value &= 0x7FFFFFFF
        if number == FilterNumber.COUNTER:
            state.counter = value
        elif number == FilterNumber.MAX_COUNTER:
            filt = replace(filt, max_counter=value)
        elif state.laps == 0:
            filt = replace(filt, limit1=value)
        else:
            filt, state.laps = replace(filt, limit2=value), 1
        state.route = replace(state.route, filter=filt)
        self.engine.wake_router(self)

    def queue_status(self, is_output: bool) -> int:
        """Bit masks of queues: empty | full << 8."""
        empty = full = 0
        arch = self.engine.arch
        for queue, depth in enumerate(arch.output_queue_depths if is_output else arch.input_queue_depths):
            if is_output:
                length = len(self.outputs[queue])
            else:
                waiting = self.inputs.get(self.color_taken_by(queue), ())
                length = sum(wavelet.ready <= self.engine.now for wavelet in waiting)
            empty |= (length == 0) << queue
            full |= (length >= depth) << queue
        return empty | full << 8

    def color_taken_by(self, queue: int) -> int:
        """The color that an input queue takes, -1: none."""
        own = self.iq_color[queue]
        if own is not None or self.program is None:
            return -1 if own is None else own
        return next((c for c, q in sorted(self.program.input_queue_of_color.items()) if q == queue), -1)

    def reroute(self, call: Sys, color: int, value: int) -> None:
        state = self.routes.get(color)
        if state is None:
            state = self.routes[color] = RouteState.of(Route(((0, 0),)))
        positions = state.positions
        if call == Sys.TEARDOWN_EXIT:
            state.frozen = state.pending = False
        elif call == Sys.SET_ROUTE:
            positions[0] = (value & 0x3F, value >> 8 & 0x3F)
        elif call in (Sys.SET_SWITCH_RX, Sys.SET_SWITCH_TX):
            number, mask = value & 3, value >> 8 & 0x3F
            while len(positions) <= number:
                positions.append(None)
            rx, tx = positions[number] or positions[0] or (0, 0)
            positions[number] = (mask, tx) if call == Sys.SET_SWITCH_RX else (rx, mask)
            state.said += [0] * (len(positions) - len(state.said))
            state.said[number] |= 1 if call == Sys.SET_SWITCH_RX else 2
        elif call == Sys.SET_SWITCH_POSITION:
            state.position = value & 3
        elif call == Sys.INVALIDATE_SWITCHES:
            del positions[1:]
        elif call == Sys.POP_MODE:
            state.route = replace(state.route, pop=Pop(self.in_range(value, len(Pop), "pop mode")))
        elif call == Sys.RING_MODE:
            state.ring = bool(value)
        self.engine.wake_router(self)

    def has_work(self) -> bool:
        """Something might issue now or later without anything from outside."""
        return self.program is not None and (
            self.running or bool(self.launches) or any(t is not None for t in self.threads) or bool(self.activated)
            or any(self.inputs.values())
        )  # fmt: skip


class ReferenceEngine(Engine):
    """See sim/engine.py."""

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        self.arch = ARCHITECTURES[image.arch]
        self.timing = {name: cycles.value for name, cycles in self.arch.timing.items()}
        self.now = 0
        self.instructions = self.elements = self.hops = 0
        self.lines: list[LogLine] = []
        width, height = image.size
        self.width, self.height = width, height
        self.links = np.zeros((height, width, 4), np.int64)
        self.pes = [
            Pe(
                self, x, y,
                image.programs[image.program_of[y, x]] if image.program_of[y, x] >= 0 else None,
                image.route_tables[image.routes_of[y, x]],
            )
            for y in range(height) for x in range(width)
        ]  # fmt: skip
        self.cores = {pe.y * width + pe.x for pe in self.pes}
        self.routers: set[int] = set()

    @property
    def cycle(self) -> int:
        return self.now

    def pe(self, x: int, y: int) -> Pe:
        return self.pes[y * self.width + x]

    def wake_router(self, pe: Pe) -> None:
        self.routers.add(pe.y * self.width + pe.x)

    def wake_core(self, pe: Pe) -> None:
        self.cores.add(pe.y * self.width + pe.x)

    # --- the host's side --------------------------------------------------------------------------------------------

    def read(self, x: int, y: int, address: int, num_bytes: int) -> bytes:
        check_address(address, num_bytes)
        return bytes(self.pe(x, y).memory[address : address + num_bytes])

    def write(self, x: int, y: int, address: int, data: bytes) -> None:
        check_address(address, len(data))
        self.pe(x, y).memory[address : address + len(data)] = data

    def launch(self, x: int, y: int, width: int, height: int, functions: np.ndarray, arguments: np.ndarray) -> None:
        values = tuple(int(v) for v in arguments)
        for dy in range(height):
            for dx in range(width):
                pe = self.pe(x + dx, y + dy)
                pe.launches.append((int(functions[dy, dx]), values))
                pe.cmd_done = False
                self.wake_core(pe)

    def send(self, x: int, y: int, color: int, words: np.ndarray, control: bool = False) -> None:
        pe = self.pe(x, y)
        queue = pe.host_in.setdefault(color, deque())
        queue.extend(Wavelet(int(word), control, color, self.now) for word in words)
        self.wake_router(pe)

    def received(self, x: int, y: int, color: int) -> int:
        return len(self.pe(x, y).host_out.get(color, ()))

    def receive(self, x: int, y: int, color: int, count: int) -> np.ndarray:
        queue = self.pe(x, y).host_out.get(color, deque())
        return np.array([queue.popleft() for _ in range(min(count, len(queue)))], np.uint32)

    def run_commands(self, x: int, y: int, width: int, height: int, max_cycles: int) -> Stop:
        waiting = [self.pe(x + dx, y + dy) for dy in range(height) for dx in range(width)]
        return self.run(lambda: all(pe.cmd_done for pe in waiting), max_cycles)

    def run_received(self, x: int, y: int, width: int, height: int, color: int, count: int, max_cycles: int) -> Stop:
        waiting = [self.pe(x + dx, y + dy) for dy in range(height) for dx in range(width)]
        return self.run(lambda: all(len(pe.host_out.get(color, ())) >= count for pe in waiting), max_cycles)

    def run_idle(self, max_cycles: int) -> Stop:
        stop = self.run(lambda: False, max_cycles)
        return Stop.DONE if stop == Stop.IDLE else stop

    def run(self, done, max_cycles: int) -> Stop:
        limit = self.now + max_cycles
        last = self.now
        while not done():
            if self.now >= limit:
                return Stop.LIMIT
            if self.one_cycle():
                self.now += 1
                last = self.now
                continue
            following = self.next_event()
            if following >= NEVER:
                self.now = last
                self.cores.clear()  # all sleep until something from outside wakes them
                self.routers.clear()
                return Stop.IDLE
            self.now = max(self.now + 1, min(following, limit))
        return Stop.DONE

    def one_cycle(self) -> bool:
        """Both phases; whether anything happened."""
        happened = False
        for index in sorted(self.cores):
            pe = self.pes[index]
            before = pe.busy
            pe.step()
            if pe.busy != before:
                happened = True
            elif not pe.has_work():
                self.cores.discard(index)
            if any(pe.outputs):
                self.routers.add(index)
        moves = []
        for index in sorted(self.routers):
            moves += self.decide(self.pes[index])
        for move in moves:
            move()
        return self.inject() or happened or bool(moves)

    def next_event(self) -> int:
        """The first cycle after this at which something could happen; NEVER if nothing can."""
        soonest = NEVER
        for index in self.cores:
            pe = self.pes[index]
            if pe.running or pe.sync is not None or pe.activated or pe.launches:
                soonest = min(soonest, pe.ready if pe.ready > self.now else NEVER)
            times = [t for n, t in enumerate(pe.next_issue) if pe.threads[n] is not None and t > self.now]
            times += [q[0].ready for q in pe.inputs.values() if q and q[0].ready > self.now]
            if any(q for q in pe.inputs.values()) and pe.ready > self.now:
                times.append(pe.ready)
            soonest = min([soonest, *times])
        for index in self.routers:
            pe = self.pes[index]
            queues = [*pe.queues.values(), *pe.host_in.values()]
            soonest = min([soonest, *(q[0].ready for q in queues if q and q[0].ready > self.now)])
            soonest = min([soonest, *(q[0].ready - 1 for q in pe.outputs if q and q[0].ready - 1 > self.now)])
        return soonest

    # --- routers ----------------------------------------------------------------------------------------------------

    def decide(self, pe: Pe) -> list:
        """Moves of one router in this cycle, as functions that make them."""
        taken: set[int] = set()
        seen: set[int] = set()
        moves = []
        heads: dict[int, list[tuple[int, deque[Wavelet]]]] = {}
        for (port, color), queue in pe.queues.items():
            if queue and queue[0].ready <= self.now:
                heads.setdefault(color, []).append((port, queue))
        for color, queue in pe.host_in.items():
            if queue and queue[0].ready <= self.now:
                heads.setdefault(color, []).append((Port.HOST, queue))
        if not heads:
            if not (any(pe.queues.values()) or any(pe.host_in.values()) or any(pe.outputs) or pe.flushing):
                self.routers.discard(pe.y * self.width + pe.x)
            return moves
        for port in Port:
            for step in range(24):
                color = (self.now + port + step) % 24
                if color in seen or color not in heads:
                    continue
                state = pe.routes.get(color)
                if state is not None and state.frozen:
                    continue
                if state is None or state.now() is None:
                    raise SimulationError(
                        "NoRoute", f"a wavelet of color {color} has no route", (pe.x, pe.y), self.now, None
                    )
                rx, tx = state.positions[state.position]  # pyright: ignore[reportGeneralTypeIssues]
                if not tx >> port & 1:
                    continue
                seen.add(color)
                accepted = (
                    sorted((p, q) for p, q in heads[color] if rx >> p & 1)
                    if len(heads[color]) > 1
                    else [(p, q) for p, q in heads[color] if rx >> p & 1]
                )
                if not accepted:
                    continue
                if len(accepted) > 1:
                    raise SimulationError(
                        "Collision", f"color {color} arrives from two sides at once", (pe.x, pe.y), self.now, None
                    )
                outs = [Port(p) for p in range(6) if tx >> p & 1]
                if any(out in taken for out in outs):
                    continue
                wavelet = accepted[0][1][0]
                if not self.room(pe, state, wavelet, outs):
                    continue
                taken.update(outs)
                port, queue = accepted[0]
                moves.append(lambda s=state, p=port, q=queue, o=outs: self.move(pe, s, p, q, o))
        return moves

    def to_core(self, pe: Pe, wavelet: Wavelet) -> bool:
        """Whether the copy for the ramp is delivered, filter aside; entry point 31 is none, if no task has it."""
        if not wavelet.control:
            return True
        has_task = pe.program is not None and NO_ENTRY_POINT in pe.control_tasks
        return not wavelet.data >> 24 & 1 and (wavelet.data >> 16 & 0x3F != NO_ENTRY_POINT or has_task)

    def passes(self, state: RouteState, wavelet: Wavelet) -> bool:
        filt = state.route.filter
        if filt is None:
            return True
        if filt.kind == FilterKind.RANGE:
            return wavelet.control or filt.min_idx <= wavelet.data >> 16 <= filt.max_idx
        if wavelet.control and filt.filter_control and filt.kind == FilterKind.COUNTER:
            return state.counter == filt.max_counter
        tested = filt.count_control or not wavelet.control
        if filt.kind == FilterKind.SPARSE_COUNTER and not state.limit(filt):
            return True
        return not tested or state.counter <= filt.max_counter

    def room(self, pe: Pe, state: RouteState, wavelet: Wavelet, outs: list[Port]) -> bool:
        for out in outs:
            if out == Port.HOST:
                continue
            color = wavelet.color
            if out == Port.RAMP:
                if self.to_core(pe, wavelet) and self.passes(state, wavelet):
                    queue = pe.inputs.get(color)
                    if queue is not None and len(queue) >= pe.input_depth(color):
                        return False
                continue
            dx, dy = _STEP[out]
            x, y = pe.x + dx, pe.y + dy
            if not (0 <= x < self.width and 0 <= y < self.height):
                continue
            if not self.has_room(self.pe(x, y), color, OPPOSITE[out]):
                return False
        return True

    def has_room(self, pe: Pe, color: int, port: int) -> bool:
        """Whether a router can take a wavelet of a color that comes in at a port."""
        queues = (pe.queues.get((port, own), ()) for own in self.receivers(pe, color, port))
        return all(len(queue) < self.arch.router_queue_depth for queue in queues)

    def receivers(self, pe: Pe, color: int, port: int) -> list[int]:
        """The colors that take what comes in on `color`: with color swap the other of the pair, or both."""
        found = []
        for own in (color, color ^ 1):
            state = pe.routes.get(own)
            swap = state.route.swap if state is not None else 0
            swaps = swap == 3 if port == Port.RAMP else swap >> (0 if port in (Port.EAST, Port.WEST) else 1) & 1
            if own ^ swaps == color:
                found.append(own)
        return found or [color]

    def move(self, pe: Pe, state: RouteState, port: int, queue: deque[Wavelet], outs: list[Port]) -> None:
        wavelet = queue.popleft()
        if port < Port.RAMP:  # the neighbour may have waited for room
            dx, dy = _STEP[Port(port)]
            self.wake_router(self.pe(pe.x + dx, pe.y + dy))
        command = wavelet.data >> 22 & 3 if wavelet.control else (1 if wavelet.advance else 0)
        sent = wavelet.data
        if wavelet.control:
            sent = self.popped(state, wavelet.data, command)
        for out in outs:
            if out == Port.HOST:
                if wavelet.control and wavelet.data >> 24 & 1:
                    continue
                pe.host_out.setdefault(wavelet.color, deque()).append(wavelet.data)
            elif out == Port.RAMP:
                self.deliver(pe, state, wavelet)
            else:
                self.links[pe.y, pe.x, out] += 1
                self.hops += 1
                dx, dy = _STEP[out]
                if not (0 <= pe.x + dx < self.width and 0 <= pe.y + dy < self.height):
                    state.gone[out] = state.gone.get(out, 0) + 1
                    continue
                other = self.pe(pe.x + dx, pe.y + dy)
                ready = self.now + self.timing["hop"]
                for color in self.receivers(other, wavelet.color, OPPOSITE[out]):
                    target = other.queues.setdefault((OPPOSITE[out], color), deque())
                    target.append(Wavelet(sent, wavelet.control, color, ready, wavelet.advance))
                self.wake_router(other)
        self.act(pe, state, command)

    def popped(self, state: RouteState, data: int, command: int) -> int:
        pop = state.route.pop
        advances = command == 1 and self.next_position(state) != state.position
        drop = pop == Pop.ALWAYS_POP or (pop in (Pop.POP_ON_ADVANCE, Pop.POP_ON_ADVANCE_NOP) and advances)
        drop = drop or (pop == Pop.POP_ON_ADVANCE_NOP and command == 0)
        if not drop:
            return data
        bits = [data >> (22 + i) % 30 & 1 for i in range(24)]
        moved = [*bits[3:], 0, 0, 0]
        mask = sum(1 << (22 + i) % 30 for i in range(24))
        return data & ~mask | sum(bit << (22 + i) % 30 for i, bit in enumerate(moved))

    def deliver(self, pe: Pe, state: RouteState, wavelet: Wavelet) -> None:
        if not self.to_core(pe, wavelet):
            return
        passes = self.passes(state, wavelet)
        filt = state.route.filter
        if filt is not None and filt.kind != FilterKind.RANGE and filt.counts(wavelet.control):
            state.count(filt)
        if passes:
            ready = self.now + self.timing["ramp_in"]
            pe.inputs.setdefault(wavelet.color, deque()).append(
                Wavelet(wavelet.data, wavelet.control, wavelet.color, ready)
            )
            self.wake_core(pe)

    def next_position(self, state: RouteState) -> int:
        """Where SWITCH_ADV goes from here."""
        following = state.position + 1
        if following < len(state.positions) and state.positions[following] is not None:
            return following
        return 0 if state.ring else state.position

    def act(self, pe: Pe, state: RouteState, command: int) -> None:
        """SWITCH_ADV, SWITCH_RST or TEARDOWN."""
        if command == 1:
            state.position = self.next_position(state)
        elif command == 2:
            state.position = 0
        elif command == 3:
            state.frozen = state.pending = True
            if pe.program is not None:
                pe.activated |= 1 << TEARDOWN_TASK_ID
                self.wake_core(pe)

    def inject(self) -> bool:
        """From output queues into routers: one wavelet a PE. Whether anything happened."""
        happened = False
        for index in sorted(self.routers):
            pe = self.pes[index]
            for step in range(8):
                number = (self.now + step) % 8
                queue = pe.outputs[number]
                if not queue or queue[0].ready - 1 > self.now:
                    continue
                if not self.has_room(pe, queue[0].color, Port.RAMP):
                    continue
                sent = queue.popleft()
                for color in self.receivers(pe, sent.color, Port.RAMP):
                    made = Wavelet(sent.data, sent.control, color, self.now + 1, sent.advance)
                    pe.queues.setdefault((Port.RAMP, color), deque()).append(made)
                self.wake_core(pe)
                happened = True
                break
            for number in list(pe.flushing):
                if not pe.outputs[number]:
                    pe.flushing.discard(number)
                    pe.flushed.add(number)
                    pe.activated |= 1 << TEARDOWN_TASK_ID
                    self.wake_core(pe)
                    happened = True
        return happened

    # --- reports ----------------------------------------------------------------------------------------------------

    def waits(self) -> list[Wait]:
        found = []
        for pe in self.pes:
            if pe.program is None:
                continue
            if pe.running or pe.sync is not None:
                what, place = pe.main_waits(self.now)
                found.append(Wait((pe.x, pe.y), "main", what, place))
            found += [
                Wait((pe.x, pe.y), f"microthread {n}", t.blocked_on(pe), t.place)
                for n, t in enumerate(pe.threads) if t is not None
            ]  # fmt: skip
            for color, queue in sorted(pe.inputs.items()):
                if queue:
                    found.append(
                        Wait((pe.x, pe.y), "input", f"{len(queue)} wavelets of color {color} that nothing takes", None)
                    )
        return found + self.gone()

    def gone(self) -> list[Wait]:
        return [
            gone_wait((pe.x, pe.y), color, port, count)
            for pe in self.pes
            for color, state in sorted(pe.routes.items())
            for port, count in sorted(state.gone.items())
        ]

    def log(self) -> list[LogLine]:
        return sorted(self.lines, key=lambda line: (line.cycle, line.pe[1], line.pe[0]))

    def stats(self) -> Stats:
        busy = np.array([pe.busy for pe in self.pes], np.int64).reshape(self.height, self.width)
        return Stats(self.now, self.instructions, self.elements, self.hops, busy, self.links.copy())

    def watch(self, pes: list[tuple[int, int]], limit: int) -> bool:
        for x, y in pes:
            self.pe(x, y).watch = Watch(x, y, limit)
        return True

    def events(self) -> list[Event]:
        watches = [pe.watch for pe in self.pes if pe.watch is not None]
        return sorted((e for w in watches for e in w.events(self.now)), key=lambda e: (e.start, e.pe[1], e.pe[0]))

    def close(self) -> None:
        self.pes.clear()
