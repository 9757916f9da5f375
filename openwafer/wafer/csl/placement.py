"""What the layout block said: which program lies on which PE, with which routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openwafer.wafer.csl.ir import ColorConfig


@dataclass(frozen=True)
class TileCode:
    """`path` as resolved; `params`: name -> comptime value, hashable."""

    path: str
    params: tuple[tuple[str, Any], ...]


@dataclass
class Placement:
    """Filled by the layout's builtins; coordinates within the rectangle."""

    size: tuple[int, int] = (0, 0)
    tiles: dict[tuple[int, int], TileCode] = field(default_factory=dict)
    colors: dict[tuple[int, int], dict[int, ColorConfig]] = field(default_factory=dict)
    exports: dict[str, tuple[str, bool]] = field(default_factory=dict)
