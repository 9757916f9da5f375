"""What the code of a PE type does with colors, tasks, queues and banks, as far as that is known before it runs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from openwafer.wafer.arch import Arch
from openwafer.wafer.flow import KnownDsd, State, states
from openwafer.wafer.image import Program, SymbolKind, TaskKind
from openwafer.wafer.isa import CONTROL_BIT, NO_COLOR, DsdKind, Kind, Op, Operand


@dataclass
class Use:
    """What the code of one PE type does with colors, tasks and banks."""

    sent: set[int] = field(default_factory=set)
    received: set[int] = field(default_factory=set)
    controls: bool = False  # sends control wavelets
    activated: set[int] = field(default_factory=set)
    any_task: bool = False  # activates a task known only at run time
    any_color: bool = False  # uses a fabric DSD known only at run time
    queue_colors: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    conflicts: list[tuple[int, str]] = field(default_factory=list)  # instruction, what to say


def examine(program: Program, arch: Arch) -> Use:
    """What a PE type does, from its tables and its code."""
    use = Use()
    use.activated |= {task for task in range(32) if program.activated >> task & 1}
    use.received |= {color for color in program.input_queue_colors if color is not None}
    use.received |= set(program.input_queue_of_color)
    for task in program.tasks:
        if task.kind == TaskKind.DATA:
            color = program.input_queue_colors[task.id] if arch.data_task_is_queue else task.id
            use.received |= {color} if color is not None else set()
    completions = [v.completion for v in program.vectors] + [d.completion for d in program.dsr_loads]
    completions += [v.on_control for v in program.vectors if v.on_control is not None]
    completions += [load.completion for load, _ in program.initial_dsr_loads]
    completions += [made for fifo in program.fifos for made in (fifo.on_push, fifo.on_pop)]
    use.activated |= {made.activate for made in completions if made.activate is not None}
    for _, slots in program.initial_dsr_loads:
        _note_dsd(program, use, KnownDsd.of(slots))
    for at, state in states(program):
        _note_instruction(program, use, at, state)
    return use


def _note_instruction(program: Program, use: Use, at: int, state: State) -> None:
    word, a, b, c = (int(w) for w in program.code[at])
    op, k = Op(word >> 4), b | c << 16
    if op == Op.LDK3:
        first, second, third = (int(v) for v in program.constants[k : k + 3])
        _note_dsd(program, use, KnownDsd.of((first, second, third)))
    elif op == Op.ACTIVATE:
        task = state.number(a).exact
        use.any_task |= task is None
        use.activated |= {task} if task is not None else set()
    elif op == Op.VEC:
        vector = program.vectors[k]
        operands = (vector.dest, vector.src0, vector.src1)
        use.any_color |= any(_unknown(state, operand) for operand in operands)
        message = _conflict(program, vector.op.name, state, vector.src0, vector.src1)
        if message:
            use.conflicts.append((at, message))


def _unknown(state: State, operand: Operand) -> bool:
    return operand.kind == Kind.DSD and state.dsd(operand.value) is None


def _note_dsd(program: Program, use: Use, dsd: KnownDsd) -> None:
    if dsd.kind not in (DsdKind.FABIN, DsdKind.FABOUT):
        return
    is_input = dsd.kind == DsdKind.FABIN
    queues = program.input_queue_colors if is_input else program.output_queue_colors
    own = queues[dsd.queue] if dsd.queue < len(queues) else None
    color = dsd.color if dsd.color != NO_COLOR else own
    if color is None:
        return
    (use.received if is_input else use.sent).add(color)
    use.queue_colors["input" if is_input else "output", dsd.queue].add(color)
    use.controls |= bool(dsd.flags & CONTROL_BIT)


# --- banks ----------------------------------------------------------------------------------------------------------


def _conflict(program: Program, op: str, state: State, first: Operand, second: Operand) -> str | None:
    """What to say if the two sources lie in one bank group in all of the first steps; docs/machine.md, VEC, Steps."""
    a, b = _memory_dsd(state, first), _memory_dsd(state, second)
    if a is None or b is None or min(a.base.bits, b.base.bits) < 3:
        return None
    if a.slots == b.slots and a.base == b.base:
        return None  # one operand twice: the same address is read once
    size = 4 if op.endswith("S") or op == "MOV32" else 2
    same = [
        (a.base.value + i * a.stride * size) >> 1 & 3 == (b.base.value + i * b.stride * size) >> 1 & 3 for i in range(4)
    ]
    if not all(same):
        return None
    names = [_variable(program, dsd) for dsd in (a, b)]
    listed = f" {names[0]} and {names[1]}" if all(names) else " its two sources"
    return (
        f"@{op.lower()} reads{listed} from the same banks, so a step takes two cycles; move one of them by "
        f"{'one word' if size == 4 else 'two elements'} (align(8), and a DSD that begins later)"
    )


def _memory_dsd(state: State, operand: Operand) -> KnownDsd | None:
    found = None
    if operand.kind == Kind.DSD:
        found = state.dsd(operand.value)
    elif operand.kind == Kind.DSR:
        found = state.registers.get((operand.value >> 8, operand.value & 0xFF))
    return found if found is not None and found.kind in (DsdKind.MEM1D, DsdKind.MEM4D) else None


def _variable(program: Program, dsd: KnownDsd) -> str | None:
    """The variable in which a DSD begins."""
    address = dsd.base.exact
    for symbol in program.symbols:
        inside = address is not None and symbol.value <= address < symbol.value + symbol.size_bytes
        if inside and symbol.kind == SymbolKind.VARIABLE:
            return symbol.name
    return None
