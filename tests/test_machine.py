from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from rankwise.machine import available_bytes

GROUP = "sys/fs/cgroup"
NO_LIMIT = 9223372036854771712  # what version 1 says where there is none


def group(root: Path, path: str, **files: object) -> None:
    directory = root / GROUP / path
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(f"{text}\n")


def member_of(root: Path, line: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/init.scope\n{line}\n")


def test_without_a_group_the_system_says_what_is_left(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_the_tightest_of_the_groups_above_counts_and_the_cache_of_files_is_free(tmp_path: Path) -> None:
    member_of(tmp_path, "0::/slurm/job/step")
    group(tmp_path, "slurm", memory__max=900, memory__current=100, memory__stat="anon 60\ninactive_file 0")
    group(tmp_path, "slurm/job", memory__max=500, memory__current=300, memory__stat="anon 260\ninactive_file 40")
    group(tmp_path, "slurm/job/step", memory__max="max", memory__current=300, memory__stat="inactive_file 40")
    assert available_bytes(tmp_path) == 240


def test_a_container_sees_its_limit_at_the_top_and_not_the_path_of_the_host(tmp_path: Path) -> None:
    member_of(tmp_path, "0::/kubepods/pod1/container2")
    group(tmp_path, "", memory__max=1000, memory__current=400, memory__stat="inactive_file 0")
    assert available_bytes(tmp_path) == 600


def test_version_1_of_control_groups_has_other_names(tmp_path: Path) -> None:
    member_of(tmp_path, "4:cpuacct,memory:/docker/1")
    statistics = "inactive_file 1\ntotal_inactive_file 50"
    group(tmp_path, "memory", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=900, memory__stat=statistics)
    group(tmp_path, "memory/docker/1", memory__limit_in_bytes=700, memory__usage_in_bytes=600, memory__stat=statistics)
    assert available_bytes(tmp_path) == 150


def test_more_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    member_of(tmp_path, "0::/")
    group(tmp_path, "", memory__max=100, memory__current=120, memory__stat="")
    assert available_bytes(tmp_path) == 0
