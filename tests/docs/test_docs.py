"""The documentation holds: it builds, its links lead somewhere, its commands and programs can be typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.core import TyperGroup
from typer.main import get_command

import rankwise
from rankwise.cli.main import app
from rankwise.export.write import export_recommendation
from tests.export.runs import made_run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands
REPORT = "a report #1.html"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def tokens(page: Path) -> Iterator[Token]:
    """All of a page, what is within lines and cells too."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def fences(page: Path, *languages: str) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "fence" and token.info.strip() in languages]


def typed(block: str) -> Iterator[list[str]]:
    """The words of each `rankwise …` line, without its comment."""
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("rankwise "):
            yield shlex.split(line, comments=True)


@each_page
def test_every_relative_link_leads_to_something(page: Path) -> None:
    links = [str(token.attrs["href"]) for token in tokens(page) if token.type == "link_open"]
    links += [str(token.attrs["src"]) for token in tokens(page) if token.type == "image"]
    inside = [urlsplit(link).path for link in links if not urlsplit(link).scheme]
    assert [path for path in inside if path and not (page.parent / unquote(path)).exists()] == []


@each_page
def test_every_command_can_be_parsed(page: Path) -> None:
    for block in fences(page, "", "bash", "sh"):
        for words in typed(block):
            COMMANDS[words[1]].make_context(words[1], words[2:])


@each_page
def test_every_option_that_a_sentence_names_exists(page: Path) -> None:
    """Of commands in running text, which may leave out what does not matter there."""
    for token in tokens(page):
        if token.type == "code_inline" and token.content.startswith("rankwise ") and "COMMAND" not in token.content:
            _, name, *words = token.content.split()
            if name in COMMANDS:
                known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
                assert {word for word in words if word.startswith("--")} <= known
            else:
                assert name in ("--version", "--help", "--install-completion")


@each_page
def test_every_program_compiles(page: Path) -> None:
    for block in fences(page, "python"):
        compile(block, page.name, "exec")


def test_pages_have_commands_programs_and_links() -> None:
    """The checks above would pass on pages that they cannot read."""
    assert sum(len(list(typed(block))) for page in PAGES for block in fences(page, "")) > 20
    assert sum(len(fences(page, "python")) for page in PAGES) > 5
    assert sum(token.type == "link_open" for page in PAGES for token in tokens(page)) > 50


