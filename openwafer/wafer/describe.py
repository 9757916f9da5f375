"""An image as plain data for people and pictures: memory, tasks, queues and routes. Numbers, lists and texts only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from openwafer.wafer.arch import MEMORY_BYTES, Port
from openwafer.wafer.image import Image, Program, Route, SymbolKind, TaskKind

VERSION = 1


def describe(image: Image) -> dict[str, Any]:
    """What `view/fabric.py` draws and `openwafer wafer info` prints.

    Returns:
        version, arch, size, fabric, offset, params; programs: see `describe_program`, with `pes`, how many have it;
        program_of [height][width]; colors: color, routes: [x, y, index into shapes], shapes: see `describe_route`
    """
    width, height = image.size
    programs = [describe_program(program) for program in image.programs]
    for number, program in enumerate(programs):
        program["pes"] = int((image.program_of == number).sum())
    used = sorted({color for table in image.route_tables for color in table})
    return {
        "version": VERSION, "arch": image.arch, "size": [width, height], "fabric": list(image.fabric),
        "offset": list(image.offset), "params": dict(image.params), "programs": programs,
        "program_of": image.program_of.tolist(), "colors": [_color(image, color) for color in used],
    }  # fmt: skip


def describe_program(program: Program) -> dict[str, Any]:
    """Bytes of the 48 KB, variables by address, tasks, and the colors of queues where the program gives them."""
    data_bytes = len(program.memory) - program.code_bytes
    exported = {s.name for s in program.symbols if s.exported}
    return {
        "name": PurePath(program.name).name,
        "code_bytes": program.code_bytes,
        "data_bytes": data_bytes,
        "free_bytes": MEMORY_BYTES - len(program.memory),
        "variables": [
            {"name": s.name, "address": s.value, "bytes": s.size_bytes, "type": s.element_type,
             "exported": s.name in exported}
            for s in sorted(program.symbols, key=lambda s: s.value) if s.kind == SymbolKind.VARIABLE
        ],
        "functions": [
            {"name": s.name, "type": s.element_type} for s in program.symbols if s.kind == SymbolKind.FUNCTION
        ],
        "tasks": [
            {"kind": t.kind.name.lower(), "id": t.id, "function": program.functions[t.function].name,
             "active": t.kind == TaskKind.LOCAL and bool(program.activated >> t.id & 1),
             "blocked": t.kind != TaskKind.CONTROL and bool(program.blocked >> t.id & 1)}
            for t in program.tasks
        ],
        "input_queues": _queues(program.input_queue_colors, program.input_queue_of_color),
        "output_queues": _queues(program.output_queue_colors, {}),
    }  # fmt: skip


def _queues(colors: Iterable[int | None], of_color: dict[int, int]) -> list[list[int]]:
    """[queue, color] pairs."""
    pairs = {(queue, color) for queue, color in enumerate(colors) if color is not None}
    return [list(pair) for pair in sorted(pairs | {(queue, color) for color, queue in of_color.items()})]


def _color(image: Image, color: int) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    routes = []
    width, height = image.size
    for y in range(height):
        for x in range(width):
            route = image.route_tables[image.routes_of[y, x]].get(color)
            if route is None:
                continue
            shape = describe_route(route)
            if shape not in shapes:
                shapes.append(shape)
            routes.append([x, y, shapes.index(shape)])
    return {"color": color, "shapes": shapes, "routes": routes}


def describe_route(route: Route) -> dict[str, Any]:
    """Positions as [[rx names], [tx names]] or None, where the switch starts, and notes on what is special."""
    positions = [None if p is None else [ports(p[0]), ports(p[1])] for p in route.positions]
    notes = []
    if len(positions) > 1:
        notes.append(f"{route.pop.name.lower()}{', ring' if route.ring else ''}")
    if route.filter is not None:
        notes.append(f"{route.filter.kind.name.lower()} filter")
    if route.teardown:
        notes.append("teardown at the start")
    if route.swap:
        notes.append("color swap")
    return {"positions": positions, "start": route.position, "notes": notes}


def ports(mask: int) -> list[str]:
    """Names of the ports in a mask."""
    return [port.name for port in Port if mask >> port & 1]


def rectangles(places: Iterable[tuple[int, int]]) -> list[str]:
    """PEs as a few rectangles: "x 0-3, y 1"."""
    rows: dict[int, list[int]] = {}
    for x, y in places:
        rows.setdefault(y, []).append(x)
    bands: list[tuple[list[tuple[int, int]], int, int]] = []
    for y in sorted(rows):
        spans = _spans(sorted(rows[y]))
        if bands and bands[-1][0] == spans and bands[-1][2] == y - 1:
            bands[-1] = (spans, bands[-1][1], y)
        else:
            bands.append((spans, y, y))
    return [f"x {','.join(_span(*s) for s in spans)}, y {_span(first, last)}" for spans, first, last in bands]


def _spans(values: list[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for value in values:
        if spans and spans[-1][1] == value - 1:
            spans[-1] = (spans[-1][0], value)
        else:
            spans.append((value, value))
    return spans


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
