"""Findings in a compiled program that are no errors and seldom meant: routes, colors, tasks, queues, memory, banks.

Looks at the image alone. Where something depends on values at run time it says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from openwafer.wafer.arch import ARCHITECTURES, MEMORY_BYTES, OPPOSITE, TEARDOWN_TASK_ID, Port
from openwafer.wafer.describe import ports, rectangles
from openwafer.wafer.flow import KnownDsd, State, states
from openwafer.wafer.image import Image, Location, Program, SymbolKind, TaskKind
from openwafer.wafer.isa import CONTROL_BIT, NO_COLOR, DsdKind, Kind, Op, Operand

MEMORY_SHARE = 0.9
"""Above this share of the 48 KB a PE's memory counts as nearly full."""
_STEP = {Port.NORTH: (0, -1), Port.SOUTH: (0, 1), Port.EAST: (1, 0), Port.WEST: (-1, 0)}
_CORE = 1 << Port.RAMP | 1 << Port.HOST

Place = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """One finding: `kind` is one of KINDS; `place` in the source where it is known; `pes` where it holds."""

    kind: str
    message: str
    pes: tuple[Place, ...] = ()
    place: Location | None = None

    def __str__(self) -> str:
        where = f"{self.place.path}:{self.place.line}:{self.place.column}: " if self.place else ""
        shown = rectangles(self.pes)
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        on = f" (PEs {' | '.join(shown[:3])}{more})" if shown else ""
        return f"{where}{self.kind}: {self.message}{on}"


KINDS = {
    "dead-route": "a route sends to where nothing takes the color",
    "two-sides": "one color may come to a router from two sides at once",
    "never-sent": "a color is received and nobody sends it",
    "never-received": "a color is delivered to a core that has nothing for it",
    "same-color": "two names of the layout stand for one color",
    "idle-task": "a task is bound and nothing activates it",
    "shared-queue": "one queue serves several colors, or one color several queues",
    "memory": "a PE's memory is nearly full",
    "bank-conflict": "a vector operation reads both operands from one bank: two cycles a step",
}


@dataclass
class Use:
    """What the code of one PE type does with colors, tasks and banks."""

    sent: set[int] = field(default_factory=set)
    received: set[int] = field(default_factory=set)
    controls: bool = False  # sends control wavelets
    activated: set[int] = field(default_factory=set)
    any_task: bool = False  # activates a task known only at run time
    any_color: bool = False  # uses a fabric DSD known only at run time
    queue_colors: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    conflicts: list[Finding] = field(default_factory=list)


def lint(image: Image) -> list[Finding]:
    """All findings, those with a source place first."""
    uses = [examine(image, number) for number in range(len(image.programs))]
    found = [
        *_routes(image), *_colors(image, uses), *_tasks(image, uses), *_queues(image, uses), *_memory(image),
        *(finding for use in uses for finding in use.conflicts),
    ]  # fmt: skip
    merged: dict[tuple, list[Place]] = {}
    for finding in found:
        merged.setdefault((finding.kind, finding.message, finding.place), []).extend(finding.pes)
    made = [Finding(kind, message, tuple(sorted(set(pes))), at) for (kind, message, at), pes in merged.items()]
    return sorted(made, key=lambda f: (f.place is None, str(f)))


def examine(image: Image, number: int) -> Use:
    """What a PE type does, from its tables and its code."""
    program, arch = image.programs[number], ARCHITECTURES[image.arch]
    use, pes = Use(), _places(image, number)
    use.activated |= {task for task in range(32) if program.activated >> task & 1}
    for task in program.tasks:
        if task.kind == TaskKind.DATA:
            color = program.input_queue_colors[task.id] if arch.data_task_is_queue else task.id
            use.received |= {color} if color is not None else set()
    completions = [v.completion for v in program.vectors] + [d.completion for d in program.dsr_loads]
    completions += [load.completion for load, _ in program.initial_dsr_loads]
    completions += [made for fifo in program.fifos for made in (fifo.on_push, fifo.on_pop)]
    use.activated |= {made.activate for made in completions if made.activate is not None}
    for _, slots in program.initial_dsr_loads:
        _note_dsd(program, use, KnownDsd.of(slots))
    for at, state in states(program):
        _note_instruction(program, use, at, state, pes)
    return use


def _places(image: Image, number: int) -> tuple[Place, ...]:
    return tuple((int(x), int(y)) for y, x in zip(*(image.program_of == number).nonzero(), strict=True))


def _note_instruction(program: Program, use: Use, at: int, state: State, pes: tuple[Place, ...]) -> None:
    word, a, b, c = (int(w) for w in program.code[at])
    op, k = Op(word >> 4), b | c << 16
    if op == Op.LDK3:
        first, second, third = (int(v) for v in program.constants[k : k + 3])
        _note_dsd(program, use, KnownDsd.of((first, second, third)))
    elif op == Op.ACTIVATE:
        task = state.number(a).exact
        use.any_task |= task is None
        use.activated |= {task} if task is not None else set()
    elif op == Op.VEC:
        vector = program.vectors[k]
        operands = (vector.dest, vector.src0, vector.src1)
        use.any_color |= any(_unknown(state, operand) for operand in operands)
        message = _conflict(program, vector.op.name, state, vector.src0, vector.src1)
        if message:
            use.conflicts.append(Finding("bank-conflict", message, pes, _location(program, at)))


