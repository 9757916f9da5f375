"""`openwafer wafer run`: a compiled program from .npy files to .npy files, with no host script."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer.image import Image, Symbol, SymbolKind
from openwafer.wafer.runtime.sdk_runtime import MemcpyDataType, MemcpyOrder, SdkRuntime

_NUMPY = {
    "i16": "int16", "u16": "uint16", "f16": "float16", "i32": "int32", "u32": "uint32", "f32": "float32",
}  # fmt: skip
_ROI = re.compile(r"(.*)@(\d+),(\d+),(\d+)x(\d+)")


class RunOptionError(OpenwaferError):
    """A --set, --launch or --get that cannot be done."""


@dataclass(frozen=True)
class Roi:
    """A rectangle of PEs."""

    x: int
    y: int
    width: int
    height: int


def run(
    out: Path,
    steps: Sequence[tuple[str, str]],
    say: Callable[[str], None] = lambda text: None,
    trace: Path | None = None,
) -> SdkRuntime:
    """Do the steps in their order.

    Args:
        out: the compiled program
        steps: ("set", "A=a.npy"), ("launch", "compute:3") or ("get", "y=y.npy"), as on the command line
        say: gets a line for each launch, and what the program printed
        trace: record one into this file
    """
    runtime = SdkRuntime(out)
    parsed = [_parse(kind, text, runtime.image) for kind, text in steps]
    runtime.load(trace)
    runtime.run()
    printed = 0
    for step in parsed:
        step(runtime, say)
        for line in runtime.printed()[printed:]:
            say(f"  @{line.cycle} PE {line.pe[0]},{line.pe[1]}: {line.text}")
        printed = len(runtime.printed())
    runtime.save_trace()
    return runtime


Step = Callable[[SdkRuntime, Callable[[str], None]], None]


def _parse(kind: str, text: str, image: Image) -> Step:
    """A step that is known to be possible before anything runs, as far as that can be."""
    if kind == "launch":
        return _parse_launch(text, image)
    name, equals, rest = text.partition("=")
    if not equals or not name or not rest:
        raise RunOptionError(f'--{kind} "{text}": expected NAME=FILE.npy, such as --{kind} A=a.npy')
    name, roi = _roi(name, image, kind)
    symbol = _symbol(name, image, roi, kind)
    if kind == "set":
        return _set_step(name, Path(rest), symbol, roi)
    path, _, shape = rest.partition(":")
    return _get_step(name, Path(path), shape, symbol, roi)


def _roi(text: str, image: Image, kind: str) -> tuple[str, Roi]:
    width, height = image.size
    if "@" not in text:
        return text, Roi(0, 0, width, height)
    match = _ROI.fullmatch(text)
    if match is None:
        raise RunOptionError(f'--{kind} "{text}": PEs are given as NAME@X,Y,WxH, such as b@0,0,1x{height}')
    x, y, w, h = (int(number) for number in match.groups()[1:])
    if w < 1 or h < 1 or x + w > width or y + h > height:
        raise RunOptionError(f'--{kind} "{text}": the program has {width} x {height} PEs, x and y count from 0')
    return match.group(1), Roi(x, y, w, h)


def _symbol(name: str, image: Image, roi: Roi, kind: str) -> Symbol:
    program = image.programs[image.program_of[roi.y, roi.x]]
    found = [s for s in program.symbols if s.name == name and s.exported and s.kind != SymbolKind.FUNCTION]
    if not found:
        known = [s.name for s in program.symbols if s.exported and s.kind != SymbolKind.FUNCTION]
        raise RunOptionError(
            f'--{kind} "{name}": the program exports no variable of this name; it exports {", ".join(known) or "none"}'
        )
    if found[0].element_type not in _NUMPY:
        raise RunOptionError(f'--{kind} "{name}" is of type {found[0].element_type}; known are {", ".join(_NUMPY)}')
    return found[0]


# --- set ------------------------------------------------------------------------------------------------------------


def _set_step(name: str, path: Path, symbol: Symbol, roi: Roi) -> Step:
    array = _read(path, name)
    expected = np.dtype(_NUMPY[symbol.element_type])
    if array.dtype != expected:
        raise RunOptionError(
            f"--set {name}: {path} holds {array.dtype}, the program wants {symbol.element_type}: "
            f"save it with array.astype(np.{expected})"
        )
    if array.ndim > 2 and array.shape[:2] == (roi.height, roi.width):
        blocks = array.reshape(roi.height, roi.width, -1)
    elif array.ndim == 1:
        blocks = np.broadcast_to(array, (roi.height, roi.width, array.size))
    else:
        raise RunOptionError(
            f"--set {name}: {path} has shape {array.shape}; expected ({roi.height}, {roi.width}, n), a block for each "
            f"PE (rows of PEs first), or (n,), the same for all of them"
        )
    if array.size == 0:
        raise RunOptionError(f"--set {name}: {path} is empty")

    def do(runtime: SdkRuntime, say: Callable[[str], None]) -> None:
        _check_room(runtime, name, symbol, roi, blocks.shape[2])
        words, kind = _to_words(blocks)
        runtime.memcpy_h2d(
            runtime.get_id(name), words, roi.x, roi.y, roi.width, roi.height, blocks.shape[2], streaming=False,
            data_type=kind, order=MemcpyOrder.ROW_MAJOR, nonblock=False,
        )  # fmt: skip

    return do


def _read(path: Path, name: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise RunOptionError(f"--set {name}: {path} does not exist") from None
    except (ValueError, OSError, EOFError) as error:
        raise RunOptionError(f"--set {name}: {path} is no .npy file ({error})") from None


def _to_words(blocks: np.ndarray) -> tuple[np.ndarray, MemcpyDataType]:
    """32-bit words of a copy; 16-bit values go one to a word."""
    flat = np.ascontiguousarray(blocks).ravel()
    if flat.itemsize == 2:
        return flat.view(np.uint16).astype(np.uint32), MemcpyDataType.MEMCPY_16BIT
    return flat, MemcpyDataType.MEMCPY_32BIT


def _room(runtime: SdkRuntime, name: str, symbol: Symbol, roi: Roi) -> int | None:
    """Elements from where the symbol points to the end of its variable; None where that is no variable."""
    program = runtime.image.programs[runtime.image.program_of[roi.y, roi.x]]
    address = runtime.address_of(roi.x, roi.y, name)
    size = np.dtype(_NUMPY[symbol.element_type]).itemsize
    for other in program.symbols:
        if other.kind == SymbolKind.VARIABLE and other.value <= address < other.value + other.size_bytes:
            return (other.value + other.size_bytes - address) // size
    return None


def _check_room(runtime: SdkRuntime, name: str, symbol: Symbol, roi: Roi, count: int) -> None:
    room = _room(runtime, name, symbol, roi)
    if room is not None and count > room:
        raise RunOptionError(f"{name} has room for {room} elements a PE, {count} are asked for")


# --- launch ---------------------------------------------------------------------------------------------------------


def _parse_launch(text: str, image: Image) -> Step:
    name, _, values = text.partition(":")
    functions = {s.name: s for s in image.programs[image.program_of[0, 0]].symbols if s.kind == SymbolKind.FUNCTION}
    if name not in functions:
        known = ", ".join(functions) or "none"
        raise RunOptionError(f'--launch "{name}": the program exports no such function; it exports {known}')
    types = functions[name].arg_types
    given = values.split(",") if values else []
    if len(given) != len(types):
        raise RunOptionError(
            f'--launch "{text}": {name} takes {len(types)} arguments ({", ".join(types) or "none"}), {len(given)} are '
            f"given; write --launch {':'.join([name, *([','.join(types)] if types else [])])}"
        )
    arguments = [_argument(value, kind, text) for value, kind in zip(given, types, strict=True)]

    def do(runtime: SdkRuntime, say: Callable[[str], None]) -> None:
        before, started = runtime.cycle, time.perf_counter()
        runtime.launch(name, *arguments, nonblock=False)
        say(f"{name}: {runtime.cycle - before:,} cycles, {time.perf_counter() - started:.2f} s")

    return do


def _argument(value: str, kind: str, text: str) -> int | float:
    try:
        number = float(value) if kind.startswith("f") else int(value, 0)
    except ValueError:
        raise RunOptionError(f'--launch "{text}": "{value}" is no {kind}') from None
    if isinstance(number, int) and kind != "bool":
        info = np.iinfo(np.dtype(kind.replace("u", "uint") if kind[0] == "u" else kind.replace("i", "int")))
        if not info.min <= number <= info.max:
            raise RunOptionError(f'--launch "{text}": {number} does not fit {kind} ({info.min} to {info.max})')
    return number


# --- get ------------------------------------------------------------------------------------------------------------


def _get_step(name: str, path: Path, shape: str, symbol: Symbol, roi: Roi) -> Step:
    inner = _shape(shape, name) if shape else None
    kind = np.dtype(_NUMPY[symbol.element_type])

    def do(runtime: SdkRuntime, say: Callable[[str], None]) -> None:
        sizes = inner or (_room(runtime, name, symbol, roi),)
        if None in sizes:
            raise RunOptionError(f"--get {name}: how many elements it has is not known; write --get {name}={path}:N")
        count = int(np.prod([size for size in sizes if size is not None]))
        _check_room(runtime, name, symbol, roi, count)
        words = np.zeros(roi.height * roi.width * count, np.uint32)
        runtime.memcpy_d2h(
            words, runtime.get_id(name), roi.x, roi.y, roi.width, roi.height, count, streaming=False,
            data_type=MemcpyDataType.MEMCPY_16BIT if kind.itemsize == 2 else MemcpyDataType.MEMCPY_32BIT,
            order=MemcpyOrder.ROW_MAJOR, nonblock=False,
        )  # fmt: skip
        values = words.astype(np.uint16).view(kind) if kind.itemsize == 2 else words.view(kind)
        array = values.reshape(roi.height, roi.width, *[int(size) for size in sizes if size is not None])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
        say(f"{name}: {array.dtype} {array.shape} to {path}")

    return do


def _shape(text: str, name: str) -> tuple[int, ...]:
    parts = re.split("[x,]", text)
    if not all(part.isdecimal() and int(part) for part in parts):
        raise RunOptionError(f'--get {name}: ":{text}" is no shape; expected the elements of a PE, such as :24 or :4x6')
    return tuple(int(part) for part in parts)
