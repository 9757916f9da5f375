"""The lock of a store: one process at a time, and a killed one leaves nothing to clean up.

It is a `flock` on a file that holds the owner's process id. The kernel releases it with the last copy of the
descriptor, so a forked child (a data loader's worker) gives its copy up at once and cannot outlive the owner with it.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from openwafer.base.errors import StoreLocked


class Lock:
    """Held from construction to `release`.

    Raises:
        StoreLocked: somebody holds it; names the process.
        OSError: the file system does not let us.
    """

    def __init__(self, path: Path):
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 64, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise StoreLocked(_in_use(path.parent, owner)) from None
        except OSError:
            self.release()
            raise
        # At full width: a reader must never find it empty.
        os.pwrite(self._fd, f"{os.getpid():<20}\n".encode(), 0)
        lock = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(lock()))

    def release(self) -> None:
        """Give it up; doing so twice is fine."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _let_go(lock: Lock | None) -> None:
    if lock is not None:
        lock.release()


def _in_use(folder: Path, owner: str) -> str:
    if owner == str(os.getpid()):
        return f"{folder} is in use by this process already: close the job or store that holds it first"
    return (
        f"{folder} is in use by process {owner}: one process at a time may write a store. "
        "Wait for it, stop it, or give this run another store."
    )