def _unknown(state: State, operand: Operand) -> bool:
    return operand.kind == Kind.DSD and state.dsd(operand.value) is None


def _note_dsd(program: Program, use: Use, dsd: KnownDsd) -> None:
    if dsd.kind not in (DsdKind.FABIN, DsdKind.FABOUT):
        return
    is_input = dsd.kind == DsdKind.FABIN
    queues = program.input_queue_colors if is_input else program.output_queue_colors
    own = queues[dsd.queue] if dsd.queue < len(queues) else None
    color = dsd.color if dsd.color != NO_COLOR else own
    if color is None:
        return
    (use.received if is_input else use.sent).add(color)
    use.queue_colors["input" if is_input else "output", dsd.queue].add(color)
    use.controls |= bool(dsd.flags & CONTROL_BIT)


def _location(program: Program, at: int) -> Location | None:
    index = int(program.locations[at])
    return program.places[index] if index >= 0 else None


# --- routes ---------------------------------------------------------------------------------------------------------


def _routes(image: Image) -> Iterator[Finding]:
    width, height = image.size
    for y in range(height):
        for x in range(width):
            for color, route in image.route_tables[image.routes_of[y, x]].items():
                positions = [p for p in route.positions if p is not None]
                for side in sorted({port for _, tx in positions for port in _STEP if tx >> port & 1}):
                    message = _nowhere(image, (x, y), color, side, route.swap)
                    if message:
                        yield Finding("dead-route", message, ((x, y),))
                for rx, _ in positions:
                    sides = [port for port in (*_STEP, Port.RAMP) if rx >> port & 1 and _may_come(image, (x, y), color, port)]
                    if len(sides) > 1:
                        names = " and ".join(port.name for port in sides)
                        yield Finding("two-sides", f"color {color} may come from {names} in the same cycle", ((x, y),))


def _nowhere(image: Image, pe: Place, color: int, side: Port, swap: int) -> str | None:
    """Why a wavelet that leaves to a side is not taken."""
    x, y = pe[0] + _STEP[side][0], pe[1] + _STEP[side][1]
    width, height = image.size
    if not (0 <= x < width and 0 <= y < height):
        return f"color {color} is sent {side.name} over the edge of the rectangle"
    color ^= swap >> (0 if side in (Port.EAST, Port.WEST) else 1) & 1
    route = image.route_tables[image.routes_of[y, x]].get(color)
    if route is None:
        return f"color {color} is sent {side.name}, where the next PE has no route for it"
    back = OPPOSITE[side]
    if not any(p is not None and p[0] >> back & 1 for p in route.positions):
        return f"color {color} is sent {side.name}, where the next PE takes it only from {_taken(route.positions)}"
    return None


def _taken(positions: Iterable[tuple[int, int] | None]) -> str:
    mask = 0
    for position in positions:
        mask |= position[0] if position is not None else 0
    return " and ".join(ports(mask)) or "nowhere"


def _may_come(image: Image, pe: Place, color: int, port: Port) -> bool:
    """Whether something can arrive there: of the sides, whether the neighbour sends this way at all."""
    if port not in _STEP:
        return True
    x, y = pe[0] + _STEP[port][0], pe[1] + _STEP[port][1]
    width, height = image.size
    if not (0 <= x < width and 0 <= y < height):
        return False
    bit = 0 if port in (Port.EAST, Port.WEST) else 1
    for own, route in image.route_tables[image.routes_of[y, x]].items():
        if own ^ (route.swap >> bit & 1) == color:
            return any(p is not None and p[1] >> OPPOSITE[port] & 1 for p in route.positions)
    return False


# --- colors ---------------------------------------------------------------------------------------------------------


def _colors(image: Image, uses: list[Use]) -> Iterator[Finding]:
    names = defaultdict(list)
    for name, color in image.colors.items():
        names[color].append(name)
    for color, same in names.items():
        if len(same) > 1:
            yield Finding("same-color", f"{' and '.join(same)} are all color {color}")
    sent = {color for use in uses for color in use.sent}
    from_host = {color for table in image.route_tables for color, route in table.items()
                 if any(p is not None and p[0] >> Port.HOST & 1 for p in route.positions)}  # fmt: skip
    unsure = any(use.any_color for use in uses)
    swaps = any(route.swap for table in image.route_tables for route in table.values())
    height, width = image.program_of.shape
    for y in range(height):
        for x in range(width):
            number = int(image.program_of[y, x])
            if number < 0:
                continue
            use, table = uses[number], image.route_tables[image.routes_of[y, x]]
            for color, route in table.items():
                to_core = any(p is not None and p[1] >> Port.RAMP & 1 for p in route.positions)
                has_control = any(task.kind == TaskKind.CONTROL for task in image.programs[number].tasks)
                if to_core and color not in use.received and not has_control and not use.any_color:
                    yield Finding(
                        "never-received", f"color {color} is delivered to a core with no task and no DSD for it", ((x, y),)
                    )
                if to_core and color not in sent | from_host and not unsure and not swaps:
                    yield Finding("never-sent", f"color {color} is delivered to a core and no PE sends it", ((x, y),))


