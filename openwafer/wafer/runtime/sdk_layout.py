"""SdkLayout: a program put together in Python from regions of code, painted routes, ports, wires and host streams.

Coordinates of a region's methods count from its own upper left tile; `place` and `read_symbol` use the fabric's.
A stream is an ideal link between the host and a port's tiles; with several tiles each gets an equal part, in order.
Facts come from the public documentation and the public tutorials.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.arch import ARCHITECTURES, NUM_COLORS, Port
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.comptime import Const
from openwafer.wafer.csl.driver import Options, compile_placement
from openwafer.wafer.csl.ir import ColorConfig
from openwafer.wafer.csl.placement import Placement, TileCode
from openwafer.wafer.image import Image, Preload, SymbolKind
from openwafer.wafer.runtime.autoroute import STEPS, Tile, find_paths, number_colors, port_between
from openwafer.wafer.runtime.geometry import IntRectangle, IntVector

_RESERVED = {21, 22, 23, 27, 28, 29, 30}
"""Left to memcpy and the system; taken last."""


class LayoutError(OpenwaferError):
    """A layout does not fit together."""


class SdkTarget(Enum):
    WSE2 = "wse2"
    WSE3 = "wse3"


class FP16TYPE(Enum):
    FP16 = "fp16"
    CB16 = "cb16"
    BF16 = "bf16"


class Route(IntEnum):
    NORTH = Port.NORTH
    SOUTH = Port.SOUTH
    EAST = Port.EAST
    WEST = Port.WEST
    RAMP = Port.RAMP


class Edge(Enum):
    LEFT = Port.WEST
    RIGHT = Port.EAST
    TOP = Port.NORTH
    BOTTOM = Port.SOUTH


@dataclass(frozen=True)
class SimfabConfig:
    """Accepted as in the vendor's runtime; a core is always dumped."""

    dump_core: bool = True
    num_threads: int = 1
    suppress_trace: bool = True


@dataclass(frozen=True)
class SdkExecutionPlatform:
    """What a program is made for."""

    target: SdkTarget
    config: SimfabConfig = field(default_factory=SimfabConfig)


def get_platform(
    cmaddr: str | None = None, config: SimfabConfig | None = None, target: SdkTarget = SdkTarget.WSE3
) -> SdkExecutionPlatform:
    """The simulator of a target; an address of a real system is refused."""
    if cmaddr:
        raise LayoutError(f"cmaddr={cmaddr}: there is no wafer here, programs run in the simulator; leave it out")
    return SdkExecutionPlatform(target, config or SimfabConfig())


@dataclass(eq=False)
class Color:
    """A color with a name, which is also the name of the parameter that gets it; without a value we choose one."""

    name: str
    value: int | None = None


class RoutingPosition:
    """One position of a switch: where wavelets come from and where they go."""

    def __init__(self) -> None:
        self.rx = self.tx = 0

    def set_input(self, routes: Iterable[Route]) -> RoutingPosition:
        self.rx = sum({1 << route for route in routes})
        return self

    def set_output(self, routes: Iterable[Route]) -> RoutingPosition:
        self.tx = sum({1 << route for route in routes})
        return self


@dataclass(frozen=True)
class EdgeRouteInfo:
    """Routes of the tiles along one edge, in place of those of `paint_all`."""

    edge: Edge
    positions: tuple[RoutingPosition, ...]


def get_edge_routing(edge: Edge, positions: Iterable[RoutingPosition]) -> EdgeRouteInfo:
    """For `paint_all`."""
    return EdgeRouteInfo(edge, tuple(positions))


Masks = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class PortHandle:
    """An edge of a region where a color enters (`is_input`) or leaves; one wire for each tile of the edge."""

    region: CodeRegion
    color: Color
    edge: Edge
    size: int
    is_input: bool
    name: str
    linked: bool = False

    def tiles(self) -> list[Tile]:
        """In the fabric, along the edge."""
        x, y = self.region.origin()
        return [(x + dx, y + dy) for dx, dy in self.region.edge_tiles(self.edge)]


