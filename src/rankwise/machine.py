"""How much memory the machine has left for a process: the system's count, or less where its control group has a limit.

Containers, SLURM and systemd set such limits, and the kernel ends who crosses one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

# Where a version of Linux's control groups keeps its tree; a group's limit, what it uses, and the part of that which
# is the cache of files and would be given up, as a line of memory.stat. Source: the kernel's cgroup-v2.rst, memory.rst.
_VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process may still take. `root` is where /proc and /sys are."""
    return max(0, min([psutil.virtual_memory().available, *_left_to_groups(root)]))


def _left_to_groups(root: Path) -> Iterator[int]:
    """What is left to each group that the process is in and that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for tree, limit, used, cache in _VERSIONS:
            if tree not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / tree
            group = top / path.lstrip("/")
            # A container may not see the groups that it is in, only what is mounted at the top.
            for one in (group, *group.parents):
                if one.is_relative_to(top):
                    yield from _left(one / limit, one / used, one / "memory.stat", cache)


def _left(limit: Path, used: Path, statistics: Path, cache: str) -> Iterator[int]:
    try:
        of_cache = re.search(rf"^{cache} (\d+)$", statistics.read_text(), re.MULTILINE)
        yield int(limit.read_text()) - int(used.read_text()) + (int(of_cache[1]) if of_cache else 0)
    except (OSError, ValueError):  # no such group here, or "max": no limit
        return
