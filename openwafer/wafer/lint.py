"""Findings in a compiled program that are no errors and seldom meant: routes, colors, tasks, queues, memory, banks.

Looks at the image alone. Where something depends on values at run time it says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from openwafer.wafer.arch import ARCHITECTURES, MEMORY_BYTES, OPPOSITE, TEARDOWN_TASK_ID, Port
from openwafer.wafer.describe import ports, rectangles
from openwafer.wafer.image import Image, Location, Program, SymbolKind, TaskKind
from openwafer.wafer.usage import Use, examine

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


def lint(image: Image) -> list[Finding]:
    """All findings, those with a source place first."""
    uses = [examine(program, ARCHITECTURES[image.arch]) for program in image.programs]
    found = [
        *_routes(image), *_colors(image, uses), *_tasks(image, uses), *_queues(image, uses), *_memory(image),
        *_banks(image, uses),
    ]  # fmt: skip
    merged: dict[tuple, list[Place]] = {}
    for finding in found:
        merged.setdefault((finding.kind, finding.message, finding.place), []).extend(finding.pes)
    made = [Finding(kind, message, tuple(sorted(set(pes))), at) for (kind, message, at), pes in merged.items()]
    return sorted(made, key=lambda f: (f.place is None, str(f)))


def _places(image: Image, number: int) -> tuple[Place, ...]:
    return tuple((int(x), int(y)) for y, x in zip(*(image.program_of == number).nonzero(), strict=True))


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
                    sides = [
                        port for port in (*_STEP, Port.RAMP) if rx >> port & 1 and _may_come(image, (x, y), color, port)
                    ]
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
    sent = {color for use in uses for color in use.sent} | _from_host(image)
    unsure = any(use.any_color for use in uses) or any(r.swap for table in image.route_tables for r in table.values())
    height, width = image.program_of.shape
    for y in range(height):
        for x in range(width):
            number = int(image.program_of[y, x])
            for color in _to_core(image, x, y) if number >= 0 else ():
                if not _takes(image.programs[number], uses[number], color):
                    text = f"color {color} is delivered to a core with no task and no DSD for it"
                    yield Finding("never-received", text, ((x, y),))
                if color not in sent and not unsure:
                    yield Finding("never-sent", f"color {color} is delivered to a core and no PE sends it", ((x, y),))


def _from_host(image: Image) -> set[int]:
    """Colors that the host streams in."""
    return {
        color for table in image.route_tables for color, route in table.items()
        if any(p is not None and p[0] >> Port.HOST & 1 for p in route.positions)
    }  # fmt: skip


def _to_core(image: Image, x: int, y: int) -> Iterator[int]:
    for color, route in image.route_tables[image.routes_of[y, x]].items():
        if any(p is not None and p[1] >> Port.RAMP & 1 for p in route.positions):
            yield color


def _takes(program: Program, use: Use, color: int) -> bool:
    """Whether the core has something for a color; a control task takes any."""
    has_control = any(task.kind == TaskKind.CONTROL for task in program.tasks)
    return color in use.received or has_control or use.any_color


# --- tasks, queues, memory ------------------------------------------------------------------------------------------


def _tasks(image: Image, uses: list[Use]) -> Iterator[Finding]:
    controls = bool(_from_host(image)) or any(use.controls or use.any_color for use in uses)
    by_queue = ARCHITECTURES[image.arch].data_task_is_queue
    for number, (program, use) in enumerate(zip(image.programs, uses, strict=True)):
        for task in program.tasks:
            function = program.functions[task.function]
            why = None
            if task.kind == TaskKind.LOCAL and task.id != TEARDOWN_TASK_ID:
                if task.id not in use.activated and not use.any_task:
                    why = "nothing activates it"
            elif task.kind == TaskKind.CONTROL and not controls:
                why = "no PE sends a control wavelet"
            elif task.kind == TaskKind.DATA and by_queue and program.input_queue_colors[task.id] is None:
                why = "its input queue has no color"
            if why:
                text = f"{task.kind.name.lower()} task {function.name} has id {task.id} and {why}"
                yield Finding("idle-task", text, _places(image, number), _location(program, function.entry))


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
                text = (
                    f"color {color} has input queues {' and '.join(map(str, same))}: only one of them gets its wavelets"
                )
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


def _banks(image: Image, uses: list[Use]) -> Iterator[Finding]:
    for number, (program, use) in enumerate(zip(image.programs, uses, strict=True)):
        for at, message in use.conflicts:
            yield Finding("bank-conflict", message, _places(image, number), _location(program, at))
