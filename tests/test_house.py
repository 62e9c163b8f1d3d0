"""The rooms of the house: who may import whom, and what must not wait for torch."""

from __future__ import annotations

import subprocess
import sys

import grimp
import pytest

GROUND = {"errors", "records", "durable", "values", "patterns", "machine", "fidelity"}  # every room stands on these

# A module goes by the longest name here that it lies in, and may import what lies in the same
# name, in the ground, or in the names listed for it. Only direct imports count.
MAY_IMPORT: dict[str, set[str]] = {
    **{name: set() for name in GROUND},
    "records.shown": {"report.notebook"},  # asked for by a notebook, of a record
    "decide": set(),
    "report": set(),
    "base.outline": set(),
    "base.shapes": {"base.outline"},
    "base.catalogue": set(),
    "base.quantize": set(),
    "base.source": {"base.catalogue"},
    "base.first_token": set(),
    "base.model": {"base.shapes", "base.quantize"},
    "base.load": {"base.model", "base.shapes", "base.source", "base.quantize", "base.first_token"},
    "lora": {"base"},
    "memory": {"lora", "base"},
    "memory.estimate": {"memory", "base"},
    "memory.pack": {"memory", "train", "tasks", "lora", "base"},
    "memory.parameters": {"memory.settings", "base.outline", "base.shapes", "base.source"},
    "tasks": {"base"},
    "train": {"tasks", "lora", "base"},
    "spectrum": {"lora"},
    "spectrum.adapter": set(),  # which `compare` stands on
    "spectrum.subject": {"compare.config", "compare.prepare", "tasks", "lora", "base"},
    "spectrum.measure": {"spectrum.subject", "train", "tasks", "base", "decide"},
    "spectrum.resize": {"spectrum", "lora", "tasks"},
    "spectrum.gradients": {"spectrum", "train", "tasks", "lora", "base"},
    "spectrum.probe": {"spectrum", "compare.config", "compare.prepare", "memory", "train", "tasks", "lora", "base"},
    "embedded": {"train.heap", "tasks", "base"},
    "compare": {"embedded", "train", "tasks", "base", "lora", "memory", "decide", "spectrum.adapter"},
    "compare.page": {"compare", "report"},
    "compare.config": {"tasks", "base.quantize", "base.source"},
    "compare.schedule": {"compare.config"},
    "compare.plan": {"compare.schedule", "memory"},
    "compare.backends": {"compare.config", "compare.plan", "compare.prepare", "compare.ray_backend", "train"},
    "compare.ray_worker": {"compare.plan", "train", "tasks", "base"},
    "compare.ray_backend": {
        *{"compare.backends", "compare.plan", "compare.prepare", "compare.ray_worker"},
        *{"train", "base"},
    },
    "compare.journal": set(),
    "compare.trackers": set(),
    "progress": {"compare", "train", "report"},
    "export": {"compare.directory", "compare.config", "train.settings", "base.quantize", "report"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = {"cli"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("rankwise", include_external_packages=True, cache_dir=None)


def lies_in(module: str, name: str) -> bool:
    return f"{module}.".startswith(f"{name}.")


def may_import(importer: str, imported: str) -> bool:
    """Whether the table allows it; a module that no name of the table covers may import nothing."""
    own = max((name for name in MAY_IMPORT if lies_in(importer, name)), key=len, default=None)
    return own is not None and any(lies_in(imported, name) for name in {own} | GROUND | MAY_IMPORT[own])


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("decide.verdict", "decide.interval", True),
        ("decide.verdict", "records", True),
        ("decide.verdict", "base.shapes", False),
        ("tasks.task", "lora.packed", False),
        ("train.loop", "base.load", True),
        ("compare.plan", "compare.run", False),
        ("compare.run", "compare.plan", True),
        ("compare.run", "cli.main", False),
        ("a_new_room.module", "records", False),
    ],
)
def test_the_table_reads_as_it_is_meant(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) == allowed


def test_every_room_imports_only_what_the_table_allows(graph: grimp.ImportGraph) -> None:
    ours = [module for module in graph.modules if module.startswith("rankwise.")]
    broken = [
        f"{importer} imports {imported}"
        for importer in sorted(ours)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if imported.startswith("rankwise.")
        and not may_import(importer.removeprefix("rankwise."), imported.removeprefix("rankwise."))
    ]
    assert len(ours) > 20
    assert broken == []


def test_no_room_takes_more_than_the_version_from_the_package(graph: grimp.ImportGraph) -> None:
    """`from rankwise import run_rank_comparison` would be a way around the table."""
    lines = {
        f"{importer}: {details['line_contents']}"
        for importer in graph.find_modules_that_directly_import("rankwise")
        for details in graph.get_import_details(importer=importer, imported="rankwise")
    }
    assert {line for line in lines if not line.endswith("from rankwise import __version__")} == set()


def test_decide_stands_on_numpy_and_scipy_alone(graph: grimp.ImportGraph) -> None:
    outside = {
        imported
        for module in graph.find_descendants("rankwise.decide")
        for imported in graph.find_modules_directly_imported_by(module)
        if not imported.startswith("rankwise") and imported.split(".")[0] not in sys.stdlib_module_names
    }
    assert outside - {"jaxtyping"} == {"numpy", "scipy"}  # jaxtyping is annotation


@pytest.mark.parametrize(
    "statement",
    [
        "import rankwise",
        "import rankwise.decide.interval",
        "import rankwise.report.notebook",
        "import sys; sys.argv[1:] = ['--help']; from rankwise.cli.main import main; main()",
        "import sys; sys.argv[1:] = ['compare', '--help']; from rankwise.cli.main import main; main()",
        "import rankwise; rankwise.estimate_ranks('bert-base-uncased', [8], method='formula')",
        "import sys; sys.argv[1:] = ['export', '--help']; from rankwise.cli.main import main; main()",
        "import sys; sys.argv[1:] = ['probe', '--help']; from rankwise.cli.main import main; main()",
        "import sys; sys.argv[1:] = ['resize', '--help']; from rankwise.cli.main import main; main()",
    ],
)
def test_torch_is_not_waited_for_by(statement: str) -> None:
    at_exit = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
    ran = subprocess.run([sys.executable, "-c", at_exit + statement], capture_output=True, text=True, check=True)
    assert ran.stderr == "False\n"