@dataclass(frozen=True)
class Stream:
    """A link between the host and a port; see SdkRuntime.send and receive."""

    tiles: tuple[Tile, ...]
    color: Color
    size: int
    is_input: bool


@dataclass(frozen=True)
class SdkCompileArtifacts:
    """Where the compiled program lies."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)


class CodeRegion:
    """A rectangle of tiles with one source file."""

    def __init__(self, path: Path, name: str, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise LayoutError(f'region "{name}" is {width} x {height}; a region has at least one tile')
        self.path, self.name, self.width, self.height = path, name, width, height
        self.place_at: Tile | None = None
        self.params: dict[Tile, dict[str, Any]] = {tile: {} for tile in self._all()}
        self.routes: dict[Tile, dict[Color, Masks]] = {tile: {} for tile in self._all()}
        self.symbols: dict[str, np.ndarray] = {}

    def _all(self) -> list[Tile]:
        return [(x, y) for y in range(self.height) for x in range(self.width)]

    def edge_tiles(self, edge: Edge) -> list[Tile]:
        """Own tiles along an edge, from the top or the left."""
        if edge in (Edge.LEFT, Edge.RIGHT):
            return [(0 if edge == Edge.LEFT else self.width - 1, y) for y in range(self.height)]
        return [(x, 0 if edge == Edge.TOP else self.height - 1) for x in range(self.width)]

    def origin(self) -> Tile:
        """Upper left tile in the fabric."""
        return self.place_at or (0, 0)

    def place(self, x: int, y: int) -> None:
        """Put the region's upper left tile on a tile of the fabric."""
        if x < 0 or y < 0:
            raise LayoutError(f'region "{self.name}" cannot be placed at ({x}, {y}): coordinates count from 0')
        self.place_at = x, y

    def color(self, name: str, value: int | None = None) -> Color:
        """A color of this region alone."""
        return Color(name, value)

    # --- parameters and data ----------------------------------------------------------------------------------------

    def set_param(self, tile: IntVector, name: str | Color, value: Any = None) -> None:
        """A parameter of one tile; a color is a parameter by its name."""
        self._set([self._own((tile.x, tile.y))], name, value)

    def set_param_all(self, name: str | Color, value: Any = None) -> None:
        self._set(self._all(), name, value)

    def set_param_range(self, tiles: IntRectangle, name: str | Color, value: Any = None) -> None:
        self._set([self._own(tile) for tile in tiles.tiles()], name, value)

    def _set(self, tiles: list[Tile], name: str | Color, value: Any) -> None:
        key, given = (name.name, name) if isinstance(name, Color) else (name, value)
        if not isinstance(given, bool | int | float | Color | np.integer | np.floating):
            raise LayoutError(
                f'parameter "{key}" of region "{self.name}" gets {given!r}; a number or a Color is needed'
            )
        for tile in tiles:
            self.params[tile][key] = given

    def set_symbol_all(self, name: str, data: np.ndarray, width: int, height: int) -> None:
        """Initial values of an array: a matrix [height, width] dealt out in equal blocks, one for each tile."""
        array = np.asarray(data)
        if array.size != width * height or width % self.width or height % self.height:
            raise LayoutError(
                f'"{name}" of region "{self.name}": {array.size} values cannot be dealt as {height} rows of {width} to '
                f"{self.width} x {self.height} tiles"
            )
        self.symbols[name] = array.reshape(height, width)

    def _own(self, tile: Tile) -> Tile:
        if not (0 <= tile[0] < self.width and 0 <= tile[1] < self.height):
            raise LayoutError(f'tile {tile} is outside of region "{self.name}", {self.width} x {self.height}')
        return tile

    # --- routes -----------------------------------------------------------------------------------------------------

    def paint(self, tile: IntVector, color: Color, positions: Iterable[RoutingPosition]) -> None:
        """Routes of a color on one tile, one entry for each switch position."""
        self.routes[self._own((tile.x, tile.y))][color] = _masks(positions)

    def paint_range(self, tiles: IntRectangle, color: Color, positions: Iterable[RoutingPosition]) -> None:
        masks = _masks(positions)
        for tile in tiles.tiles():
            self.routes[self._own(tile)][color] = masks

    def paint_all(
        self, color: Color, positions: Iterable[RoutingPosition], edges: Iterable[EdgeRouteInfo] = ()
    ) -> None:
        """The same on all tiles, but for the edges that are given their own."""
        masks = _masks(positions)
        for tile in self._all():
            self.routes[tile][color] = masks
        for info in edges:
            for tile in self.edge_tiles(info.edge):
                self.routes[tile][color] = _masks(info.positions)

    def create_input_port(
        self, color: Color, edge: Edge, positions: Iterable[RoutingPosition], size: int, name: str = ""
    ) -> PortHandle:
        """A color enters at an edge; what a position leaves open comes from there. size: wavelets in all."""
        return self._port(color, edge, positions, size, name, True)

    def create_output_port(
        self, color: Color, edge: Edge, positions: Iterable[RoutingPosition], size: int, name: str = ""
    ) -> PortHandle:
        """A color leaves at an edge."""
        return self._port(color, edge, positions, size, name, False)

    def _port(self, color: Color, edge: Edge, positions: Any, size: int, name: str, is_input: bool) -> PortHandle:
        side = 1 << edge.value
        masks = tuple((rx or side, tx) if is_input else (rx, tx or side) for rx, tx in _masks(positions))
        for tile in self.edge_tiles(edge):
            self.routes[tile][color] = masks
        return PortHandle(self, color, edge, size, is_input, name or f"{self.name}.{color.name}")


