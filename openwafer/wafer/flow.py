"""What the slots of a PE's code may hold before each instruction: numbers modulo powers of two, and DSDs.

A forward analysis over the code of isa.py, function by function; arguments, memory and results of calls are unknown.
It never runs the program. The linter asks it for task ids, queues and bank addresses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from openwafer.wafer.image import Program
from openwafer.wafer.isa import SIZE_BYTES, DsdKind, Kind, Op, T

EXACT = 64
_MASK = (1 << 64) - 1
_STORES = (Op.ST, Op.STX, Op.JMP, Op.JZ, Op.JNZ, Op.RET, Op.HALT, Op.ACTIVATE, Op.BLOCK, Op.UNBLOCK, Op.VEC, Op.LDDSR,
           Op.IOPEN, Op.IMORE, Op.IPUT, Op.CFGWR, Op.ASSERT)  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A value known modulo 2^bits; bits 64: known."""

    value: int
    bits: int = EXACT

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value & ((1 << self.bits) - 1))

    @property
    def exact(self) -> int | None:
        return self.value if self.bits == EXACT else None


UNKNOWN = Number(0, 0)


@dataclass(frozen=True)
class KnownDsd:
    """A DSD whose kind, queue and color are known.

    Args:
        slots: as isa.Dsd gives them
        base: byte address of a memory DSD, as far as it is known
    """

    slots: tuple[int, int, int]
    base: Number

    @property
    def kind(self) -> DsdKind:
        return DsdKind(self.slots[0] & 7)

    @property
    def queue(self) -> int:
        return self.slots[0] >> 8 & 0xFF

    @property
    def color(self) -> int:
        return self.slots[0] >> 16 & 0xFF

    @property
    def flags(self) -> int:
        return self.slots[0] & 0xF8

    @property
    def extent(self) -> int:
        return self.slots[0] >> 48

    @property
    def stride(self) -> int:
        low = self.slots[1] & 0xFFFF
        return low - 0x10000 if low & 0x8000 else low

    @classmethod
    def of(cls, slots: tuple[int, int, int]) -> KnownDsd:
        return cls(slots, Number(slots[0] >> 32 & 0xFFFF))


Slots = dict[int, Number | KnownDsd]
Registers = dict[tuple[int, int], KnownDsd]


@dataclass(frozen=True)
class State:
    """Before an instruction: slots of the frame and explicit DSRs (file, register) that are known."""

    slots: Slots
    registers: Registers

    def number(self, slot: int) -> Number:
        found = self.slots.get(slot, UNKNOWN)
        return found if isinstance(found, Number) else UNKNOWN

    def dsd(self, slot: int) -> KnownDsd | None:
        found = self.slots.get(slot)
        return found if isinstance(found, KnownDsd) else None


def states(program: Program) -> Iterator[tuple[int, State]]:
    """(instruction, state before it) for all that can be reached from a function's beginning."""
    known: dict[int, State] = {}
    todo = deque(function.entry for function in program.functions)
    known.update(dict.fromkeys(todo, State({}, _registers_at_entry(program))))
    while todo:
        at = todo.popleft()
        after = _after(program, at, known[at])
        for following in _following(program, at):
            merged = after if following not in known else _merged(known[following], after)
            if merged != known.get(following):
                known[following] = merged
                todo.append(following)
    yield from sorted(known.items(), key=lambda item: item[0])


def _registers_at_entry(program: Program) -> Registers:
    """Any function may have run before: only registers that no code loads are known, and where they do not move on."""
    loaded = {(load.file, load.register) for load in program.dsr_loads}
    found: Registers = {}
    for load, slots in program.initial_dsr_loads:
        key, dsd = (load.file, load.register), KnownDsd.of(slots)
        if key not in loaded:
            found[key] = replace(dsd, base=UNKNOWN) if load.save_address else dsd
    return found


def _following(program: Program, at: int) -> Iterator[int]:
    word, _, b, c = (int(w) for w in program.code[at])
    op, k = Op(word >> 4), b | c << 16
    if op in (Op.JMP, Op.JZ, Op.JNZ, Op.IMORE):
        yield k
    if op not in (Op.JMP, Op.RET, Op.HALT) and at + 1 < len(program.code):
        yield at + 1


def _merged(a: State, b: State) -> State:
    slots: Slots = {}
    for slot, value in a.slots.items():
        if slot in b.slots and (joined := _joined(value, b.slots[slot])) is not None:
            slots[slot] = joined
    registers: Registers = {}
    for key, dsd in a.registers.items():
        if key in b.registers and isinstance(joined := _joined(dsd, b.registers[key]), KnownDsd):
            registers[key] = joined
    return State(slots, registers)


def _joined(a: Number | KnownDsd, b: Number | KnownDsd) -> Number | KnownDsd | None:
    if isinstance(a, Number) and isinstance(b, Number):
        bits = min(a.bits, b.bits, _trailing_zeros(a.value ^ b.value))
        return Number(a.value, bits) if bits else None
    if isinstance(a, KnownDsd) and isinstance(b, KnownDsd):
        base = _joined(a.base, b.base) or UNKNOWN
        address = 0xFFFF << 32
        if a.slots[1:] == b.slots[1:] and a.slots[0] & ~address == b.slots[0] & ~address and isinstance(base, Number):
            return KnownDsd(a.slots, base)
    return None


def _trailing_zeros(value: int) -> int:
    return EXACT if value == 0 else (value & -value).bit_length() - 1


