"""`openwafer wafer trace`: records the trace of a host script."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from openwafer.base.errors import OpenwaferError


def record(script: Path, arguments: Sequence[str], trace: Path, pes: str = "", interval: int | None = None) -> int:
    """Run a host script as cs_python does, with a trace; its exit status.

    Raises:
        OpenwaferError: the script is missing, or it ran no program.
    """
    if script.suffix != ".py" or not script.is_file():
        raise OpenwaferError(f"{script}: expected a host script (.py) or a trace (.npz) that exists")
    trace.unlink(missing_ok=True)
    environment = {**os.environ, "OPENWAFER_TRACE": str(trace.resolve()), "OPENWAFER_TRACE_PES": pes}
    if interval is not None:
        environment["OPENWAFER_TRACE_INTERVAL"] = str(interval)
    command = [sys.executable, "-m", "openwafer.wafer.cli_cs_python", str(script), *arguments]
    status = subprocess.run(command, env=environment, check=False).returncode
    if not trace.is_file():
        raise OpenwaferError(f"{script} left no trace (exit status {status}): did it call SdkRuntime.load()?")
    return status
