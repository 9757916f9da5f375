"""IR of one program to its image: memory, then code, one pass per function.

Slots of a frame: parameters, locals, temporaries in stack discipline. Arguments are computed straight into the
callee's window at the end of the frame. Only what can be reached from tasks, symbols and FIFOs is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openwafer.wafer import image, isa
from openwafer.wafer.arch import MEMORY_BYTES
from openwafer.wafer.csl import ir
from openwafer.wafer.csl.diagnostics import CslError
from openwafer.wafer.isa import Dsd, Kind, Op, T

INSTRUCTION_BYTES = 4
"""What an instruction is counted as in the 48 KB; chosen."""
MAX_STACK_SLOTS = 4096
NUM_LARGEST = 5
"""How many variables an error about memory lists."""


def generate(program: ir.IrProgram) -> image.Program:
    """The image of a program.

    Raises:
        CslError: it does not fit into a PE.
    """
    reached = _Reached(program)
    index = {f: i for i, f in enumerate(reached.functions)}
    fifos = {f: i for i, f in enumerate(program.fifos)}
    blank = _Tables({}, fifos=fifos)
    code_bytes = sum(_Function(blank, f, index).size() for f in reached.functions) * INSTRUCTION_BYTES
    addresses, memory = _place(program, reached.variables, code_bytes)
    tables = _Tables(addresses, fifos=fifos)
    code: list[tuple[int, int, int, int]] = []
    locations: list[int] = []
    functions = []
    for function in reached.functions:
        unit = _Function(tables, function, index)
        unit.generate()
        functions.append(image.Function(function.name, len(code), unit.num_slots, len(function.parameters)))
        unit.finish(len(code))
        code += unit.code
        locations += unit.locations
    _check_stack(reached.functions, functions)
    return image.Program(
        name=program.name,
        code=np.array(code, np.uint16).reshape(-1, 4),
        constants=np.array(list(tables.constants), np.uint64),
        functions=tuple(functions),
        vectors=tuple(tables.vectors),
        dsr_loads=tuple(tables.dsr_loads),
        messages=tuple(tables.messages),
        tasks=tuple(
            image.Task(t.kind, t.id, index[t.function], t.arg_bits, t.arg_signed) for t in program.tasks
        ),
        fifos=tuple(
            image.Fifo(
                addresses[f.buffer], f.capacity, f.element_bytes, _completion(f.on_push), _completion(f.on_pop),
                f.push_priority, f.pop_priority,
            )
            for f in program.fifos
        ),
        symbols=tuple(_symbols(program, addresses, index)),
        memory=memory,
        code_bytes=code_bytes,
        initial_dsr_loads=tuple(
            (_dsr_load(load, 0), _slots(load.dsd, addresses)) for load in program.initial_dsr_loads
        ),
        activated=program.activated,
        blocked=program.blocked,
        input_queue_colors=tuple(program.input_queue_colors.get(q) for q in range(8)),
        output_queue_colors=tuple(program.output_queue_colors.get(q) for q in range(8)),
        input_queue_of_color=dict(program.input_queue_of_color),
        locations=np.array(locations, np.int32),
        places=tuple(tables.places),
        setup=tuple(program.setup),
    )  # fmt: skip


class _Reached:
    """Functions and variables that can be used."""

    def __init__(self, program: ir.IrProgram) -> None:
        self.functions: list[ir.Function] = []
        self.variables: list[ir.Variable] = []
        self._seen: set[int] = set()
        roots: list[Any] = [task.function for task in program.tasks]
        for symbol in program.symbols:
            if symbol.exported:
                roots += [item for item in (symbol.function, symbol.variable) if item is not None]
        roots += [fifo.buffer for fifo in program.fifos]
        roots += [load.dsd for load in program.initial_dsr_loads]
        self._walk(roots)
        order = {id(v): i for i, v in enumerate(program.variables)}
        self.variables.sort(key=lambda v: order.get(id(v), len(order)))

    def _walk(self, roots: Iterable[Any]) -> None:
        stack = list(roots)
        while stack:
            item = stack.pop()
            if isinstance(item, list | tuple):
                stack += item
                continue
            if not type(item).__module__.endswith("csl.ir") or id(item) in self._seen:
                continue
            self._seen.add(id(item))
            if isinstance(item, ir.Call) and _is_inlined(item.function):
                stack += [item.arguments, item.function.body]
            elif isinstance(item, ir.Function):
                self.functions.append(item)
                stack.append(item.body)
            elif isinstance(item, ir.Variable):
                self.variables.append(item)
                stack += item.relocations.values()
            elif not isinstance(item, ir.Local) and hasattr(item, "__dict__"):
                stack += vars(item).values()


def _place(
    program: ir.IrProgram, variables: list[ir.Variable], code_bytes: int
) -> tuple[dict[ir.Variable, int], np.ndarray]:
    """Addresses of the variables behind the code, and the memory at the start."""
    addresses: dict[ir.Variable, int] = {}
    at = code_bytes
    for variable in variables:
        at = -(-at // variable.align_bytes) * variable.align_bytes
        addresses[variable] = at
        at += max(2, variable.size_bytes + variable.size_bytes % 2)
    if at > MEMORY_BYTES:
        raise _too_large(program.name, variables, code_bytes, at)
    memory = np.zeros(at, np.uint8)
    for variable, address in addresses.items():
        data = variable.initial
        memory[address : address + len(data)] = np.frombuffer(data, np.uint8)
        for offset, target in variable.relocations.items():
            value = addresses[target.variable] + target.offset & 0xFFFF
            memory[address + offset : address + offset + 2] = (value & 0xFF, value >> 8)
    return addresses, memory


def _too_large(name: str, variables: list[ir.Variable], code_bytes: int, needed: int) -> CslError:
    """Says what takes the memory, the largest first."""
    largest = sorted(variables, key=lambda v: -v.size_bytes)[:NUM_LARGEST]
    sizes = [(f"{v.name} takes {v.size_bytes:,} bytes", v.span) for v in largest]
    rest = sum(v.size_bytes for v in variables) - sum(v.size_bytes for v in largest)
    others = f", the {len(variables) - len(largest)} other variables {rest:,}" if len(variables) > len(largest) else ""
    return CslError(
        largest[0].span if largest else None,
        f"{name} needs {needed:,} bytes of memory, a PE has {MEMORY_BYTES:,}",
        *sizes,
        f"the code takes {code_bytes:,} bytes{others}; make arrays smaller or spread them over more PEs",
    )


def _check_stack(functions: list[ir.Function], made: list[image.Function]) -> None:
    """The deepest chain of calls fits into the stack; recursion is left to run time."""
    slots = {f: m.num_slots for f, m in zip(functions, made, strict=True)}
    depth: dict[ir.Function, int] = {}

    def measure(function: ir.Function, active: frozenset[ir.Function]) -> int:
        if function in active:
            return 0
        if function not in depth:
            callees = _callees(function)
            deepest = max((measure(c, active | {function}) for c in callees), default=0)
            depth[function] = slots[function] + deepest
        return depth[function]

    for function in functions:
        _check_recursion(function)
        if measure(function, frozenset()) > MAX_STACK_SLOTS:
            raise CslError(
                function.span,
                f"{function.name} and what it calls need {depth[function]} slots of stack, there are {MAX_STACK_SLOTS}",
                "a slot holds a local or an intermediate value: split the function, or make locals global variables",
            )


def _check_recursion(function: ir.Function) -> None:
    """A function that comes to itself again has no variables in memory: there is one of each."""
    seen: set[ir.Function] = set()
    stack = _callees(function) if function.memory else []
    while stack:
        callee = stack.pop()
        if callee is function:
            names = ", ".join(v.name for v in function.memory)
            raise CslError(
                function.span,
                f"not supported yet: {function.name} calls itself and has variables in memory ({names})",
                "arrays, structs and what an & is put before lie there, once for all calls",
            )
        if callee not in seen:
            seen.add(callee)
            stack += _callees(callee)


MAX_INLINED = 6
MAX_RESIDENT = 12
"""DSDs that stay in registers through a loop; chosen."""


def _nodes(root: Any) -> Iterable[Any]:
    """Every IR node below `root`, without other functions, variables and locals."""
    stack, seen = [root], set()
    while stack:
        item = stack.pop()
        if isinstance(item, list | tuple):
            stack += item
        elif type(item).__module__.endswith("csl.ir") and hasattr(item, "__dict__") and id(item) not in seen:
            seen.add(id(item))
            yield item
            if not isinstance(item, ir.Function | ir.Variable | ir.Local | ir.Break | ir.Continue):
                stack += vars(item).values()


_WITH_JUMPS = ir.Call | ir.Loop | ir.Labeled | ir.IterLoop | ir.Return


@functools.lru_cache(maxsize=4096)
def _is_inlined(function: ir.Function) -> bool:
    """Whether calls of a function become its body: a few statements, straight through, that call nothing."""
    body = function.body
    if len(body) > MAX_INLINED or any(isinstance(s, ir.Return) for s in body[:-1]):
        return False
    last = body[-1].value if body and isinstance(body[-1], ir.Return) else None
    if any(isinstance(n, _WITH_JUMPS | ir.IterOpen) for n in _nodes(body[:-1])):
        return False
    if body and not isinstance(body[-1], ir.Return):
        return not any(isinstance(n, _WITH_JUMPS) for n in _nodes(body[-1]))
    return not any(isinstance(n, ir.Call) for n in _nodes(last))


def _dsd_operands(node: ir.VectorOp) -> list[tuple[str, ir.Expr]]:
    roles = ("dest", "src0", "src1", "scalar")
    operands = ((role, getattr(node, role)) for role in roles)
    return [(role, o.value) for role, o in operands if o is not None and o.kind == ir.OperandKind.DSD]


def _is_built(expr: ir.Expr) -> bool:
    """Whether a DSD is put together from constants; one that stands in memory is only loaded."""
    while isinstance(expr, ir.DsdWith):
        expr = expr.dsd
    return isinstance(expr, ir.DsdValue)


def _key(expr: ir.Expr) -> Any:
    """What tells whether two operands are one DSD; None: it is made anew each time."""
    if isinstance(expr, ir.GetLocal):
        return expr.local
    if isinstance(expr, ir.DsdValue):
        base = (expr.base.variable, expr.base.offset) if expr.base is not None else None
        return (expr.kind, base, expr.extents, expr.strides, expr.queue, expr.color, expr.flags)
    if isinstance(expr, ir.Load) and isinstance(expr.address, ir.Address):
        return (expr.address.variable, expr.address.offset + expr.offset)
    return None


def _changed(loop: ir.Loop) -> tuple[set[Any], bool]:
    """Locals and variables that a loop sets, and whether it calls what could set others."""
    changed: set[Any] = set()
    calls = False
    for node in _nodes([loop.body, loop.step, loop.condition]):
        if isinstance(node, ir.SetLocal):
            changed.add(node.local)
        elif isinstance(node, ir.Store | ir.CopyBytes):
            target = node.address if isinstance(node, ir.Store) else node.target
            if isinstance(target, ir.Address):
                changed.add(target.variable)
            elif isinstance(node, ir.CopyBytes) or node.type == ir.Special.DSD:
                calls = True
        elif isinstance(node, ir.Call):
            calls = True
    return changed, calls


def _callees(function: ir.Function) -> list[ir.Function]:
    found, stack, seen = [], [function.body], set()
    while stack:
        item: Any = stack.pop()
        if isinstance(item, list | tuple):
            stack += item
        elif type(item).__module__.endswith("csl.ir") and id(item) not in seen and hasattr(item, "__dict__"):
            seen.add(id(item))
            if isinstance(item, ir.Call) and _is_inlined(item.function):
                stack += item.arguments
                continue
            if isinstance(item, ir.Function):
                found.append(item)
                continue
            if not isinstance(item, ir.Variable | ir.Local):
                stack += vars(item).values()
    return found


def _completion(made: ir.Completion) -> isa.Completion:
    return isa.Completion(made.activate, made.unblock_kind, made.unblock_id)


def _dsr_load(load: ir.LoadDsr, slot: int) -> isa.DsrLoad:
    return isa.DsrLoad(
        load.file, load.register, slot, load.save_address, load.is_async, _completion(load.completion),
        load.microthread, load.priority,
    )  # fmt: skip


def _slots(dsd: Any, addresses: dict[ir.Variable, int]) -> tuple[int, int, int]:
    base = 0
    if dsd.base is not None:
        base = (addresses.get(dsd.base.variable, 0) + dsd.base.offset) & 0xFFFF
    return Dsd(dsd.kind, base, dsd.extents, dsd.strides, dsd.queue, dsd.color, dsd.flags).slots()


def _symbols(
    program: ir.IrProgram, addresses: dict[ir.Variable, int], index: dict[ir.Function, int]
) -> list[image.Symbol]:
    made = []
    for symbol in program.symbols:
        if symbol.function is not None:
            kind, value, size = image.SymbolKind.FUNCTION, index[symbol.function], 0
        else:
            assert symbol.variable is not None
            if symbol.variable not in addresses:
                continue
            kind = image.SymbolKind.POINTER if symbol.is_pointer else image.SymbolKind.VARIABLE
            value, size = addresses[symbol.variable], symbol.variable.size_bytes
        made.append(
            image.Symbol(
                symbol.name, kind, value, size, symbol.element_type, symbol.mutable, symbol.arg_types, symbol.exported
            )
        )
    return made


@dataclass
class _Tables:
    """What all functions of a program share."""

    addresses: dict[ir.Variable, int]
    constants: _Pool = field(default_factory=lambda: _Pool())
    vectors: list[isa.Vector] = field(default_factory=list)
    dsr_loads: list[isa.DsrLoad] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)
    places: dict[image.Location, int] = field(default_factory=dict)
    fifos: dict[ir.Fifo, int] = field(default_factory=dict)


class _Pool(list):
    """Constants in order; runs of values are shared."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[int, ...], int] = {}

    def find(self, values: tuple[int, ...]) -> int:
        values = tuple(v & 0xFFFFFFFFFFFFFFFF for v in values)
        if values not in self._known:
            self._known[values] = len(self)
            self.extend(values)
        return self._known[values]


