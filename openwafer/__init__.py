"""openwafer: train a model larger than memory in plain PyTorch.

Names are resolved when they are first used, so that ``import openwafer`` loads nothing. It does one thing: it asks the
C library to let all threads share one heap, which works only before torch starts its first thread.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from openwafer.streaming.heap import share as _share_one_heap

__version__ = "0.1.0"

_share_one_heap()

# public name -> the module that defines it
_HOME = {
    "compile": "openwafer.pytorch",
    "init": "openwafer.pytorch",
    "Job": "openwafer.pytorch",
    "Store": "openwafer.streaming.store",
    "Lion": "openwafer.streaming.lion",
    "resume": "openwafer.train.loop",
    "OpenwaferError": "openwafer.base.errors",
    "StepRecord": "openwafer.base.events",
}

if TYPE_CHECKING:
    from openwafer.base.errors import OpenwaferError
    from openwafer.base.events import StepRecord
    from openwafer.pytorch import Job, compile, init
    from openwafer.streaming.lion import Lion
    from openwafer.streaming.store import Store
    from openwafer.train.loop import resume

__all__ = ["Job", "Lion", "OpenwaferError", "StepRecord", "Store", "__version__", "compile", "init", "resume"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'openwafer' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    # The next look-up finds it without coming here.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
