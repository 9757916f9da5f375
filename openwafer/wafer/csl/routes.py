"""Routes that lead nowhere: a color leaves a PE to a side where nothing takes it.

An error where a core or the host sends into such a route, a warning where nobody is known to, or where the fabric ends:
what leaves it is lost. It says nothing where routes may change at run time (switches, teardown, tile_config,
memory-mapped registers), and nothing of the rectangle's edge unless the fabric ends there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from openwafer.wafer.arch import ARCHITECTURES, OPPOSITE, Port
from openwafer.wafer.csl.diagnostics import Diagnostic, Diagnostics
from openwafer.wafer.csl.ir import ColorConfig
from openwafer.wafer.image import Image, Program, Route
from openwafer.wafer.isa import Op, Sys
from openwafer.wafer.usage import examine

STEP = {Port.NORTH: (0, -1), Port.SOUTH: (0, 1), Port.EAST: (1, 0), Port.WEST: (-1, 0)}
_CHANGES = (Sys.SET_ROUTE, Sys.SET_SWITCH_RX, Sys.SET_SWITCH_TX, Sys.SET_SWITCH_POSITION, Sys.INVALIDATE_SWITCHES)
_REGISTERS = ((0x7F20, 0x7F60), (0xFE40, 0xFEC0))
"""Words and bytes of the routes as memory-mapped registers of WSE-2; docs/machine.md."""

Pe = tuple[int, int]
Configs = Callable[[int, int], dict[int, ColorConfig]]


def check_routes(image: Image, configs: Configs, fabric_known: bool, diagnostics: Diagnostics) -> None:
    """Reports each route that leads nowhere once, with the number of PEs that have it."""
    finder = _Finder(image, fabric_known)
    found: dict[tuple[int, int], list[tuple[Pe, Port]]] = {}
    for pe, color, side in finder.dead_ends():
        config = configs(*pe)[color]
        if config.span is not None:
            found.setdefault((id(config), side), []).append((pe, side))
            finder.colors[pe, side, id(config)] = color
    for (key, side), ends in found.items():
        fed = next((end for end in ends if finder.is_fed(end[0], finder.colors[end[0], Port(side), key])), None)
        pe, port = fed or ends[0]
        diagnostics.add(finder.diagnostic(pe, finder.colors[pe, port, key], port, configs, len(ends), fed is not None))


class _Finder:
    def __init__(self, image: Image, fabric_known: bool) -> None:
        self.image = image
        self.fabric_known = fabric_known
        self.colors: dict[tuple[Pe, Port, int], int] = {}
        self.sent: dict[int, set[int]] = {}
        self.changing = [_changes_routes(program) for program in image.programs]

    def dead_ends(self) -> Iterator[tuple[Pe, int, Port]]:
        """(PE, color, side); pairs of neighbours with the same two tables of routes are looked at once."""
        for side in STEP:
            here, there = self._pairs(side)
            pairs, index = np.unique(np.stack([here[0], there[0]]), axis=1, return_inverse=True)
            for number, (own, other) in enumerate(pairs.T):
                at = np.flatnonzero(index.reshape(-1) == number)
                table = self.image.route_tables[other] if other >= 0 else {}
                for color, route in self.image.route_tables[own].items():
                    if _leaves(route, side) and not _takes(table.get(_arriving(color, route, side)), side):
                        yield from (
                            ((int(here[1][i]), int(here[2][i])), color, side) for i in at if self._still(i, here, there)
                        )

    def _pairs(self, side: Port) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """(table, x, y) of PEs, and of their neighbours on a side; beyond the end of the fabric the table is -1."""
        width, height = self.image.size
        y, x = np.mgrid[0:height, 0:width].reshape(2, -1)
        dx, dy = STEP[side]
        inside = (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
        if self.fabric_known:
            (left, top), (wide, high) = self.image.offset, self.image.fabric
            off = (x + dx + left < 0) | (x + dx + left >= wide) | (y + dy + top < 0) | (y + dy + top >= high)
        else:
            off = np.zeros_like(inside)
        kept = inside | off
        x, y, inside = x[kept], y[kept], inside[kept]
        nx, ny = np.clip(x + dx, 0, width - 1), np.clip(y + dy, 0, height - 1)
        there = np.where(inside, self.image.routes_of[ny, nx], -1)
        return (self.image.routes_of[y, x], x, y), (there, nx, ny)

    def _still(self, i: np.intp, here: tuple[np.ndarray, ...], there: tuple[np.ndarray, ...]) -> bool:
        """Whether neither program changes routes while it runs."""
        places = [(here[1][i], here[2][i]), (there[1][i], there[2][i])]
        numbers = [int(self.image.program_of[y, x]) for x, y in places]
        return not any(number >= 0 and self.changing[number] for number in numbers)

    def is_fed(self, pe: Pe, color: int) -> bool:
        """Whether a wavelet can come here: routes are followed back to a core that sends, or to the host."""
        todo, seen = deque([(pe, color)]), {(pe, color)}
        while todo:
            (x, y), own = todo.popleft()
            route = self.image.route_tables[self.image.routes_of[y, x]].get(own)
            rx = route.positions[0][0] if route is not None and route.positions[0] is not None else 0
            if rx >> Port.HOST & 1 or (rx >> Port.RAMP & 1 and own in self._sends(x, y)):
                return True
            for side, (dx, dy) in STEP.items():
                before = (x + dx, y + dy)
                if rx >> side & 1 and self._inside(before):
                    table = self.image.route_tables[self.image.routes_of[before[1], before[0]]]
                    for other, route in table.items():
                        arrives = _arriving(other, route, OPPOSITE[side]) == own and _leaves(route, OPPOSITE[side])
                        if arrives and (before, other) not in seen:
                            seen.add((before, other))
                            todo.append((before, other))
        return False

    def _inside(self, pe: Pe) -> bool:
        return 0 <= pe[0] < self.image.size[0] and 0 <= pe[1] < self.image.size[1]

    def _sends(self, x: int, y: int) -> set[int]:
        number = int(self.image.program_of[y, x])
        if number < 0:
            return set()
        if number not in self.sent:
            self.sent[number] = examine(self.image.programs[number], ARCHITECTURES[self.image.arch]).sent
        return self.sent[number]

    def diagnostic(self, pe: Pe, color: int, side: Port, configs: Configs, count: int, fed: bool) -> Diagnostic:
        x, y = pe[0] + STEP[side][0], pe[1] + STEP[side][1]
        notes = []
        route = self.image.route_tables[self.image.routes_of[pe[1], pe[0]]][color]
        if not self._inside((x, y)):
            why = "over the edge of the fabric"
        else:
            arriving = _arriving(color, route, side)
            other = self.image.route_tables[self.image.routes_of[y, x]].get(arriving)
            if other is None:
                why = f"to PE ({x}, {y}), which has no route for {'it' if arriving == color else f'color {arriving}'}"
            else:
                why = f"to PE ({x}, {y}), which takes it only from {_sides(other)}"
                notes.append((f"the route of PE ({x}, {y}) is here", configs(x, y)[arriving].span))
        notes.append(
            (f"take {side.name} out of .tx here, or let the neighbour take it from {OPPOSITE[side].name}", None)
        )
        more = f" ({count} PEs do so)" if count > 1 else ""
        text = f"color {color} leads nowhere: PE ({pe[0]}, {pe[1]}) sends it {side.name} {why}{more}"
        return Diagnostic(
            text, configs(*pe)[color].span, tuple(notes), "error" if fed and self._inside((x, y)) else "warning"
        )


def _leaves(route: Route, side: Port) -> bool:
    """Whether all that a route ever does includes a side."""
    fixed = len(route.positions) == 1 and not route.teardown and route.positions[0] is not None
    return fixed and route.positions[0] is not None and bool(route.positions[0][1] >> side & 1)


def _takes(route: Route | None, side: Port) -> bool:
    """Whether the neighbour ever takes what leaves to a side."""
    if route is None:
        return False
    return route.teardown or any(p is not None and p[0] >> OPPOSITE[side] & 1 for p in route.positions)


def _arriving(color: int, route: Route, side: Port) -> int:
    """A color after a swap on the way."""
    return color ^ (route.swap >> (0 if side in (Port.EAST, Port.WEST) else 1) & 1)


def _sides(route: Route) -> str:
    mask = 0
    for position in route.positions:
        mask |= position[0] if position is not None else 0
    return " and ".join(port.name for port in Port if mask >> port & 1) or "nowhere"


def _changes_routes(program: Program) -> bool:
    """Whether a program writes routes or switches; of memory-mapped registers it is enough to name one."""
    code = program.code.astype(np.int64)
    ops, wide = code[:, 0] >> 4, code[:, 2] | code[:, 3] << 16
    if np.isin(code[ops == Op.SYS, 3], _CHANGES).any() or (ops == Op.CFGWR).any():
        return True
    words = program.memory[: len(program.memory) // 2 * 2].view("<u2").astype(np.int64)
    numbers = np.concatenate(
        [wide[ops == Op.LDI], program.constants.astype(np.int64), words[program.code_bytes // 2 :]]
    )
    return any(((numbers >= low) & (numbers < high)).any() for low, high in _REGISTERS)