# --- tasks, queues, memory ------------------------------------------------------------------------------------------


def _tasks(image: Image, uses: list[Use]) -> Iterator[Finding]:
    controls = any(use.controls or use.any_color for use in uses)
    streams = any(p is not None and p[0] >> Port.HOST & 1
                  for table in image.route_tables for route in table.values() for p in route.positions)  # fmt: skip
    for number, (program, use) in enumerate(zip(image.programs, uses, strict=True)):
        for task in program.tasks:
            name, pes = program.functions[task.function].name, _places(image, number)
            place = _location(program, program.functions[task.function].entry)
            if task.kind == TaskKind.LOCAL and task.id != TEARDOWN_TASK_ID:
                if task.id not in use.activated and not use.any_task:
                    yield Finding("idle-task", f"task {name} has id {task.id} and nothing activates it", pes, place)
            elif task.kind == TaskKind.CONTROL and not controls and not streams:
                text = f"control task {name} has id {task.id} and no PE sends a control wavelet"
                yield Finding("idle-task", text, pes, place)
            elif task.kind == TaskKind.DATA and ARCHITECTURES[image.arch].data_task_is_queue:
                if program.input_queue_colors[task.id] is None:
                    text = f"data task {name} is bound to input queue {task.id}, which has no color"
                    yield Finding("idle-task", text, pes, place)


def _queues(image: Image, uses: list[Use]) -> Iterator[Finding]:
    for number, (program, use) in enumerate(zip(image.programs, uses, strict=True)):
        pes = _places(image, number)
        for (kind, queue), colors in use.queue_colors.items():
            # An output queue of WSE-2 sends each wavelet on the color of its DSD: sharing is how it is meant to be.
            if len(colors) > 1 and (kind == "input" or image.arch != "wse2"):
                listed = " and ".join(map(str, sorted(colors)))
                yield Finding("shared-queue", f"{kind} queue {queue} serves colors {listed}", pes)
        queues: dict[int, list[int]] = defaultdict(list)
        for queue, color in enumerate(program.input_queue_colors):
            if color is not None:
                queues[color].append(queue)
        for color, same in queues.items():
            if len(same) > 1:
                text = f"color {color} has input queues {' and '.join(map(str, same))}: only one of them gets its wavelets"
                yield Finding("shared-queue", text, pes)


def _memory(image: Image) -> Iterator[Finding]:
    for number, program in enumerate(image.programs):
        used = len(program.memory)
        if used > MEMORY_SHARE * MEMORY_BYTES:
            variables = [s for s in program.symbols if s.kind == SymbolKind.VARIABLE]
            largest = ", ".join(
                f"{s.name} {s.size_bytes:,}" for s in sorted(variables, key=lambda s: -s.size_bytes)[:3]
            )
            text = f"{used:,} of {MEMORY_BYTES:,} bytes are used (code {program.code_bytes:,}; largest: {largest})"
            yield Finding("memory", text, _places(image, number))


# --- banks ----------------------------------------------------------------------------------------------------------


def _conflict(program: Program, op: str, state: State, first: Operand, second: Operand) -> str | None:
    """What to say if the two sources lie in one bank group in all of the first steps; docs/machine.md, VEC, Steps."""
    a, b = _memory_dsd(state, first), _memory_dsd(state, second)
    if a is None or b is None or min(a.base.bits, b.base.bits) < 3 or a.base == b.base:
        return None
    size = 4 if op.endswith("S") or op == "MOV32" else 2
    same = [
        (a.base.value + i * a.stride * size) >> 1 & 3 == (b.base.value + i * b.stride * size) >> 1 & 3 for i in range(4)
    ]
    if not all(same):
        return None
    names = [_variable(program, dsd) for dsd in (a, b)]
    listed = f" {names[0]} and {names[1]}" if all(names) else " its two sources"
    return (
        f"@{op.lower()} reads{listed} from the same banks, so a step takes two cycles; move one of them by "
        f"{'one word' if size == 4 else 'two elements'} (align(8), and a DSD that begins later)"
    )


def _memory_dsd(state: State, operand: Operand) -> KnownDsd | None:
    found = None
    if operand.kind == Kind.DSD:
        found = state.dsd(operand.value)
    elif operand.kind == Kind.DSR:
        found = state.registers.get((operand.value >> 8, operand.value & 0xFF))
    return found if found is not None and found.kind in (DsdKind.MEM1D, DsdKind.MEM4D) else None


def _variable(program: Program, dsd: KnownDsd) -> str | None:
    """The variable in which a DSD begins."""
    address = dsd.base.exact
    for symbol in program.symbols:
        if address is not None and symbol.kind == SymbolKind.VARIABLE:
            if symbol.value <= address < symbol.value + symbol.size_bytes:
                return symbol.name
    return None
