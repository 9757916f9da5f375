"""The fast engine: core/core.c through ctypes, in values and cycles equal to sim/reference.py.

The library lies beside this file as `_core.so`, built at install (setup.py). OPENWAFER_ENGINE=reference keeps to the
plain-Python engine; without the library that one runs, and says so once.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.wafer.arch import ARCHITECTURES, MEMORY_BYTES, NUM_COLORS
from openwafer.wafer.image import Filter, Image, Location, Pop, Program, Route, Task
from openwafer.wafer.isa import NOTHING, Completion, DsrFile, DsrLoad, Op, Sys, V, Vector
from openwafer.wafer.sim.engine import (
    Engine,
    Event,
    EventKind,
    LogLine,
    SimulationError,
    Stats,
    Stop,
    Wait,
    check_address,
    gone_wait,
)
from openwafer.wafer.sim.numerics import formatted
from openwafer.wafer.sim.reference import STACK_SLOTS
from openwafer.wafer.sim.watch import named_operation, named_task
from openwafer.wafer.sim.widths import WIDTHS

NONE = 0xFF
TIMINGS = (
    "hop", "ramp_in", "ramp_out", "float_latency", "task_start", "scalar", "immediate", "load", "store", "multiply",
    "divide_int", "divide_float", "branch", "call", "task_bit", "dsd_load", "dsd_setup", "vector_issue", "timestamp",
    "config",
)  # fmt: skip
"""The order of `Timing` in core/machine.h."""
ROUTER_RING, CORE_RING = 4, 8
"""Wavelets that its bounded queues can hold, as in core/machine.h."""
_STOPS = (Stop.DONE, Stop.IDLE, Stop.LIMIT)
_RANGES = ("input queue", "output queue", "color", "pop mode", "number of a filter", "task id", "priority", "FIFO")
_IDLE, _COMMANDS, _RECEIVED, _FAULT, _MAX_WAITS = 0, 1, 2, 3, 10_000


class _ProgramIn(ctypes.Structure):
    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in (
                "code", "constants", "functions", "vectors", "loads", "initial_loads", "fifos", "tasks",
                "setup", "initial_slots", "memory", "queues",
            )
        ],
        *[
            (name, ctypes.c_int32)
            for name in (
                "num_code", "num_constants", "num_functions", "num_vectors", "num_loads", "num_initial", "num_fifos",
                "num_tasks", "num_memory", "num_iterators", "num_setup",
            )
        ],
        ("activated", ctypes.c_uint32),
        ("blocked", ctypes.c_uint32),
    ]  # fmt: skip


_LOG = np.dtype([("cycle", "u8"), ("value", "i8"), ("pe", "i4"), ("kind", "i4"), ("form", "i4"), ("unused", "i4")])


@functools.cache
def library() -> Any:
    """The compiled core, or None."""
    path = Path(os.environ.get("OPENWAFER_CORE") or Path(__file__).with_name("_core.so"))
    if not path.is_file():
        return None
    core = ctypes.CDLL(str(path))
    core.ow_new.restype = core.ow_memory.restype = core.ow_log.restype = ctypes.c_void_p
    core.ow_cycle.restype = ctypes.c_uint64
    core.ow_received.restype = core.ow_receive.restype = core.ow_waits.restype = ctypes.c_int64
    core.ow_new.argtypes = [*[ctypes.c_int32] * 3, *[ctypes.c_void_p] * 3, ctypes.c_int32, ctypes.c_void_p]
    core.ow_memory.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    core.ow_run.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 6, ctypes.c_int64, ctypes.c_uint64]
    core.ow_send.argtypes = [
        ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32,
    ]  # fmt: skip
    core.ow_receive.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64]
    core.ow_received.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    core.ow_copy.argtypes = [
        ctypes.c_void_p, *[ctypes.c_int32] * 4, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32,
    ]  # fmt: skip
    core.ow_launch.argtypes = [
        ctypes.c_void_p, *[ctypes.c_int32] * 4, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32,
    ]  # fmt: skip
    core.ow_watch.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]
    core.ow_events.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    core.ow_events.restype = ctypes.c_int64
    core.ow_add_routes.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    core.ow_waits.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for name in ("free", "cycle", "log", "reserve", "add_program", "start", "fault", "totals", "activity"):
        getattr(core, f"ow_{name}").argtypes = [ctypes.c_void_p, *{
            "reserve": [ctypes.c_int32] * 2, "add_program": [ctypes.c_void_p], "start": [ctypes.c_void_p] * 2,
            "fault": [ctypes.c_void_p], "totals": [ctypes.c_void_p], "activity": [ctypes.c_void_p] * 2,
        }.get(name, [])]  # fmt: skip
    return core


_EVENT = np.dtype(
    [(n, "i8") for n in ("start", "end", "name")] + [(n, "i4") for n in ("pe", "thread", "kind", "unused")]
)
_EVENT_KINDS = (EventKind.TASK, EventKind.VECTOR, EventKind.STALL)


class CoreEngine(Engine):
    """See sim/engine.py."""

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        self._core = library()
        assert self._core is not None, "load.make_engine asks first"
        arch = ARCHITECTURES[image.arch]
        self.width, self.height = image.size
        timing = _ints([arch.timing[name].value for name in TIMINGS])
        side = 0 if arch.name == "wse2" else 1
        widths = _ints([WIDTHS.get(op, (1, 1))[side] for op in V])
        depths = _ints((*arch.input_queue_depths, *[0] * 8)[:8]), _ints((*arch.output_queue_depths, *[0] * 8)[:8])
        assert max(max(depths[0]), max(depths[1])) <= CORE_RING and arch.router_queue_depth <= ROUTER_RING
        self._sim = self._core.ow_new(
            self.width, self.height, int(arch.data_task_is_queue), _at(timing), _at(depths[0]), _at(depths[1]),
            arch.router_queue_depth, _at(widths),
        )  # fmt: skip
        if not self._sim:
            raise MemoryError(f"no memory for {self.width} x {self.height} PEs")
        self._core.ow_reserve(self._sim, len(image.programs), len(image.route_tables))
        for program in image.programs:
            self._add(program)
        for table in image.route_tables:
            rows = _ints([_route_row(color, route) for color, route in sorted(table.items())])
            self._core.ow_add_routes(self._sim, _at(rows), len(table))
        self._core.ow_start(self._sim, _at(_ints(image.program_of)), _at(_ints(image.routes_of)))

    def _add(self, program: Program) -> None:
        """Hand a program over; the core copies it."""
        code = np.ascontiguousarray(program.code, np.uint16)
        opened = code[code[:, 0] >> 4 == Op.IOPEN] if len(code) else code
        functions = _ints([(f.entry, f.num_slots, f.num_args) for f in program.functions])
        vectors, loads = (
            _ints([_vector_row(v) for v in program.vectors]),
            _ints([_load_row(d) for d in program.dsr_loads]),
        )
        initial = _ints([_load_row(d) for d, _ in program.initial_dsr_loads])
        slots = np.array([s for _, three in program.initial_dsr_loads for s in three], np.uint64)
        fifos = _ints(
            [(f.base, f.capacity, f.element_bytes, *_done(f.on_push), *_done(f.on_pop)) for f in program.fifos]
        )
        tasks = _ints([_task_row(task) for task in program.tasks])
        setup = _ints(program.setup)
        queues = [NONE if c is None else c for c in (*program.input_queue_colors, *program.output_queue_colors)]
        queues += [program.input_queue_of_color.get(color, NONE) for color in range(NUM_COLORS)]
        queue_bytes = np.array(queues, np.uint8)
        constants = np.ascontiguousarray(program.constants, np.uint64)
        memory = np.ascontiguousarray(program.memory, np.uint8)
        made = _ProgramIn(
            *map(_at, (code, constants, functions, vectors, loads, initial, fifos, tasks, setup, slots, memory,
                   queue_bytes)),
            len(code), len(constants), len(program.functions), len(program.vectors), len(program.dsr_loads),
            len(program.initial_dsr_loads), len(program.fifos), len(program.tasks), len(memory),
            int(opened[:, 1].max()) + 1 if len(opened) else 0, len(program.setup), program.activated, program.blocked,
        )  # fmt: skip
        self._core.ow_add_program(self._sim, ctypes.byref(made))

    @property
    def cycle(self) -> int:
        return self._core.ow_cycle(self._sim)

    def _number(self, x: int, y: int) -> int:
        assert 0 <= x < self.width and 0 <= y < self.height
        return y * self.width + x

    def _check(self, x: int, y: int, width: int, height: int) -> None:
        assert x >= 0 and y >= 0 and x + width <= self.width and y + height <= self.height

    # --- the host's side --------------------------------------------------------------------------------------------

    def read(self, x: int, y: int, address: int, num_bytes: int) -> bytes:
        check_address(address, num_bytes)
        return ctypes.string_at(self._core.ow_memory(self._sim, self._number(x, y)) + address, num_bytes)

    def write(self, x: int, y: int, address: int, data: bytes) -> None:
        check_address(address, len(data))
        ctypes.memmove(self._core.ow_memory(self._sim, self._number(x, y)) + address, data, len(data))

    def read_block(self, x: int, y: int, addresses: np.ndarray, num_bytes: int) -> np.ndarray:
        blocks = np.empty((*addresses.shape, num_bytes), np.uint8)
        self._copy(x, y, addresses, blocks, 1)
        return blocks

    def write_block(self, x: int, y: int, addresses: np.ndarray, blocks: np.ndarray) -> None:
        self._copy(x, y, addresses, np.ascontiguousarray(blocks, np.uint8), 0)

    def _copy(self, x: int, y: int, addresses: np.ndarray, blocks: np.ndarray, out: int) -> None:
        height, width = addresses.shape
        self._check(x, y, width, height)
        check_address(int(addresses.min()), 0)
        check_address(int(addresses.max()), blocks.shape[2])
        self._core.ow_copy(self._sim, x, y, width, height, _at(_ints(addresses)), blocks.shape[2], _at(blocks), out)

    def launch(self, x: int, y: int, width: int, height: int, functions: np.ndarray, arguments: np.ndarray) -> None:
        self._check(x, y, width, height)
        values = np.array([int(v) for v in arguments], np.int64)
        self._core.ow_launch(self._sim, x, y, width, height, _at(_ints(functions)), _at(values), len(values))

    def send(self, x: int, y: int, color: int, words: np.ndarray, control: bool = False) -> None:
        data = np.ascontiguousarray(words, np.uint32)
        self._core.ow_send(self._sim, self._number(x, y), color, _at(data), len(data), int(control))

    def received(self, x: int, y: int, color: int) -> int:
        return self._core.ow_received(self._sim, self._number(x, y), color)

    def receive(self, x: int, y: int, color: int, count: int) -> np.ndarray:
        words = np.empty(count, np.uint32)
        return words[: self._core.ow_receive(self._sim, self._number(x, y), color, _at(words), count)]

    # --- time -------------------------------------------------------------------------------------------------------

    def run_commands(self, x: int, y: int, width: int, height: int, max_cycles: int) -> Stop:
        return self._run(_COMMANDS, x, y, width, height, 0, 0, max_cycles)

    def run_received(self, x: int, y: int, width: int, height: int, color: int, count: int, max_cycles: int) -> Stop:
        return self._run(_RECEIVED, x, y, width, height, color, count, max_cycles)

    def run_idle(self, max_cycles: int) -> Stop:
        stop = self._run(_IDLE, 0, 0, 1, 1, 0, 0, max_cycles)
        return Stop.DONE if stop == Stop.IDLE else stop

    def _run(self, mode: int, x: int, y: int, width: int, height: int, color: int, count: int, cycles: int) -> Stop:
        self._check(x, y, width, height)
        stop = self._core.ow_run(self._sim, mode, x, y, width, height, color, count, cycles)
        if stop == _FAULT:
            raise self._fault()
        return _STOPS[stop]

    # --- reports ----------------------------------------------------------------------------------------------------

    def _program(self, pe: int) -> Program:
        return self.image.programs[self.image.program_of[pe // self.width, pe % self.width]]

    def _place(self, pe: int, pc: int) -> Location | None:
        if pc < 0:
            return None
        program = self._program(pe)
        index = int(program.locations[pc]) if pc < len(program.locations) else -1
        return program.places[index] if index >= 0 else None

    def _fault(self) -> SimulationError:
        fields = np.zeros(7, np.int64)
        self._core.ow_fault(self._sim, _at(fields))
        cycle, kind, pe, pc, a, b, c = (int(v) for v in fields)
        name, text = _text(kind, a, b, c, self._program(pe) if pc >= 0 else None)
        return SimulationError(name, text, (pe % self.width, pe // self.width), cycle, self._place(pe, pc))

    def waits(self) -> list[Wait]:
        rows = np.zeros((_MAX_WAITS, 6), np.int32)
        found = self._core.ow_waits(self._sim, _at(rows), _MAX_WAITS)
        return [self._wait(*(int(v) for v in row)) for row in rows[:found]]

    def _wait(self, pe: int, thread: int, what: int, a: int, b: int, pc: int) -> Wait:
        where = pe % self.width, pe // self.width
        if thread == 8:
            return Wait(where, "input", f"{b} wavelets of color {a} that nothing takes", None)
        if thread == 9:
            return gone_wait(where, a, what, b)
        name = "main" if thread < 0 else f"microthread {thread}"
        return Wait(where, name, _waits_for(what, a, b), self._place(pe, pc))

    def log(self) -> list[LogLine]:
        totals = np.zeros(4, np.int64)
        self._core.ow_totals(self._sim, _at(totals))
        if not totals[3]:
            return []
        raw = ctypes.string_at(self._core.ow_log(self._sim), int(totals[3]) * _LOG.itemsize)
        lines: list[LogLine] = []
        open_lines: dict[int, str] = {}
        for entry in np.frombuffer(raw, _LOG):
            pe, cycle = int(entry["pe"]), int(entry["cycle"])
            line = open_lines.get(pe, "")
            if entry["kind"] == Sys.LOG_VALUE:
                open_lines[pe] = line + formatted(int(entry["value"]), int(entry["form"]))
                continue
            text = self._program(pe).message(int(entry["value"])) if entry["kind"] == Sys.LOG_STRING else "\n"
            *ended, open_lines[pe] = (line + text).split("\n")
            lines += [LogLine(cycle, (pe % self.width, pe // self.width), part) for part in ended]
        return sorted(lines, key=lambda made: (made.cycle, made.pe[1], made.pe[0]))

    def watch(self, pes: list[tuple[int, int]], limit: int) -> bool:
        for x, y in pes:
            self._core.ow_watch(self._sim, self._number(x, y), limit)
        return True

    def events(self) -> list[Event]:
        rows = np.zeros(self._core.ow_events(self._sim, None, 0), _EVENT)
        self._core.ow_events(self._sim, _at(rows), len(rows))
        made = [self._event(*row) for row in rows.tolist()]
        return sorted(made, key=lambda e: (e.start, e.pe[1], e.pe[0]))

    def _event(self, start: int, end: int, name: int, pe: int, thread: int, kind: int, _: int) -> Event:
        what = _EVENT_KINDS[kind]
        if what == EventKind.TASK:
            text = named_task(self._program(pe), name, self._place(pe, name))
        elif what == EventKind.VECTOR:
            text = named_operation(V(name >> 32), self._place(pe, name & 0xFFFFFFFF))
        else:
            text = _waits_for(name >> 48, name >> 24 & 0xFFFFFF, name & 0xFFFFFF)
        where = pe % self.width, pe // self.width
        return Event(where, "main" if thread == 8 else f"microthread {thread}", what, start, end, text)

    def stats(self) -> Stats:
        totals = np.zeros(4, np.int64)
        self._core.ow_totals(self._sim, _at(totals))
        busy = np.zeros((self.height, self.width), np.int64)
        links = np.zeros((self.height, self.width, 4), np.int64)
        self._core.ow_activity(self._sim, _at(busy), _at(links))
        return Stats(self.cycle, int(totals[0]), int(totals[1]), int(totals[2]), busy, links)

    def close(self) -> None:
        if self._sim:
            self._core.ow_free(self._sim)
            self._sim = None

    def __del__(self) -> None:
        if getattr(self, "_sim", None):
            self.close()


def _ints(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32)


def _at(array: np.ndarray) -> ctypes.c_void_p:
    """A pointer that keeps its array alive."""
    return array.ctypes.data_as(ctypes.c_void_p)


def _padded(values: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(int(v) for v in (*values, 0, 0, 0, 0)[:4])


def _done(made: Completion) -> tuple[int, int, int]:
    return (-1 if made.activate is None else made.activate, int(made.unblock_kind), made.unblock_id)


def _task_row(task: Task) -> tuple[int, ...]:
    arguments = (len(task.arg_bits), *_padded(task.arg_bits), *_padded(task.arg_signed))
    return (task.kind, task.id, task.function, *arguments)


def _load_row(load: DsrLoad) -> tuple[int, ...]:
    return (
        load.file, load.register, load.slot, int(load.save_address), int(load.is_async), *_done(load.completion),
        -1 if load.microthread is None else load.microthread, load.priority,
    )  # fmt: skip


def _vector_row(v: Vector) -> tuple[int, ...]:
    operands = [part for o in (v.dest, v.src0, v.src1, v.scalar) for part in (int(o.kind), o.value)]
    return (
        int(v.op), *operands, int(v.is_async), *_done(v.completion), -1 if v.microthread is None else v.microthread,
        int(v.priority), -1 if v.index is None else v.index, v.loads, int(v.on_control is not None),
        *_done(v.on_control or NOTHING),
    )  # fmt: skip


def _route_row(color: int, route: Route) -> tuple[int, ...]:
    positions = (*route.positions, None, None, None, None)[:4]
    valid = sum(1 << i for i, p in enumerate(positions) if p is not None)
    rx, tx = ([0 if p is None else p[side] for p in positions] for side in (0, 1))
    f = route.filter or Filter(kind=0)  # pyright: ignore[reportArgumentType]
    return (
        color, len(route.positions), *rx, *tx, valid, route.position, int(route.ring), int(Pop(route.pop)),
        int(route.teardown), route.swap, NONE if route.filter is None else int(f.kind), int(f.count_data),
        int(f.count_control), int(f.filter_control), f.init_counter, f.max_counter, f.limit1, f.limit2, f.min_idx,
        f.max_idx,
    )  # fmt: skip


def _waits_for(what: int, a: int, b: int) -> str:
    """An obstacle of core/machine.h, or a stall of core/watch.h, as the reference words it."""
    return (
        "its turn", f"a data wavelet of color {a} in input queue {b}", f"an element in FIFO {a}",
        f"room in output queue {a}", f"room in FIFO {a}", "its block bit", "a microthread or an iterator",
    )[what]  # fmt: skip


def _text(kind: int, a: int, b: int, c: int, program: Program | None) -> tuple[str, str]:
    """Name and text of fault `kind` of core/machine.h, as the reference words it."""
    out, fault = "OutOfRange", kind
    if fault == 1:
        return "NoRoute", f"a wavelet of color {a} has no route"
    if fault == 2:
        return "Collision", f"color {a} arrives from two sides at once"
    if fault == 3:
        return "UnboundTask", f"a control wavelet of color {a} asks for control task {b}, none is bound"
    if fault == 4:
        return "UnboundTask", f"task {a} is activated and no task has this id"
    if fault == 5:
        return "BadAddress", f"{a} bytes at address {b}; memory is 0 to {MEMORY_BYTES - 1}"
    if fault == 6:
        return "DivideByZero", "an integer is divided by zero"
    if fault == 7:
        return "StackOverflow", f"calls need more than {STACK_SLOTS} slots"
    if fault == 8:
        assert program is not None
        return "Assertion", program.messages[a]
    if fault == 9:
        return out, f"task id {a}; ids are 0 to 31"
    if fault == 10:
        return out, f"id {a}; ids are 0 to 31"
    if fault == 11:
        return out, f"{_RANGES[c]} {a}; allowed are 0 to {b - 1}"
    if fault == 12:
        return out, f"the DSR {DsrFile(a).name} {b} was never loaded"
    if fault == 13:
        return out, f"output queue {a} has no color"
    if fault == 15:
        return out, f"two operands take one wavelet of color {a}"
    if fault == 16:
        return out, f"two operands take one element of FIFO {a}"
    if fault == 17:
        return out, f"filter {a}: the color has no counter filter here"
    return out, f"configuration register {a:#x} cannot be written here"
