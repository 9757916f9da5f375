"""The compiler from options to an image: the whole pipeline on one screen."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from openwafer.wafer.arch import ARCHITECTURES, NUM_COLORS
from openwafer.wafer.csl.codegen import generate
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.ir import ColorConfig, IrProgram
from openwafer.wafer.csl.placement import Placement, TileCode
from openwafer.wafer.csl.routes import check_routes
from openwafer.wafer.csl.sema import Compilation, analyze_layout, analyze_program, too_deep
from openwafer.wafer.image import Image, Program, Route

RECURSION = 20_000
"""Python calls for the compiler: enough for the nesting that parser and sema allow."""


@dataclass(frozen=True)
class Options:
    """What the command line says; sizes in tiles, (x, y)."""

    arch: str = "wse2"
    fabric: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)
    params: dict[str, str] = field(default_factory=dict)
    colors: dict[str, int] = field(default_factory=dict)
    import_paths: tuple[Path, ...] = ()
    memcpy: bool = False
    max_iterations: int = 1_000_000


def compile_file(
    path: Path,
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda text: None,
) -> Image:
    """The image of a root file; `report` gets warnings and what @comptime_print says, if there are any.

    Raises:
        CompileFailed: the program has errors; the text shows them with their source lines.
    """
    collects = gc.isenabled()
    gc.disable()  # a compilation makes millions of small objects and no cycles worth a search
    try:
        return _compile(path, options, progress, report)
    finally:
        if collects:
            gc.enable()


def _compile(path: Path, options: Options, progress: Callable, report: Callable[[str], None]) -> Image:
    compilation = Compilation(ARCHITECTURES[options.arch], options.import_paths, options.max_iterations)
    compilation.fabric, compilation.offset = options.fabric or (0, 0), options.offset
    image = _reported(compilation, lambda: _laid_out(compilation, path, options, progress))
    if compilation.diagnostics.items:
        report(compilation.diagnostics.text())
    return image


def _laid_out(compilation: Compilation, path: Path, options: Options, progress: Callable[[int, int], None]) -> Image:
    placement, params = analyze_layout(compilation, str(path), options.params, options.colors)
    _check_placement(placement, options)
    return _image(compilation, placement, options, params, progress)


def compile_placement(placement: Placement, options: Options) -> Image:
    """The image of a placement that was not made by a layout block; errors as of compile_file."""
    compilation = Compilation(ARCHITECTURES[options.arch], options.import_paths, options.max_iterations)
    compilation.size = placement.size
    return _reported(compilation, lambda: _image(compilation, placement, options, {}, lambda done, total: None))


def _reported(compilation: Compilation, made: Callable[[], Image]) -> Image:
    """What `made` gives, its errors as one CompileFailed."""
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(max(depth, RECURSION))
    try:
        return made()
    except RecursionError:
        compilation.diagnostics.report(too_deep(None))
    except CslError as error:
        compilation.diagnostics.report(error)
    finally:
        sys.setrecursionlimit(depth)
    compilation.diagnostics.check()
    raise AssertionError("an error was not reported")


def _image(
    compilation: Compilation, placement: Placement, options: Options, params: dict[str, str], progress: Callable
) -> Image:
    compilation.placement = placement
    width, height = placement.size
    number_of: dict[int, int] = {}
    programs: list[Program] = []
    local: list[dict[int, ColorConfig]] = []
    program_of = np.full((height, width), -1, np.int32)
    tables: dict[tuple, int] = {}
    routes: list[dict[int, Route]] = []
    routes_of = np.zeros((height, width), np.int32)
    distinct = {id(tile): tile for tile in placement.tiles.values()}
    failed: set[str] = set()
    for number, tile in enumerate(distinct.values()):
        progress(number, len(distinct))
        made = None if tile.path in failed else _program(compilation, tile)
        if made is None:
            failed.add(tile.path)
            continue
        number_of[id(tile)] = len(programs)
        programs.append(made[1])
        local.append({color: placement.known.setdefault(c, c) for color, c in made[0].colors.items()})
    compilation.diagnostics.check()

    def configs(x: int, y: int) -> dict[int, ColorConfig]:
        own = local[program_of[y, x]] if program_of[y, x] >= 0 else {}
        return {**own, **placement.colors.get((x, y), {})}

    plain = _plain([*placement.colors.values(), *local])
    for y in range(height):
        for x in range(width):
            tile = placement.tiles.get((x, y))
            if tile is not None:
                program_of[y, x] = number_of[id(tile)]
            merged = sorted(configs(x, y).items())
            key = tuple((color, plain[id(config)]) for color, config in merged)
            if key not in tables:
                tables[key] = len(routes)
                routes.append({color: route for color, c in merged if (route := _route(c, color, (x, y))) is not None})
            routes_of[y, x] = tables[key]
    image = Image(
        options.arch, options.fabric or placement.size, options.offset, placement.size, tuple(programs), program_of,
        tuple(routes), routes_of, params, {name: str(value) for name, value in options.colors.items()},
        dict(placement.exports),
    )  # fmt: skip
    check_routes(image, configs, options.fabric is not None, compilation.diagnostics)
    compilation.diagnostics.check()
    return image


def _plain(tables: Iterable[dict[int, ColorConfig]]) -> dict[int, int]:
    """id of each configuration -> id of the first that is equal but for its place in the source."""
    first: dict[ColorConfig, int] = {}
    found: dict[int, int] = {}
    for table in tables:
        for config in table.values():
            if id(config) not in found:
                found[id(config)] = first.setdefault(replace(config, span=None), id(config))
    return found


def _program(compilation: Compilation, tile: TileCode) -> tuple[IrProgram, Program] | None:
    """One PE type; None: its errors are reported."""
    before = compilation.diagnostics.num_errors
    try:
        made = analyze_program(compilation, tile)
        if compilation.diagnostics.num_errors == before:
            return made, generate(made)
    except CslError as error:
        compilation.diagnostics.report(error)
    return None


def _route(config: ColorConfig, color: int, pe: tuple[int, int]) -> Route | None:
    if config.positions is None:
        return None
    for position in config.positions:
        if position is not None and bool(position[0]) != bool(position[1]):
            side = "rx" if not position[0] else "tx"
            raise CslError(config.span, f"color {color} of PE {pe} has a route without {side}")
    if not config.positions[0] or config.positions[0] == (0, 0):
        return None
    return Route(
        config.positions, config.position, config.ring, config.pop, config.filter, config.teardown, config.swap
    )


def _check_placement(placement: Placement, options: Options) -> None:
    width, height = placement.size
    if placement.size == (0, 0):
        raise CslError(placement.span, "the layout never calls @set_rectangle")
    missing = [(x, y) for y in range(height) for x in range(width) if (x, y) not in placement.tiles]
    if missing:
        raise CslError(
            placement.span,
            f"{len(missing)} of {width * height} PEs have no code, the first is {missing[0]}; use @set_tile_code",
        )
    for colors in placement.colors.values():
        assert all(0 <= color < NUM_COLORS for color in colors)
    if options.fabric is None:
        return
    limit, given = ARCHITECTURES[options.arch].max_fabric, f"--fabric-dims={options.fabric[0]},{options.fabric[1]}"
    if options.fabric[0] > limit[0] or options.fabric[1] > limit[1]:
        raise CslError(None, f"{given} is more than {options.arch} has ({limit[0]},{limit[1]})")
    margin = (7, 2) if options.memcpy else (options.offset[0], options.offset[1])
    needed = width + margin[0], height + margin[1]
    if options.fabric[0] < needed[0] or options.fabric[1] < needed[1]:
        raise CslError(
            None,
            f"{given} is too small: a rectangle of {width} x {height} needs at least {needed[0]},{needed[1]}",
            ("the rectangle is set here", placement.span),
        )
