"""What a run left in the memory of its PEs: symbols, and the traces of the library <debug>."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.image import Image, Symbol, SymbolKind
from openwafer.wafer.sim.engine import Engine

CORE = Path("bin") / "core.npz"
MAX_CORE_PES = 4096


class CoreError(OpenwaferError):
    """There is no core dump, or not what was asked for in it."""


def dump_core(image: Image, engine: Engine, folder: Path) -> None:
    """The memory of all PEs, as a file beside the program; larger rectangles are left out."""
    width, height = image.size
    if width * height > MAX_CORE_PES:
        return
    memory = [np.frombuffer(engine.read(x, y, 0, 48 * 1024), np.uint8) for y in range(height) for x in range(width)]
    np.savez_compressed(folder / CORE, memory=np.stack(memory))


class debug_util:  # the vendor's name
    """Reads what a program left behind; call it after stop().

    Args:
        bindir: folder of the compiled program
        cmaddr: address of a real system; not supported here
    """

    def __init__(self, bindir: str, cmaddr: str | None = None) -> None:
        if cmaddr:
            raise CoreError(f"cmaddr={cmaddr}: there is no wafer here; leave it out")
        self.image = image_file.load(Path(bindir))
        path = Path(bindir) / CORE
        if not path.is_file():
            raise CoreError(f"{path} does not exist: a program leaves it when SdkRuntime.stop() is called")
        with np.load(path, allow_pickle=False) as data:
            self._memory = data["memory"]

    def get_symbol(self, x: int, y: int, name: str, dtype: Any) -> np.ndarray:
        """A variable of the PE at fabric coordinates (x, y)."""
        symbol = self._symbol(x, y, name, (SymbolKind.VARIABLE,))
        return self._read(x, y, symbol.value, symbol.size_bytes).view(dtype)

    def read_trace(self, x: int, y: int, key: str) -> list[Any]:
        """Entries of a trace in order: numbers and strings."""
        used = int(self._pointed(x, y, f"trace.used.{key}", 2).view(np.uint16)[0])
        words = self._pointed(x, y, f"trace.{key}", 2 * used).view(np.uint16)
        return list(_entries([int(w) for w in words]))

    def _symbol(self, x: int, y: int, name: str, kinds: tuple[SymbolKind, ...]) -> Symbol:
        column, row = self._local(x, y)
        program = self.image.programs[self.image.program_of[row, column]]
        for symbol in program.symbols:
            if symbol.name == name and symbol.kind in kinds:
                return symbol
        raise CoreError(f'the PE at ({x}, {y}), {program.name}, has no "{name}"')

    def _local(self, x: int, y: int) -> tuple[int, int]:
        column, row = x - self.image.offset[0], y - self.image.offset[1]
        width, height = self.image.size
        if not (0 <= column < width and 0 <= row < height):
            raise CoreError(f"({x}, {y}) is not in the program's rectangle: {width} x {height} at {self.image.offset}")
        return column, row

    def _read(self, x: int, y: int, address: int, size: int) -> np.ndarray:
        column, row = self._local(x, y)
        return self._memory[row * self.image.size[0] + column][address : address + size]

    def _pointed(self, x: int, y: int, name: str, size: int) -> np.ndarray:
        symbol = self._symbol(x, y, name, (SymbolKind.POINTER,))
        address = int(self._read(x, y, symbol.value, 2).view(np.uint16)[0])
        return self._read(x, y, address, size)


def _entries(words: list[int]):
    """Decodes lib/debug.csl; an entry that the buffer cut off is left out."""
    at = 0
    while at < len(words):
        tag, rest = words[at], words[at + 1 :]
        if tag == 1 and rest and len(rest) > rest[0]:
            yield "".join(map(chr, rest[1 : 1 + rest[0]]))
            at += 2 + rest[0]
        elif tag in (2, 3) and rest:
            yield rest[0] if tag == 2 or rest[0] < 0x8000 else rest[0] - 0x10000
            at += 2
        elif tag in (4, 5, 6) and len(rest) > 1:
            bits = np.uint32(rest[0] | rest[1] << 16)
            yield bits.view({4: np.uint32, 5: np.int32, 6: np.float32}[tag]).item()
            at += 3
        elif tag == 7 and len(rest) > 2:
            yield rest[0] | rest[1] << 16 | rest[2] << 32
            at += 4
        else:
            return
