"""Every @builtin: name -> function(sema, frame, call, wanted type) that gives a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openwafer.wafer.csl.builtins import dsd, json_values, layout, modules, numeric, private, tasks, vector

BUILTINS: dict[str, Callable[..., Any]] = {
    **numeric.BUILTINS,
    **modules.BUILTINS,
    **json_values.BUILTINS,
    **dsd.BUILTINS,
    **vector.BUILTINS,
    **tasks.BUILTINS,
    **layout.BUILTINS,
    **private.BUILTINS,
}