def _masks(positions: Iterable[RoutingPosition]) -> Masks:
    return tuple((p.rx, p.tx) for p in positions)


class SdkLayout:
    """A layout under construction; `compile` makes a program of it."""

    def __init__(self, platform: SdkExecutionPlatform) -> None:
        self.arch = ARCHITECTURES[platform.target.value]
        self.regions: list[CodeRegion] = []
        self._wires: list[tuple[PortHandle, PortHandle]] = []
        self._streams: list[PortHandle] = []
        self._same: dict[Color, Color] = {}

    def create_code_region(self, path: str | os.PathLike[str], name: str, width: int, height: int) -> CodeRegion:
        """A rectangle of tiles that run one source file."""
        file = Path(path).resolve()
        if not file.is_file():
            raise LayoutError(f'region "{name}": {file} does not exist')
        if any(region.name == name for region in self.regions):
            raise LayoutError(f'there is a region "{name}" already; names are distinct')
        self.regions.append(CodeRegion(file, name, width, height))
        return self.regions[-1]

    def connect(self, source: PortHandle, target: PortHandle) -> None:
        """Wires from an output port to an input port."""
        if source.is_input or not target.is_input:
            raise LayoutError(f"connect({source.name}, {target.name}): first an output port, then an input port")
        if source.size != target.size:
            raise LayoutError(f"{source.name} sends {source.size} wavelets, {target.name} takes {target.size}")
        for port in (source, target):
            self._link(port)
        self._wires.append((source, target))
        self._same[self._root(source.color)] = self._root(target.color)

    def create_input_stream(self, port: PortHandle) -> Stream:
        """From the host into an input port."""
        return self._stream(port, True)

    def create_output_stream(self, port: PortHandle) -> Stream:
        """From an output port to the host."""
        return self._stream(port, False)

    def _stream(self, port: PortHandle, is_input: bool) -> Stream:
        if port.is_input != is_input:
            raise LayoutError(f"{port.name} is an {'input' if port.is_input else 'output'} port: use the other stream")
        self._link(port)
        self._streams.append(port)
        return Stream(tuple(port.tiles()), port.color, port.size, is_input)

    def _link(self, port: PortHandle) -> None:
        if port.linked:
            raise LayoutError(f"{port.name} is connected already")
        port.linked = True

    def _root(self, color: Color) -> Color:
        while color in self._same and self._same[color] is not color:
            color = self._same[color]
        return color

    # --- compiling --------------------------------------------------------------------------------------------------

    def compile(self, out_prefix: str = "out", **_: Any) -> SdkCompileArtifacts:
        """Route, choose colors, compile; the program goes into the folder `out_prefix`.

        Raises:
            LayoutError, RoutingError: the layout does not fit together.
            CompileFailed: a region's program has errors.
        """
        owners = self._place()
        paths = [path for wire in self._paths(owners) for path in wire]
        size = self._size(owners, paths)
        routes = self._routes(paths)
        self._choose(routes)
        placement = Placement(size, is_sparse=True)
        for tile, region in owners.items():
            own = tile[0] - region.origin()[0], tile[1] - region.origin()[1]
            placement.put(*tile, TileCode(str(region.path), _params(region.params[own])))
        for tile, colors in routes.items():
            for color, masks in colors.items():
                number = self._root(color).value
                assert number is not None
                placement.route(*tile, number, ColorConfig(masks))
        image = compile_placement(placement, Options(self.arch.name))
        folder = Path(out_prefix)
        image_file.save(self._with_data(image, owners), folder)
        return SdkCompileArtifacts(folder.resolve())

    def _place(self) -> dict[Tile, CodeRegion]:
        owners: dict[Tile, CodeRegion] = {}
        if not self.regions:
            raise LayoutError("the layout has no region: create_code_region makes one")
        for region in self.regions:
            if region.place_at is None and len(self.regions) > 1:
                raise LayoutError(f'region "{region.name}" is not placed: call place(x, y)')
            x0, y0 = region.origin()
            for x, y in region.params:
                tile = x0 + x, y0 + y
                if tile in owners:
                    raise LayoutError(f'regions "{owners[tile].name}" and "{region.name}" overlap on tile {tile}')
                if tile[0] >= self.arch.max_fabric[0] or tile[1] >= self.arch.max_fabric[1]:
                    raise LayoutError(f'region "{region.name}" lies beyond the fabric of {self.arch.name}: tile {tile}')
                owners[tile] = region
        return owners

    def _paths(self, owners: dict[Tile, CodeRegion]) -> Iterable[list[tuple[Color, list[Tile]]]]:
        """A path for each pair of tiles of each wire: from the sending tile to the receiving one, both included."""
        limit = max(x for x, _ in owners) + 3, max(y for _, y in owners) + 3
        used: dict[Color, set[Tile]] = {}
        for source, target in self._wires:
            senders, takers = source.tiles(), target.tiles()
            if len(senders) != len(takers):
                raise LayoutError(f"{source.name} has {len(senders)} tiles along its edge, {target.name} {len(takers)}")
            color = self._root(source.color)
            own = used.setdefault(color, set())
            middles: list[list[Tile]] = [[] for _ in senders]
            if _beyond(senders[0], source.edge) != takers[0] or _beyond(takers[0], target.edge) != senders[0]:
                ends = [
                    (_beyond(sender, source.edge), _beyond(taker, target.edge))
                    for sender, taker in zip(senders, takers, strict=True)
                ]
                name = f"{source.name} to {target.name}"
                middles = find_paths(ends, lambda t, own=own: t not in owners and t not in own, limit, name)
            own.update(tile for middle in middles for tile in middle)
            yield [(color, [s, *m, t]) for s, m, t in zip(senders, middles, takers, strict=True)]

    def _size(self, owners: dict[Tile, CodeRegion], paths: list[tuple[Color, list[Tile]]]) -> Tile:
        tiles = [*owners, *(tile for _, path in paths for tile in path)]
        return max(x for x, _ in tiles) + 1, max(y for _, y in tiles) + 1

    def _routes(self, paths: list[tuple[Color, list[Tile]]]) -> dict[Tile, dict[Color, Masks]]:
        """All routes of the fabric: what regions painted, wires, and links to the host."""
        routes: dict[Tile, dict[Color, Masks]] = {}
        for region in self.regions:
            x0, y0 = region.origin()
            for (x, y), colors in region.routes.items():
                routes[x0 + x, y0 + y] = {self._root(color): masks for color, masks in colors.items()}
        for color, path in paths:
            for before, tile, after in zip(path, path[1:], path[2:], strict=False):
                rx, tx = 1 << port_between(tile, before), 1 << port_between(tile, after)
                routes.setdefault(tile, {})[color] = ((rx, tx),)
        host = 1 << Port.HOST
        for port in self._streams:
            side, color = 1 << port.edge.value, self._root(port.color)
            for tile in port.tiles():
                routes[tile][color] = tuple(
                    (rx & ~side | host if rx & side else rx, tx) if port.is_input
                    else (rx, tx & ~side | host if tx & side else tx)
                    for rx, tx in routes[tile][color]
                )  # fmt: skip
        return routes

    def _choose(self, routes: dict[Tile, dict[Color, Masks]]) -> None:
        """A value for every color that has none."""
        tiles: dict[Color, set[Tile]] = {}
        switched: set[Color] = set()
        for tile, colors in routes.items():
            for color, masks in colors.items():
                tiles.setdefault(color, set()).add(tile)
                if len(masks) > 1:
                    switched.add(color)
        for region in self.regions:
            x0, y0 = region.origin()
            for (x, y), params in region.params.items():
                for value in params.values():
                    if isinstance(value, Color):
                        tiles.setdefault(self._root(value), set()).add((x0 + x, y0 + y))
        fixed: dict[Color, int] = {}
        everyone = {*tiles, *self._same}
        for color in everyone:
            if color.value is None:
                continue
            if not 0 <= color.value < NUM_COLORS:
                raise LayoutError(f'color "{color.name}" has the value {color.value}; colors are 0 to {NUM_COLORS - 1}')
            root = self._root(color)
            if fixed.setdefault(root, color.value) != color.value:
                raise LayoutError(f'connected ports have the colors {fixed[root]} and {color.value} ("{color.name}")')
        order = sorted(range(NUM_COLORS), key=lambda number: (number in _RESERVED, number))

        def allowed(color: Color) -> list[int]:
            return [n for n in order if color not in switched or n in self.arch.switch_colors]

        for color, number in number_colors(tiles, fixed, allowed, lambda c: f'color "{c.name}"').items():
            color.value = number
        for color in self._same:
            color.value = self._root(color).value

    def _with_data(self, image: Image, owners: dict[Tile, CodeRegion]) -> Image:
        """The image with what set_symbol_all said."""
        preloads = []
        for tile, region in owners.items():
            own = tile[0] - region.origin()[0], tile[1] - region.origin()[1]
            for name, matrix in region.symbols.items():
                program = image.programs[image.program_of[tile[1], tile[0]]]
                found = [s for s in program.symbols if s.name == name and s.kind == SymbolKind.VARIABLE]
                if not found:
                    raise LayoutError(f'{region.path.name} has no variable "{name}" for set_symbol_all')
                rows, columns = matrix.shape[0] // region.height, matrix.shape[1] // region.width
                block = matrix[own[1] * rows : (own[1] + 1) * rows, own[0] * columns : (own[0] + 1) * columns]
                data = np.frombuffer(np.ascontiguousarray(block).tobytes(), np.uint8)
                if len(data) != found[0].size_bytes:
                    have, given = found[0].size_bytes, len(data)
                    raise LayoutError(f'"{name}" of region "{region.name}" has {have} bytes a tile, the data {given}')
                preloads.append(Preload(tile[0], tile[1], found[0].value, data))
        return Image(**{**vars(image), "preloads": tuple(preloads)})


def _beyond(tile: Tile, edge: Edge) -> Tile:
    dx, dy = STEPS[edge.value]
    return tile[0] + dx, tile[1] + dy


def _params(params: dict[str, Any]) -> tuple[tuple[str, Const], ...]:
    """As the layout block would give them."""
    made = []
    for name, value in sorted(params.items()):
        if isinstance(value, Color):
            root = value.value
            made.append((name, Const(ty.COMPTIME_INT, root)))
        elif isinstance(value, bool):
            made.append((name, Const(ty.BOOL, value)))
        elif isinstance(value, int | np.integer):
            made.append((name, Const(ty.COMPTIME_INT, int(value))))
        else:
            made.append((name, Const(ty.COMPTIME_FLOAT, float(value))))
    return tuple(made)
