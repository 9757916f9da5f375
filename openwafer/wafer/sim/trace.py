"""The trace of a run: an engine that takes samples of another one as it goes, and the file they come to.

The file is a .npz that needs nothing else to be read (view/wafer_trace.py does). Arrays:
  meta      one JSON text as bytes: version, arch, width, height, programs: names, names: of events, watched: PEs
  cycles    [n + 1] int64: where slices begin and end
  busy      [n, height, width] uint32: cycles of the slice in which a PE issued
  links     [n, height, width, 4] uint32: wavelets of the slice that left to NORTH, SOUTH, EAST, WEST
  program   [height, width] int32: index into meta's programs, -1 where a PE has none
  events    [m, 6] int64: x, y, thread (0 to 7 a microthread, 8 main), kind (0 task, 1 vector, 2 stall), start, end
  event_names [m] int32: index into meta's names
Slices begin short and are joined in pairs when there are too many, so that a run of any length gives some hundreds.
"""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer.image import Image
from openwafer.wafer.sim.engine import Engine, Event, EventKind, LogLine, Stats, Stop, Wait

VERSION = 1
FIRST_INTERVAL = 16
MAX_SLICES = 512
MAX_COUNTERS = 1 << 25  # numbers of all slices together; larger fabrics get fewer slices
MAX_EVENTS_PER_PE = 50_000
_KINDS = (EventKind.TASK, EventKind.VECTOR, EventKind.STALL)


class TraceError(OpenwaferError):
    """A trace was asked for in a way that does not work."""


