"""Would the tests notice? One place of the code is changed at a time, and the room's own tests are run on it.

    python -m benchmarks.mutation --room decide --mutants 40 --out benchmarks/results/mutation_decide.json

A mutant is *killed* where a test fails, or where it takes four times as long as the code does, and *survives* where
all pass. A survivor is a hole in the tests, or it means the same as what was written: those are read by a person. The
code is copied, once a worker, and each mutant's tests run in a process that is forked when everything else is imported.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.validity.record import write_record

_HOME = Path(__file__).parent.parent
_SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div},
    **{ast.Pow: ast.Mult, ast.MatMult: ast.Sub},
}


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Every way to change one place: its line, what it says then, and the module."""
    for index, node in enumerate(ast.walk(tree)):
        if not isinstance(node, ast.Compare | ast.BoolOp | ast.BinOp | ast.UnaryOp | ast.Constant):
            continue
        changed_tree = copy.deepcopy(tree)
        # The same walk comes to the same node of the copy.
        changed = next(one for number, one in enumerate(ast.walk(changed_tree)) if number == index)
        if _change(changed):
            yield node.lineno, f"{ast.unparse(node)} → {ast.unparse(changed)}", changed_tree


def _change(node: ast.AST) -> bool:
    """Change a node in place; whether there was anything to change."""
    match node:
        case ast.Compare(ops=[operator, *_]) if type(operator) in _SWAPS:
            node.ops[0] = _SWAPS[type(operator)]()
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator) if type(operator) in _SWAPS:
            node.op = _SWAPS[type(operator)]()
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
            if isinstance(node.op, ast.Not):
                node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value) | float(value)):
            node.value = value + 1
        case _:
            return False
    return True


def _tested(room: str, source: Path, seconds: int) -> None:
    """In a process of its own: run the room's tests on the copy; the exit code is pytest's."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.chdir(_HOME)
    sys.path.insert(0, str(source))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"tests/{room}"])))


def _run(room: str, source: Path, seconds: int = 600) -> int | None:
    """Pytest's exit code."""
    process = multiprocessing.get_context("fork").Process(target=_tested, args=(room, source, seconds))
    process.start()
    process.join()
    return process.exitcode


class Mutant(NamedTuple):
    """A module, changed at one line."""

    name: Path
    line: int
    what: str
    code: str


def _survivors(room: str, seconds: int, source: Path, share: Sequence[Mutant]) -> list[str]:
    """Those of the mutants that no test kills in this copy, each told at once."""
    survived = []
    for mutant in share:
        whole = (source / mutant.name).read_text()
        (source / mutant.name).write_text(mutant.code)
        code = _run(room, source, seconds)
        (source / mutant.name).write_text(whole)
        if code == 0:
            survived.append(f"{mutant.name.relative_to('rankwise')}:{mutant.line}: {mutant.what}")
            print(f"survives: {survived[-1]}", flush=True)
    return survived


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--room", required=True, help="a folder of src/rankwise, whose tests lie in tests/ likewise")
    parser.add_argument("--mutants", type=int, required=True, help="how many of all that there are, drawn with seed 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="tested side by side; default: %(default)s")
    options = parser.parse_args()
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401

    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as place:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{place}/hypothesis"
        sources = [Path(place) / str(number) for number in range(options.workers)]
        for source in sources:
            shutil.copytree(_HOME / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        if _run(options.room, sources[0]) != 0:
            raise SystemExit(f"the tests of {options.room} do not pass as they are")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = 4 * math.ceil(used.ru_utime + used.ru_stime) + 10
        found = [
            Mutant(file.relative_to(sources[0]), line, what, ast.unparse(tree))
            for file in sorted((sources[0] / "rankwise" / options.room).rglob("*.py"))
            for line, what, tree in mutants(ast.parse(file.read_text()))
        ]
        chosen = random.Random(0).sample(found, min(options.mutants, len(found)))
        shares = [chosen[number :: options.workers] for number in range(options.workers)]
        # Each forks processes of its own, as only one that has a single thread can.
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("fork")) as pool:
            work = partial(_survivors, options.room, seconds)
            survived = [told for of_one in pool.map(work, sources, shares) for told in of_one]
    findings = {
        "possible": len(found),
        "tried": len(chosen),
        "killed": len(chosen) - len(survived),
        "survived": survived,
    }
    write_record(options.out, "benchmarks.mutation", {"room": options.room, "seed": 0}, findings)


if __name__ == "__main__":
    main()
