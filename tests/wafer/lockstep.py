"""Both engines at once: every call goes to the reference and to the C core, and they must agree in everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from openwafer.wafer.arch import MEMORY_BYTES
from openwafer.wafer.image import Image
from openwafer.wafer.sim.core import CoreEngine
from openwafer.wafer.sim.engine import Engine, LogLine, SimulationError, Stats, Stop, Wait
from openwafer.wafer.sim.reference import ReferenceEngine


class LockstepEngine(Engine):
    """See sim/engine.py; raises AssertionError where the engines differ."""

    def __init__(self, image: Image, watched: bool = False) -> None:
        super().__init__(image)
        self.slow, self.fast = ReferenceEngine(image), CoreEngine(image)
        if watched:
            width, height = image.size
            pes = [(x, y) for y in range(height) for x in range(width)]
            assert self.slow.watch(pes, 1000) and self.fast.watch(pes, 1000)

    @property
    def cycle(self) -> int:
        return self.slow.cycle

    def read(self, x: int, y: int, address: int, num_bytes: int) -> bytes:
        return _same(self.slow.read(x, y, address, num_bytes), self.fast.read(x, y, address, num_bytes))

    def write(self, x: int, y: int, address: int, data: bytes) -> None:
        self.slow.write(x, y, address, data)
        self.fast.write(x, y, address, data)

    def launch(self, x: int, y: int, width: int, height: int, functions: np.ndarray, arguments: np.ndarray) -> None:
        self.slow.launch(x, y, width, height, functions, arguments)
        self.fast.launch(x, y, width, height, functions, arguments)

    def send(self, x: int, y: int, color: int, words: np.ndarray, control: bool = False) -> None:
        self.slow.send(x, y, color, words, control)
        self.fast.send(x, y, color, words, control)

    def received(self, x: int, y: int, color: int) -> int:
        return _same(self.slow.received(x, y, color), self.fast.received(x, y, color))

    def receive(self, x: int, y: int, color: int, count: int) -> np.ndarray:
        ours = self.slow.receive(x, y, color, count)
        np.testing.assert_array_equal(ours, self.fast.receive(x, y, color, count))
        return ours

    def run_commands(self, x: int, y: int, width: int, height: int, max_cycles: int) -> Stop:
        return self._run("run_commands", x, y, width, height, max_cycles)

    def run_received(self, x: int, y: int, width: int, height: int, color: int, count: int, max_cycles: int) -> Stop:
        return self._run("run_received", x, y, width, height, color, count, max_cycles)

    def run_idle(self, max_cycles: int) -> Stop:
        return self._run("run_idle", max_cycles)

    def _run(self, name: str, *arguments: Any) -> Stop:
        ends = []
        for engine in (self.slow, self.fast):
            try:
                ends.append((getattr(engine, name)(*arguments), None))
            except SimulationError as error:
                ends.append((None, error))
        (stop, error), (other, fast_error) = ends
        assert str(error) == str(fast_error), f"reference: {error}; core: {fast_error}"
        if error is not None:
            raise error
        assert stop == other, f"reference: {stop} at {self.slow.cycle}; core: {other} at {self.fast.cycle}"
        self.compare()
        assert stop is not None
        return stop

    def compare(self) -> None:
        """Time, counters, memory, printed lines and waits."""
        assert self.slow.cycle == self.fast.cycle
        ours, fast = self.slow.stats(), self.fast.stats()
        np.testing.assert_array_equal(ours.busy_cycles, fast.busy_cycles)
        np.testing.assert_array_equal(ours.link_wavelets, fast.link_wavelets)
        assert (ours.instructions, ours.elements, ours.wavelet_hops) == (
            fast.instructions,
            fast.elements,
            fast.wavelet_hops,
        )
        assert self.slow.log() == self.fast.log()
        assert self.slow.waits() == self.fast.waits()
        assert sorted(map(str, self.slow.events())) == sorted(map(str, self.fast.events()))
        width, height = self.image.size
        for y in range(height):
            for x in range(width):
                assert self.slow.read(x, y, 0, MEMORY_BYTES) == self.fast.read(x, y, 0, MEMORY_BYTES), f"PE ({x}, {y})"

    def waits(self) -> list[Wait]:
        return self.slow.waits()

    def log(self) -> list[LogLine]:
        return self.slow.log()

    def stats(self) -> Stats:
        return self.slow.stats()

    def close(self) -> None:
        self.slow.close()
        self.fast.close()


def _same(ours: Any, fast: Any) -> Any:
    assert ours == fast
    return ours
