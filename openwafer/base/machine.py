"""What this machine, or the container around us, gives: memory, cores, how much of it we hold.

Linux figures come from /proc/meminfo, /proc/self/status (proc(5)), cgroup v2 ``memory.max`` / ``memory.current`` and
cgroup v1 ``memory.limit_in_bytes`` / ``memory.usage_in_bytes`` (kernel Documentation/admin-guide), and RLIMIT_AS
(getrlimit(2)). A limit anywhere up the cgroup path counts. Where a figure does not exist, the next best is used.
"""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from openwafer.base.units import KIB

_ROOT = Path("/")


def memory_total_bytes(root: Path = _ROOT) -> int:
    """Memory this process could ever have: the least of the machine, its cgroups and RLIMIT_AS."""
    limits = [_meminfo(root).get("MemTotal", _sysconf_total_bytes()), _address_space_limit_bytes()]
    limits += [limit for limit, _used in _cgroup_limits(root)]
    return min(limit for limit in limits if limit is not None)


def memory_available_bytes(root: Path = _ROOT) -> int:
    """Memory this process could take *now* on top of what it holds, without pushing anything into swap.

    Page cache that the kernel can drop counts as available, in the machine and in its cgroups alike.
    """
    meminfo = _meminfo(root)
    rooms = [meminfo.get("MemAvailable", meminfo.get("MemFree", _sysconf_total_bytes()))]
    rooms += [limit - used for limit, used in _cgroup_limits(root)]
    address_space = _address_space_limit_bytes()
    if address_space is not None:
        rooms.append(address_space - _status_bytes(root, "VmSize"))
    return max(0, min(rooms))


def current_rss_bytes(root: Path = _ROOT) -> int:
    """Resident set of this process now."""
    return _status_bytes(root, "VmRSS") or _getrusage_rss_bytes()


def peak_rss_bytes(root: Path = _ROOT) -> int:
    """Largest resident set this process ever had (VmHWM)."""
    return _status_bytes(root, "VmHWM") or _getrusage_rss_bytes()


def num_cores() -> int:
    """Cores this process may run on; fewer than the machine has under taskset or a cpuset."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _meminfo(root: Path) -> dict[str, int]:
    return _table_bytes(root / "proc/meminfo")


def _status_bytes(root: Path, name: str) -> int:
    return _table_bytes(root / "proc/self/status").get(name, 0)


def _table_bytes(path: Path) -> dict[str, int]:
    """``Name:   123 kB`` lines as bytes; other lines are left out."""
    table = {}
    for line in (_read(path) or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB" and words[1].isdigit():
            table[words[0].rstrip(":")] = int(words[1]) * KIB
    return table


def _sysconf_total_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _getrusage_rss_bytes() -> int:
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maxrss if sys.platform == "darwin" else maxrss * KIB


def _address_space_limit_bytes() -> int | None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, use without droppable page cache) in bytes of every cgroup around this process that has a limit."""
    for folder, is_v2 in _cgroup_folders(root):
        limit = (_read(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")) or "").strip()
        used = (_read(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")) or "").strip()
        # v2 says "max" for no limit; v1 says a number near 2**63.
        if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:
            yield int(limit), max(0, int(used) - _cache_bytes(folder, is_v2))


def _cgroup_folders(root: Path) -> Iterator[tuple[Path, bool]]:
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        is_v2 = hierarchy == "0" and controllers == ""
        if not is_v2 and "memory" not in controllers.split(","):
            continue
        mount = root / ("sys/fs/cgroup" if is_v2 else "sys/fs/cgroup/memory")
        folder = mount / path.lstrip("/")
        # In a container the path may be one of the host and not exist here: its own limits are then at the mount.
        while folder != mount:
            yield folder, is_v2
            folder = folder.parent
        yield mount, is_v2


def _cache_bytes(folder: Path, is_v2: bool) -> int:
    name = "inactive_file" if is_v2 else "total_inactive_file"
    for line in (_read(folder / "memory.stat") or "").splitlines():
        key, _, count = line.partition(" ")
        if key == name and count.isdigit():
            return int(count)
    return 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
