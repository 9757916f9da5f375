"""A trace of a wafer program: reads the .npz that the simulator wrote (its sim/trace.py says what is in it)."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openwafer.base.errors import RunError

VERSION = 1
MAIN = 8
KINDS = ("task", "vector", "stall")


@dataclass(frozen=True)
class Trace:
    """What a run did. Arrays as in the file.

    Args:
        arch: "wse2" or "wse3"
        size: of the rectangle, (width, height)
        cycles: [n + 1] where slices begin and end
        busy: [n, height, width] cycles of a slice in which a PE issued
        links: [n, height, width, 4] wavelets that left to NORTH, SOUTH, EAST, WEST
        watched: PEs with events
        events: [m, 6] x, y, thread (8: main), kind (see KINDS), start, end
        event_names: [m] index into names
    """

    arch: str
    size: tuple[int, int]
    cycles: np.ndarray
    busy: np.ndarray
    links: np.ndarray
    watched: list[tuple[int, int]]
    events: np.ndarray
    event_names: np.ndarray
    names: list[str]

    @property
    def lengths(self) -> np.ndarray:
        """[n] cycles of each slice."""
        return np.diff(self.cycles)

    def activity(self) -> np.ndarray:
        """[n, height, width] share of cycles in which a PE issued, 0 to 1."""
        return np.clip(self.busy / self.lengths[:, None, None], 0, 1)

    def traffic(self) -> np.ndarray:
        """[n, height, width, 4] wavelets a cycle of each link, 0 to 1."""
        return np.clip(self.links / self.lengths[:, None, None, None], 0, 1)

    def between(self, first: int | None, last: int | None) -> Trace:
        """The slices that touch these cycles, and the events that do."""
        low = int(self.cycles[0]) if first is None else first
        high = int(self.cycles[-1]) if last is None else last
        keep = np.flatnonzero((self.cycles[1:] > low) & (self.cycles[:-1] < high))
        if not len(keep):
            raise RunError(f"the trace goes from cycle {self.cycles[0]} to {self.cycles[-1]}, not {low} to {high}.")
        a, b = int(keep[0]), int(keep[-1]) + 1
        inside = (self.events[:, 5] > self.cycles[a]) & (self.events[:, 4] < self.cycles[b])
        return Trace(
            self.arch, self.size, self.cycles[a : b + 1], self.busy[a:b], self.links[a:b], self.watched,
            self.events[inside], self.event_names[inside], self.names,
        )  # fmt: skip

    def joined(self, most: int) -> Trace:
        """At most `most` slices: neighbours are added up."""
        count = len(self.busy)
        if count <= most:
            return self
        starts = np.arange(0, count, -(-count // most))
        return Trace(
            self.arch, self.size, np.append(self.cycles[starts], self.cycles[-1]), np.add.reduceat(self.busy, starts),
            np.add.reduceat(self.links, starts), self.watched, self.events, self.event_names, self.names,
        )  # fmt: skip


def read_trace(path: Path) -> Trace:
    """The trace in a file.

    Raises:
        RunError: there is none, it is damaged, another version wrote it, or nothing happened in it.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        meta = json.loads(arrays["meta"].tobytes())
        if meta["version"] != VERSION:
            raise RunError(f"{path} has version {meta['version']}, this program reads {VERSION}; record it again.")
        trace = Trace(
            meta["arch"], (meta["width"], meta["height"]), arrays["cycles"], arrays["busy"], arrays["links"],
            [(x, y) for x, y in meta["watched"]], arrays["events"], arrays["event_names"], meta["names"],
        )  # fmt: skip
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; record it with OPENWAFER_TRACE={path} cs_python run.py ...") from None
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is no trace, or a damaged one ({type(error).__name__}: {error}).") from None
    if not len(trace.busy):
        raise RunError(f"{path} is empty: the program was loaded and never ran.")
    return trace
