"""The `cs_python` command: runs a host script with the vendor's module names importable."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from openwafer.base.errors import OpenwaferError

COMPAT = Path(__file__).parent / "compat"
HELP = """usage: cs_python SCRIPT [ARGUMENT ...]

Runs a Python script in which `cerebras.sdk.runtime.sdkruntimepybind` and its like are openwafer's runtime:
programs run in the simulator. Arguments go to the script.
"""


def main() -> int:
    """Exit status of the script; 1 with a message if the program cannot go on."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if len(sys.argv) > 1 else 2
    script = Path(sys.argv[1])
    if not script.is_file():
        print(f"cs_python: {script} does not exist", file=sys.stderr)
        return 2
    sys.argv = sys.argv[1:]
    sys.path[0] = str(script.resolve().parent)
    sys.path.insert(1, str(COMPAT))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except OpenwaferError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
