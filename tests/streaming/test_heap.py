"""The heap is given back when the resident set passes its limit; each case in a process of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")

HOLES = """
import gc, threading, time, openwafer, torch
from openwafer.base import machine
from openwafer.streaming import heap

def make_holes():
    tensors = [torch.ones(1 << 18) for _ in range(256)]  # 1 MiB each
    return tensors[::2]

heap.reuse()
kept = make_holes()
before = machine.current_rss_bytes()
"""


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", HOLES + code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_holes_are_given_back_when_what_comes_would_pass_the_limit() -> None:
    run("""
own = heap.Heap()
own.tend(1 << 40)
assert own.num_given_back == 0  # no limit
own.limit_bytes = before + (64 << 20)
own.tend(32 << 20)
assert own.num_given_back == 0
own.tend(96 << 20)
assert own.num_given_back == 1
assert machine.current_rss_bytes() < before - (100 << 20)
""")


def test_watching_keeps_the_limit_and_ends() -> None:
    run("""
own = heap.Heap()
own.watch(before - (64 << 20))
deadline = time.monotonic() + 30
while machine.current_rss_bytes() > before - (100 << 20) and time.monotonic() < deadline:
    time.sleep(0.01)
assert machine.current_rss_bytes() < before - (100 << 20)
own.close()
assert not any(thread.name == "openwafer-heap" for thread in threading.enumerate())
""")


def test_watching_ends_with_its_heap() -> None:
    run("""
own = heap.Heap()
own.watch(1 << 40)
del own
deadline = time.monotonic() + 30
while any(t.name == "openwafer-heap" for t in threading.enumerate()) and time.monotonic() < deadline:
    time.sleep(0.01)
assert not any(thread.name == "openwafer-heap" for thread in threading.enumerate())
""")


def test_threads_share_the_heap() -> None:
    """A thread's tensors come from the process's own heap, below the program break."""
    run("""
import ctypes
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
places = []
for _ in range(4):
    thread = threading.Thread(target=lambda: places.append(torch.ones(1 << 18).data_ptr()))
    thread.start()
    thread.join()
start = heap._heap_start()
assert all(start <= place < libc.sbrk(0) for place in places), places
""")
