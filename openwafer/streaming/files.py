"""Files as the store uses them: whole, aligned, unbuffered requests from a few threads, every wait bounded.

`FileLayer` is the only place where the store changes anything on disk, so that a test can put one in its place that
fails as disks do (errors, torn writes, sudden death). Requests are O_DIRECT where the file system allows it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import xxhash

from openwafer.base.errors import StoreCorrupt, StoreFull, StoreIOError, StoreTimeout

log = logging.getLogger("openwafer")


class FileLayer:
    """The operating system's files. Calls do all that was asked or raise OSError; EOFError where a file ends early."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(fd, [buffer[done:]], offset + done)
            if count == 0:
                raise EOFError(f"the file ends at {offset + done}")
            done += count

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.pwritev(fd, [buffer[done:]], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
            done += count

    def allocate(self, fd: int, num_bytes: int) -> None:
        os.posix_fallocate(fd, 0, num_bytes)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, durably."""
        self.rename(source, target)
        self.sync_folder(target.parent)

    def read_whole(self, path: Path, most_bytes: int) -> bytes:
        """A small file; StoreCorrupt if it is larger than `most_bytes`."""
        fd = self.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            if size > most_bytes:
                raise StoreCorrupt(f"{path} has {size} bytes, at most {most_bytes} are expected: it is not ours")
            data = bytearray(size)
            self.pread(fd, memoryview(data), 0)
        finally:
            self.close(fd)
        return bytes(data)

    def write_whole(self, path: Path, data: bytes) -> None:
        """Replace a small file at once: it holds either the old bytes or the new ones, whatever happens."""
        temporary = path.with_name(path.name + ".new")
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.pwrite(fd, memoryview(data), 0)
            self.sync(fd)
        finally:
            self.close(fd)
        self.replace(temporary, path)

    def link_or_copy(self, source: Path, target: Path) -> None:
        """A hard link, or where the file system has none, a durable copy."""
        try:
            self.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
                raise
            self._copy(source, target)

    def _copy(self, source: Path, target: Path) -> None:
        block = memoryview(bytearray(1 << 22))
        with contextlib.ExitStack() as stack:
            reading = self.open(source, os.O_RDONLY)
            stack.callback(self.close, reading)
            writing = self.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            stack.callback(self.close, writing)
            size = os.fstat(reading).st_size
            for offset in range(0, size, len(block)):
                part = block[: min(len(block), size - offset)]
                self.pread(reading, part, offset)
                self.pwrite(writing, part, offset)
            self.sync(writing)


def store_error(error: OSError, doing: str) -> StoreIOError | StoreFull:
    """What an OSError means to the owner of a store."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            f"no space left while {doing} ({reason}). Nothing is lost: the last committed step is whole. "
            "Free space on that file system and resume."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreIOError(f"{doing} failed: {reason}. Give the run a folder that this process may write to.")
    return StoreIOError(
        f"{doing} failed: {reason}. The last committed step is whole; resume once the file system works again."
    )


def checksum(data: memoryview | bytes) -> int:
    """xxh3, 64 bits."""
    return xxhash.xxh3_64_intdigest(data)


class Buffer:
    """Page-aligned anonymous memory, as bytes for I/O and as a flat uint8 tensor for arithmetic."""

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes
        size = max(num_bytes, mmap.PAGESIZE)
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= 1 << 21:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = memoryview(self._map)[:num_bytes]
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8, count=size)[:num_bytes]

    def view(self, dtype: torch.dtype, start: int, numel: int) -> torch.Tensor:
        """Elements `start:start+numel` as a flat tensor of `dtype`, sharing memory."""
        return self.tensor[start * dtype.itemsize : (start + numel) * dtype.itemsize].view(dtype)


class Workers:
    """A few threads that run calls in order of submission. They are daemons: one that hangs keeps no process alive."""

    def __init__(self, count: int, name: str):
        self._queue: queue.SimpleQueue[tuple[Future, Callable, tuple] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        self._started = self._closed = False
        self._lock = threading.Lock()

    def submit(self, call: Callable, *args: Any) -> Future:
        future: Future = Future()
        with self._lock:
            assert not self._closed, "the store is closed"
            self._queue.put((future, call, args))
            if not self._started:
                self._started = True
                for thread in self._threads:
                    thread.start()
        return future

    def close(self, timeout_s: float) -> bool:
        """Drop what has not begun and end the threads; False if one still hangs after `timeout_s`."""
        with self._lock:
            self._closed = True
            with contextlib.suppress(queue.Empty):
                while item := self._queue.get_nowait():
                    item[0].cancel()
            for _ in self._threads:
                self._queue.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if self._started:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call, args = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call(*args))
            except BaseException as error:  # noqa: BLE001  # raised where the future is waited for
                future.set_exception(error)
            del item, future, call, args


