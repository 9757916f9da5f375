"""The vendor's module name for our runtime."""

from openwafer.wafer.runtime.sdk_runtime import MemcpyDataType, MemcpyOrder, SdkRuntime

__all__ = ["MemcpyDataType", "MemcpyOrder", "SdkRuntime"]