@dataclass
class Record:
    """What is kept of a run."""

    image: Image
    path: Path
    interval: int
    fixed: bool
    last: Stats
    cycles: list[int] = field(default_factory=lambda: [0])
    busy: list[np.ndarray] = field(default_factory=list)
    links: list[np.ndarray] = field(default_factory=list)
    watched: list[tuple[int, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def max_slices(self) -> int:
        width, height = self.image.size
        return min(MAX_SLICES, max(16, MAX_COUNTERS // (5 * width * height)))

    def sample(self, stats: Stats) -> None:
        """A slice up to now, if time has passed."""
        if stats.cycles == self.cycles[-1]:
            return
        self.cycles.append(stats.cycles)
        self.busy.append((stats.busy_cycles - self.last.busy_cycles).astype(np.uint32))
        self.links.append((stats.link_wavelets - self.last.link_wavelets).astype(np.uint32))
        self.last = stats
        if len(self.busy) >= 2 * self.max_slices and not self.fixed:
            self.halve()

    def halve(self) -> None:
        """Two slices become one; the interval doubles."""
        self.cycles = [self.cycles[0], *self.cycles[2::2]]
        self.busy = [a + b for a, b in zip(self.busy[::2], self.busy[1::2], strict=True)]
        self.links = [a + b for a, b in zip(self.links[::2], self.links[1::2], strict=True)]
        self.interval *= 2

    def save(self) -> None:
        """Write the file."""
        width, height = self.image.size
        names: dict[str, int] = {}
        index = [names.setdefault(event.name, len(names)) for event in self.events]
        meta = {
            "version": VERSION, "arch": self.image.arch, "width": width, "height": height,
            "programs": [program.name for program in self.image.programs], "names": list(names),
            "watched": [list(pe) for pe in self.watched],
        }  # fmt: skip
        empty = np.zeros((0, height, width), np.uint32)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:
            np.savez_compressed(
                file,
                meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
                cycles=np.array(self.cycles, np.int64),
                busy=np.stack(self.busy) if self.busy else empty,
                links=np.stack(self.links) if self.links else np.zeros((0, height, width, 4), np.uint32),
                program=self.image.program_of,
                events=np.array([_row(event) for event in self.events], np.int64).reshape(-1, 6),
                event_names=np.array(index, np.int32),
            )


def _row(event: Event) -> tuple[int, ...]:
    thread = 8 if event.thread == "main" else int(event.thread.split()[1])
    return *event.pe, thread, _KINDS.index(event.kind), event.start, event.end


class TracingEngine(Engine):
    """An engine that runs another one in slices and keeps what each took. The file comes with save(), and at the end.

    Args:
        engine: at its cycle 0
        path: of the trace
        pes: whose events are kept; None: a few over the rectangle
        interval: cycles of a slice; None: as long as gives a few hundred
    """

    def __init__(
        self, engine: Engine, path: Path, pes: list[tuple[int, int]] | None = None, interval: int | None = None
    ) -> None:
        super().__init__(engine.image)
        self._engine = engine
        self._record = Record(engine.image, path, interval or FIRST_INTERVAL, interval is not None, engine.stats())
        chosen = a_few(engine.image.size) if pes is None else pes
        if engine.watch(chosen, MAX_EVENTS_PER_PE):
            self._record.watched = chosen
        elif pes is not None:
            raise TraceError("this engine notes no events of single PEs")
        # A script that fails leaves a trace too: that is when it is wanted most.
        self._finish = weakref.finalize(self, _finish, engine, self._record)

    def save(self) -> None:
        """Write the trace as it is now."""
        _finish(self._engine, self._record)

    def _sliced(self, run, max_cycles: int) -> Stop:
        """`run(cycles)` in slices that end at multiples of the interval."""
        limit = self.cycle + max_cycles
        while True:
            boundary = (self.cycle // self._record.interval + 1) * self._record.interval
            stop = run(max(0, min(boundary, limit) - self.cycle))
            if self.cycle >= boundary:
                self._record.sample(self._engine.stats())
            if stop != Stop.LIMIT or self.cycle >= limit:
                return stop

    def run_commands(self, x: int, y: int, width: int, height: int, max_cycles: int) -> Stop:
        return self._sliced(lambda cycles: self._engine.run_commands(x, y, width, height, cycles), max_cycles)

    def run_received(self, x: int, y: int, width: int, height: int, color: int, count: int, max_cycles: int) -> Stop:
        run = self._engine.run_received
        return self._sliced(lambda cycles: run(x, y, width, height, color, count, cycles), max_cycles)

    def run_idle(self, max_cycles: int) -> Stop:
        return self._sliced(self._engine.run_idle, max_cycles)

    # The rest is the other engine's.

    @property
    def cycle(self) -> int:
        return self._engine.cycle

    def read(self, x: int, y: int, address: int, num_bytes: int) -> bytes:
        return self._engine.read(x, y, address, num_bytes)

    def write(self, x: int, y: int, address: int, data: bytes) -> None:
        self._engine.write(x, y, address, data)

    def launch(self, x: int, y: int, width: int, height: int, functions: np.ndarray, arguments: np.ndarray) -> None:
        self._engine.launch(x, y, width, height, functions, arguments)

    def send(self, x: int, y: int, color: int, words: np.ndarray, control: bool = False) -> None:
        self._engine.send(x, y, color, words, control)

    def received(self, x: int, y: int, color: int) -> int:
        return self._engine.received(x, y, color)

    def receive(self, x: int, y: int, color: int, count: int) -> np.ndarray:
        return self._engine.receive(x, y, color, count)

    def waits(self) -> list[Wait]:
        return self._engine.waits()

    def log(self) -> list[LogLine]:
        return self._engine.log()

    def stats(self) -> Stats:
        return self._engine.stats()

    def watch(self, pes: list[tuple[int, int]], limit: int) -> bool:
        return self._engine.watch(pes, limit)

    def events(self) -> list[Event]:
        return self._engine.events()

    def close(self) -> None:
        self.save()
        self._finish.detach()
        self._engine.close()


def _finish(engine: Engine, record: Record) -> None:
    record.sample(engine.stats())
    record.events = engine.events()
    record.save()


def a_few(size: tuple[int, int]) -> list[tuple[int, int]]:
    """All PEs of a small rectangle; else the corners and the middle."""
    width, height = size
    if width * height <= 6:
        return [(x, y) for y in range(height) for x in range(width)]
    xs, ys = sorted({0, width // 2, width - 1}), sorted({0, height // 2, height - 1})
    places = [(xs[0], ys[0]), (xs[-1], ys[0]), (width // 2, height // 2), (xs[0], ys[-1]), (xs[-1], ys[-1])]
    return list(dict.fromkeys(places))


def traced(engine: Engine, path: Path | None = None) -> Engine:
    """The engine itself, or, with a path or where the environment asks for a trace, one that writes it.

    OPENWAFER_TRACE: the file. OPENWAFER_TRACE_PES: "0,0 3,1" or "all". OPENWAFER_TRACE_INTERVAL: cycles of a slice.
    """
    asked = os.environ.get("OPENWAFER_TRACE")
    if path is None and not asked:
        return engine
    path = path or Path(asked or "")
    pes = parse_pes(os.environ.get("OPENWAFER_TRACE_PES", ""), engine.image.size)
    text = os.environ.get("OPENWAFER_TRACE_INTERVAL", "")
    if text and not (text.isdecimal() and int(text)):
        raise TraceError(f'OPENWAFER_TRACE_INTERVAL="{text}": expected a number of cycles such as 100')
    return TracingEngine(engine, path.resolve(), pes, int(text) if text else None)


def parse_pes(text: str, size: tuple[int, int]) -> list[tuple[int, int]] | None:
    """PEs from "0,0 3,1" or "all"; None where nothing is said."""
    width, height = size
    if not text.strip():
        return None
    if text.strip() == "all":
        return [(x, y) for y in range(height) for x in range(width)]
    found = []
    for item in text.split():
        parts = item.split(",")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise TraceError(f'"{item}" names no PE; expected x,y such as 3,1, or all')
        x, y = int(parts[0]), int(parts[1])
        if x >= width or y >= height:
            raise TraceError(f"PE {x},{y} is not in the rectangle: x is 0 to {width - 1}, y is 0 to {height - 1}")
        found.append((x, y))
    return found
