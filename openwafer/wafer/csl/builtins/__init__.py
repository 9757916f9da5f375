"""Every @builtin: name -> function(sema, frame, call, wanted type) that gives a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openwafer.wafer.csl.builtins import (
    dsd,
    dsr,
    json_values,
    layout,
    modules,
    numeric,
    private,
    rotation,
    symbols,
    tasks,
    vector,
)  # fmt: skip

BUILTINS: dict[str, Callable[..., Any]] = {
    **numeric.BUILTINS,
    **modules.BUILTINS,
    **json_values.BUILTINS,
    **symbols.BUILTINS,
    **dsd.BUILTINS,
    **dsr.BUILTINS,
    **vector.BUILTINS,
    **tasks.BUILTINS,
    **rotation.BUILTINS,
    **layout.BUILTINS,
    **private.BUILTINS,
}
