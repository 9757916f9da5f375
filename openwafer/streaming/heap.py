"""Keeps glibc's heap from costing more than it must.

torch takes every tensor from malloc. By default glibc maps and unmaps each large one, and the kernel clears its pages
anew every time, 4 KiB at a time: seconds of a training step. Here large tensors come from the heap, which is reused,
and the heap is backed by huge pages. What the heap holds but does not use is given back on demand. Settings are the
process's; on another C library nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import weakref
from pathlib import Path

from openwafer.base import machine

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
MADV_HUGEPAGE = 14
HUGE_BYTES = 2 << 20
TOP_PAD_BYTES = 64 << 20
LARGEST_BYTES = 64 << 20
MARGIN_BYTES = 32 << 20
WORTH_BYTES = 4 << 20
WATCH_S = 0.01
NEVER_TRIM = (1 << 31) - 1


@functools.cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def share() -> None:
    """Threads that begin from now on allocate from the one heap, instead of small heaps of their own.

    Those are cut into pieces of 64 MiB and never huge, so that tensors of one thread leave holes that no other uses:
    with two micro-batches, a tenth of the memory. To be called before torch starts its first thread.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, 1)


def reuse() -> None:
    """From now on blocks of up to `LARGEST_BYTES` come from the heap and stay in it; larger ones are mapped."""
    libc = _libc()
    if libc is None:
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
    libc.mallopt(M_TOP_PAD, TOP_PAD_BYTES)


def give_back() -> None:
    """Return what the heap does not use to the system."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


class Heap:
    """Looks after the heap: at moments the caller chooses, and, once there is a limit, every few milliseconds.

    Holes that were given back are filled anew while a long layer runs, not always the same ones, so that the resident
    set creeps up between the borders of layers too: a thread watches it.

    Attributes:
        limit_bytes: resident set of the process beyond which unused memory is given back; None: never.
        num_given_back: how often that was.
    """

    def __init__(self) -> None:
        self.limit_bytes: int | None = None
        self.num_given_back = 0
        self._end = 0
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def watch(self, limit_bytes: int) -> None:
        """Keep the resident set below a limit, as far as giving back unused memory does."""
        self.limit_bytes = limit_bytes
        if self._watcher is None and _libc() is not None:
            # Only a weak reference: a job that is dropped and never closed must not be watched for ever.
            arguments = weakref.ref(self), self._closing
            self._watcher = threading.Thread(target=_watch, args=arguments, name="openwafer-heap", daemon=True)
            self._watcher.start()

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        self.limit_bytes = self._watcher = None

    def tend(self, growth_bytes: int = 0) -> None:
        """Ask for huge pages where the heap is new; give memory back if what comes would pass the limit."""
        libc = _libc()
        if libc is None:
            return
        end = libc.sbrk(0) or 0
        if end > self._end:
            start = self._end or _heap_start()
            first = -(-start // HUGE_BYTES) * HUGE_BYTES
            if start and end - first >= HUGE_BYTES:
                libc.madvise(first, end - first, MADV_HUGEPAGE)
            self._end = end
        self.trim(growth_bytes)

    def trim(self, growth_bytes: int) -> bool:
        """Give memory back if the limit would be passed; False if there was little to give."""
        limit_bytes = self.limit_bytes
        before = machine.current_rss_bytes()
        if limit_bytes is None or before + growth_bytes <= limit_bytes:
            return True
        give_back()
        self.num_given_back += 1
        return before - machine.current_rss_bytes() >= WORTH_BYTES


def _watch(watched: weakref.ref[Heap], closing: threading.Event) -> None:
    pause_s = WATCH_S
    while not closing.wait(pause_s) and (heap := watched()) is not None:
        # Where there was nothing to give back there will be nothing in a moment either.
        pause_s = WATCH_S if heap.trim(0) else 20 * WATCH_S
        del heap


def _heap_start() -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            return int(line.split("-")[0], 16)
    return 0
