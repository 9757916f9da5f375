"""The layout block, and routes."""

from __future__ import annotations

from typing import Any

from openwafer.wafer.arch import NUM_COLORS, Port
from openwafer.wafer.csl import ast
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.builtins.arguments import Config, at_start, config, count, flag, in_program, known_id, number
from openwafer.wafer.csl.comptime import VOID, Const, StructValue
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.csl.ir import ColorConfig
from openwafer.wafer.csl.placement import TileCode
from openwafer.wafer.csl.scope import Value
from openwafer.wafer.image import Filter, FilterKind, Pop

_CONFIG = ("routes", "switches", "filter", "teardown", "color_swap_x", "color_swap_y")
_POPS = {"no_pop": 0, "always_pop": 1, "pop_on_advance": 2, "pop_on_advance_nop": 3}


def _placement(sema: Any, node: ast.BuiltinCall) -> Any:
    if sema.placement is None:
        raise CslError(node.span, f"@{node.name} belongs to the layout block")
    return sema.placement


def set_rectangle(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    placement = _placement(sema, node)
    width, height = (sema.integer(frame, a) for a in node.arguments)
    if placement.size != (0, 0):
        first = ("it was called here", placement.span)
        raise CslError(node.span, "@set_rectangle is called twice; a program has one rectangle", first)
    placement.size, placement.span = (max(1, width), max(1, height)), node.span
    limit = sema.arch.max_fabric
    if not (1 <= width <= limit[0] and 1 <= height <= limit[1]):
        raise CslError(
            node.span,
            f"a rectangle of {width} x {height} PEs is not possible on {sema.arch.name} "
            f"(1 x 1 to {limit[0]} x {limit[1]})",
        )
    return VOID


def _tile(sema: Any, frame: Any, node: ast.BuiltinCall) -> tuple[int, int]:
    placement = _placement(sema, node)
    x, y = (sema.integer(frame, a) for a in node.arguments[:2])
    width, height = placement.size
    if placement.size == (0, 0):
        raise CslError(node.span, f"@{node.name} comes before @set_rectangle")
    if not (0 <= x < width and 0 <= y < height):
        text = f"PE ({x}, {y}) is outside of the rectangle (x 0 to {width - 1}, y 0 to {height - 1})"
        raise CslError(node.span, text, ("the rectangle is set here", placement.span))
    return x, y


def set_tile_code(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 3, 4)
    x, y = _tile(sema, frame, node)
    placement = sema.placement
    if (x, y) in placement.tiles:
        code = sema.shown(placement.tiles[x, y].path)
        raise CslError(node.span, f"PE ({x}, {y}) has code already: {code}", "a PE gets its code once")
    path = sema.resolve(frame.instance, sema.string(frame, node.arguments[2]), node.arguments[2].span)
    params: list[tuple[str, Const]] = []
    if len(node.arguments) > 3:
        value = sema.constant(frame, node.arguments[3])
        if isinstance(value.value, StructValue):
            params = sorted(value.value.fields, key=lambda item: item[0])
        elif value.type != ty.VOID:
            raise CslError(node.arguments[3].span, f"parameters are a struct .{{ .name = value }}, found {value.type}")
    placement.put(x, y, TileCode(path, tuple(params), node.span))
    return VOID


def set_color_config(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 4)
    x, y = _tile(sema, frame, node)
    color = color_of(sema, frame, node.arguments[2])
    made = color_config(sema, frame, node.arguments[3], color)
    first = sema.placement.colors.get((x, y), {}).get(color)
    if first is not None:
        text = f"color {color} of PE ({x}, {y}) is configured twice"
        raise CslError(node.span, text, ("it is configured here", first.span))
    sema.placement.route(x, y, color, made)
    return VOID


def set_local_color_config(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 2)
    program = at_start(sema, frame, node)
    color = color_of(sema, frame, node.arguments[0])
    made = color_config(sema, frame, node.arguments[1], color)
    if color in program.colors:
        first = ("it is configured here", program.colors[color].span)
        raise CslError(node.span, f"color {color} is configured twice", first)
    program.colors[color] = made
    return VOID


def color_of(sema: Any, frame: Any, node: ast.Expr) -> int:
    color = known_id(sema.constant(frame, node), node, "the color", kind=ty.COLOR)
    if not 0 <= color < NUM_COLORS:
        raise CslError(node.span, f"color {color} cannot be routed (0 to {NUM_COLORS - 1})")
    return color


def directions(value: Any, node: ast.Node) -> int:
    """A direction, or a list of them, as a mask."""
    if isinstance(value, Const) and value.type == ty.DIRECTION:
        return 1 << value.value
    if isinstance(value, Const) and isinstance(value.value, StructValue):
        return sum({directions(own, node) for _, own in value.value.fields})
    if isinstance(value, Const) and isinstance(value.type, ty.Array) and value.type.element == ty.DIRECTION:
        return sum({1 << value.value.at(i) for i in range(value.value.count)})
    raise CslError(node.span, f"expected directions like .{{WEST}} or .{{EAST, RAMP}}, found {value.type}")


def color_config(sema: Any, frame: Any, node: ast.Expr, color: int) -> ColorConfig:
    options = config(sema, frame.comptime(), node, _CONFIG)
    base = _struct(options, "routes") if _bits(options, "routes") is None else {}
    rx, tx = _sides(options, "routes")
    positions: list[tuple[int, int] | None] | None = [(rx, tx)] if "routes" in options else None
    ring, pop, start = False, Pop.NO_POP, 0
    if "switches" in options:
        switches = _struct(options, "switches")
        if color not in sema.arch.switch_colors:
            raise CslError(node.span, f"color {color} has no switches on {sema.arch.name}")
        positions = positions or [(rx, tx)]
        positions += _positions(sema, switches, rx, tx)
        ring = flag(switches, "ring_mode")
        start = number(switches, "current_switch_pos", 0, 0, 3) or 0
        if "pop_mode" in switches:
            modes = _struct(switches, "pop_mode")
            chosen = [name for name in modes if flag(modes, name)]
            if len(chosen) != 1 or chosen[0] not in _POPS:
                raise CslError(switches["pop_mode"][1].span, f".pop_mode is one of {', '.join(f'.{n}' for n in _POPS)}")
            pop = Pop(_POPS[chosen[0]])
    _check_sides(positions, options, color)
    swaps = {**options, **base}
    swap = flag(swaps, "color_swap_x") | flag(swaps, "color_swap_y") << 1
    return ColorConfig(
        None if positions is None else tuple(positions),
        start,
        ring,
        pop,
        _filter(options),
        flag(options, "teardown"),
        swap,
        node.span,
    )


def _check_sides(positions: list[tuple[int, int] | None] | None, options: Config, color: int) -> None:
    """What comes in goes out."""
    for place, position in enumerate(positions or []):
        if position is None or bool(position[0]) == bool(position[1]):
            continue
        where = options["routes" if place == 0 and "routes" in options else "switches"][1].span
        side, missing = ("tx", "rx") if not position[0] else ("rx", "tx")
        which = f"switch position {place} of color {color}" if place else f"the route of color {color}"
        listed = ", ".join(port.name for port in Port if position[side == "tx"] >> port & 1)
        raise CslError(where, f"{which} has .{side} = .{{{listed}}} and no .{missing}", f"add .{missing} = .{{...}}")


def _positions(sema: Any, switches: Config, rx: int, tx: int) -> list[tuple[int, int] | None]:
    """Positions 1 to 3; what one does not say is as in the position before (inferred: the public cholesky needs it)."""
    found: list[tuple[int, int] | None] = []
    for name in ("pos1", "pos2", "pos3"):
        if name not in switches:
            break
        bits = _bits(switches, name)
        if bits == 0 or (bits is None and "invalid" in _struct(switches, name)):
            found.append(None)
            continue
        new_rx, new_tx = _sides(switches, name)
        if new_rx and new_tx and not sema.arch.switch_sets_both:
            raise CslError(switches[name][1].span, f"a switch position of {sema.arch.name} changes rx or tx, not both")
        rx, tx = new_rx or rx, new_tx or tx
        found.append((rx, tx))
    return found


def _bits(options: Config, name: str) -> int | None:
    """A route written as an integer of <directions>: bits 0 to 4 rx, 8 to 12 tx; None: it is a struct, or not there."""
    value = options[name][0] if name in options else None
    is_number = isinstance(value, Const) and (isinstance(value.type, ty.Int) or value.type == ty.COMPTIME_INT)
    return int(value.value) if is_number and isinstance(value, Const) else None


def _sides(options: Config, name: str) -> tuple[int, int]:
    """rx and tx masks of a route, from either form."""
    bits = _bits(options, name)
    if bits is not None:
        return bits & 0x1F, bits >> 8 & 0x1F
    fields = _struct(options, name)
    return (
        directions(*fields["rx"]) if "rx" in fields else 0,
        directions(*fields["tx"]) if "tx" in fields else 0,
    )


def _struct(options: Config, name: str) -> Config:
    if name not in options:
        return {}
    value, node = options[name]
    if not isinstance(value, Const) or not isinstance(value.value, StructValue):
        found = f", found {value.type}"
        raise CslError(node.span, f".{name} must be a struct like .{{ .field = value }}{found}")
    return {key: (own, node) for key, own in value.value.fields}


def _filter(options: Config) -> Filter | None:
    if "filter" not in options:
        return None
    fields = _struct(options, "filter")
    kinds = _struct(fields, "kind")
    chosen = [name for name in kinds if flag(kinds, name)]
    if len(chosen) != 1 or chosen[0].upper() not in FilterKind.__members__:
        raise CslError(options["filter"][1].span, ".kind of a filter is one of .counter, .sparse_counter, .range")
    numbers = {
        name: number(fields, name, 0)
        for name in ("init_counter", "max_counter", "limit1", "limit2", "min_idx", "max_idx")
    }
    return Filter(
        FilterKind[chosen[0].upper()],
        count_data=flag(fields, "count_data"),
        count_control=flag(fields, "count_control"),
        filter_control=flag(fields, "filter_control"),
        **numbers,  # pyright: ignore[reportArgumentType]
    )


def get_filter_id(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    """The number of a color's filter: the color's own (chosen)."""
    count(node, 1)
    program = in_program(sema, node)
    color = color_of(sema, frame, node.arguments[0])
    placement = sema.compilation.placement
    for place in (place for place, tile in placement.tiles.items() if tile is sema.tile):
        made = {**program.colors, **placement.colors.get(place, {})}.get(color)
        if made is None or made.filter is None:
            raise CslError(node.arguments[0].span, f"color {color} of PE {place} has no filter")
    return Const(ty.U16, color)


def get_rectangle(sema: Any, frame: Any, node: ast.BuiltinCall, want: Any) -> Value:
    count(node, 0)
    width, height = sema.placement.size if sema.placement is not None else sema.compilation.size

    def pair(a: str, x: int, b: str, y: int) -> Const:
        return Const(ty.COMPTIME_STRUCT, StructValue(((a, Const(ty.U16, x)), (b, Const(ty.U16, y)))))

    fields = (
        ("width", Const(ty.U16, width)),
        ("height", Const(ty.U16, height)),
        ("fabric", pair("width", sema.compilation.fabric[0], "height", sema.compilation.fabric[1])),
        ("offsets", pair("width", sema.compilation.offset[0], "height", sema.compilation.offset[1])),
    )
    return Const(ty.COMPTIME_STRUCT, StructValue(fields))


BUILTINS = {
    "set_rectangle": set_rectangle,
    "set_tile_code": set_tile_code,
    "set_color_config": set_color_config,
    "set_local_color_config": set_local_color_config,
    "get_rectangle": get_rectangle,
    "get_filter_id": get_filter_id,
}
