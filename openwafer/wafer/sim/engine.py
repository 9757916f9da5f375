"""What an engine is: the contract of the reference engine and of the C core. docs/machine.md is its meaning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer.arch import MEMORY_BYTES, Port
from openwafer.wafer.image import Image, Location


class SimulationError(OpenwaferError):
    """A program did what it may not do; the message names PE, cycle and source line."""

    def __init__(self, kind: str, message: str, pe: tuple[int, int], cycle: int, place: Location | None) -> None:
        where = f"{place.path}:{place.line}:{place.column}: " if place else ""
        super().__init__(f"{where}{kind} on PE ({pe[0]}, {pe[1]}) at cycle {cycle}: {message}")
        self.kind, self.pe, self.cycle, self.place = kind, pe, cycle, place


class Stop(StrEnum):
    """Why a run came back."""

    DONE = "done"
    IDLE = "idle"
    LIMIT = "limit"


@dataclass(frozen=True)
class Wait:
    """A thread that cannot go on: PE (x, y), thread ("main" or "microthread 3"), what it waits for, source place.

    Wavelets that nothing takes stand as "input" (of a core) and "router" (off the rectangle).
    """

    pe: tuple[int, int]
    thread: str
    what: str
    place: Location | None


def gone_wait(pe: tuple[int, int], color: int, port: int, count: int) -> Wait:
    """Wavelets that left the rectangle at a PE, to where no PE takes them."""
    what = f"{count} wavelets of color {color} that left the rectangle to {Port(port).name}, where nothing takes them"
    return Wait(pe, "router", what, None)


@dataclass(frozen=True)
class LogLine:
    """One line a program printed."""

    cycle: int
    pe: tuple[int, int]
    text: str


class EventKind(StrEnum):
    """What a thread did, or why it did not."""

    TASK = "task"  # from the pick to the end of the task or launched function
    VECTOR = "vector"  # from the issue to the last step
    STALL = "stall"  # has work and cannot go on


@dataclass(frozen=True)
class Event:
    """Something that a thread of a watched PE did from cycle `start` up to, not including, cycle `end`.

    Args:
        thread: "main" or "microthread 3"
        name: of the task, of the operation, or what is waited for; with the source place where there is one
    """

    pe: tuple[int, int]
    thread: str
    kind: EventKind
    start: int
    end: int
    name: str


@dataclass
class Stats:
    """Totals since the start."""

    cycles: int = 0
    instructions: int = 0
    elements: int = 0
    wavelet_hops: int = 0
    busy_cycles: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """[height, width]: cycles in which a PE issued."""
    link_wavelets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 4), np.int64))
    """[height, width, 4]: wavelets that left to NORTH, SOUTH, EAST, WEST."""


def check_address(address: int, num_bytes: int) -> None:
    """Raises ValueError unless the bytes lie in the memory of a PE."""
    if address < 0 or num_bytes < 0 or address + num_bytes > MEMORY_BYTES:
        raise ValueError(
            f"{num_bytes} bytes at address {address} are not all in a PE's memory, 0 to {MEMORY_BYTES - 1}"
        )


class Engine(ABC):
    """One loaded image and its time. x counts columns from 0 within the program rectangle, y rows."""

    def __init__(self, image: Image) -> None:
        self.image = image

    @property
    @abstractmethod
    def cycle(self) -> int:
        """The present cycle."""

    @abstractmethod
    def read(self, x: int, y: int, address: int, num_bytes: int) -> bytes:
        """Memory of a PE."""

    @abstractmethod
    def write(self, x: int, y: int, address: int, data: bytes) -> None: ...

    def read_block(self, x: int, y: int, addresses: np.ndarray, num_bytes: int) -> np.ndarray:
        """Memory of a rectangle of PEs from (x, y): addresses [height, width] -> uint8 [height, width, num_bytes]."""
        height, width = addresses.shape
        rows = [
            self.read(x + dx, y + dy, int(addresses[dy, dx]), num_bytes) for dy in range(height) for dx in range(width)
        ]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(height, width, num_bytes)

    def write_block(self, x: int, y: int, addresses: np.ndarray, blocks: np.ndarray) -> None:
        """The reverse: uint8 [height, width, num_bytes]."""
        for dy, row in enumerate(addresses):
            for dx, address in enumerate(row):
                self.write(x + dx, y + dy, int(address), blocks[dy, dx].tobytes())

    @abstractmethod
    def launch(self, x: int, y: int, width: int, height: int, functions: np.ndarray, arguments: np.ndarray) -> None:
        """Functions [height, width] (index in the PE's program) and the same arguments [n] uint64; clears cmd_done."""

    @abstractmethod
    def send(self, x: int, y: int, color: int, words: np.ndarray, control: bool = False) -> None:
        """Wavelets [n] uint32 into a PE's HOST link."""

    @abstractmethod
    def received(self, x: int, y: int, color: int) -> int:
        """Wavelets that came out of a PE's HOST link and were not taken yet."""

    @abstractmethod
    def receive(self, x: int, y: int, color: int, count: int) -> np.ndarray:
        """Takes up to `count` of them: uint32."""

    @abstractmethod
    def run_commands(self, x: int, y: int, width: int, height: int, max_cycles: int) -> Stop:
        """Runs until cmd_done is set on every PE of the rectangle."""

    @abstractmethod
    def run_received(self, x: int, y: int, width: int, height: int, color: int, count: int, max_cycles: int) -> Stop:
        """Runs until every PE of the rectangle has `count` wavelets on its HOST link."""

    @abstractmethod
    def run_idle(self, max_cycles: int) -> Stop:
        """Runs until nothing can happen."""

    @abstractmethod
    def waits(self) -> list[Wait]:
        """Every thread that cannot go on."""

    @abstractmethod
    def log(self) -> list[LogLine]:
        """What programs printed, in order of cycle, then y, then x."""

    @abstractmethod
    def stats(self) -> Stats: ...

    def watch(self, pes: list[tuple[int, int]], limit: int) -> bool:
        """Notes events of these PEs from now on, at most `limit` a PE; False: this engine cannot."""
        return False

    def events(self) -> list[Event]:
        """What the watched PEs did, by start; what still goes on ends at the present cycle."""
        return []

    @abstractmethod
    def close(self) -> None: ...
