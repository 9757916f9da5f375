"""The vendor's module name for our reader of core dumps."""

from openwafer.wafer.runtime.debug import debug_util

__all__ = ["debug_util"]
