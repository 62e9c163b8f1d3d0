"""A disk that is full, a directory that cannot be written, files that are gone: one line, and then the same numbers."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rankwise import ComparisonConfig, RunError, UserError, run_rank_comparison
from rankwise.compare.observer import Observer, Stage
from rankwise.train.loop import StepReport
from tests.compare.runs import KilledError, numbers

pytestmark = pytest.mark.usefixtures("given_costs")


def after(count: int, act: Callable[[], object], kind: type = StepReport) -> Observer:
    """Acts when it is told the count-th of this kind; of steps, those count at which validation is scored."""
    told = 0

    def observe(event: object) -> None:
        nonlocal told
        counts = isinstance(event, kind) and (not isinstance(event, StepReport) or event.step % 2 == 0)
        told += counts
        if counts and told == count:
            act()

    return observe


def kill() -> None:
    raise KilledError


@contextmanager
def files_cannot_grow() -> Iterator[Callable[[], None]]:
    """Call it, and until the `with` block ends a file takes no byte more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def goes_on(config: ComparisonConfig, run: Path, undisturbed: Path) -> None:
    run_rank_comparison(config, run=run, resume=(run / "comparison.json").exists())
    assert numbers(run) == numbers(undisturbed)


# The first stages load model and data, the next is rank 0, then a leg is planned and trained.
@pytest.mark.parametrize(("count", "kind"), [(1, Stage), (4, Stage), (1, StepReport), (5, StepReport)])
def test_a_disk_that_fills_up(
    count: int, kind: type, config: ComparisonConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with files_cannot_grow() as fill, pytest.raises((RunError, UserError)) as error:
        run_rank_comparison(config, run=run, observe=after(count, fill, kind))
    assert str(error.value).isprintable()
    assert re.search(rf"{run} (could not|cannot) be written \(.*[Ff]ile too large.*\); mend that", str(error.value))
    goes_on(config, run, undisturbed)


def test_a_file_system_that_is_full(config: ComparisonConfig, undisturbed: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "64m"):
        run, filler = tmp_path / "disk/run", tmp_path / "disk/filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))

        with pytest.raises(RunError, match=r"No space left on device.*; mend that, then go on with --resume") as error:
            run_rank_comparison(config, run=run, observe=after(1, fill))
        assert str(error.value).isprintable()
        with pytest.raises(UserError, match=r"run cannot be written \(No space left on device\)"):
            run_rank_comparison(config, run=run, resume=True)
        filler.unlink()
        goes_on(config, run, undisturbed)


def test_a_file_system_that_becomes_read_only(config: ComparisonConfig, undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "64m"):
        run = disk / "run"

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

        with pytest.raises(KilledError):
            run_rank_comparison(config, run=run, observe=after(1, kill))
        remount("ro")
        for path, resume in ((run, True), (disk / "another", False)):
            with pytest.raises(UserError, match=rf"{path} cannot be written \(Read-only file system\)") as error:
                run_rank_comparison(config, run=path, resume=resume)
            assert str(error.value).isprintable()
        remount("rw")
        goes_on(config, run, undisturbed)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_a_write_that_fails(
    code: int, config: ComparisonConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is flushed, so each write can be made to fail there; root may write what others may not."""
    run, flush, flushes = tmp_path / "run", os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == 20:
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", failing)
        with pytest.raises(RunError, match=os.strerror(code)) as error:
            run_rank_comparison(config, run=run)
    assert str(error.value).isprintable()
    goes_on(config, run, undisturbed)


def test_an_observer_that_cannot_write_is_not_taken_for_the_run(
    config: ComparisonConfig, undisturbed: Path, tmp_path: Path
) -> None:
    def broken() -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(RunError) as error:
        run_rank_comparison(config, run=tmp_path / "run", observe=after(1, broken))
    assert str(error.value) == ("the observer failed ([Errno 32] Broken pipe); mend it, then go on with --resume")
    goes_on(config, tmp_path / "run", undisturbed)


def test_a_place_below_a_file(config: ComparisonConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="run cannot be written"):
        run_rank_comparison(config, run=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "x"


def _emptied(file: Path) -> None:
    file.write_bytes(b"")


def _halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
@pytest.mark.parametrize("harm", [_emptied, _halved, Path.unlink])
@pytest.mark.parametrize("ended", [False, True])
def test_a_file_that_is_gone_or_cut_is_named_or_made_anew(
    ended: bool, harm: Callable[[Path], None], config: ComparisonConfig, undisturbed: Path, tmp_path: Path
) -> None:
    """One of each kind of file. Nothing is begun anew in silence, and no row is there twice."""
    before = undisturbed if ended else tmp_path / "before"
    if not ended:
        with pytest.raises(KilledError):
            run_rank_comparison(config, run=before, observe=after(5, kill))
    files = {
        re.sub("lr[^-]*", "lr", str(file.relative_to(before))): file for file in before.rglob("*") if file.is_file()
    }
    kinds = {file.name: file.relative_to(before) for file in files.values() if file.name != "run.lock"}
    assert {"comparison.json", "journal.jsonl", "curve.parquet", "scores.parquet"} <= kinds.keys()
    for name, file in kinds.items():
        run = tmp_path / "run"
        shutil.copytree(before, run)
        harm(run / file)
        told = None
        try:
            run_rank_comparison(config, run=run, resume=True)
        except (RunError, UserError) as error:
            told = str(error)
            assert told.isprintable()
        if told is None and name == "journal.jsonl":
            # Its first half is whole: what the other told is done again, in other packs, which round otherwise.
            assert not ended
            mine, expected = (numbers(one)["experiments"] for one in (run, undisturbed))
            assert [row["rank"] for row in mine] == [row["rank"] for row in expected]
            assert [row["nll"] for row in mine] == pytest.approx([row["nll"] for row in expected], rel=1e-3)
        elif told is None:
            # An adapter that was not chosen is not read any more, and stays as it is.
            mine, expected = numbers(run), numbers(undisturbed)
            # A trial whose state at a rung was removed trains from its start, which its plan tells.
            besides = {str(file): 0} | ({"plans": 0} if file.parent.name == "checkpoints" else {})
            assert mine | besides == expected | besides
        elif name == "comparison.json" and harm is Path.unlink:
            assert "is not a run directory" in told
        else:
            assert name in told or file.parent.name in told
            assert re.search("restore it|restore the file|remove it|start a new run", told)
        shutil.rmtree(run)
