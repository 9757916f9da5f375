"""Files as the store uses them: whole, aligned, unbuffered requests from a few threads, every wait bounded.

`FileLayer` is the only place where the store touches the operating system, so that a test can put one in its place
that fails as disks do (errors, torn writes, sudden death). Requests are O_DIRECT where the file system allows it.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

import torch
import xxhash

from openwafer.base.errors import StoreCorrupt, StoreFull, StoreIOError, StoreTimeout

log = logging.getLogger("openwafer")


class FileLayer:
    """The operating system's files; `pread` and `pwrite` transfer the whole buffer or raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(fd, [buffer[done:]], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "the file ends before the request does")
            done += count

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            done += os.pwritev(fd, [buffer[done:]], offset + done)

    def allocate(self, fd: int, num_bytes: int) -> None:
        os.posix_fallocate(fd, 0, num_bytes)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def write_whole(self, path: Path, data: bytes) -> None:
        """Replace a small file at once: it holds either the old bytes or the new ones, whatever happens."""
        temporary = path.with_name(path.name + ".new")
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.pwrite(fd, memoryview(data), 0)
            os.fsync(fd)
        finally:
            self.close(fd)
        self.replace(temporary, path)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        self.sync_folder(target.parent)

    def sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def store_error(error: OSError, doing: str) -> StoreIOError | StoreFull:
    """What an OSError means to the owner of a store."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            f"no space left while {doing} ({reason}). Nothing is lost: the last committed step is whole. "
            "Free space on that file system and resume."
        )
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


class IOEngine:
    """A few threads that read and write whole aligned blocks, with checksums, and count the bytes.

    A request that takes longer than `timeout_s` raises StoreTimeout naming it.
    """

    def __init__(self, files: FileLayer, threads: int = 4, timeout_s: float = 300.0):
        self.files = files
        self.timeout_s = timeout_s
        self.bytes_read = 0
        self.bytes_written = 0
        self._count_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="openwafer-io")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, file: PageFile, buffer: memoryview, offset: int, expected: int | None) -> Future[None]:
        """Fill `buffer` from `offset`; StoreCorrupt if its checksum is not `expected`."""
        return self._pool.submit(self._read, file, buffer, offset, expected)

    def write(self, file: PageFile, buffer: memoryview, offset: int) -> Future[int]:
        """Write `buffer` at `offset`; the result is its checksum."""
        return self._pool.submit(self._write, file, buffer, offset)

    def wait(self, future: Future, what: str):
        """The result of a request; raises what it raised, or StoreTimeout."""
        try:
            return future.result(self.timeout_s)
        except FutureTimeout:
            raise StoreTimeout(
                f"{what} has not finished in {self.timeout_s:.0f} s: the disk or its driver hangs. "
                "The last committed step is whole; resume when the disk answers again."
            ) from None

    def _read(self, file: PageFile, buffer: memoryview, offset: int, expected: int | None) -> None:
        for attempt in (1, 2):
            try:
                self.files.pread(file.fd, buffer, offset)
            except OSError as error:
                raise store_error(error, f"reading {len(buffer)} bytes at {offset} of {file.path}") from error
            with self._count_lock:
                self.bytes_read += len(buffer)
            if expected is None or checksum(buffer) == expected:
                return
            if attempt == 1:
                log.warning("checksum mismatch at %d of %s: reading it once more", offset, file.path)
        raise StoreCorrupt(
            f"{len(buffer)} bytes at {offset} of {file.path} are not what was written (checksum mismatch). "
            "If this run wrote them since its last commit, resuming continues from that commit; "
            "otherwise restore the file from a snapshot or a copy."
        )

    def _write(self, file: PageFile, buffer: memoryview, offset: int) -> int:
        digest = checksum(buffer)
        try:
            self.files.pwrite(file.fd, buffer, offset)
        except OSError as error:
            raise store_error(error, f"writing {len(buffer)} bytes at {offset} of {file.path}") from error
        with self._count_lock:
            self.bytes_written += len(buffer)
        return digest


_direct_refused: set[int] = set()


class PageFile:
    """One file of fixed size, opened for direct I/O where the file system has it."""

    def __init__(self, files: FileLayer, path: Path, num_bytes: int, *, create: bool):
        self.files = files
        self.path = path
        self.num_bytes = num_bytes
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        try:
            try:
                self.fd = files.open(path, flags | getattr(os, "O_DIRECT", 0))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                device = os.stat(path.parent).st_dev
                if device not in _direct_refused:
                    _direct_refused.add(device)
                    log.warning("%s has no direct I/O: its pages go through the page cache", path.parent)
                self.fd = files.open(path, flags)
            if create and num_bytes:
                files.allocate(self.fd, num_bytes)
        except OSError as error:
            raise store_error(error, f"{'creating' if create else 'opening'} {path} ({num_bytes} bytes)") from error
        size = os.fstat(self.fd).st_size
        if size < num_bytes:
            files.close(self.fd)
            raise StoreCorrupt(f"{path} has {size} bytes, {num_bytes} are needed: it is truncated")

    @property
    def num_links(self) -> int:
        return os.fstat(self.fd).st_nlink

    def close(self) -> None:
        self.files.close(self.fd)
