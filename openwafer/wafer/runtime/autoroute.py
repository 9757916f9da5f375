"""Wires between tiles, and numbers for colors: what SdkLayout leaves to us.

A wire is a shortest path over free tiles. A color keeps its number along a wire, so the colors of its two ends are one;
colors that meet on a tile need different numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping
from itertools import permutations
from typing import TypeVar

from openwafer.base.errors import OpenwaferError

Tile = tuple[int, int]
C = TypeVar("C", bound=Hashable)
STEPS: dict[int, Tile] = {0: (0, -1), 1: (0, 1), 2: (1, 0), 3: (-1, 0)}
"""Ports north, south, east, west of arch.Port."""


class RoutingError(OpenwaferError):
    """No wire, or no color, is left."""


def find_paths(
    ends: list[tuple[Tile, Tile]], is_free: Callable[[Tile], bool], size: Tile, name: str
) -> list[list[Tile]]:
    """A path for each pair of ends, both free and included; no two share a tile.

    Shortest paths one after the other, in both orders and with every preference of directions, until one fits.

    Raises:
        RoutingError: none does.
    """
    for steps in permutations(STEPS.values()):
        for order in (range(len(ends)), range(len(ends))[::-1]):
            used: set[Tile] = set()
            found: dict[int, list[Tile]] = {}
            for number in order:
                path = _path(*ends[number], lambda t, used=used: t not in used and is_free(t), size, steps)
                if path is None:
                    break
                found[number] = path
                used.update(path)
            if len(found) == len(ends):
                return [found[number] for number in range(len(ends))]
    raise RoutingError(
        f"there is no way for {name} from tile {ends[0][0]} to {ends[0][1]}: regions or its own wires are in between; "
        "place the regions further apart"
    )


def _path(
    start: Tile, goal: Tile, is_free: Callable[[Tile], bool], size: Tile, steps: tuple[Tile, ...]
) -> list[Tile] | None:
    before: dict[Tile, Tile | None] = {start: None} if is_free(start) else {}
    queue = deque(before)
    while queue:
        at = queue.popleft()
        if at == goal:
            path: list[Tile] = []
            step: Tile | None = at
            while step is not None:
                path.append(step)
                step = before[step]
            return path[::-1]
        for dx, dy in steps:
            tile = at[0] + dx, at[1] + dy
            if 0 <= tile[0] < size[0] and 0 <= tile[1] < size[1] and tile not in before and is_free(tile):
                before[tile] = at
                queue.append(tile)
    return None


def port_between(here: Tile, there: Tile) -> int:
    """The port of `here` that leads to its neighbour `there`."""
    step = there[0] - here[0], there[1] - here[1]
    return next(port for port, own in STEPS.items() if own == step)


def number_colors(
    tiles: Mapping[C, Collection[Tile]],
    fixed: Mapping[C, int],
    allowed: Callable[[C], list[int]],
    name: Callable[[C], str],
) -> dict[C, int]:
    """A number for each color, so that no two on one tile are equal.

    Args:
        tiles: where each color is used
        fixed: numbers the user chose
        allowed: numbers for a color, the best first
    """
    taken: dict[Tile, dict[int, C]] = {}
    numbers: dict[C, int] = {}

    def take(color: C, number: int) -> None:
        numbers[color] = number
        for tile in tiles[color]:
            taken.setdefault(tile, {})[number] = color

    for color in tiles:
        if color not in fixed:
            continue
        for tile in tiles[color]:
            other = taken.get(tile, {}).get(fixed[color])
            if other is not None:
                raise RoutingError(f"{name(color)} and {name(other)} both have the value {fixed[color]} on tile {tile}")
        take(color, fixed[color])
    for color in sorted((c for c in tiles if c not in fixed), key=lambda c: -len(tiles[c])):
        used = {number for tile in tiles[color] for number in taken.get(tile, ())}
        free = [number for number in allowed(color) if number not in used]
        if not free:
            raise RoutingError(f"{name(color)} finds no free color: {len(used)} are in use on its tiles")
        take(color, free[0])
    return numbers