def test_exports_are_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {
        "use_rslora": True,
        "alpha": 16.0,
        "reason": "this run is made by hand, and nothing was measured",
        "unknown": ("everything",),
    }
    made_run(Path("runs/mine"), answer=found)
    blocks = fences(DOCS / "export.md", "", "yaml", "python")
    shown = 0
    for command, text in pairwise(blocks):
        if match := re.fullmatch(r"rankwise export runs/mine --to ([a-z-]+)\n", command):
            assert text == export_recommendation("runs/mine", match[1]).text
            shown += 1
    assert shown == 6
    peft = export_recommendation("runs/mine", "peft").path
    assert peft is not None
    assert blocks[-3] in (peft / "README.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    place = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, place / "docs", ignore=shutil.ignore_patterns("_build"))
    for linked in ("benchmarks", "examples"):
        (place / linked).symlink_to(ROOT / linked)
    (place / "docs/gallery").mkdir(exist_ok=True)
    (place / "docs/gallery" / REPORT).write_text("<title>a *b* &lt;i&gt;</title><script>1 < 2</script>")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", place / "doctrees"]
    done = subprocess.run(
        [*command, place / "docs", place / "html"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place / "html"


def test_the_site_has_every_page_command_and_name(site: Path) -> None:
    assert {page.stem for page in DOCS.glob("*.md")} <= {page.stem for page in site.glob("*.html")}
    commands, names = ((site / f"{page}.html").read_text(encoding="utf-8") for page in ("cli", "api"))
    assert [name for name in COMMANDS if f"Usage: rankwise {name} " not in commands] == []
    assert [name for name in rankwise.__all__ if f'id="rankwise.{name}"' not in names] == []


def test_the_site_lists_and_copies_every_report(site: Path) -> None:
    listed = re.findall(r'href="gallery/([^"]+)">(.*?)<', (site / "gallery.html").read_text(encoding="utf-8"))
    kept = {page.name for page in (DOCS / "gallery").glob("*.html")} | {REPORT}
    assert {unquote(name) for name, _ in listed} == kept
    assert (quote(REPORT), "a *b* &lt;i&gt;") in listed
    for name in kept:
        assert (site / "gallery" / name).read_bytes() == (site.parent / "docs/gallery" / name).read_bytes()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"(?:https?:)?//|@import|url\((?:https?:)?//")
    files = [*site.glob("*.html"), *site.glob("_static/**/*.css")]
    assert [file.name for file in files if loaded.search(file.read_text(encoding="utf-8"))] == []


def test_what_is_said_in_short_is_what_the_records_say() -> None:
    """README and docs/validity.md put the tables below into a sentence or two, which nobody writes anew with them."""
    records = json.loads((ROOT / "benchmarks/results/validity.json").read_text())
    planted = records["planted"]["findings"]["300 steps"]["all plants"]
    found, left = (planted["outcomes"][name]["count"] for name in ("exact", "unresolved"))
    small = planted["too_small_called_sufficient"]
    assert small["count"] == 0
    simulated = records["simulated"]["findings"]
    wrong = [
        100 * row["share"]
        for row in simulated["false claims"]
        if row["claim"] == "all ranks lose just the margin: a smaller one is called sufficient"
    ]
    rare = {
        row["examples"]: 100 * row["here"]["share"]
        for row in records["rare"]["findings"]["false claims"]
        if (row["losses"], row["claim"]) == ("1 in 100 fails", "called sufficient")
    }
    covered = {
        seeds: [
            100 * row["crossed"]["share"]
            for row in simulated["coverage of two-sided 95 % intervals"]
            if row["seeds"] == seeds
        ]
        for seeds in (5, 3, 2)
    }
    spans = {seeds: f"{min(shares):.1f} to {max(shares):.1f} %" for seeds, shares in covered.items()}
    readme, validity = (" ".join(page.read_text().split()) for page in (ROOT / "README.md", DOCS / "validity.md"))
    span = f"called sufficient in {min(wrong):.1f} to {max(wrong):.1f} %"
    told = {
        readme: [
            f"of {small['of']} tasks built to need a known rank, trained for 300 steps, {found} got that rank, {left} "
            f"stayed unresolved, none got a smaller one (0 to {100 * small['high']:.1f} %)",
            span,
            f"200, 100 or 50 are tested, in {rare[200]:.0f}, {rare[100]:.0f} and {rare[50]:.0f} %",
            f"{spans[5]} of comparisons with five seeds, {spans[3]} with three and {spans[2]} with two",
        ],
        validity: [
            f"of {small['of']} planted ranks {found} were found and {left} left open, none was undercut",
            span,
            f"in {rare[200]:.0f} to {rare[50]:.0f} % where one example in 100 fails and 200 to 50 are tested",
        ],
    }
    for page, sentences in told.items():
        for sentence in sentences:
            assert sentence in page


def test_how_fast_it_is_in_short_is_what_the_records_say() -> None:
    def record(name: str) -> Any:
        return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())

    def seconds(name: str, who: str = "rankwise, ladder") -> float:
        return float(record(name)["findings"][who]["seconds"])

    def ratio(grid: str, ladder: str | None = None) -> str:
        times = seconds(grid, "Trainer") / seconds(ladder or grid)
        return f"{times:.1f}"

    def packs(name: str, other: str) -> str:
        contestants = record(name)["findings"]["contestants"]
        pack, one = (contestants[who]["examples a second, all trials"] for who in ("pack of 8, bfloat16", other))
        return f"{pack / one:.1f}"

    epyc, xeon = "decision_time_3_epochs_epyc", "decision_time_3_epochs_again"
    cpus = ("throughput_cpu_epyc", "throughput_cpu")
    on_epyc, on_xeon = (f"{packs(cpu, 'Trainer, as is')}; {packs(cpu, 'loop, tuned')} on the" for cpu in cpus)
    on_gpu = [
        f"{pack['times_peft']:.1f}"
        for model in record("throughput_cuda")
        for pack in model["packs"]
        if pack["pack"] == "8"
    ]
    studies = [
        study["seconds"] for study in record("decision_time_optuna")["findings"]["Optuna"][1:]
    ]  # one was cut off
    page = " ".join((DOCS / "performance.md").read_text().split())
    for told in (
        f"{ratio(epyc, f'{epyc}_4_rates')}, {ratio(epyc)} and {ratio(epyc, f'{epyc}_after')} on an AMD EPYC, "
        f"{ratio(xeon)} and "
        f"{ratio(xeon, 'decision_time_3_epochs_after')} on an Intel Xeon |",
        f"three learning rates | {ratio('decision_time_3_rates')} |",
        f"200 steps | {ratio('decision_time')} |",
        f"nobody can tell ranks apart | {ratio('decision_time_128')} |",
        f"another each time | {sum(studies) / len(studies) / seconds('decision_time'):.0f} |",
        f"{on_epyc} EPYC, {on_xeon} Xeon |",
        f"| {' and '.join(on_gpu)} |",
    ):
        assert told in page, told
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"trains {' and '.join(sorted(on_gpu))} times as many tokens a second as PEFT" in readme
