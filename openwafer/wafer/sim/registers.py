"""Routes as memory-mapped registers of WSE-2, for programs that rewrite them through pointers.

Word 0x7F20 + color: bits 0 to 4 tx, 5 to 9 rx (each west, east, south, north, ramp), 10 and 11 color swap, 12, 13 pop
mode, 14 teardown. Word 0x7F40 + color: bits 13, 14 the switch's position, 12 ring mode, and four bits for each of the
positions 1 to 3: a port (5: invalid) and whether it is the input's. Source: comments of the public spmv-hypersparse.
Pop mode and swap cannot be written here.
"""

from __future__ import annotations

from typing import Any

from openwafer.wafer.arch import NUM_COLORS, Port

ROUTES, SWITCHES = 2 * 0x7F20, 2 * 0x7F40
INVALID, IS_INPUT, FROZEN = 5, 8, 1 << 14
_ORDER = (Port.WEST, Port.EAST, Port.SOUTH, Port.NORTH, Port.RAMP)
_HOST = 1 << Port.HOST


def color_at(address: int) -> tuple[int, bool] | None:
    """The color of a register's byte address, and whether it is its switch's; None: no register."""
    for base, is_switch in ((ROUTES, False), (SWITCHES, True)):
        if base <= address < base + 2 * NUM_COLORS and not address & 1:
            return (address - base) // 2, is_switch
    return None


def read(state: Any, is_switch: bool) -> int:
    """The 16 bits of a register. state: RouteState of sim/reference.py."""
    rx, tx = state.positions[0] or (0, 0)
    if not is_switch:
        swap = (state.route.swap >> 1 & 1) << 10 | (state.route.swap & 1) << 11
        return _packed(tx) | _packed(rx) << 5 | swap | state.route.pop << 12 | (FROZEN if state.frozen else 0)
    word = state.position << 13 | state.ring << 12
    for number in (1, 2, 3):
        word |= _field(state, number) << 4 * (number - 1)
    return word


def write(state: Any, is_switch: bool, word: int) -> None:
    """The same way back; halves that a position has from position 0 follow it."""
    rx, tx = state.positions[0] or (0, 0)
    if not is_switch:
        rx, tx = _ports(word >> 5) | rx & _HOST, _ports(word) | tx & _HOST
        state.positions[0] = rx, tx
        state.frozen = bool(word & FROZEN)
    else:
        state.position, state.ring = word >> 13 & 3, bool(word >> 12 & 1)
        state.positions += [None] * (4 - len(state.positions))
        state.said += [0] * (4 - len(state.said))
        for number in (1, 2, 3):
            _set_field(state, number, word >> 4 * (number - 1) & 15)
    for number in range(1, len(state.positions)):
        if state.positions[number] is not None:
            own, said = state.positions[number], state.said[number]
            state.positions[number] = own[0] if said & 1 else rx, own[1] if said & 2 else tx


def _packed(mask: int) -> int:
    return sum(1 << bit for bit, port in enumerate(_ORDER) if mask >> port & 1)


def _ports(bits: int) -> int:
    return sum(1 << port for bit, port in enumerate(_ORDER) if bits >> bit & 1)


def _field(state: Any, number: int) -> int:
    position = state.positions[number] if number < len(state.positions) else None
    if position is None:
        return INVALID | IS_INPUT
    is_input = bool(state.said[number] & 1)
    bits = _packed(position[0 if is_input else 1])
    port = (bits & -bits).bit_length() - 1 if bits else INVALID
    return port | (IS_INPUT if is_input else 0)


def _set_field(state: Any, number: int, bits: int) -> None:
    if bits & 7 >= INVALID:
        state.positions[number] = None
        return
    mask = 1 << _ORDER[bits & 7]
    is_input = bool(bits & IS_INPUT)
    state.positions[number] = (mask, 0) if is_input else (0, mask)
    state.said[number] = 1 if is_input else 2
