"""Run a comparison for somebody who watches: progress on standard error, the result on standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote

from rich.console import Console

from rankwise.cli.output import ignore_interrupts, print_json
from rankwise.cli.progress import watched
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.preview import plan_rank_comparison
from rankwise.compare.run import new_run, run_rank_comparison
from rankwise.records import RankComparison
from rankwise.report.plan import plan_table
from rankwise.report.recommendation import recommendation_table
from rankwise.report.tables import comparison_notes, comparison_table


def show_comparison(config: ComparisonConfig, *, run: Path | None, resume: bool, json: bool) -> RankComparison:
    """Run or resume a comparison and print its table and the answer, or its JSON document."""
    run = run or new_run()
    try:
        with watched() as observe:
            comparison = run_rank_comparison(config, run=run, resume=resume, observe=observe)
    except KeyboardInterrupt:
        ignore_interrupts()
        if (run / "comparison.json").is_file():
            go_on = f"rankwise compare --run {quote(str(run))} --resume"
            print(f"rankwise: interrupted; go on with: {go_on}", file=sys.stderr)
        raise
    if json:
        print_json(comparison.to_dict())
        return comparison
    console = Console()
    for other in (comparison, *comparison.over):
        console.print(comparison_table(other))
        console.print(comparison_notes(other))
    console.print(recommendation_table(comparison.recommendation))
    whose = "" if comparison.recommendation.rank is not None else ": no rank is named, so the best of all on validation"
    console.print(
        f"run      {comparison.run}", f"adapter  {comparison.adapter}{whose}", sep="\n", markup=False, soft_wrap=True
    )
    return comparison


def show_plan(config: ComparisonConfig, *, json: bool) -> None:
    """Print what a comparison would take."""
    with watched() as observe:
        plan = plan_rank_comparison(config, observe=observe)
    if json:
        print_json(plan.to_dict())
    else:
        Console().print(plan_table(plan))
