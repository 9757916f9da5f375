"""`openwafer wafer info`: what lies in a compiled program, as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.describe import describe, rectangles

_ARROWS = {"NORTH": "↑", "SOUTH": "↓", "EAST": "→", "WEST": "←"}
MAX_MAP = 24
"""A map of a color is printed up to this many PEs a side."""


def read(out: Path) -> dict[str, Any]:
    """The description of the program in a folder."""
    return describe(image_file.load(out))


def report(content: dict[str, Any], out: Path, pe: str | None = None) -> str:
    """All of it; with `pe` ("x,y") only that PE, in full."""
    if pe is not None:
        x, y = _pe(pe, content["size"])
        program = content["programs"][content["program_of"][y][x]]
        return "\n".join([f"PE ({x}, {y}): {program['name']}", *_program(program), *_routes_of(content, x, y)])
    width, height = content["size"]
    lines = [
        f"{out}: {content['arch']}, {width} x {height} PEs at ({content['offset'][0]}, {content['offset'][1]}) of a "
        f"fabric of {content['fabric'][0]} x {content['fabric'][1]}"
    ]
    if content["params"]:
        lines.append("params: " + " ".join(f"{name}={value}" for name, value in content["params"].items()))
    return "\n".join([*lines, "", *_types(content), "", *_fullest(content), *_colors(content)])


def _pe(text: str, size: list[int]) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise OpenwaferError(f'--pe="{text}": expected x,y such as 3,1')
    x, y = int(parts[0]), int(parts[1])
    if x >= size[0] or y >= size[1]:
        raise OpenwaferError(f"--pe={text}: x is 0 to {size[0] - 1}, y is 0 to {size[1] - 1}")
    return x, y


def _types(content: dict[str, Any]) -> Iterator[str]:
    programs = content["programs"]
    yield f"{len(programs)} PE type{'s' * (len(programs) != 1)} (bytes of 49,152)"
    yield f"  {'PEs':>6}  {'code':>6}  {'data':>6}  {'free':>6}  program, where"
    for number, program in enumerate(programs):
        where = [(x, y) for y, row in enumerate(content["program_of"]) for x, own in enumerate(row) if own == number]
        yield (
            f"  {program['pes']:>6}  {program['code_bytes']:>6,}  {program['data_bytes']:>6,}  "
            f"{program['free_bytes']:>6,}  {program['name']}  {_shorter(rectangles(where))}"
        )


def _shorter(places: list[str]) -> str:
    return " | ".join(places[:4]) + (f" | {len(places) - 4} more" if len(places) > 4 else "")


def _fullest(content: dict[str, Any]) -> Iterator[str]:
    programs = content["programs"]
    fullest = min(range(len(programs)), key=lambda n: programs[n]["free_bytes"])
    places = [(x, y) for y, row in enumerate(content["program_of"]) for x, own in enumerate(row) if own == fullest]
    yield f"the fullest PE, ({places[0][0]}, {places[0][1]}); --pe X,Y shows another"
    yield from _program(programs[fullest])


def _program(program: dict[str, Any]) -> Iterator[str]:
    yield f"  {'address':>7}  {'bytes':>6}"
    yield f"  {0:>7}  {program['code_bytes']:>6,}  code"
    for v in program["variables"]:
        yield f"  {v['address']:>7}  {v['bytes']:>6,}  {v['name']}: {v['type']}{'  exported' * v['exported']}"
    used = program["code_bytes"] + program["data_bytes"]
    yield f"  {used:>7}  {program['free_bytes']:>6,}  free"
    for f in program["functions"]:
        yield f"  launch  {f['name']}: {f['type']}"
    for t in program["tasks"]:
        state = ", active at the start" * t["active"] + ", blocked at the start" * t["blocked"]
        yield f"  task    {t['function']}: {t['kind']}, id {t['id']}{state}"
    for kind in ("input", "output"):
        pairs = program[f"{kind}_queues"]
        if pairs:
            yield f"  {kind} queues  " + ", ".join(f"{queue}: color {color}" for queue, color in pairs)


def _colors(content: dict[str, Any]) -> Iterator[str]:
    for color in content["colors"]:
        yield ""
        yield f"color {color['color']}, {len(color['routes'])} PEs"
        for number, shape in enumerate(color["shapes"]):
            where = [(x, y) for x, y, own in color["routes"] if own == number]
            yield f"  {route_text(shape)}   {_shorter(rectangles(where))}"
        if max(content["size"]) <= MAX_MAP:
            yield from _map(content["size"], color)


def route_text(shape: dict[str, Any]) -> str:
    """ "WEST → EAST RAMP" and what the switch changes."""
    parts = []
    for number, position in enumerate(shape["positions"]):
        text = "invalid" if position is None else f"{' '.join(position[0])} → {' '.join(position[1])}"
        parts.append(text if len(shape["positions"]) == 1 else f"{number}: {text}")
    notes = f"  [{'; '.join(shape['notes'])}]" if shape["notes"] else ""
    return "; ".join(parts) + notes


def _routes_of(content: dict[str, Any], x: int, y: int) -> Iterator[str]:
    for color in content["colors"]:
        for at_x, at_y, shape in color["routes"]:
            if (at_x, at_y) == (x, y):
                yield f"  color {color['color']}: {route_text(color['shapes'][shape])}"


def _map(size: list[int], color: dict[str, Any]) -> Iterator[str]:
    """A cell a PE: o sends, an arrow passes on, • delivers to the core; of the position where the switch starts."""
    cells = {(x, y): _cell(color["shapes"][shape]) for x, y, shape in color["routes"]}
    wide = max(2, *map(len, cells.values()))
    for y in range(size[1]):
        yield "    " + " ".join(cells.get((x, y), "·").ljust(wide) for x in range(size[0]))


def _cell(shape: dict[str, Any]) -> str:
    position = shape["positions"][shape["start"]]
    if position is None:
        return "x"
    rx, tx = position
    arrows = "".join(_ARROWS.get(port, "") for port in tx)
    return "o" * ("RAMP" in rx) + arrows + "•" * ("RAMP" in tx) + "H" * ("HOST" in rx + tx)
