"""What the layout block said: which program lies on which PE, with which routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.ir import ColorConfig


@dataclass(frozen=True)
class TileCode:
    """`path` as resolved; `params`: name -> comptime value, hashable."""

    path: str
    params: tuple[tuple[str, Any], ...]
    span: Span | None = field(default=None, compare=False)


@dataclass
class Placement:
    """Filled by the layout's builtins; coordinates within the rectangle. Equal tiles or routes are one object."""

    size: tuple[int, int] = (0, 0)
    span: Span | None = None
    """Where @set_rectangle is called, or the layout block begins."""
    is_sparse: bool = False
    """Tiles without code are allowed: wires between regions of an SdkLayout."""
    tiles: dict[tuple[int, int], TileCode] = field(default_factory=dict)
    colors: dict[tuple[int, int], dict[int, ColorConfig]] = field(default_factory=dict)
    exports: dict[str, tuple[str, bool]] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)

    def put(self, x: int, y: int, tile: TileCode) -> None:
        self.tiles[x, y] = self.known.setdefault(tile, tile)

    def route(self, x: int, y: int, color: int, config: ColorConfig) -> None:
        self.colors.setdefault((x, y), {})[color] = self.known.setdefault(config, config)
