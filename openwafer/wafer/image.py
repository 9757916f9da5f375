"""The compiled program: what the compiler leaves in `out/` and an engine loads.

An image is plain data. `out/` also holds out.json and bin/out_rpc.json, in the form that host scripts read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from openwafer.wafer.isa import NOTHING, Completion, DsrLoad, Priority, Vector


@dataclass(frozen=True)
class Function:
    """Args: name, entry: first instruction; num_slots: frame size without callees; num_args: slots of arguments."""

    name: str
    entry: int
    num_slots: int
    num_args: int


class TaskKind(IntEnum):
    LOCAL = 0
    DATA = 1
    CONTROL = 2


@dataclass(frozen=True)
class Task:
    """A bound task.

    Args:
        kind: local, data or control
        id: task id: color or input queue for a data task, 0 to 63 for a control task
        function: index; its frame's slots get the payload, one slot an argument
        arg_bits: width of each argument: (32,), (16, 16) low half first, (16,), or none
        arg_signed: which integer arguments are sign-extended
        color: of a data task on WSE-2; on WSE-3 the queue decides
    """

    kind: TaskKind
    id: int
    function: int
    arg_bits: tuple[int, ...] = ()
    arg_signed: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Fifo:
    """A FIFO over `capacity` elements of `element_bytes` at `base`, with what happens at a push and a pop."""

    base: int
    capacity: int
    element_bytes: int
    on_push: Completion = NOTHING
    on_pop: Completion = NOTHING
    push_priority: Priority = Priority.MEDIUM
    pop_priority: Priority = Priority.MEDIUM


class SymbolKind(IntEnum):
    VARIABLE = 0  # bytes in memory; a host script reads or writes them
    POINTER = 1  # a variable that holds the address of the data
    FUNCTION = 2  # can be launched


@dataclass(frozen=True)
class Symbol:
    """A name the host may use.

    Args:
        name: as exported
        kind: see SymbolKind
        value: byte address, or function index
        size_bytes: of the variable
        element_type: CSL name of the element ("f32") or of the function type
        mutable: the host may write
        arg_types: CSL names, for a function
        exported: by @export_symbol; others are for debugging
    """

    name: str
    kind: SymbolKind
    value: int
    size_bytes: int
    element_type: str
    mutable: bool
    arg_types: tuple[str, ...] = ()
    exported: bool = True


@dataclass(frozen=True)
class Location:
    """Where an instruction comes from."""

    path: str
    line: int
    column: int


@dataclass(frozen=True)
class Program:
    """The code of a PE type; PEs of one type differ in nothing but their coordinates and routes.

    Args:
        name: file and parameters, for people
        code: [n, 4] uint16
        constants: uint64
        functions, vectors, dsr_loads, messages, tasks, fifos, symbols: tables the code refers to by index
        memory: initial bytes from address 0, uint8
        code_bytes: what the code takes of the 48 KB, at its start
        initial_dsr_loads: (load, three slots) done before the start
        setup: system calls (isa.Sys, r[a], r[b]) made before the start
        activated, blocked: bit masks over task ids at the start
        input_queue_colors, output_queue_colors: color per queue, or None
        input_queue_of_color: WSE-2: which input queue takes a color (depth)
        queue_priorities: of input queues
        locations: source place per instruction, index into `places`, -1 where none; int32
    """

    name: str
    code: np.ndarray
    constants: np.ndarray
    functions: tuple[Function, ...]
    vectors: tuple[Vector, ...]
    dsr_loads: tuple[DsrLoad, ...]
    messages: tuple[str, ...]
    tasks: tuple[Task, ...]
    fifos: tuple[Fifo, ...]
    symbols: tuple[Symbol, ...]
    memory: np.ndarray
    code_bytes: int
    initial_dsr_loads: tuple[tuple[DsrLoad, tuple[int, int, int]], ...]
    activated: int
    blocked: int
    input_queue_colors: tuple[int | None, ...]
    output_queue_colors: tuple[int | None, ...]
    input_queue_of_color: dict[int, int]
    locations: np.ndarray
    places: tuple[Location, ...]
    setup: tuple[tuple[int, int, int], ...] = ()

    def message(self, number: int) -> str:
        """A text that a program prints by its number, which it computes at run time; none for one that is not there."""
        return self.messages[number] if 0 <= number < len(self.messages) else ""


class Pop(IntEnum):
    """What a router takes off a control wavelet's list of commands."""

    NO_POP = 0
    ALWAYS_POP = 1
    POP_ON_ADVANCE = 2
    POP_ON_ADVANCE_NOP = 3


class FilterKind(IntEnum):
    COUNTER = 0
    SPARSE_COUNTER = 1
    RANGE = 2


@dataclass(frozen=True)
class Filter:
    """What wavelets of a color reach the core; see docs/machine.md."""

    kind: FilterKind
    count_data: bool = True
    count_control: bool = False
    filter_control: bool = False
    init_counter: int = 0
    max_counter: int = 0
    limit1: int = 0
    limit2: int = 0
    min_idx: int = 0
    max_idx: int = 0

    def counts(self, control: bool) -> bool:
        """Whether a control wavelet, or a data wavelet, is counted."""
        return self.count_control if control else self.count_data


@dataclass(frozen=True)
class Route:
    """One color in one router.

    Args:
        positions: (rx mask, tx mask) per switch position, bits as in Port; None marks an invalid position
        position: where the switch stands at the start
        ring: after the last position comes the first
        pop: see Pop
        filter: of the core's side
        teardown: frozen at the start
        swap: color swap, WSE-2: bit 0 on crossing x, bit 1 on crossing y
    """

    positions: tuple[tuple[int, int] | None, ...]
    position: int = 0
    ring: bool = False
    pop: Pop = Pop.NO_POP
    filter: Filter | None = None
    teardown: bool = False
    swap: int = 0


@dataclass(frozen=True)
class Preload:
    """Bytes (uint8) that one PE's memory holds at the start, in place of its program's."""

    x: int
    y: int
    address: int
    data: np.ndarray


@dataclass(frozen=True)
class Image:
    """A compiled program.

    Args:
        arch: name
        fabric: tiles (width, height) with the halo
        offset: of the rectangle in the fabric
        size: of the program rectangle (width, height)
        programs: distinct PE types
        program_of: [height, width] int32 index into `programs`, -1 where a PE has none
        route_tables: distinct {color: Route}
        routes_of: [height, width] int32 index into `route_tables`
        params, colors: of the root file, as strings, for out.json
        exports: name -> (type name, mutable) as the layout declared them
        preloads: data of single PEs
    """

    arch: str
    fabric: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    programs: tuple[Program, ...]
    program_of: np.ndarray
    route_tables: tuple[dict[int, Route], ...]
    routes_of: np.ndarray
    params: dict[str, str] = field(default_factory=dict)
    colors: dict[str, str] = field(default_factory=dict)
    exports: dict[str, tuple[str, bool]] = field(default_factory=dict)
    preloads: tuple[Preload, ...] = ()
