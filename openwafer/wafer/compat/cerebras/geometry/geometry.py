"""The vendor's module name for our geometry."""

from openwafer.wafer.runtime.geometry import IntRectangle, IntVector

__all__ = ["IntRectangle", "IntVector"]
