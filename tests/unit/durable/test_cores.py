"""Cores under a cgroup's quota, in folders laid out as the kernel's."""

import os

import pytest

from align.durable.cores import cores


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def system(root, groups, **quotas):
    """/proc and /sys of a machine with these files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in quotas.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(("groups", "quotas", "expected"), [
    ("0::/\n", {"cpu.max": "800000 100000\n"}, 8),  # a container
    ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    ("0::/pods/7\n", {"pods/cpu.max": "1250000 100000\n", "pods/7/cpu.max": "max 100000\n"}, 12),
    ("0::/pods/7\n", {"pods/cpu.max": "200000 100000\n", "pods/7/cpu.max": "400000 100000\n"}, 2),
    (
        "5:memory:/x\n4:cpu,cpuacct:/docker/7\n",  # version 1, as a container sees it
        {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3,
    ),
    ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
])  # fmt: skip
def test_a_quota_bounds_the_cores(tmp_path, groups, quotas, expected):
    assert cores(system=system(tmp_path, groups, **quotas)) == expected


def test_processes_share_the_cores_unless_each_has_its_own(tmp_path, monkeypatch):
    assert cores(8, tmp_path) == 8  # without /proc, as elsewhere than on Linux
    assert cores(8, system(tmp_path, "0::/\n", **{"cpu.max": "1600000 100000\n"})) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))  # srun has bound each
    assert cores(8, tmp_path) == 8
    assert cores(100, tmp_path) == 1
