"""A machine with less memory for a while: a swap file, and a process that locks most of the memory. Linux, as root.

Locking, unlike a limit on one process, leaves the kernel's own ways of reclaiming in place: what runs beside it meets
a small machine. Everything else on this machine meets it too, so run nothing else. Run by hand, this is the balloon.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from openwafer.base import machine

MIB = 1 << 20
KERNEL_BYTES = 256 * MIB
"""Left beside what the trial may have: the kernel's buffers and the libraries' pages. Chosen."""


class NoSwapError(Exception):
    """This machine lets us have no swap, or no locked memory; says why."""


@contextlib.contextmanager
def small_machine(free_bytes: int, folder: Path, swap_bytes: int) -> Iterator[None]:
    """Leave about `free_bytes` of memory to whoever starts now, and so much swap.

    Raises:
        NoSwapError: not root, no space, or the system refuses.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise NoSwapError("swap files need Linux and root")
    with swap_file(folder / "swap", swap_bytes):
        locked = machine.memory_available_bytes() - free_bytes - KERNEL_BYTES
        if locked <= 0:
            raise NoSwapError(f"only {machine.memory_available_bytes() // MIB} MiB are available as it is")
        with balloon(locked):
            yield


@contextlib.contextmanager
def swap_file(path: Path, num_bytes: int) -> Iterator[None]:
    """A swap file in use; switched off and removed afterwards."""
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes + 1024 * MIB:
        raise NoSwapError(f"{path.parent} has {free // MIB} MiB free, a swap file of {num_bytes // MIB} MiB is wanted")
    try:
        # Written out, not fallocate'd: not every file system swaps to unwritten extents.
        _order("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={num_bytes // MIB}", "oflag=direct", "status=none")
        path.chmod(0o600)
        _order("mkswap", str(path))
        _order("swapon", str(path))
        try:
            yield
        finally:
            _order("swapoff", str(path))
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def balloon(num_bytes: int) -> Iterator[None]:
    """A process that holds so many bytes locked in memory."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(num_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        answer = process.stdout.readline().strip()
        if answer != "locked":
            raise NoSwapError(f"locking {num_bytes // MIB} MiB failed: {answer or 'killed'}")
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            process.kill()


def _order(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoSwapError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise NoSwapError(f"{' '.join(command)}: {error.stderr.strip()}") from error


def main() -> None:
    """The balloon: lock, say so, and hold until standard input closes."""
    # If memory runs out after all, this is what the kernel should end first.
    Path("/proc/self/oom_score_adj").write_text("1000")
    held = mmap.mmap(-1, int(sys.argv[1]))
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(held))
    failed = libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(held)))
    print(os.strerror(ctypes.get_errno()) if failed else "locked", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
