"""The vendor's module name for our helpers."""

from openwafer.wafer.runtime.utils import calculate_cycles, input_array_to_u32, memcpy_view

__all__ = ["calculate_cycles", "input_array_to_u32", "memcpy_view"]