def _width(kind: ir.Type) -> int:
    return 3 if kind == ir.Special.DSD else 0 if kind == ir.Special.VOID else 1


class _Function:
    """Code of one function."""

    def __init__(self, tables: _Tables, function: ir.Function, index: dict[ir.Function, int]) -> None:
        self.tables, self.function, self.index = tables, function, index
        self.code: list[tuple[int, int, int, int]] = []
        self.locations: list[int] = []
        self.slots: dict[ir.Local, int] = {}
        self.top = 0
        self.num_slots = 0
        self.jumps: list[tuple[int, int]] = []
        self.labels: list[int | None] = []
        self.loops: dict[ir.Loop | ir.Labeled, tuple[int, int]] = {}
        self.resident: set[tuple[int, str]] = set()
        """Operands of vector operations, (id, role), whose DSD is in a register since before a loop."""
        self.place = -1

    def size(self) -> int:
        """Instructions, before memory is laid out."""
        self.generate()
        return len(self.code)

    def generate(self) -> None:
        for parameter in self.function.parameters:
            self.slots[parameter] = self.take(_width(parameter.type))
        self.statements(self.function.body)
        if not self.code or self.code[-1][0] >> 4 != Op.RET or len(self.code) in self.labels:
            self.emit(Op.RET)

    def finish(self, start: int) -> None:
        """Resolve jumps; the function begins at instruction `start`."""
        for at, label in self.jumps:
            target = self.labels[label]
            assert target is not None
            op, a, _, _ = self.code[at]
            self.code[at] = (op, a, (start + target) & 0xFFFF, (start + target) >> 16)

    # --- slots and instructions -------------------------------------------------------------------------------------

    def take(self, width: int) -> int:
        at = self.top
        self.top += width
        self.num_slots = max(self.num_slots, self.top)
        return at

    def emit(self, op: Op, a: int = 0, b: int = 0, c: int = 0, kind: int = 0) -> int:
        self.code.append((op << 4 | kind, a & 0xFFFF, b & 0xFFFF, c & 0xFFFF))
        self.locations.append(self.place)
        return len(self.code) - 1

    def wide(self, op: Op, a: int, k: int) -> int:
        return self.emit(op, a, k & 0xFFFF, k >> 16 & 0xFFFF)

    def label(self) -> int:
        self.labels.append(None)
        return len(self.labels) - 1

    def put(self, label: int) -> None:
        self.labels[label] = len(self.code)

    def jump(self, op: Op, a: int, label: int) -> None:
        self.jumps.append((self.emit(op, a), label))

    def at(self, place: image.Location | None) -> None:
        if place is not None:
            self.place = self.tables.places.setdefault(place, len(self.tables.places))

    def slot(self, local: ir.Local) -> int:
        if local not in self.slots:
            width = _width(local.type)
            # A local lives as long as its function: below the temporaries in use.
            self.slots[local] = self.take(width)
        return self.slots[local]

    # --- values -----------------------------------------------------------------------------------------------------

    def value(self, expr: ir.Expr, into: int | None = None) -> int:
        """Code for a value; the slot where it is: `into` if given."""
        if isinstance(expr, ir.GetLocal):
            own = self.slot(expr.local)
            if into is None or into == own:
                return own
            self.emit(Op.MOV3 if _width(expr.type) == 3 else Op.MOV, into, own)
            return into
        target = self.take(_width(expr.type)) if into is None else into
        _VALUES[type(expr)](self, expr, target)
        return target

    def constant(self, expr: ir.Const, target: int) -> None:
        self.load_int(target, _extended(expr.value, expr.type))

    def load_int(self, target: int, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self.wide(Op.LDI, target, value)
        else:
            self.wide(Op.LDK, target, self.tables.constants.find((value,)))

    def address(self, expr: ir.Address, target: int) -> None:
        self.load_int(target, self.resolve(expr))

    def resolve(self, expr: ir.Address) -> int:
        return (self.tables.addresses.get(expr.variable, 0) + expr.offset) & 0xFFFF

    def dsd(self, expr: ir.DsdValue, target: int) -> None:
        slots = _slots(expr, self.tables.addresses)
        self.wide(Op.LDK3, target, self.tables.constants.find(slots))

    def load(self, expr: ir.Load, target: int) -> None:
        mark = self.top
        base, offset = self.base(expr.address, expr.offset)
        self.at(expr.place)
        if expr.type == ir.Special.DSD:
            for i in range(3):
                self.emit(Op.LD, target + i, base, offset + 8 * i, T.U64)
        else:
            self.emit(Op.LD, target, base, offset, int(expr.type))  # pyright: ignore
        self.top = mark

    def base(self, address: ir.Expr, offset: int) -> tuple[int, int]:
        """A slot with an address and an immediate offset."""
        if isinstance(address, ir.Address):
            slot = self.take(1)
            self.load_int(slot, self.resolve(address) + offset & 0xFFFF)
            return slot, 0
        if 0 <= offset < 0x7FE8:
            return self.value(address), offset
        slot = self.take(1)
        self.value(address, slot)
        self.add_immediate(slot, slot, offset, T.U16)
        return slot, 0

    def add_immediate(self, target: int, slot: int, value: int, kind: T) -> None:
        if -0x8000 <= value < 0x8000:
            self.emit(Op.ADDI, target, slot, value, kind)
        else:
            other = self.take(1)
            self.load_int(other, value)
            self.emit(Op.ADD, target, slot, other, kind)

    def load_indexed(self, expr: ir.LoadIndexed, target: int) -> None:
        mark = self.top
        base, index = self.value(expr.address), self.value(expr.index)
        self.at(expr.place)
        self.emit(Op.LDX, target, base, index, expr.type)
        self.top = mark

    def binary(self, expr: ir.Binary, target: int) -> None:
        mark = self.top
        integral = expr.type not in (T.F16, T.F32, T.BF16)
        if integral and expr.op in (Op.ADD, Op.SUB) and isinstance(expr.right, ir.Const):
            amount = _extended(expr.right.value, expr.type) * (1 if expr.op == Op.ADD else -1)
            if -0x8000 <= amount < 0x8000:
                left = self.value(expr.left)
                self.emit(Op.ADDI, target, left, amount, expr.type)
                self.top = mark
                return
        left, right = self.value(expr.left), self.value(expr.right)
        self.at(expr.place)
        self.emit(expr.op, target, left, right, expr.type)
        self.top = mark

    def compare(self, expr: ir.Compare, target: int) -> None:
        mark = self.top
        left, right = self.value(expr.left), self.value(expr.right)
        self.emit(expr.op, target, left, right, expr.operand_type)
        self.top = mark

    def unary(self, expr: ir.Negate | ir.Invert, target: int) -> None:
        mark = self.top
        slot = self.value(expr.operand)
        self.emit(Op.NEG if isinstance(expr, ir.Negate) else Op.NOT, target, slot, 0, expr.type)
        self.top = mark

    def logical_not(self, expr: ir.LogicalNot, target: int) -> None:
        mark = self.top
        slot, one = self.value(expr.operand), self.take(1)
        self.load_int(one, 1)
        self.emit(Op.XOR, target, slot, one, T.U8)
        self.top = mark

    def logical(self, expr: ir.Logical, target: int) -> None:
        end = self.label()
        own = self.take(1)
        self.value(expr.left, own)
        self.jump(Op.JZ if expr.is_and else Op.JNZ, own, end)
        self.value(expr.right, own)
        self.put(end)
        self.emit(Op.MOV, target, own)

    def convert(self, expr: ir.Convert, target: int) -> None:
        mark = self.top
        slot = self.value(expr.operand)
        self.emit(Op.CVT, target, slot, expr.source, expr.type)
        self.top = mark

    def reinterpret(self, expr: ir.Reinterpret, target: int) -> None:
        """Bits stay; a signed integer is extended anew."""
        mark = self.top
        slot = self.value(expr.operand)
        size = isa.SIZE_BYTES[expr.type]
        unsigned = {1: T.U8, 2: T.U16, 4: T.U32, 8: T.U64}[size]
        signed = {1: T.I8, 2: T.I16, 4: T.I32, 8: T.I64}[size]
        if expr.type in (T.I8, T.I16, T.I32, T.I64):
            self.emit(Op.CVT, target, slot, unsigned, signed)
        elif expr.source in (T.I8, T.I16, T.I32, T.I64):
            self.emit(Op.CVT, target, slot, signed, unsigned)
        elif slot != target:
            self.emit(Op.MOV, target, slot)
        self.top = mark

    def select(self, expr: ir.Select, target: int) -> None:
        other, end = self.label(), self.label()
        own = self.take(_width(expr.type))
        self.branch(expr.condition, other)
        self.value(expr.then, own)
        self.jump(Op.JMP, 0, end)
        self.put(other)
        self.value(expr.otherwise, own)
        self.put(end)
        self.emit(Op.MOV3 if _width(expr.type) == 3 else Op.MOV, target, own)

    def branch(self, condition: ir.Expr, otherwise: int) -> None:
        """Go on if the condition holds, else to a label."""
        mark = self.top
        if isinstance(condition, ir.LogicalNot):
            slot = self.value(condition.operand)
            self.jump(Op.JNZ, slot, otherwise)
        elif isinstance(condition, ir.Logical) and condition.is_and:
            self.branch(condition.left, otherwise)
            self.branch(condition.right, otherwise)
        elif not (isinstance(condition, ir.Const) and condition.value):
            slot = self.value(condition)
            self.jump(Op.JZ, slot, otherwise)
        self.top = max(mark, self.locals_top())

    def locals_top(self) -> int:
        """First slot above every local."""
        return max((slot + _width(local.type) for local, slot in self.slots.items()), default=0)

    def call(self, expr: ir.Call, target: int) -> None:
        """Arguments go to the window above everything in use, the result comes from its start."""
        if _is_inlined(expr.function):
            self.inline(expr, target)
            return
        width = max(sum(_width(a.type) for a in expr.arguments), _width(expr.type))
        window = self.take(width)
        at = window
        for argument in expr.arguments:
            self.value(argument, at)
            at += _width(argument.type)
        # Locals that the arguments made may lie above the window: the callee's frame must not reach them.
        if self.locals_top() > window:
            moved = max(self.top, self.locals_top())
            self.top = moved
            new = self.take(width)
            for i in range(sum(_width(a.type) for a in expr.arguments)):
                self.emit(Op.MOV, new + i, window + i)
            window = new
        self.at(expr.place)
        self.wide(Op.CALL, window, self.index[expr.function])
        if _width(expr.type) and target != window:
            self.emit(Op.MOV3 if _width(expr.type) == 3 else Op.MOV, target, window)

    def inline(self, expr: ir.Call, target: int) -> None:
        """The body in place of the call; its arguments and locals are new ones each time."""
        function, before = expr.function, dict(self.slots)
        values = [
            (p, self.value(a, self.take(_width(a.type))))
            for p, a in zip(function.parameters, expr.arguments, strict=True)
        ]
        for parameter, slot in values:
            self.slots[parameter] = slot
        body, last = function.body[:-1], function.body[-1] if function.body else None
        self.statements(body)
        if isinstance(last, ir.Return):
            if last.value is not None:
                self.value(last.value, target if _width(expr.type) else None)
        elif last is not None:
            self.statement(last)
        own = set(self.slots) - set(before)
        inside = {n.local for n in _nodes(function.body) if isinstance(n, ir.SetLocal | ir.GetLocal)}
        for local in own & (inside | set(function.parameters)):
            del self.slots[local]

    def sequence(self, expr: ir.Sequence, target: int) -> None:
        self.statements(expr.statements)
        self.value(expr.value, target)

    def dsd_with(self, expr: ir.DsdWith, target: int) -> None:
        mark = self.top
        dsd, value = self.value(expr.dsd), self.value(expr.value)
        self.emit(expr.op, target, dsd, value)
        self.top = mark

    def query(self, expr: ir.SysQuery, target: int) -> None:
        mark = self.top
        slot = self.value(expr.argument)
        self.emit(Op.SYS, target, slot, expr.sys)
        self.top = mark

    def read_config(self, expr: ir.ReadConfig, target: int) -> None:
        mark = self.top
        slot = self.value(expr.address)
        self.emit(Op.CFGRD, target, slot)
        self.top = mark

    def iter_get(self, expr: ir.IterGet, target: int) -> None:
        self.at(expr.place)
        self.emit(Op.IGET, target, expr.iterator, 0, expr.type)

    # --- statements -------------------------------------------------------------------------------------------------

    def statements(self, body: list[ir.Stmt]) -> None:
        for statement in body:
            self.statement(statement)
            if isinstance(statement, ir.Return | ir.Break | ir.Continue):
                return

    def statement(self, node: ir.Stmt) -> None:
        mark = self.top
        _STATEMENTS[type(node)](self, node)
        self.top = max(mark, self.locals_top())

    def set_local(self, node: ir.SetLocal) -> None:
        self.value(node.value, self.slot(node.local))

    def store(self, node: ir.Store) -> None:
        value = self.value(node.value)
        base, offset = self.base(node.address, node.offset)
        self.at(node.place)
        if node.type == ir.Special.DSD:
            for i in range(3):
                self.emit(Op.ST, value + i, base, offset + 8 * i, T.U64)
        else:
            self.emit(Op.ST, value, base, offset, int(node.type))  # pyright: ignore

    def store_indexed(self, node: ir.StoreIndexed) -> None:
        value, base, index = self.value(node.value), self.value(node.address), self.value(node.index)
        self.at(node.place)
        self.emit(Op.STX, value, base, index, node.type)

    def copy(self, node: ir.CopyBytes) -> None:
        """A loop over words, or straight code for little."""
        target, source = self.value(node.target), self.value(node.source)
        word = self.take(1)
        self.at(node.place)
        words, rest = divmod(node.num_bytes, 2)
        if words <= 8:
            for i in range(words):
                self.emit(Op.LD, word, source, 2 * i, T.U16)
                self.emit(Op.ST, word, target, 2 * i, T.U16)
        else:
            index, limit, more = self.take(1), self.take(1), self.take(1)
            again = self.label()
            self.load_int(index, 0)
            self.load_int(limit, words)
            self.put(again)
            self.emit(Op.LDX, word, source, index, T.U16)
            self.emit(Op.STX, word, target, index, T.U16)
            self.emit(Op.ADDI, index, index, 1, T.U16)
            self.emit(Op.LT, more, index, limit, T.U16)
            self.jump(Op.JNZ, more, again)
        if rest:
            self.emit(Op.LD, word, source, 2 * words, T.U8)
            self.emit(Op.ST, word, target, 2 * words, T.U8)

    def if_(self, node: ir.If) -> None:
        otherwise, end = self.label(), self.label()
        self.branch(node.condition, otherwise)
        self.statements(node.then)
        if node.otherwise:
            self.jump(Op.JMP, 0, end)
        self.put(otherwise)
        self.statements(node.otherwise)
        self.put(end)

    def loop(self, node: ir.Loop) -> None:
        """The condition stands at the end, so that a round has one jump."""
        start, step, test, end = self.label(), self.label(), self.label(), self.label()
        self.loops[node] = step, end
        self.hoist(node)
        endless = isinstance(node.condition, ir.Const) and bool(node.condition.value)
        if not endless:
            self.jump(Op.JMP, 0, test)
        self.put(start)
        self.statements(node.body)
        self.put(step)
        self.statements(node.step)
        self.put(test)
        if endless:
            self.jump(Op.JMP, 0, start)
        else:
            slot = self.value(node.condition)
            self.jump(Op.JNZ, slot, start)
        self.put(end)

    def labeled(self, node: ir.Labeled) -> None:
        end = self.label()
        self.loops[node] = end, end
        self.statements(node.body)
        self.put(end)

    def hoist(self, node: ir.Loop) -> None:
        """DSDs that the loop does not change go into registers once, before it."""
        vectors = [n for n in _nodes(node.body) if isinstance(n, ir.VectorOp)]
        if not vectors:
            return
        changed, calls = _changed(node)
        found: set[Any] = set()
        for vector in vectors:
            for role, expr in _dsd_operands(vector):
                key = _key(expr)
                if key is None or (id(vector), role) in self.resident or len(found | {key}) > MAX_RESIDENT:
                    continue
                if isinstance(expr, ir.GetLocal) and key in changed:
                    continue
                if isinstance(expr, ir.Load) and (calls or key[0] in changed):
                    continue
                self.resident.add((id(vector), role))
                found.add((key, role))
        if found:
            self.emit(Op.DSRPRE, len(found))

    def leave(self, node: ir.Break | ir.Continue) -> None:
        step, end = self.loops[node.loop]
        self.jump(Op.JMP, 0, end if isinstance(node, ir.Break) else step)

    def return_(self, node: ir.Return) -> None:
        if node.value is not None:
            self.value(node.value, 0) if _width(node.value.type) <= 1 else self._return_wide(node.value)
        self.emit(Op.RET)

    def _return_wide(self, value: ir.Expr) -> None:
        slot = self.value(value)
        self.num_slots = max(self.num_slots, 3)
        if slot:
            self.emit(Op.MOV3, 0, slot)

    def evaluate(self, node: ir.Evaluate) -> None:
        self.value(node.value, None)

    def assert_(self, node: ir.Assert) -> None:
        slot = self.value(node.condition)
        self.at(node.place)
        self.wide(Op.ASSERT, slot, self.message(node.message))

    def message(self, text: str) -> int:
        return self.tables.messages.setdefault(text, len(self.tables.messages))

    def operand(self, operand: ir.Operand | None) -> isa.Operand:
        if operand is None:
            return isa.ABSENT
        if operand.kind == ir.OperandKind.DSR:
            assert operand.dsr is not None
            return isa.Operand(Kind.DSR, operand.dsr[0] << 8 | operand.dsr[1])
        if operand.kind == ir.OperandKind.FIFO:
            assert operand.fifo is not None
            return isa.Operand(Kind.FIFO, self.fifo(operand.fifo))
        assert operand.value is not None
        return isa.Operand(Kind[operand.kind.name], self.value(operand.value))

    def built_dsds(self, node: ir.VectorOp) -> int:
        """DSDs to be put together for an operation; the others stand in registers since before a loop, or in memory."""
        operands = _dsd_operands(node)
        return sum(_is_built(expr) and (id(node), role) not in self.resident for role, expr in operands)

    def fifo(self, fifo: ir.Fifo) -> int:
        return self.tables.fifos[fifo]

    def vector(self, node: ir.VectorOp) -> None:
        dest, src0, src1, scalar = (self.operand(o) for o in (node.dest, node.src0, node.src1, node.scalar))
        index = self.value(node.index) if node.index is not None else None
        made = isa.Vector(
            node.op, dest, src0, src1, scalar, node.is_async, _completion(node.completion), node.microthread,
            node.priority, index, self.built_dsds(node),
            _completion(node.on_control) if node.on_control is not None else None,
        )  # fmt: skip
        vectors = self.tables.vectors
        number = vectors.index(made) if made in vectors else len(vectors)
        if number == len(vectors):
            vectors.append(made)
        self.at(node.place)
        self.wide(Op.VEC, 0, number)

    def load_dsr(self, node: ir.LoadDsr) -> None:
        made = _dsr_load(node, self.value(node.dsd))
        loads = self.tables.dsr_loads
        number = loads.index(made) if made in loads else len(loads)
        if number == len(loads):
            loads.append(made)
        self.at(node.place)
        self.wide(Op.LDDSR, 0, number)

    def task_bit(self, node: ir.TaskBit) -> None:
        slot = self.value(node.id)
        self.at(node.place)
        self.emit(node.op, slot, 0, 0, node.kind if node.op != Op.ACTIVATE else 0)

    def sys(self, node: ir.SysCall) -> None:
        first = self.take(1)
        if node.text is not None:
            self.load_int(first, self.message(node.text))
        elif node.first is not None:
            self.value(node.first, first)
        second = self.value(node.second) if node.second is not None else 0
        self.at(node.place)
        self.emit(Op.SYS, first, second, node.sys)

    def store_counter(self, node: ir.StoreCounter) -> None:
        slot = self.value(node.address)
        self.at(node.place)
        self.emit(Op.TSCST, slot)

    def write_config(self, node: ir.WriteConfig) -> None:
        address, value = self.value(node.address), self.value(node.value)
        self.emit(Op.CFGWR, address, value)

    def iter_open(self, node: ir.IterOpen) -> None:
        operand = self.operand(node.operand)
        self.at(node.place)
        self.emit(Op.IOPEN, node.iterator, operand.kind, operand.value)

    def iter_put(self, node: ir.IterPut) -> None:
        slot = self.value(node.value)
        self.at(node.place)
        self.emit(Op.IPUT, node.iterator, slot, 0, node.type)

    def iter_loop(self, node: ir.IterLoop) -> None:
        start, end = self.label(), self.label()
        self.put(start)
        for iterator in node.iterators:
            self.jump(Op.IMORE, iterator, end)
        self.statements(node.body)
        self.jump(Op.JMP, 0, start)
        self.put(end)


def _extended(value: int, kind: T) -> int:
    """The slot's content for bits of a type, as a signed 64-bit number."""
    if kind in (T.F16, T.F32, T.BF16):
        return value
    bits = isa.SIZE_BYTES[kind] * 8
    value &= (1 << bits) - 1
    signed = kind in (T.I8, T.I16, T.I32, T.I64)
    return value - (1 << bits) if signed and value >> bits - 1 else value


_VALUES: dict[type, Any] = {
    ir.Const: _Function.constant,
    ir.Address: _Function.address,
    ir.Load: _Function.load,
    ir.LoadIndexed: _Function.load_indexed,
    ir.Binary: _Function.binary,
    ir.Compare: _Function.compare,
    ir.Negate: _Function.unary,
    ir.Invert: _Function.unary,
    ir.LogicalNot: _Function.logical_not,
    ir.Logical: _Function.logical,
    ir.Convert: _Function.convert,
    ir.Reinterpret: _Function.reinterpret,
    ir.Select: _Function.select,
    ir.Call: _Function.call,
    ir.Sequence: _Function.sequence,
    ir.DsdValue: _Function.dsd,
    ir.DsdWith: _Function.dsd_with,
    ir.ReadCounter: lambda unit, expr, target: unit.emit(Op.TSC, target),
    ir.ReadConfig: _Function.read_config,
    ir.Random16: lambda unit, expr, target: unit.emit(Op.RAND16, target),
    ir.SysQuery: _Function.query,
    ir.IterGet: _Function.iter_get,
}
_STATEMENTS: dict[type, Any] = {
    ir.SetLocal: _Function.set_local,
    ir.Store: _Function.store,
    ir.StoreIndexed: _Function.store_indexed,
    ir.CopyBytes: _Function.copy,
    ir.Evaluate: _Function.evaluate,
    ir.If: _Function.if_,
    ir.Loop: _Function.loop,
    ir.Labeled: _Function.labeled,
    ir.Break: _Function.leave,
    ir.Continue: _Function.leave,
    ir.Return: _Function.return_,
    ir.Assert: _Function.assert_,
    ir.VectorOp: _Function.vector,
    ir.LoadDsr: _Function.load_dsr,
    ir.TaskBit: _Function.task_bit,
    ir.SysCall: _Function.sys,
    ir.WriteConfig: _Function.write_config,
    ir.StoreCounter: _Function.store_counter,
    ir.IterOpen: _Function.iter_open,
    ir.IterPut: _Function.iter_put,
    ir.IterLoop: _Function.iter_loop,
}
