"""The site of docs/: its pages, and what is written into them at build time so that it cannot drift."""

from __future__ import annotations

import re
import shutil
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote

from sphinx.application import Sphinx
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import rankwise
from rankwise.cli.main import app

project = "Rankwise"
release = rankwise.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
default_role = "code"  # docstrings are plain text with code between single backticks
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"Rankwise {release}"
html_copy_source = False
html_show_copyright = False

DOCS = Path(__file__).parent
GENERATED = "<!-- generated -->"


def commands() -> str:
    """Every command's own help."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return "\n\n".join(
        f"## rankwise {name}\n\n```text\n{CliRunner().invoke(app, [name, '--help'], prog_name='rankwise').output}```"
        for name in group.commands
    )


def names() -> str:
    """Every public name with its docstring: what is called first, then the records and the errors."""
    public = {name: getattr(rankwise, name) for name in rankwise.__all__}
    classes = {name for name, value in public.items() if isinstance(value, type)}
    errors = {name for name in classes if issubclass(public[name], Exception)}
    parts = [
        ("Functions", "autofunction", public.keys() - classes),
        ("Records", "autoclass", classes - errors),
        ("Errors", "autoexception", errors),
    ]
    return "\n\n".join(
        "\n\n".join([f"## {title}", *(_directive(kind, name) for name in sorted(part))]) for title, kind, part in parts
    )


def _directive(kind: str, name: str) -> str:
    members = "" if kind == "autofunction" else "   :members:\n"
    return f"```{{eval-rst}}\n.. {kind}:: rankwise.{name}\n{members}```"


def reports() -> str:
    """A link to every report under docs/gallery, by its title."""
    if not (pages := _gallery()):
        return "No report is kept here. `rankwise report RUN` writes that of a run of yours."
    links = "".join(f'<li><a href="gallery/{quote(page.name)}">{escape(_title(page))}</a></li>\n' for page in pages)
    return f"```{{raw}} html\n<ul>\n{links}</ul>\n```"


def _gallery() -> list[Path]:
    return sorted((DOCS / "gallery").glob("*.html"))


def _title(page: Path) -> str:
    found = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.DOTALL)
    return unescape(found[1]).strip() if found else page.stem


WRITTEN = {"cli": commands, "api": names, "gallery": reports}


def _write(app: Sphinx, page: str, source: list[str]) -> None:
    if page in WRITTEN:
        assert GENERATED in source[0]
        source[0] = source[0].replace(GENERATED, WRITTEN[page]())


def _copy_reports(app: Sphinx, error: Exception | None) -> None:
    """Reports are whole pages, which Sphinx must not touch."""
    copies = Path(app.outdir) / "gallery"
    copies.mkdir(exist_ok=True)
    for page in _gallery():
        shutil.copy(page, copies)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _write)
    app.connect("build-finished", _copy_reports)
