import resource
from pathlib import Path

import pytest

from openwafer.base import machine
from openwafer.base.units import GIB, KIB


def fake_root(root: Path, files: dict[str, str]) -> Path:
    base = {
        "proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n",
        "proc/self/status": "Name:\tpython\nVmSize:\t 2048 kB\nVmHWM:\t 512 kB\nVmRSS:\t 256 kB\n",
    }
    for name, text in {**base, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def no_address_space_limit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_without_limits_it_is_what_the_kernel_says(tmp_path):
    root = fake_root(tmp_path, {})
    assert machine.memory_total_bytes(root) == 16 * GIB
    assert machine.memory_available_bytes(root) == 8 * GIB
    assert machine.current_rss_bytes(root) == 256 * KIB
    assert machine.peak_rss_bytes(root) == 512 * KIB


def test_a_cgroup_v2_limit_counts_also_when_it_is_a_parents(tmp_path):
    root = fake_root(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/job/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/step/memory.current": f"{2 * GIB}\n",
        },
    )
    assert machine.memory_total_bytes(root) == 4 * GIB
    assert machine.memory_available_bytes(root) == 2 * GIB


def test_a_cgroup_v1_limit_counts_and_its_no_limit_does_not(tmp_path):
    files = {
        "proc/self/cgroup": "9:cpu:/\n4:memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB // 2}\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 0\n",
    }
    assert machine.memory_available_bytes(fake_root(tmp_path, files)) == GIB // 2
    files["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
    assert machine.memory_total_bytes(fake_root(tmp_path, files)) == 16 * GIB


def test_an_address_space_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (GIB, GIB))
    root = fake_root(tmp_path, {})
    assert machine.memory_total_bytes(root) == GIB
    assert machine.memory_available_bytes(root) == GIB - 2048 * KIB


def test_over_the_limit_there_is_nothing_not_less(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "2000\n",
    }
    assert machine.memory_available_bytes(fake_root(tmp_path, files)) == 0


def test_this_machine_makes_sense():
    assert 0 < machine.current_rss_bytes() <= machine.peak_rss_bytes() <= machine.memory_total_bytes()
    assert machine.num_cores() >= 1
