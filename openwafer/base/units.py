"""Sizes, counts and durations as people write and read them.

``GiB`` means 2**30 bytes and ``GB`` means 10**9, as IEC 80000-13 has it. Strings become numbers here, once, at the
border of a program; everything inside it works on ``int`` bytes and ``float`` seconds.
"""

import math
import re

from openwafer.base.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_UNIT_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
}
_SIZE = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*")
_ALLOWED = 'a whole number of bytes or a number with a unit of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, such as "2GiB"'


def parse_bytes(size: str | int, what: str = "size") -> int:
    """Number of bytes that ``size`` stands for: ``"2GiB"``, ``"500 MB"``, or a positive int as it is.

    Args:
        size: a number of bytes, or a string with an optional unit (case does not matter).
        what: how the error calls the value, for instance ``"memory"``.

    Raises:
        ConfigError: for anything else, and for what is not at least one byte.
    """

    def refuse(reason: str) -> ConfigError:
        return ConfigError(f"{what}: {reason}, got {size!r}; write {_ALLOWED}.")

    if isinstance(size, bool) or not isinstance(size, str | int):
        raise refuse(f"a {type(size).__name__} is not a size")
    if isinstance(size, int):
        num_bytes = size
    else:
        match = _SIZE.fullmatch(size)
        if match is None:
            negative = size.strip().startswith("-")
            raise refuse("a size cannot be negative" if negative else "not a size")
        number, unit = match.groups()
        if unit.lower() not in _UNIT_BYTES:
            raise refuse(f"unknown unit {unit!r}")
        whole = number.replace("_", "")
        scale = _UNIT_BYTES[unit.lower()]
        num_bytes = int(whole) * scale if whole.isdigit() else round(float(whole) * scale)
    if num_bytes < 0:
        raise refuse("a size cannot be negative")
    if num_bytes == 0:
        raise refuse("a size must be at least one byte")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """``num_bytes`` with three digits and a binary unit: ``"2.00 GiB"``, ``"512 MiB"``, ``"17 B"``."""
    size = abs(num_bytes)
    sign = "-" if num_bytes < 0 else ""
    if size < KIB:
        return f"{sign}{size:.0f} B"
    for unit, scale in (("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("TiB", TIB)):
        # 999.5 and up would print as four digits; the next unit takes over, except after the last one.
        if size / scale < 999.5 or unit == "TiB":
            return f"{sign}{_three_digits(size / scale)} {unit}"
    raise AssertionError("the last unit takes everything")


def format_count(count: float) -> str:
    """``count`` with three digits and a suffix: ``"590M"``, ``"1.3B"``, ``"2,048"`` (whole below ten thousand)."""
    size = abs(count)
    sign = "-" if count < 0 else ""
    if size < 10_000:
        return f"{sign}{size:,.0f}"
    for suffix, scale in (("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
        if size / scale < 999.5 or suffix == "T":
            digits = _three_digits(size / scale)
            return f"{sign}{digits.rstrip('0').rstrip('.') if '.' in digits else digits}{suffix}"
    raise AssertionError("the last suffix takes everything")


def format_seconds(seconds: float) -> str:
    """A duration: ``"120 ms"``, ``"4.2 s"``, ``"3 min 05 s"``, ``"2 h 05 min"``, ``"3 d 04 h"``."""
    if not math.isfinite(seconds):
        return "unknown"
    size = abs(seconds)
    sign = "-" if seconds < 0 else ""
    if size < 0.9995:
        return f"{sign}{size * 1e3:.0f} ms"
    if size < 59.95:
        return f"{sign}{size:.1f} s"
    total = round(size)
    minutes, rest_s = divmod(total, 60)
    hours, rest_min = divmod(minutes, 60)
    days, rest_h = divmod(hours, 24)
    if days:
        return f"{sign}{days} d {rest_h:02d} h"
    if hours:
        return f"{sign}{hours} h {rest_min:02d} min"
    return f"{sign}{minutes} min {rest_s:02d} s"


def _three_digits(number: float) -> str:
    if number < 9.995:
        return f"{number:.2f}"
    if number < 99.95:
        return f"{number:.1f}"
    return f"{number:.0f}"
