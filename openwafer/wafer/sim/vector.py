"""One vector operation on its way, and the operands it goes through. docs/machine.md, VEC."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from openwafer.wafer import isa
from openwafer.wafer.image import Location
from openwafer.wafer.isa import ENDLESS, INDEX_OFFSET_BIT, NO_COLOR, DsdKind, Kind, Op, Priority, T, V
from openwafer.wafer.sim import numerics
from openwafer.wafer.sim.widths import width as simd_width

_MACS = (V.FMACH, V.FMACHS, V.FMACS)
_MOVES = (V.MOV16, V.MOV32, V.FMOVH, V.FMOVS)
_INTEGERS = {
    V.ADD16: Op.ADD, V.SUB16: Op.SUB, V.AND16: Op.AND, V.OR16: Op.OR, V.XOR16: Op.XOR, V.SLL16: Op.SHL,
    V.SLR16: Op.SHR,
}  # fmt: skip
_FLOATS = {"FADD": Op.ADD, "FSUB": Op.SUB, "FMUL": Op.MUL}


def element_bytes(op: V) -> tuple[int, int, int]:
    """Bytes of an element of dest, src0 and src1."""
    mixed = {
        V.FADDHS: (4, 4, 2), V.FMACHS: (4, 4, 2), V.FH2S: (4, 2, 2), V.FS2H: (2, 4, 4), V.FS2XP16: (2, 4, 4),
        V.XP162FS: (4, 2, 2), V.FSCALES: (4, 4, 2),
    }  # fmt: skip
    if op in mixed:
        return mixed[op]
    size = 4 if op.name.endswith("S") or op == V.MOV32 else 2
    return size, size, size


def result_of(op: V, a: int, b: int, c: int, carry: list[int]) -> int:
    """Bits of one element from the bits of its sources."""
    name = op.name
    if op in _MOVES:
        return a
    if op in _INTEGERS:
        if op == V.ADD16:
            carry[0] = (a & 0xFFFF) + (b & 0xFFFF) >> 16
        return numerics.integer_operation(_INTEGERS[op], a & 0xFFFF, b & 0xFFFF, T.U16)
    if op == V.ADDC16:
        total = (a & 0xFFFF) + (b & 0xFFFF) + carry[0]
        carry[0] = total >> 16
        return total & 0xFFFF
    if op == V.SAR16:
        return numerics.integer_operation(Op.SHR, numerics.wrap(a, T.I16), b & 0xFFFF, T.I16) & 0xFFFF
    if op in (V.CLZ, V.CTZ, V.POPCNT):
        bits = f"{a & 0xFFFF:016b}"
        if op == V.POPCNT:
            return bits.count("1")
        return len(bits) - len(bits.lstrip("0") if op == V.CLZ else bits.rstrip("0"))
    if op in _MACS:
        if op == V.FMACS:
            return numerics.float_operation(Op.ADD, numerics.float_operation(Op.MUL, b, c, 32), a, 32)
        product = numerics.to_number(b, 16) * numerics.to_number(c, 16)  # exact
        width = 16 if op == V.FMACH else 32
        return numerics.to_bits(product + numerics.to_number(a, width), width)
    if op == V.FADDHS:
        total = numerics.to_number(a, 32) + numerics.to_number(b, 16)
        return numerics.to_bits(total, 32)
    width = 16 if name.endswith("H") else 32
    if name[:4] in _FLOATS:
        return numerics.float_operation(_FLOATS[name[:4]], a, b, width)
    if name.startswith("FMAX"):
        x, y = numerics.to_number(a, width), numerics.to_number(b, width)
        if x != x or y != y:
            return numerics.NAN_BITS[width]
        return a if x > y or (x == y and not a >> width - 1) else b
    if name.startswith("FNEG"):
        return a ^ 1 << width - 1
    if name.startswith("FABS"):
        return a & ~(1 << width - 1)
    if op == V.FH2S:
        return numerics.convert(a, T.F16, T.F32)
    if op == V.FS2H:
        return numerics.convert(a, T.F32, T.F16)
    if name.startswith("FSCALE"):
        number = numerics.to_number(a, width)
        power = numerics.wrap(b, T.I16)
        try:
            return numerics.to_bits(math.ldexp(number, power), width)
        except OverflowError:
            return numerics.to_bits(math.copysign(math.inf, number), width)
    if name.startswith("FNORM"):
        return numerics.to_bits(math.frexp(numerics.to_number(a, width))[0], width)
    if op in (V.FH2XP16, V.FS2XP16):
        return numerics.convert(a, T.F16 if op == V.FH2XP16 else T.F32, T.I16) & 0xFFFF
    if op in (V.XP162FH, V.XP162FS):
        return numerics.convert(numerics.wrap(a, T.I16), T.I16, T.F16 if op == V.XP162FH else T.F32)
    raise AssertionError(f"{name} has no meaning in the engine")


def take_wavelet(pe: Any, color: int) -> int:
    """The word at the head of an input buffer."""
    if not pe.inputs.get(color):
        raise pe.fail("OutOfRange", f"two operands take one wavelet of color {color}")
    pe.engine.wake_router(pe)
    return pe.inputs[color].popleft().data


def take_element(pe: Any, fifo: int) -> int:
    """The oldest element of a FIFO."""
    if not pe.fifos[fifo].items:
        raise pe.fail("OutOfRange", f"two operands take one element of FIFO {fifo}")
    value = pe.fifos[fifo].items.popleft()
    if pe.fifos[fifo].was_full:
        pe.fifos[fifo].was_full = False
        pe.complete(pe.program.fifos[fifo].on_pop)
    return value


def put_element(pe: Any, fifo: int, value: int) -> None:
    """Appends to a FIFO that has room."""
    state = pe.fifos[fifo]
    state.items.append(value)
    if state.was_empty:
        state.was_empty = False
        pe.complete(pe.program.fifos[fifo].on_push)


def finds_empty(pe: Any, fifo: int) -> bool:
    """Whether a reader of a FIFO has to wait; it is remembered."""
    state = pe.fifos[fifo]
    state.was_empty = state.was_empty or not state.items
    return not state.items


def finds_full(pe: Any, fifo: int) -> bool:
    """Whether a writer of a FIFO has to wait; it is remembered."""
    state = pe.fifos[fifo]
    full = len(state.items) >= pe.program.fifos[fifo].capacity
    state.was_full = state.was_full or full
    return full


@dataclass
class Source:
    """An operand: where its elements come from or go to."""

    kind: Kind
    value: int = 0
    dsd: DsdKind | None = None
    base: int = 0
    extents: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    queue: int = 0
    color: int = NO_COLOR
    flags: int = 0
    fifo: int = -1
    load: Any = None
    register: tuple[int, int] | None = None
    held: int = 0
    """The wavelet of which the second half is to come."""

    @classmethod
    def of(cls, pe: Any, operand: isa.Operand) -> Source | None:
        """The operand as it is now; None if there is none."""
        if operand.kind == Kind.NONE:
            return None
        if operand.kind in (Kind.SCALAR, Kind.POINTER):
            return cls(operand.kind, pe.frames[pe.fp + operand.value])
        if operand.kind == Kind.FIFO:
            return cls(Kind.FIFO, fifo=operand.value)
        if operand.kind == Kind.DSD:
            slots = pe.frames[pe.fp + operand.value : pe.fp + operand.value + 3]
            return cls.from_slots(slots)
        register = operand.value >> 8, operand.value & 0xFF
        if register not in pe.dsrs:
            raise pe.fail("OutOfRange", f"the DSR {isa.DsrFile(register[0]).name} {register[1]} was never loaded")
        slots, load = pe.dsrs[register]
        made = cls.from_slots(slots)
        made.load, made.register = load, register
        return made

    @classmethod
    def from_slots(cls, slots: Any) -> Source:
        first, second, third = (v & 0xFFFFFFFFFFFFFFFF for v in slots)
        kind = DsdKind(first & 7) if first & 7 < 4 else DsdKind.MEM1D
        extents = [first >> 48]
        strides = [_signed(second & 0xFFFF)]
        if kind == DsdKind.MEM4D:
            for i in range(3):
                extent = third >> 16 * i & 0xFFFF
                if extent:
                    extents.append(extent)
                    strides.append(_signed(second >> 16 * (i + 1) & 0xFFFF))
        return cls(
            Kind.DSD, 0, kind, first >> 32 & 0xFFFF, tuple(extents), tuple(strides), first >> 8 & 0xFF,
            first >> 16 & 0xFF, first & (0xF8 | isa.TRANSFORM_BIT),
        )  # fmt: skip

    @property
    def is_memory(self) -> bool:
        return self.dsd in (DsdKind.MEM1D, DsdKind.MEM4D)

    @property
    def is_input(self) -> bool:
        return self.dsd == DsdKind.FABIN

    @property
    def is_output(self) -> bool:
        return self.dsd == DsdKind.FABOUT

    def pairs(self, size: int) -> bool:
        """Whether a wavelet holds two of its elements, of `size` bytes."""
        return size == 2 and bool(self.flags & isa.PAIR_BIT) and (self.is_input or self.is_output)

    def length(self) -> int | None:
        """Elements, or None where the operand does not say."""
        if self.kind == Kind.DSD:
            return math.prod(self.extents)
        return None

    def address(self, position: int, size: int) -> int:
        """Of an element of `size` bytes."""
        at = self.base
        for extent, stride in zip(self.extents, self.strides, strict=True):
            if len(self.extents) == 1:
                return (at + position * stride * size) & 0xFFFF
            at += position % max(1, extent) * stride * size
            position //= max(1, extent)
        return at & 0xFFFF


def _signed(value: int) -> int:
    return value - 0x10000 if value & 0x8000 else value


@dataclass
class Operation:
    """A vector operation, or an iterator (`op` None)."""

    op: V | None
    dest: Source | None
    src0: Source | None = None
    src1: Source | None = None
    scalar: Source | None = None
    length: int = 1
    position: int = 0
    is_async: bool = False
    completion: isa.Completion = isa.NOTHING
    microthread: int = 7
    priority: Priority = Priority.MEDIUM
    place: Location | None = None
    index: int | None = None
    sum: int | None = None
    width: int = 1
    carry: list[int] = field(default_factory=lambda: [0])
    stopped: bool = False
    on_control: isa.Completion | None = None

    @classmethod
    def vector(cls, pe: Any, vector: isa.Vector, peek: bool = False) -> Operation:
        """What a VEC instruction starts."""
        dest, src0, src1, scalar = (Source.of(pe, o) for o in (vector.dest, vector.src0, vector.src1, vector.scalar))
        made = cls(vector.op, dest, src0, src1, scalar, is_async=vector.is_async, completion=vector.completion)
        made.priority, made.place, made.on_control = vector.priority, pe.place(), vector.on_control
        loads = [s.load for s in (dest, src0, src1) if s is not None and s.load is not None and s.load.is_async]
        thread = vector.microthread
        if not vector.is_async and loads:
            made.is_async, made.completion, made.priority = True, loads[0].completion, loads[0].priority
        elif loads and vector.completion.activate is None and vector.completion.unblock_kind == isa.Block.NONE:
            made.completion = loads[0].completion
        thread = next((load.microthread for load in loads if load.microthread is not None), thread)
        made.microthread = thread if thread is not None else made.default_thread()
        if peek:
            return made
        made.index = pe.frames[pe.fp + vector.index] & 0xFFFF if vector.index is not None else None
        made.length = made.count(pe)
        made.width = made.elements_a_step(pe)
        made.offset_by_index()
        if dest is not None and dest.kind == Kind.POINTER:
            made.begin_sum(pe)
        return made

    @classmethod
    def iterator(cls, pe: Any, operand: isa.Operand) -> Operation:
        made = cls(None, Source.of(pe, operand), place=pe.place())
        assert made.dest is not None
        made.length = made.dest.length() or ENDLESS
        return made

    def default_thread(self) -> int:
        if self.dest is not None and self.dest.is_output:
            return self.dest.queue & 7
        for source in (self.src0, self.src1):
            if source is not None and source.is_input:
                return source.queue & 7
        return 7

    def count(self, pe: Any) -> int:
        lengths = [s.length() for s in (self.src0, self.src1, self.dest) if s is not None]
        known = next((n for n in lengths if n is not None), None)
        fifo = next((s for s in (self.src0, self.src1, self.dest) if s is not None and s.kind == Kind.FIFO), None)
        if known is None:
            if fifo is None:
                return 1
            return self.fifo_length(pe) or (ENDLESS if self.is_async else len(pe.fifos[fifo.fifo].items))
        return known

    def fifo_length(self, pe: Any) -> int:
        """The length that was set for reading or writing a FIFO, 0: none."""
        for source in (self.src0, self.src1):
            if source is not None and source.kind == Kind.FIFO and pe.fifos[source.fifo].read_length:
                return pe.fifos[source.fifo].read_length
        has_own = self.dest is not None and self.dest.kind == Kind.FIFO
        return pe.fifos[self.dest.fifo].write_length if has_own and self.dest is not None else 0

    def keep_rest(self, pe: Any, position: int) -> None:
        """A FIFO whose set length an operation has not gone through keeps what is left."""
        for source in (self.src0, self.src1):
            if source is not None and source.kind == Kind.FIFO and pe.fifos[source.fifo].read_length:
                pe.fifos[source.fifo].read_length = max(0, pe.fifos[source.fifo].read_length - position)
        if self.dest is not None and self.dest.kind == Kind.FIFO and pe.fifos[self.dest.fifo].write_length:
            pe.fifos[self.dest.fifo].write_length = max(0, pe.fifos[self.dest.fifo].write_length - position)

    def elements_a_step(self, pe: Any) -> int:
        assert self.op is not None
        sizes = element_bytes(self.op)
        operands = [s for s in (self.dest, self.src0, self.src1, self.scalar) if s is not None]
        strides = tuple(s.strides[0] for s in operands if s.is_memory and s.strides)
        width = simd_width(self.op, pe.engine.arch.name, strides)
        if any(s.kind == Kind.FIFO for s in operands) or (self.dest is not None and self.dest.kind == Kind.POINTER):
            return 1
        if self.on_control is not None:
            return 1
        for source, size in zip((self.dest, self.src0, self.src1, self.scalar), (*sizes, sizes[2]), strict=True):
            if source is not None and (source.is_input or source.is_output):
                width = min(width, (4 if source.flags & isa.QUAD_BIT else 2) if source.pairs(size) else 1)
        return width

    def offset_by_index(self) -> None:
        if self.index is None:
            return
        for source in (self.dest, self.src0, self.src1):
            if source is not None and source.is_memory and source.flags & INDEX_OFFSET_BIT:
                source.base = source.base + 2 * self.index & 0xFFFF

    def begin_sum(self, pe: Any) -> None:
        assert self.op is not None and self.dest is not None
        size = element_bytes(self.op)[0]
        if self.src0 is not None and self.src0.kind == Kind.SCALAR:
            self.sum = self.src0.value
        elif self.src0 is not None and self.src0.kind == Kind.POINTER:
            self.sum = pe.read(self.src0.value, size)
        else:
            self.sum = pe.read(self.dest.value, size)

    # --- progress ---------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.stopped or (self.position >= self.length and self.length != ENDLESS)

    def can_step(self, pe: Any, now: int) -> bool:
        return self.obstacle(pe, now) is None

    def obstacle(self, pe: Any, now: int) -> str | None:
        """Why no step can be made."""
        assert self.op is not None
        sizes = element_bytes(self.op)
        for source, size in ((self.src0, sizes[1]), (self.src1, sizes[2]), (self.scalar, sizes[2])):
            if source is not None and (why := self.no_element(pe, now, source, self.is_async, size)):
                return why
        return self.no_room(pe, self.dest, self.is_async, sizes[0]) if self.dest is not None else None

    def stuck(self, pe: Any, now: int, writes: bool, size: int) -> str | None:
        """Why an iterator cannot give or take its next element."""
        assert self.dest is not None
        if writes:
            return self.no_room(pe, self.dest, True, size)
        return self.no_element(pe, now, self.dest, True, size)

    def elements(self) -> int:
        """Of the next step."""
        return min(self.width, self.length - self.position) if self.length != ENDLESS else 1

    def no_element(self, pe: Any, now: int, source: Source, waits_for_fifo: bool, size: int) -> str | None:
        if source.is_input:
            color = self.color_in(pe, source)
            first, end = self.position, self.position + self.elements()
            needed = (end + 1) // 2 - (first + 1) // 2 if source.pairs(size) else 1
            waiting = list(itertools.islice(pe.inputs.get(color, ()), needed))
            if self.ends_at(pe, now, source):
                return None
            passes_control = source.flags & isa.TRANSFORM_BIT
            if len(waiting) < needed or any(w.ready > now or (w.control and not passes_control) for w in waiting):
                return f"a data wavelet of color {color} in input queue {source.queue}"
        if waits_for_fifo and source.kind == Kind.FIFO and finds_empty(pe, source.fifo):
            return f"an element in FIFO {source.fifo}"
        return None

    def no_room(self, pe: Any, dest: Source, waits_for_fifo: bool, size: int) -> str | None:
        if dest.is_output:
            depth = pe.engine.arch.output_queue_depths[dest.queue]
            first, end = self.position, self.position + self.elements()
            sent = end // 2 - first // 2 + (end == self.length and end % 2) if dest.pairs(size) else 1
            if sent and len(pe.outputs[dest.queue]) + sent > depth:
                return f"room in output queue {dest.queue}"
        if waits_for_fifo and dest.kind == Kind.FIFO and finds_full(pe, dest.fifo):
            return f"room in FIFO {dest.fifo}"
        return None

    def blocked_on(self, pe: Any) -> str:
        return self.obstacle(pe, pe.engine.now) or "its turn"

    def color_in(self, pe: Any, source: Source) -> int:
        own = pe.iq_color[source.queue]
        if own is not None and (pe.engine.arch.data_task_is_queue or source.color == NO_COLOR):
            return own
        return source.color

    def ends_at(self, pe: Any, now: int, source: Source | None) -> bool:
        """Whether a control wavelet has come that ends this."""
        if self.on_control is None or source is None or not source.is_input:
            return False
        head = pe.head(self.color_in(pe, source), now)
        return head is not None and head.control

    def end_by_control(self, pe: Any, source: Source, sizes: tuple[int, int, int]) -> int:
        take_wavelet(pe, self.color_in(pe, source))
        assert self.on_control is not None
        self.length, self.completion = self.position, self.on_control
        self.finish(pe, sizes[0])
        return 1

    def step(self, pe: Any, now: int) -> int:
        """One step; its cycles."""
        assert self.op is not None
        sizes = element_bytes(self.op)
        for source in (self.src0, self.src1):
            if source is not None and self.ends_at(pe, now, source):
                return self.end_by_control(pe, source, sizes)
        elements = self.elements()
        pe.engine.elements += elements
        cost = self.conflict(sizes)
        first = self.position
        rows = []
        for i in range(first, first + elements):
            if self.fifo_stops(pe):
                self.stopped = pe.stopped = True
                self.keep_rest(pe, i)
                break
            rows.append((i, self.gather(pe, i, sizes, now)))
        for i, result in rows:
            self.put_result(pe, i, result, sizes[0], now)
        self.position = first + elements
        if self.done:
            self.finish(pe, sizes[0])
        return cost

    def fifo_stops(self, pe: Any) -> bool:
        """A synchronous operation ends where it would wait for a FIFO."""
        if self.is_async:
            return False
        for source in (self.src0, self.src1):
            if source is not None and source.kind == Kind.FIFO and finds_empty(pe, source.fifo):
                return True
        return self.dest is not None and self.dest.kind == Kind.FIFO and finds_full(pe, self.dest.fifo)

    def conflict(self, sizes: tuple[int, int, int]) -> int:
        a, b = self.src0, self.src1
        if a is None or b is None or not a.is_memory or not b.is_memory:
            return 1
        x, y = a.address(self.position, sizes[1]), b.address(self.position, sizes[2])
        return 2 if x != y and (x >> 1 & 3) == (y >> 1 & 3) else 1

    def take(self, pe: Any, source: Source, i: int, size: int) -> int:
        """The wavelet with element i; its half, if it holds two."""
        if i % 2 == 0 or not source.pairs(size):
            color = self.color_in(pe, source)
            waiting = pe.inputs.get(color)
            marked = bool(source.flags & isa.TRANSFORM_BIT and waiting and waiting[0].control)
            source.held = take_wavelet(pe, color) | (isa.CONTROL_MARK if marked else 0)
        if not source.pairs(size):
            return source.held
        return source.held >> 16 * (i % 2) & 0xFFFF

    def gather(self, pe: Any, i: int, sizes: tuple[int, int, int], now: int) -> int:
        """Bits of one result."""
        assert self.op is not None
        shift = None
        fabric = next((s for s in (self.src0, self.src1) if s is not None and s.is_input), None)
        word = None
        if fabric is not None:
            word = self.take(pe, fabric, i, sizes[1 if fabric is self.src0 else 2])
            shift = word >> 16

        def read(source: Source | None, size: int) -> int:
            if source is None:
                return 0
            if source.kind == Kind.SCALAR:
                return source.value & (1 << 8 * size) - 1
            if source.kind == Kind.POINTER:
                return pe.read(source.value, size)
            if source.kind == Kind.FIFO:
                return take_element(pe, source.fifo)
            if source is fabric:
                assert word is not None
                return word if size == 4 else word & 0xFFFF
            if source.is_input:
                value = self.take(pe, source, i, size)
                return value if size == 4 else value & 0xFFFF
            address = source.address(i, size)
            if shift is not None and source.flags & INDEX_OFFSET_BIT:
                address = source.base + 2 * shift & 0xFFFF
            return pe.read(address, size)

        if self.sum is not None:
            b, c = read(self.src1, sizes[2]), read(self.scalar, sizes[2])
            if self.op in _MACS:
                self.sum = result_of(self.op, self.sum, b, c, self.carry)
            elif self.src1 is not None:
                self.sum = result_of(self.op, self.sum, b, 0, self.carry)
            else:
                self.sum = result_of(self.op, read(self.src0, sizes[1]), 0, 0, self.carry)
            return 0
        a, b = read(self.src0, sizes[1]), read(self.src1, sizes[2])
        c = read(self.scalar, sizes[2])
        result = result_of(self.op, a, b, c, self.carry)
        if shift is not None and self.dest is not None and self.dest.is_memory and self.dest.flags & INDEX_OFFSET_BIT:
            pe.write(self.dest.base + 2 * shift & 0xFFFF, sizes[0], result)
            return -1
        return result

    def put_result(self, pe: Any, i: int, result: int, size: int, now: int) -> None:
        dest = self.dest
        if self.sum is not None or result == -1 or dest is None:
            return
        if dest.kind == Kind.FIFO:
            put_element(pe, dest.fifo, result)
        elif dest.is_output:
            self.send(pe, dest, i, result, size, now)
        else:
            pe.write(dest.address(i, size), size, result)

    def send(self, pe: Any, dest: Source, i: int, result: int, size: int, now: int) -> None:
        from openwafer.wafer.sim.reference import Wavelet

        is_last = i == self.length - 1
        if dest.pairs(size):
            dest.held = dest.held | result << 16 if i % 2 else result & 0xFFFF
            if i % 2 == 0 and not is_last:
                return
            result, size = dest.held, 4
        color = dest.color if dest.color != NO_COLOR else pe.oq_color[dest.queue]
        if color is None or color >= 24:
            raise pe.fail("OutOfRange", f"output queue {dest.queue} has no color")
        data = result & (1 << 8 * size) - 1
        if size == 2 and self.index is not None:
            data |= (self.index + (i if dest.flags & INDEX_OFFSET_BIT else 0) & 0xFFFF) << 16
        ready = now + pe.engine.timing["ramp_out"]
        if self.op is not None and self.op not in _MOVES:
            ready += pe.engine.timing["float_latency"]
        control = bool(dest.flags & isa.CONTROL_BIT)
        if dest.flags & isa.TRANSFORM_BIT and data >> 30 == 3:
            control, data = True, data & ~isa.CONTROL_MARK ^ pe.transform
        advance = is_last and bool(dest.flags & isa.ADVANCE_SWITCH_BIT)
        pe.outputs[dest.queue].append(Wavelet(data, control, color, ready, advance))
        pe.engine.wake_router(pe)

    def finish(self, pe: Any, size: int) -> None:
        if self.sum is not None and not self.stopped:
            assert self.dest is not None
            pe.write(self.dest.value, size, self.sum)
        assert self.op is not None
        for source, own in zip((self.dest, self.src0, self.src1), element_bytes(self.op), strict=True):
            if source is not None and source.load is not None and source.load.save_address and source.is_memory:
                slots, load = pe.dsrs[source.register]
                at = source.address(self.position, own)
                first = slots[0] & ~(0xFFFF << 32) & 0xFFFFFFFFFFFFFFFF | at << 32
                pe.dsrs[source.register] = [(first, *slots[1:]), load]

    # --- iterators --------------------------------------------------------------------------------------------------

    def exhausted(self, pe: Any) -> bool:
        assert self.dest is not None
        if self.dest.kind == Kind.FIFO:
            return not pe.fifos[self.dest.fifo].items
        return self.length != ENDLESS and self.position >= self.length

    def get(self, pe: Any, kind: T) -> int:
        source = self.dest
        assert source is not None
        size = isa.SIZE_BYTES[kind]
        if source.kind == Kind.FIFO:
            value = take_element(pe, source.fifo)
        elif source.is_input:
            value = self.take(pe, source, self.position, size)
        else:
            value = pe.read(source.address(self.position, size), size)
        self.position += 1
        value &= (1 << 8 * size) - 1
        return numerics.wrap(value, kind) if kind < T.F16 else value

    def put(self, pe: Any, value: int, kind: T, now: int) -> None:
        source = self.dest
        assert source is not None
        size = isa.SIZE_BYTES[kind]
        if source.kind == Kind.FIFO:
            put_element(pe, source.fifo, value & (1 << 8 * size) - 1)
        elif source.is_output:
            self.send(pe, source, self.position, value, size, now)
        else:
            pe.write(source.address(self.position, size), size, value)
        self.position += 1
