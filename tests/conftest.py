"""What every test begins with."""

import threading

import pytest

from tests import faults


@pytest.fixture(autouse=True)
def note_running_threads():
    """So that `faults.leaks` sees the threads of this test alone."""
    faults.threads_before.clear()
    faults.threads_before.update(threading.enumerate())
