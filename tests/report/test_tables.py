from __future__ import annotations

import dataclasses
import io
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from rankwise.records import RankComparison
from rankwise.report.tables import comparison_notes, comparison_table
from tests.report.samples import COMPARISON

WIDTHS = [60, 100, 200]


def rendered(renderable: RenderableType, width: int = 200) -> list[str]:
    """What a terminal of that width shows; rich's padding at the right is not shown."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def rows(lines: list[str]) -> list[list[str]]:
    """The words of each line of the table that begins a row."""
    rule = next(index for index, line in enumerate(lines) if line.startswith("──"))
    found = [line.split() for line in lines[rule + 1 :]]
    return [words for words in found if words and words[0].isdigit()]


def changed(comparison: RankComparison, **values: object) -> RankComparison:
    """The comparison with `values` in every experiment."""
    experiments = tuple(dataclasses.replace(each, **values) for each in comparison.experiments)
    return dataclasses.replace(comparison, experiments=experiments)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_rank_has_a_row_and_its_accuracy(width: int) -> None:
    lines = rendered(comparison_table(COMPARISON), width)
    assert [words[0] for words in rows(lines)] == ["0", "4", "16", "256"]
    assert re.findall(r"\d+\.\d(?= %)", "\n".join(lines)) == ["71.2", "75.6", "84.2", "100.0"]
    assert re.findall(r"\(\S+–\S+\)", "\n".join(lines)) == ["(74.4–76.9)", "(83.0–85.4)", "(98.8–100.0)"]


def test_a_wide_row_holds_the_whole_record() -> None:
    baseline, _, middle, _ = rows(rendered(comparison_table(COMPARISON)))
    assert (
        " ".join(middle)
        == "16 32 0.0003 9,175,810 84.2 % (83.0–85.4) 0.358 sufficient −0.0012 (−0.0034 to +0.0056) 16 min 07 s 22.6 GB"
    )
    assert " ".join(baseline) == "0 – – – 71.2 % 0.580 – – – –"


def test_a_narrower_row_leaves_out_what_the_answer_says_too() -> None:
    baseline, _, middle, _ = rows(rendered(comparison_table(COMPARISON), width=80))
    assert " ".join(middle) == "16 32 9,175,810 84.2 % (83.0–85.4) sufficient 16 min 07 s 22.6 GB"
    assert " ".join(baseline) == "0 – – 71.2 % – – –"
    _, _, narrow, _ = rows(rendered(comparison_table(COMPARISON), width=60))
    assert " ".join(narrow[:3]) == "16 84.2 %"


@pytest.mark.parametrize("width", WIDTHS)
def test_what_was_not_measured_is_a_dash(width: int) -> None:
    unmeasured = changed(
        COMPARISON, accuracy_low=None, accuracy_high=None, nll=math.nan, peak_memory_bytes=None, seeds=1
    )
    text = "\n".join(rendered(comparison_table(unmeasured), width))
    assert not re.search("none|nan|inf", text, re.IGNORECASE)
    assert all(words[-1] == "–" for words in rows(text.splitlines()))
    assert "over 1 seed and the test examples; an interval needs two seeds or more" in " ".join(text.split())
    alike = rendered(comparison_table(changed(unmeasured, seeds=3)), width)
    assert "no interval where all scores are alike" in " ".join(" ".join(alike).split())


@pytest.mark.parametrize(("fewest", "said"), [(5, "over 5 seeds"), (3, "over 3 to 5 seeds")])
def test_the_caption_counts_the_seeds(fewest: int, said: str) -> None:
    first, *others = COMPARISON.experiments
    fewer = dataclasses.replace(COMPARISON, experiments=(dataclasses.replace(first, seeds=fewest), *others))
    assert said in " ".join(rendered(comparison_table(fewer)))


@pytest.mark.parametrize(
    ("of", "said"), [("tokens", "share of learned tokens"), ("completions", "share of whole completions")]
)
def test_the_caption_says_what_a_language_models_figures_are(of: str, said: str) -> None:
    comparison = dataclasses.replace(COMPARISON, accuracy_of=of)  # type: ignore[arg-type]
    shown = " ".join(line.strip() for line in rendered(comparison_table(comparison)))
    assert f"Accuracy ({said}) and NLL (nats per token)" in shown
    assert "Rank 0 is the base model as it is" in shown


def test_the_caption_names_the_scaling_rule() -> None:
    assert "scaling is alpha/rank." in " ".join(rendered(comparison_table(COMPARISON)))
    rank_stabilised = changed(COMPARISON, use_rslora=True)
    assert "scaling is alpha/sqrt(rank)." in " ".join(rendered(comparison_table(rank_stabilised)))


def test_markup_in_names_and_notes_is_text() -> None:
    hostile = dataclasses.replace(COMPARISON, model="[red]m[/red]", task="[/]t", notes=("[bold]n[/bold] [/x]",))
    assert "[/]t on [red]m[/red]" in " ".join(rendered(comparison_table(hostile)))
    assert rendered(comparison_notes(hostile)) == ["note: [bold]n[/bold] [/x]"]


@pytest.mark.parametrize("width", WIDTHS)
def test_notes_are_shown_in_full(width: int) -> None:
    words = " ".join(rendered(comparison_notes(COMPARISON), width)).split()
    assert words == " ".join(f"note: {note}" for note in COMPARISON.notes).split()


def test_no_notes_print_nothing() -> None:
    assert "".join(rendered(comparison_notes(dataclasses.replace(COMPARISON, notes=())))) == ""


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rows_of_two_scalings_are_told_apart(width: int) -> None:
    other = changed(COMPARISON, use_rslora=True)
    both = dataclasses.replace(COMPARISON, experiments=(*COMPARISON.experiments, *other.experiments))
    lines = rendered(comparison_table(both), width)
    assert [" ".join(words[:2]) for words in rows(lines)[4:]] == ["4 rs", "16 rs", "256 rs"]
    assert "scaling is alpha/rank, of ranks with rs alpha/sqrt(rank)." in " ".join(" ".join(lines).split())
    assert all(words[1] != "rs" for words in rows(rendered(comparison_table(other), width)))
