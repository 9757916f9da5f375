"""A file layer that fails as disks do, to stand in place of openwafer.streaming.files.FileLayer.

It counts operations and lets rules act on them: an error number, a hang, a flipped byte, sudden death. A dead layer
refuses everything, and the write that death interrupts reaches the disk in part. With `losing=True` it also remembers
what was not yet flushed; `power_off` then leaves of that what a power failure might: any of the versions a sector
went through since its last flush, and a prefix of the renames, creations and removals of each folder.
"""

import contextlib
import errno
import fnmatch
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from openwafer.streaming.files import FileLayer

SECTOR = 4096


class Crash(BaseException):
    """The process was killed, or the power failed."""


@dataclass(frozen=True)
class Operation:
    """One call: its place in the order of all, what it is (read, write, sync, ...), and on what."""

    number: int
    kind: str
    path: Path
    num_bytes: int = 0
    offset: int = 0


@dataclass
class Rule:
    """`act` is called with every operation of a kind on a path ("pages/*"), but the first `skip`, at most `times`."""

    kind: str
    path: str
    act: Callable[[Operation], None]
    skip: int = 0
    times: int | None = None
    hits: int = 0

    def meets(self, operation: Operation) -> bool:
        if not fnmatch.fnmatch(operation.kind, self.kind) or not fnmatch.fnmatch(str(operation.path), f"*/{self.path}"):
            return False
        self.hits += 1
        return self.hits > self.skip and (self.times is None or self.hits <= self.skip + self.times)


def fail(number: int) -> Callable[[Operation], None]:
    """Raise this errno."""

    def act(operation: Operation) -> None:
        raise OSError(number, os.strerror(number))

    return act


class Hang:
    """Blocks every operation it meets until `release`."""

    def __init__(self) -> None:
        self.met = threading.Event()
        self._released = threading.Event()

    def __call__(self, operation: Operation) -> None:
        self.met.set()
        self._released.wait()

    def release(self) -> None:
        self._released.set()


def die(operation: Operation) -> None:
    raise Crash(f"at operation {operation.number}: {operation.kind} {operation.path.name}")


class Flip(Exception):
    """Asks the layer to flip a byte of what this read returns, or this write stores."""


def flip(operation: Operation) -> None:
    raise Flip


@dataclass
class _Name:
    """How to undo a change of names that was not flushed."""

    folder: Path
    undo: Callable[[], None]


@dataclass
class _Unflushed:
    """A file with sectors that were written since its last flush: every version they may have after a power failure."""

    fd: int
    versions: dict[int, list[bytes]] = field(default_factory=dict)


