"""A comparison as one HTML file that opens from disk: the answer, the plots, and a table behind each of them.

Texts from data, models and file names are escaped by the template; specifications lie in the page as JSON in which no
tag can begin. The page carries its plotting library and, by its content security policy, loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from rankwise.records import Needed, RankComparison, Recommendation, TrialResult
from rankwise.report.charts import charts
from rankwise.report.html import html_of
from rankwise.report.recommendation import headline, recommendation_sheet
from rankwise.report.sheet import Sheet
from rankwise.report.tables import comparison_sheet
from rankwise.report.text import isolated

_LIBRARIES = ("vega.min.js", "vega-lite.min.js")


def comparison_page(
    comparison: RankComparison,
    trials: Sequence[TrialResult],
    setup: Mapping[str, Any],
    *,
    base_bytes: int | None,
    command: str,
) -> str:
    """The page. `trials` are all that were begun, `setup` is what `comparison.json` says, `command` repeats the run."""
    plots = list(charts(comparison, trials, base_bytes))
    recommendation = comparison.recommendation
    page: str = _template().render(
        comparison=comparison,
        recommendation=recommendation,
        answer=recommendation_sheet(recommendation),
        settings=_settings(recommendation),
        needed=_needed(recommendation.needed),
        ranks=comparison_sheet(comparison),
        charts=plots,
        specifications=_script({chart.name: chart.spec for chart in plots}),
        libraries=[_library(name) for name in _LIBRARIES],
        setup=json.dumps(setup, indent=2, ensure_ascii=False),
        command=command,
    )
    return page


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("rankwise.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"isolated": isolated, "table": _table}
    environment.globals["headline"] = headline
    return environment.get_template("page.html")


def _table(sheet: Sheet) -> Markup:
    return Markup(html_of([sheet]))


def _settings(recommendation: Recommendation) -> str:
    """What to copy: PEFT's words, and the learning rate, which is the trainer's."""
    if recommendation.rank is None:
        return ""
    targets = recommendation.target_modules
    return (
        "from peft import LoraConfig\n\n"
        "lora = LoraConfig(\n"
        f"    r={recommendation.rank},\n"
        f"    lora_alpha={recommendation.alpha:g},\n"
        f"    use_rslora={recommendation.use_rslora},\n"
        f"    target_modules={json.dumps(targets)},\n"
        ")\n"
        f"learning_rate = {recommendation.learning_rate:g}\n"
    )


def _needed(needed: Needed | None) -> list[str]:
    """What would resolve an answer that is not, a line each."""
    if needed is None:
        return []
    ways = [
        (needed.seeds, needed.examples, "if the rank in truth loses nothing"),
        (needed.seeds_if_half_lost, needed.examples_if_half_lost, "if it loses half of the margin"),
    ]
    lines = []
    for seeds, examples, where in ways:
        parts = [f"{seeds:,} seeds in all"] if seeds is not None else []
        parts += [f"{examples:,} test examples in all"] if examples is not None else []
        lines.append(f"{' or '.join(parts) or 'neither more seeds nor more examples alone'}, {where}")
    return lines


def _library(name: str) -> Markup:
    return Markup(files("rankwise.report").joinpath("assets", name).read_text(encoding="utf-8"))


def _script(value: object) -> Markup:
    """JSON that may stand in a script element: no tag can begin in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