def _after(program: Program, at: int, state: State) -> State:
    """The state after one instruction."""
    word, a, b, c = (int(w) for w in program.code[at])
    op, k = Op(word >> 4), b | c << 16
    slots, registers = dict(state.slots), state.registers
    if op == Op.CALL:
        loaded = {(load.file, load.register) for load in program.dsr_loads}
        kept = {key: dsd for key, dsd in registers.items() if key not in loaded}
        return State({slot: value for slot, value in slots.items() if slot + _width(value) <= a}, kept)
    if op == Op.LDDSR:
        load = program.dsr_loads[k]
        registers = {key: dsd for key, dsd in registers.items() if key != (load.file, load.register)}
        if (dsd := state.dsd(load.slot)) is not None:
            registers[load.file, load.register] = dsd
        return State(slots, registers)
    if op == Op.VEC:
        return State(slots, _moved_on(program, k, registers))
    if op in _STORES:
        return state
    value = _value(program, op, T(word & 15), (a, b, c), state)
    for slot in range(a - 2, a + _width(value)):
        if slot >= a or _width(slots.get(slot)) > a - slot:
            slots.pop(slot, None)
    if value is not None:
        slots[a] = value
    return State(slots, registers)


def _width(value: Number | KnownDsd | None) -> int:
    return 3 if isinstance(value, KnownDsd) else 1


def _moved_on(program: Program, index: int, registers: Registers) -> Registers:
    """With save_address an operation moves its registers on by what it covered."""
    saved = {(load.file, load.register) for load in program.dsr_loads if load.save_address}
    saved |= {(load.file, load.register) for load, _ in program.initial_dsr_loads if load.save_address}
    vector = program.vectors[index]
    moved = dict(registers)
    for operand in (vector.dest, vector.src0, vector.src1):
        key = (operand.value >> 8, operand.value & 0xFF)
        if operand.kind == Kind.DSR and key in saved and key in moved:
            dsd = moved[key]
            size = 4 if vector.op.name.endswith("S") or vector.op.name == "MOV32" else 2
            step = Number(dsd.extent * dsd.stride * size)
            moved[key] = replace(dsd, base=_sum(dsd.base, step)) if dsd.kind == DsdKind.MEM1D else dsd
    return moved


def _value(program: Program, op: Op, kind: T, words: tuple[int, int, int], state: State) -> Number | KnownDsd | None:
    """What an instruction leaves in its result slot; None: unknown."""
    _, b, c = words
    k = b | c << 16
    if op == Op.LDI:
        return Number(k - (1 << 32) if k >> 31 else k)
    if op == Op.LDK:
        return Number(int(program.constants[k]))
    if op == Op.LDK3:
        first, second, third = (int(v) for v in program.constants[k : k + 3])
        return KnownDsd.of((first, second, third))
    if op == Op.MOV3:
        return state.dsd(b)
    if op == Op.MOV:
        return _known(state.number(b))
    if Op.DSDBASE <= op <= Op.DSDMOVE:
        return _changed(op, state.dsd(b), state.number(c))
    if kind >= T.F16 or (op == Op.CVT and T(c) >= T.F16):
        return None
    if op == Op.CVT:
        return _known(_wrapped(state.number(b), kind))
    if op == Op.ADDI:
        return _known(_wrapped(_sum(state.number(b), Number(c - 0x10000 if c & 0x8000 else c)), kind))
    if op in (Op.ADD, Op.SUB, Op.MUL, Op.SHL):
        return _known(_wrapped(_arithmetic(op, state.number(b), state.number(c)), kind))
    return None


def _wrapped(number: Number, kind: T) -> Number:
    """As an integer of a type: what is known of its low bits says all of it, or no more than before."""
    width = 8 * SIZE_BYTES[kind]
    if number.bits < width:
        return number
    low = number.value & (1 << width) - 1
    signed = kind in (T.I8, T.I16, T.I32, T.I64)
    return Number(low - (1 << width) if signed and low >> width - 1 else low)


def _known(number: Number) -> Number | None:
    return number if number.bits else None


def _sum(a: Number, b: Number) -> Number:
    return Number(a.value + b.value, min(a.bits, b.bits))


def _arithmetic(op: Op, a: Number, b: Number) -> Number:
    if op == Op.ADD:
        return _sum(a, b)
    if op == Op.SUB:
        return Number(a.value - b.value, min(a.bits, b.bits))
    if op == Op.SHL:
        count = b.exact
        return Number(a.value << count, min(EXACT, a.bits + count)) if count is not None and count < EXACT else UNKNOWN
    bits = min(_trailing_zeros(a.value) + b.bits, _trailing_zeros(b.value) + a.bits, a.bits + b.bits, EXACT)
    return Number(a.value * b.value, bits)


def _changed(op: Op, dsd: KnownDsd | None, by: Number) -> KnownDsd | None:
    if dsd is None:
        return None
    if op == Op.DSDBASE:
        return replace(dsd, base=by)
    if op == Op.DSDMOVE:
        return replace(dsd, base=_sum(dsd.base, by))
    if by.exact is None:
        return None
    first, second, third = dsd.slots
    if op == Op.DSDLEN:
        first = first & ~(0xFFFF << 48) & _MASK | (by.exact & 0xFFFF) << 48
    else:
        second = second & ~0xFFFF & _MASK | by.exact & 0xFFFF
    return replace(dsd, slots=(first, second, third))