class IOEngine:
    """Reads and writes whole aligned blocks in a few threads, with checksums, and counts the bytes.

    A request that takes longer than `timeout_s` raises StoreTimeout naming it.
    """

    def __init__(self, files: FileLayer, threads: int = 4, timeout_s: float = 300.0):
        self.files = files
        self.timeout_s = timeout_s
        self.bytes_read = 0
        self.bytes_written = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._in_flight = 0
        self._count_lock = threading.Lock()
        self._workers = Workers(threads, "openwafer-io")
        self._hangs = False

    def close(self) -> bool:
        """End the threads; False if a request still hangs, so that its file must stay open."""
        closed = self._workers.close(min(1.0, self.timeout_s) if self._hangs else self.timeout_s)
        if not closed:
            log.warning("a request to the disk still hangs; its thread and file are left to the operating system")
        return closed

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one read or write was under way."""
        with self._count_lock:
            return self._busy_s + (time.perf_counter() - self._busy_since if self._in_flight else 0.0)

    def read(self, file: PageFile, buffer: memoryview, offset: int, expected: int | None) -> Future[None]:
        """Fill `buffer` from `offset`; StoreCorrupt if its checksum is not `expected`."""
        return self._workers.submit(self._busy, self._read, file, buffer, offset, expected)

    def write(
        self, file: PageFile, buffer: memoryview, offset: int, note: Callable[[int], None] | None = None
    ) -> Future[int]:
        """Write `buffer` at `offset`; the result is its checksum, given to `note` before the request counts as done."""
        return self._workers.submit(self._busy, self._write, file, buffer, offset, note)

    def call(self, doing: str, function: Callable, *args: Any) -> Future:
        """Run something else that may hang or raise OSError."""
        return self._workers.submit(self._call, doing, function, args)

    def wait(self, future: Future, what: str):
        """The result of a request; raises what it raised, or StoreTimeout."""
        try:
            return future.result(self.timeout_s)
        except TimeoutError:
            self._hangs = True
            raise StoreTimeout(
                f"{what} has not finished in {self.timeout_s:g} s: the disk or its driver hangs. "
                "The last committed step is whole; resume when the disk answers again."
            ) from None

    def _busy(self, request: Callable, *args: Any) -> Any:
        """Run a request and count the time it is under way, requests side by side once."""
        with self._count_lock:
            if self._in_flight == 0:
                self._busy_since = time.perf_counter()
            self._in_flight += 1
        try:
            return request(*args)
        finally:
            with self._count_lock:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self._busy_s += time.perf_counter() - self._busy_since

    def _read(self, file: PageFile, buffer: memoryview, offset: int, expected: int | None) -> None:
        where = f"{len(buffer)} bytes at {offset} of {file.path}"
        for attempt in (1, 2):
            try:
                self.files.pread(file.fd, buffer, offset)
            except EOFError as error:
                raise StoreCorrupt(f"{where} are missing, {error}: it was truncated") from error
            except OSError as error:
                if error.errno != errno.EIO or attempt == 2:
                    raise store_error(error, f"reading {where}") from error
                reason = "input/output error"
            else:
                self._count(len(buffer), 0)
                if expected is None or checksum(buffer) == expected:
                    return
                reason = "checksum mismatch"
            if attempt == 1:
                log.warning("%s at %d of %s: reading it once more", reason, offset, file.path)
        raise StoreCorrupt(
            f"{where} are not what was written (checksum mismatch). "
            "If this run wrote them since its last commit, resuming continues from that commit; "
            "otherwise restore the file from a snapshot or a copy."
        )

    def _write(self, file: PageFile, buffer: memoryview, offset: int, note: Callable[[int], None] | None) -> int:
        digest = checksum(buffer)
        self._call(
            f"writing {len(buffer)} bytes at {offset} of {file.path}", self.files.pwrite, (file.fd, buffer, offset)
        )
        self._count(0, len(buffer))
        if note is not None:
            note(digest)
        return digest

    def _call(self, doing: str, function: Callable, args: tuple) -> Any:
        try:
            return function(*args)
        except OSError as error:
            raise store_error(error, doing) from error

    def _count(self, read: int, written: int) -> None:
        with self._count_lock:
            self.bytes_read += read
            self.bytes_written += written


class PageFile:
    """One file of fixed size, opened for direct I/O where the file system has it."""

    def __init__(self, files: FileLayer, path: Path, num_bytes: int, *, create: bool):
        self.files = files
        self.path = path
        self.num_bytes = num_bytes
        doing = f"{'creating' if create else 'opening'} {path} ({num_bytes} bytes)"
        try:
            self.fd = self._open(os.O_RDWR | (os.O_CREAT if create else 0))
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{path} is missing: restore it from a snapshot or a copy") from error
        except OSError as error:
            raise store_error(error, doing) from error
        try:
            if create and num_bytes:
                files.allocate(self.fd, num_bytes)
            size = os.fstat(self.fd).st_size
            if size < num_bytes:
                raise StoreCorrupt(f"{path} has {size} bytes, {num_bytes} are needed: it was truncated")
        except OSError as error:
            self.close()
            raise store_error(error, doing) from error
        except BaseException:
            self.close()
            raise

    def _open(self, flags: int) -> int:
        direct = getattr(os, "O_DIRECT", 0)
        try:
            return self.files.open(self.path, flags | direct)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            log.debug("%s has no direct I/O: its pages go through the page cache", self.path.parent)
            return self.files.open(self.path, flags)

    @property
    def num_links(self) -> int:
        return os.fstat(self.fd).st_nlink

    def close(self) -> None:
        """Close it, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.files.close(fd)
