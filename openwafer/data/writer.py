"""Writes a folder of token shards so that it is there whole or not at all.

Everything goes into a hidden folder beside the target, is synced, and is renamed at the end. What a killed run leaves
behind is such a hidden folder, which the next run for the same target removes; a lock tells it from one in use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import numpy as np
import xxhash

from openwafer.base.errors import DataError
from openwafer.data.index import ShardRecord

SHARD_BYTES = 256 << 20


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into; becomes `target` when the block ends, is removed when it raises.

    Raises:
        DataError: target exists, or the file system refuses (no space left, not writable, an I/O error).
    """
    _refuse_existing(target)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _try_lock(lock)
        with _disk_errors(target):
            yield partial
            partial.chmod(0o777 & ~_umask())
            sync(partial)
            _refuse_existing(target)
            os.rename(partial, target)
            sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def write_synced(path: Path, text: str) -> None:
    """Write a text file and wait until it is on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Wait until a folder's names are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ShardWriter:
    """Appends tokens to shard files of at most shard_bytes each; one is open at a time."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_bytes: int = SHARD_BYTES):
        self._folder = folder
        self._dtype = dtype
        self._capacity = max(1, shard_bytes // dtype.itemsize)
        self._file = None
        self._count = 0
        self._digest = xxhash.xxh3_64()
        self.shards: list[ShardRecord] = []
        self.num_tokens = 0

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens [n], in order."""
        self.num_tokens += len(tokens)
        while len(tokens):
            if self._file is None:
                self._file = open(self._folder / self._name(), "wb")  # noqa: SIM115  spans calls; close() ends it
            part = tokens[: self._capacity - self._count]
            tokens = tokens[len(part) :]
            data = part.astype(self._dtype).tobytes()
            self._file.write(data)
            self._digest.update(data)
            self._count += len(part)
            if self._count == self._capacity:
                self.close()

    def close(self) -> None:
        """End the shard being written, on the disk."""
        if self._file is None:
            return
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        record = ShardRecord(file=self._name(), num_tokens=self._count, xxh3_64=self._digest.hexdigest())
        self.shards.append(record)
        self._file, self._count, self._digest = None, 0, xxhash.xxh3_64()

    def abort(self) -> None:
        """Let go of the file, whatever state it is in; the folder is about to be removed."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError:
                return  # the error that led here is the one to report

    def _name(self) -> str:
        return f"tokens-{len(self.shards):05d}.bin"


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise DataError(f"{target} exists already; nothing was changed: name another --out, or remove it first")


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _remove_stale(target: Path) -> None:
    """Remove what earlier runs for this target left when they were killed."""
    for folder in target.parent.glob(f"{escape(_prefix(target))}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # gone in the meantime, or not one of ours
        try:
            if _try_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _try_lock(folder: int) -> bool:
    """Lock an open folder; false if another process has it, or where the file system has no such locks."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        way_out = (
            "free some space, or name an --out on another disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "nothing was kept"
        )
        raise DataError(f"cannot write {target}: {error.strerror or error}; {way_out}") from error
