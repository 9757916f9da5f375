"""SdkRuntime over a simulator: an in-order stream of copies and launches.

Copies and launches wait until every PE has unblocked its command stream. Streams into the fabric are handed over at
once; streams out of it are waited for, or with nonblock=True collected by the next call that waits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.arch import MEMORY_BYTES
from openwafer.wafer.image import Image, Symbol, SymbolKind
from openwafer.wafer.runtime.debug import dump_core
from openwafer.wafer.sim.engine import Engine, LogLine, Stop
from openwafer.wafer.sim.load import make_engine
from openwafer.wafer.sim.trace import TracingEngine

MAX_CYCLES = 100_000_000
SETTLE_CYCLES = 4096
"""A copy or launch of a real system takes thousands of cycles to arrive; chosen. What is in flight lands first."""
_SCALARS = {
    "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "i32": np.int32, "u32": np.uint32,
    "i64": np.int64, "u64": np.uint64, "f16": np.float16, "f32": np.float32, "bool": np.uint8,
}  # fmt: skip


class RuntimeFailure(OpenwaferError):
    """A host script asked for what is not there, or the program cannot go on."""


class MemcpyDataType(Enum):
    MEMCPY_16BIT = 16
    MEMCPY_32BIT = 32


class MemcpyOrder(Enum):
    ROW_MAJOR = 0
    COL_MAJOR = 1


@dataclass(frozen=True)
class Task:
    """What a nonblocking call gives back."""

    number: int


@dataclass(frozen=True)
class _Receive:
    """A stream out of the fabric that is still to be collected."""

    target: np.ndarray
    color: int
    roi: tuple[int, int, int, int]
    length: int
    order: MemcpyOrder


class SdkRuntime:
    """Runs a compiled program.

    Args:
        bindir: folder that cslc wrote
        cmaddr: address of a real system; not supported here
        msg_level, simfab_numthreads, suppress_simfab_trace: accepted, as in the vendor's runtime
    """

    def __init__(
        self,
        bindir: str | os.PathLike[str],
        platform: Any = None,
        cmaddr: str | None = None,
        suppress_simfab_trace: bool = True,
        simfab_numthreads: int = 1,
        msg_level: str = "WARNING",
        memcpy_required: bool = True,
        **_: Any,
    ) -> None:
        if cmaddr:
            raise RuntimeFailure(
                f"cmaddr={cmaddr}: there is no wafer here, programs run in the simulator; leave it out"
            )
        self._folder = Path(bindir).resolve()
        self.image: Image = image_file.load(self._folder)
        self._names = list(self.image.exports) or list(image_file.exported_names(self.image))
        self._engine: Engine | None = None
        self._running = False
        self._pending: list[_Receive] = []
        self._number = 0
        self._started = self._simulated_s = 0.0
        self._needs_memcpy = memcpy_required
        self._max_cycles = int(os.environ.get("OPENWAFER_MAX_CYCLES", MAX_CYCLES))

    # --- life -------------------------------------------------------------------------------------------------------

    def load(self, trace: Path | None = None) -> None:
        """Put the program on the simulated wafer; with `trace`, or OPENWAFER_TRACE set, record one into that file."""
        self._started = time.perf_counter()
        self._engine = make_engine(self.image, trace=trace)
        for own in self.image.preloads:
            self._engine.write(own.x, own.y, own.address, own.data.tobytes())

    def run(self) -> None:
        """Start it."""
        self._loaded()
        self._running = True

    def stop(self) -> None:
        """Finish what was ordered; write sim.log, sim_stats.json and a core dump."""
        engine = self._live()
        self._drain()
        self._wait()
        if not self._needs_memcpy:  # nothing but the end of all activity tells that such a program is over
            started = time.perf_counter()
            stop = engine.run_idle(self._max_cycles)
            self._simulated_s += time.perf_counter() - started
            self._check_stop(stop, "the program never comes to rest")
        self._running = False
        for wait in engine.waits():
            if wait.thread == "router":
                sys.stderr.write(f"note: PE ({wait.pe[0]}, {wait.pe[1]}): {wait.what}\n")
        dump_core(self.image, engine, self._folder)
        self.save_trace()
        lines = [f"@{line.cycle} P{line.pe[0]}.{line.pe[1]}: {line.text}" for line in engine.log()]
        Path("sim.log").write_text("\n".join(lines) + "\n" * bool(lines))
        stats, seconds = engine.stats(), time.perf_counter() - self._started
        width, height = self.image.fabric
        content = {
            "cycle_count": stats.cycles,
            "fabric_x": width,
            "fabric_y": height,
            "real_time": seconds,
            "simulation_time": self._simulated_s,
            "tile_cycles_per_second": stats.cycles * width * height / max(self._simulated_s, 1e-9),
            "wavelet_count": stats.wavelet_hops,
            "instruction_count": stats.instructions,
        }
        Path("sim_stats.json").write_text(json.dumps(content, indent=1) + "\n")

    def save_trace(self) -> None:
        """Write the trace as it is now, if one is recorded."""
        if isinstance(self._engine, TracingEngine):
            self._engine.save()

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeFailure("the program is not loaded: call load() first")
        return self._engine

    def _live(self) -> Engine:
        engine = self._loaded()
        if not self._running:
            raise RuntimeFailure("the program does not run: call run() first, and nothing after stop()")
        return engine

    @property
    def cycle(self) -> int:
        """The present cycle of the simulated wafer."""
        return self._loaded().cycle

    def printed(self) -> list[LogLine]:
        """What programs have printed."""
        return self._loaded().log()

    # --- names ------------------------------------------------------------------------------------------------------

    def get_id(self, name: str) -> int:
        """The id of an exported symbol."""
        if name not in self._names:
            raise RuntimeFailure(f'the program exports no "{name}"; it exports {", ".join(self._names) or "nothing"}')
        return self._names.index(name)

    def _symbol(self, x: int, y: int, name: str) -> Symbol:
        number = self.image.program_of[y, x]
        if number < 0:
            raise RuntimeFailure(f'PE ({x}, {y}) has no program, so no symbol "{name}"')
        program = self.image.programs[number]
        found = [s for s in program.symbols if s.name == name]
        if not found:
            known = ", ".join(s.name for s in program.symbols if s.exported)
            raise RuntimeFailure(f'PE ({x}, {y}), {program.name}, has no symbol "{name}"; it has {known}')
        return max(found, key=lambda s: s.exported)

    def address_of(self, x: int, y: int, name: str) -> int:
        """The byte address on a PE of the data that a symbol names."""
        symbol = self._symbol(x, y, name)
        if symbol.kind == SymbolKind.FUNCTION:
            raise RuntimeFailure(f'"{name}" is a function: launch it')
        if symbol.kind == SymbolKind.POINTER:
            return int.from_bytes(self._loaded().read(x, y, symbol.value, 2), "little")
        return symbol.value

    def _symbols(self, x: int, y: int, width: int, height: int, name: str) -> tuple[list[Symbol], np.ndarray]:
        """A symbol of every PE of a rectangle: the distinct ones, and [height, width] which of them."""
        numbers = self.image.program_of[y : y + height, x : x + width]
        _, first, which = np.unique(numbers, return_index=True, return_inverse=True)
        symbols = [self._symbol(x + int(at) % width, y + int(at) // width, name) for at in first]
        return symbols, which.reshape(height, width)

    def _addresses(self, x: int, y: int, width: int, height: int, name: str) -> np.ndarray:
        """address_of for every PE of a rectangle: [height, width]."""
        symbols, which = self._symbols(x, y, width, height, name)
        if any(symbol.kind == SymbolKind.FUNCTION for symbol in symbols):
            raise RuntimeFailure(f'"{name}" is a function: launch it')
        values = np.array([symbol.value for symbol in symbols])[which]
        pointers = np.array([symbol.kind == SymbolKind.POINTER for symbol in symbols])[which]
        if not pointers.any():
            return values
        held = self._loaded().read_block(x, y, values, 2).view(np.uint16)[..., 0]
        return np.where(pointers, held, values)

    def _name_of(self, number: int) -> str:
        if not 0 <= int(number) < len(self._names):
            raise RuntimeFailure(f"symbol id {number} does not exist; ids come from get_id()")
        return self._names[int(number)]

    # --- copies -----------------------------------------------------------------------------------------------------

    def memcpy_h2d(
        self, dest: int, src: np.ndarray, px: int, py: int, w: int, h: int, elem_per_pe: int, *, streaming: bool,
        data_type: MemcpyDataType, order: MemcpyOrder, nonblock: bool,
    ) -> Task:  # fmt: skip
        """From the host to a rectangle of PEs: into a symbol, or as wavelets of a color."""
        engine = self._live()
        blocks = self._blocks(src, (px, py, w, h), elem_per_pe, order)
        if streaming:
            for y in range(h):
                for x in range(w):
                    engine.send(px + x, py + y, int(dest), blocks[y, x])
            return self._task()
        self._drain()
        self._wait()
        self._write(self._name_of(dest), blocks, px, py, data_type)
        return self._task()

    def memcpy_h2d_rowbcast(
        self, dest: int, src: np.ndarray, px: int, py: int, w: int, h: int, elem_per_pe: int, **options: Any
    ) -> Task:
        """The same data for all PEs of a row: src is (h, 1, elements)."""
        blocks = self._blocks(src, (px, py, 1, h), elem_per_pe, options["order"])
        return self._broadcast(dest, np.repeat(blocks, w, axis=1), px, py, options)

    def memcpy_h2d_colbcast(
        self, dest: int, src: np.ndarray, px: int, py: int, w: int, h: int, elem_per_pe: int, **options: Any
    ) -> Task:
        """The same data for all PEs of a column: src is (1, w, elements)."""
        blocks = self._blocks(src, (px, py, w, 1), elem_per_pe, options["order"])
        return self._broadcast(dest, np.repeat(blocks, h, axis=0), px, py, options)

    def _broadcast(self, dest: int, blocks: np.ndarray, px: int, py: int, options: dict[str, Any]) -> Task:
        self._live()
        self._drain()
        self._wait()
        self._write(self._name_of(dest), blocks, px, py, options["data_type"])
        return self._task()

    def memcpy_d2h(
        self, dest: np.ndarray, src: int, px: int, py: int, w: int, h: int, elem_per_pe: int, *, streaming: bool,
        data_type: MemcpyDataType, order: MemcpyOrder, nonblock: bool,
    ) -> Task:  # fmt: skip
        """From a rectangle of PEs to the host."""
        engine = self._live()
        self._check_roi((px, py, w, h))
        self._check_array(dest, w * h * elem_per_pe)
        if streaming:
            self._pending.append(_Receive(dest, int(src), (px, py, w, h), elem_per_pe, order))
            if not nonblock:
                self._drain()
            return self._task()
        self._drain()
        self._wait()
        name, size = self._name_of(src), data_type.value // 8
        addresses = self._addresses(px, py, w, h, name)
        self._check_inside(name, addresses, elem_per_pe * size)
        data = engine.read_block(px, py, addresses, elem_per_pe * size)
        self._store(dest, data.view(np.uint16 if size == 2 else np.uint32).astype(np.uint32), order)
        return self._task()

    def _write(self, name: str, blocks: np.ndarray, px: int, py: int, data_type: MemcpyDataType) -> None:
        if name in self.image.exports and not self.image.exports[name][1]:
            raise RuntimeFailure(f'"{name}" was exported as constant: the host may read it, not write it')
        kind = np.uint16 if data_type == MemcpyDataType.MEMCPY_16BIT else np.uint32
        height, width, _ = blocks.shape
        data = np.ascontiguousarray(blocks.astype(kind)).view(np.uint8)
        addresses = self._addresses(px, py, width, height, name)
        self._check_inside(name, addresses, data.shape[2])
        self._loaded().write_block(px, py, addresses, data)

    def _check_inside(self, name: str, addresses: np.ndarray, num_bytes: int) -> None:
        if addresses.size and int(addresses.max()) + num_bytes > MEMORY_BYTES:
            raise RuntimeFailure(
                f'"{name}" begins at address {int(addresses.max())}; {num_bytes} bytes from there are beyond the '
                f"{MEMORY_BYTES} of a PE"
            )

    def _blocks(self, src: np.ndarray, roi: tuple[int, int, int, int], length: int, order: MemcpyOrder) -> np.ndarray:
        """The words of each PE: [h, w, length] uint32."""
        self._check_roi(roi)
        _, _, w, h = roi
        self._check_array(src, w * h * length)
        words = np.ascontiguousarray(src).ravel().view(np.uint32)
        if order == MemcpyOrder.ROW_MAJOR:
            return words.reshape(h, w, length)
        return words.reshape(length, w, h).transpose(2, 1, 0)

    def _store(self, dest: np.ndarray, blocks: np.ndarray, order: MemcpyOrder) -> None:
        ordered = blocks if order == MemcpyOrder.ROW_MAJOR else blocks.transpose(2, 1, 0)
        dest.reshape(-1).view(np.uint32)[:] = np.ascontiguousarray(ordered).ravel()

    def _check_roi(self, roi: tuple[int, int, int, int]) -> None:
        px, py, w, h = roi
        width, height = self.image.size
        if px < 0 or py < 0 or w < 1 or h < 1 or px + w > width or py + h > height:
            raise RuntimeFailure(
                f"the PEs x {px} to {px + w - 1}, y {py} to {py + h - 1} are not all in the rectangle of "
                f"{width} x {height}"
            )

    def _check_array(self, array: np.ndarray, count: int) -> None:
        if not isinstance(array, np.ndarray) or array.dtype.itemsize != 4:
            kind = getattr(array, "dtype", type(array).__name__)
            raise RuntimeFailure(
                f"a copy needs a numpy array of 32-bit elements, found {kind}; 16-bit data go one to a word"
            )
        if array.size != count:
            raise RuntimeFailure(f"the array has {array.size} elements, the copy moves {count}")

    # --- streams of an SdkLayout --------------------------------------------------------------------------------

    def send(self, stream: Any, data: np.ndarray, nonblock: bool = True) -> Task:
        """Words into an input stream; a stream of several tiles deals them out in equal parts, in order."""
        engine = self._live()
        if not stream.is_input:
            raise RuntimeFailure("send: this is an output stream; receive takes from it")
        words = _words(data)
        if len(words) % len(stream.tiles):
            raise RuntimeFailure(f"send: {len(words)} words cannot be dealt to the stream's {len(stream.tiles)} tiles")
        for (x, y), part in zip(stream.tiles, np.split(words, len(stream.tiles)), strict=True):
            engine.send(x, y, stream.color.value, part)
        return self._task()

    def receive(self, stream: Any, target: np.ndarray, count: int, nonblock: bool = True) -> Task:
        """`count` words from an output stream into an array of 32-bit elements."""
        self._live()
        if stream.is_input:
            raise RuntimeFailure("receive: this is an input stream; send gives to it")
        self._check_array(target, count)
        if count % len(stream.tiles):
            raise RuntimeFailure(f"receive: {count} words cannot come in equal parts from {len(stream.tiles)} tiles")
        (x, y), (last_x, last_y) = stream.tiles[0], stream.tiles[-1]
        roi, length = (x, y, last_x - x + 1, last_y - y + 1), count // len(stream.tiles)
        self._pending.append(_Receive(target, stream.color.value, roi, length, MemcpyOrder.ROW_MAJOR))
        if not nonblock:
            self._drain()
        return self._task()

    # --- launches ---------------------------------------------------------------------------------------------------

    def launch(self, name: str, *arguments: Any, nonblock: bool = False) -> Task:
        """Call an exported function on every PE."""
        engine = self._live()
        self._drain()
        self._wait()
        width, height = self.image.size
        symbols, which = self._symbols(0, 0, width, height, name)
        if any(symbol.kind != SymbolKind.FUNCTION for symbol in symbols):
            raise RuntimeFailure(f'"{name}" is no function')
        functions = np.array([symbol.value for symbol in symbols])[which]
        words = self._arguments(symbols[which[0, 0]], arguments)
        engine.launch(0, 0, width, height, functions, np.array(words, np.int64))
        if not nonblock:
            self._wait()
        return self._task()

    def _arguments(self, symbol: Symbol, arguments: tuple[Any, ...]) -> list[int]:
        if len(arguments) != len(symbol.arg_types):
            raise RuntimeFailure(
                f'"{symbol.name}" takes {len(symbol.arg_types)} arguments ({", ".join(symbol.arg_types)}), '
                f"{len(arguments)} are given"
            )
        words = []
        for value, kind in zip(arguments, symbol.arg_types, strict=True):
            scalar = np.array(value).astype(_SCALARS.get(kind, np.uint16))
            if scalar.dtype.kind == "f":
                scalar = scalar.view(np.uint16 if scalar.itemsize == 2 else np.uint32)
            words.append(int(scalar))
        return words

    def call(self, name: str, params: list[Any], nonblock: bool = False) -> Task:
        """As launch, with the arguments in a list."""
        return self.launch(name, *params, nonblock=nonblock)

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _task(self) -> Task:
        self._number += 1
        return Task(self._number)

    def is_task_done(self, task: Task) -> bool:
        """Whether a nonblocking call is over."""
        return not self._pending

    def task_wait(self, task: Task) -> None:
        """Wait for a nonblocking call."""
        self._drain()

    def _wait(self) -> None:
        engine = self._loaded()
        width, height = self.image.size
        started = time.perf_counter()
        stop = engine.run_commands(0, 0, width, height, self._max_cycles)
        self._check_stop(stop, "a PE never unblocks the command stream (sys_mod.unblock_cmd_stream())")
        engine.run_idle(SETTLE_CYCLES)
        self._simulated_s += time.perf_counter() - started

    def _drain(self) -> None:
        """Collect the streams that are still to come."""
        engine = self._loaded()
        while self._pending:
            order = self._pending.pop(0)
            px, py, w, h = order.roi
            started = time.perf_counter()
            stop = engine.run_received(px, py, w, h, order.color, order.length, self._max_cycles)
            self._simulated_s += time.perf_counter() - started
            self._check_stop(stop, f"the wavelets of color {order.color} for the host do not all come")
            blocks = np.zeros((h, w, order.length), np.uint32)
            for y in range(h):
                for x in range(w):
                    blocks[y, x] = engine.receive(px + x, py + y, order.color, order.length)
            self._store(order.target, blocks, order.order)

    def _check_stop(self, stop: Stop, what: str) -> None:
        if stop == Stop.DONE:
            return
        engine = self._loaded()
        if stop == Stop.LIMIT:
            raise RuntimeFailure(
                f"{what}: still running after {self._max_cycles} cycles; OPENWAFER_MAX_CYCLES raises the limit"
            )
        waits = engine.waits()
        lines = []
        for wait in waits[:20]:
            place = f" ({wait.place.path}:{wait.place.line})" if wait.place else ""
            lines.append(f"  PE ({wait.pe[0]}, {wait.pe[1]}) {wait.thread} waits for {wait.what}{place}")
        listed = "\n".join(lines) or "  no thread waits: all tasks have ended"
        raise RuntimeFailure(f"deadlock at cycle {engine.cycle}: {what}\n{listed}")

    # --- debugging --------------------------------------------------------------------------------------------------

    def read_symbol(self, x: int, y: int, name: str, dtype: Any = np.uint16) -> np.ndarray:
        """The bytes of a variable of a PE."""
        program = self.image.programs[self.image.program_of[y, x]]
        found = [s for s in program.symbols if s.name == name and s.kind == SymbolKind.VARIABLE]
        if not found:
            raise RuntimeFailure(f'PE ({x}, {y}), {program.name}, has no variable "{name}"')
        data = self._loaded().read(x, y, found[0].value, found[0].size_bytes)
        return np.frombuffer(data, dtype)


def _words(data: np.ndarray) -> np.ndarray:
    """One wavelet an element: uint32."""
    flat = np.ascontiguousarray(data).ravel()
    if flat.dtype.itemsize == 4:
        return flat.view(np.uint32)
    if flat.dtype.itemsize == 2:
        return flat.view(np.uint16).astype(np.uint32)
    raise RuntimeFailure(f"a stream carries elements of 16 or 32 bits, found {flat.dtype}")
