"""One process at a time, and a killed one leaves nothing to clean up."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from openwafer.base.errors import StoreLocked
from openwafer.streaming.lock import Lock
from tests.faults import leaks

HOLD = """
import os, sys, time
from pathlib import Path
from openwafer.streaming.lock import Lock
lock = Lock(Path(sys.argv[1]))
if "fork" in sys.argv and os.fork() == 0:
    os.setsid()
# At once: parent and child write to the same pipe.
os.write(1, f"{os.getpid()}\\n".encode())
time.sleep(60)
"""


def hold(path, *options: str) -> subprocess.Popen:
    """Another process that has the lock."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path), *options], stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path):
    holder = hold(tmp_path / "lock")
    try:
        pid = int(holder.stdout.readline())
        with pytest.raises(StoreLocked, match=f"{tmp_path} is in use by process {pid}: one process at a time"):
            Lock(tmp_path / "lock")
        assert not leaks(tmp_path)
    finally:
        kill(holder)
    Lock(tmp_path / "lock").release()  # a killed process leaves no stale lock


def test_a_forked_child_does_not_outlive_its_parent_with_the_lock(tmp_path):
    holder = hold(tmp_path / "lock", "fork")
    pids = {int(holder.stdout.readline()), int(holder.stdout.readline())}
    (child,) = pids - {holder.pid}
    try:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)
        Lock(tmp_path / "lock").release()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_this_process_is_refused_too(tmp_path):
    lock = Lock(tmp_path / "lock")
    with pytest.raises(StoreLocked, match="in use by this process already: close the job or store"):
        Lock(tmp_path / "lock")
    lock.release()
    lock.release()
    Lock(tmp_path / "lock").release()
    assert not leaks(tmp_path)


def test_a_file_system_without_locks_is_an_error_not_a_refusal(tmp_path, monkeypatch):
    def fail(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="No locks available"):
        Lock(tmp_path / "lock")
    assert not leaks(tmp_path)


def test_the_owner_is_never_unknown(tmp_path):
    """The file is never empty while somebody holds it, not even just after it is taken over."""
    for _ in range(20):
        Lock(tmp_path / "lock").release()
        assert (tmp_path / "lock").read_text().strip() == str(os.getpid())
        time.sleep(0)
