"""Points and rectangles of tiles, under the vendor's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class IntVector:
    """A tile: column x, row y."""

    x: int
    y: int


@dataclass(frozen=True)
class IntRectangle:
    """Tiles from the upper left one up to, and without, the lower right one."""

    upper_left: IntVector
    lower_right: IntVector

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Every (x, y) in it."""
        for y in range(self.upper_left.y, self.lower_right.y):
            for x in range(self.upper_left.x, self.lower_right.x):
                yield x, y
