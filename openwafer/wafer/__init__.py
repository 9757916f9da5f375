"""An open compiler, simulator and host runtime for CSL programs on WSE-2 and WSE-3.

Floors inside, top to bottom: cli, runtime, csl | sim, image, isa, arch. The compiler never runs a program and the
simulator never reads CSL; they meet in the image. The names below are resolved when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openwafer.wafer.runtime.host import compile
    from openwafer.wafer.runtime.sdk_runtime import MemcpyDataType, MemcpyOrder, SdkRuntime

__all__ = ["MemcpyDataType", "MemcpyOrder", "SdkRuntime", "compile"]

# public name -> the module that defines it
_HOME = {
    "compile": "openwafer.wafer.runtime.host",
    "MemcpyDataType": "openwafer.wafer.runtime.sdk_runtime",
    "MemcpyOrder": "openwafer.wafer.runtime.sdk_runtime",
    "SdkRuntime": "openwafer.wafer.runtime.sdk_runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'openwafer.wafer' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    # The next look-up finds it without coming here.
    globals()[name] = value
    return value