class FaultyFiles(FileLayer):
    """See the module; everything that is random comes from `seed`."""

    def __init__(self, *rules: Rule, crash_at: int | None = None, losing: bool = False, seed: int = 0):
        self.rules = list(rules)
        self.crash_at = crash_at
        self.losing = losing
        self.dead = False
        self.operations: list[Operation] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._paths: dict[int, Path] = {}
        self._unflushed: dict[tuple[int, int], _Unflushed] = {}
        self._names: list[_Name] = []
        self._attic = 0

    # --- what happens -----------------------------------------------------------------------------------------------

    def _begin(self, kind: str, path: Path, num_bytes: int = 0, offset: int = 0) -> None:
        with self._lock:
            if self.dead:
                raise Crash("dead already")
            operation = Operation(len(self.operations), kind, path, num_bytes, offset)
            self.operations.append(operation)
            if self.crash_at is not None and operation.number >= self.crash_at:
                self.dead = True
                die(operation)
            acting = [rule for rule in self.rules if rule.meets(operation)]
        for rule in acting:
            try:
                rule.act(operation)
            except Crash:
                self.dead = True
                raise

    def open(self, path: Path, flags: int) -> int:
        self._begin("open", path)
        new = bool(flags & os.O_CREAT) and not path.exists()
        fd = super().open(path, flags)
        self._paths[fd] = path
        if new:
            self._changed_names(path.parent, lambda: path.unlink(missing_ok=True))
        return fd

    def close(self, fd: int) -> None:
        self._paths.pop(fd, None)
        super().close(fd)

    def pread(self, fd: int, buffer: memoryview, offset: int) -> None:
        flipped = self._begin_data("read", fd, buffer, offset)
        super().pread(fd, buffer, offset)
        if flipped:
            buffer[len(buffer) // 2] ^= 1

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> None:
        try:
            flipped = self._begin_data("write", fd, buffer, offset)
        except Crash:
            if self.crash_at is not None and self.crash_at == len(self.operations) - 1:
                self._tear(fd, buffer, offset)
            raise
        self._remember(fd, offset, len(buffer), lambda: super(FaultyFiles, self).pwrite(fd, buffer, offset))
        if flipped:
            flip_on_disk(Path(f"/proc/self/fd/{fd}"), offset + len(buffer) // 2)

    def _begin_data(self, kind: str, fd: int, buffer: memoryview, offset: int) -> bool:
        try:
            self._begin(kind, self._paths[fd], len(buffer), offset)
        except Flip:
            return True
        return False

    def allocate(self, fd: int, num_bytes: int) -> None:
        self._begin("allocate", self._paths[fd], num_bytes)
        super().allocate(fd, num_bytes)

    def sync(self, fd: int) -> None:
        self._begin("sync", self._paths[fd])
        super().sync(fd)
        if self.losing:
            with self._lock:
                file = self._unflushed.get(_inode(fd))
                if file is not None:
                    file.versions.clear()

    def rename(self, source: Path, target: Path) -> None:
        self._begin("rename", target)
        saved = self._keep(target)

        def undo() -> None:
            os.replace(target, source)
            if saved is not None:
                os.link(saved, target)

        super().rename(source, target)
        self._changed_names(target.parent, undo)

    def link(self, source: Path, target: Path) -> None:
        self._begin("link", target)
        super().link(source, target)
        self._changed_names(target.parent, lambda: target.unlink(missing_ok=True))

    def unlink(self, path: Path) -> None:
        self._begin("unlink", path)
        saved = self._keep(path)
        super().unlink(path)
        if saved is not None:
            self._changed_names(path.parent, lambda: os.link(saved, path))

    def sync_folder(self, folder: Path) -> None:
        self._begin("sync_folder", folder)
        super().sync_folder(folder)
        with self._lock:
            self._names = [name for name in self._names if name.folder != folder]

    # --- what is left -----------------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Once every thread has ended: undo some of what was not flushed, and forget the rest."""
        for file in self._unflushed.values():
            for sector, versions in file.versions.items():
                os.pwrite(file.fd, self._random.choice(versions), sector * SECTOR)
            os.close(file.fd)
        folders = sorted({name.folder for name in self._names})
        for folder in folders:
            names = [name for name in self._names if name.folder == folder]
            for name in reversed(names[self._random.randint(0, len(names)) :]):
                name.undo()
        self._unflushed, self._names = {}, []

    def _tear(self, fd: int, buffer: memoryview, offset: int) -> None:
        """Death in a write: a prefix of it, or any of its sectors, is on the disk."""
        plain = bytes(buffer)
        sectors = range(0, len(plain), SECTOR)
        if self._random.random() < 0.5:
            sectors = sectors[: self._random.randint(0, len(sectors))]
        else:
            sectors = [start for start in sectors if self._random.random() < 0.5]

        def write() -> None:
            writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
            try:
                for start in sectors:
                    os.pwrite(writable, plain[start : start + SECTOR], offset + start)
            finally:
                os.close(writable)

        self._remember(fd, offset, len(plain), write)

    def _remember(self, fd: int, offset: int, num_bytes: int, write: Callable[[], None]) -> None:
        """Write, and keep every version of the sectors it touches."""
        if not self.losing:
            write()
            return
        key = _inode(fd)
        with self._lock:
            if key not in self._unflushed:
                self._unflushed[key] = _Unflushed(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
            file = self._unflushed[key]
        sectors = range(offset // SECTOR, -(-(offset + num_bytes) // SECTOR))
        before = {sector: _sector(file.fd, sector) for sector in sectors}
        write()
        with self._lock:
            for sector in sectors:
                after = _sector(file.fd, sector)
                file.versions.setdefault(sector, [before[sector].ljust(len(after), b"\0")]).append(after)

    def _changed_names(self, folder: Path, undo: Callable[[], None]) -> None:
        if self.losing:
            with self._lock:
                self._names.append(_Name(folder, undo))

    def _keep(self, path: Path) -> Path | None:
        """A second name for a file that is about to lose its own, outside the store."""
        if not self.losing or not path.is_file():
            return None
        with self._lock:
            self._attic += 1
            number = self._attic
        store = next(p for p in path.parents if (p / "lock").exists())
        attic = store.with_name(store.name + ".attic")
        attic.mkdir(exist_ok=True)
        saved = attic / f"{os.getpid()}-{id(self)}-{number}"
        os.link(path, saved)
        return saved


# Threads that ran when the current test began: a job of another test that nobody closed is not this test's leak.
threads_before: set[threading.Thread] = set()


def leaks(folder: Path) -> list[str]:
    """Open files under a folder, and threads of ours: what a closed store must not leave."""
    running = set(threading.enumerate()) - threads_before
    threads = [thread for thread in running if thread.name.startswith("openwafer")]
    found = [f"{thread.name} ({thread.ident})" for thread in threads]
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(f"{folder}/"):
                found.append(f"{target} ({fd})")
    return sorted(found)


def flip_on_disk(path: Path, offset: int) -> None:
    """Flip one bit of a file, behind everybody's back."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 1]), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _sector(fd: int, number: int) -> bytes:
    return os.pread(fd, SECTOR, number * SECTOR)


ENOSPC, EIO = errno.ENOSPC, errno.EIO
