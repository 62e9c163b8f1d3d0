"""What an adapter's rank is used for, and what became of one that was made smaller: a row for each kind of module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Group, RenderableType

from rankwise.records import AdapterSpectrum, GroupSpectrum, Interval, Measured, ResizedAdapter, ResizedModule
from rankwise.report.sheet import Heading, Sheet
from rankwise.report.terminal import WidestSheet, shown
from rankwise.report.text import DASH, isolated, nll_text, share_text

_SPARE = 2
_RESIZED = ("modules", "rank\nbefore", "rank", "energy\nkept")


@dataclass(frozen=True)
class _Column:
    """How one column reads the records."""

    header: str
    of_group: Callable[[GroupSpectrum], str]
    spare: int = 0  # the higher, the sooner it is left out where a terminal is narrow; 0: never


def _gaps(group: GroupSpectrum) -> str:
    if not group.gaps:
        return DASH
    span = _span(group.gaps[0], group.gaps[-1])
    return span if len(group.gaps) == group.modules else f"{span} ({len(group.gaps)} of {group.modules})"


_COLUMNS = (
    _Column("modules", lambda group: f"{group.modules:,}"),
    _Column("rank", lambda group: _span(group.rank_low, group.rank_high)),
    _Column("stable\nrank", lambda group: f"{group.stable_rank:.1f}"),
    _Column("entropy\nrank", lambda group: f"{group.entropy_rank:.1f}"),
    _Column("r at\n90 %", lambda group: str(group.rank_90), spare=1),
    _Column("r at\n95 %", lambda group: str(group.rank_95)),
    _Column("r at\n99 %", lambda group: str(group.rank_99)),
    _Column("used", lambda group: share_text(group.used)),
    _Column("gap\nafter", _gaps, spare=_SPARE),
)


def spectrum_sheet(spectrum: AdapterSpectrum, spare: int = _SPARE) -> Sheet:
    """A row for each kind of projection and one for all, without the columns that are more to spare.

    Below, what the figures are and whether alpha looks chosen.
    """
    columns = [column for column in _COLUMNS if column.spare <= spare]
    headings = [Heading("projection", "left"), *(Heading(column.header) for column in columns)]
    rows = [
        [isolated(group.name), *(column.of_group(group) for column in columns)]
        for group in (*spectrum.kinds, spectrum.overall)
    ]
    below = _spectrum_lines(spectrum, with_gaps=spare >= _SPARE)
    return Sheet(isolated(str(spectrum.adapter)), headings, rows, list(below))


def resized_sheets(resized: ResizedAdapter) -> list[Sheet]:
    """What was made smaller, and where it was measured what that changed."""
    return [_resized_sheet(resized)] + ([_measured_sheet(resized.measured)] if resized.measured else [])


def _resized_sheet(resized: ResizedAdapter) -> Sheet:
    """A row for each kind of projection and one for all."""
    kinds = dict.fromkeys(module.kind for module in resized.modules)
    groups = {kind: [module for module in resized.modules if module.kind == kind] for kind in kinds}
    rows = [_resized_row(kind, modules) for kind, modules in groups.items()]
    rows.append(_resized_row("all", resized.modules, resized.energy))
    headings = [Heading("projection", "left"), *map(Heading, _RESIZED)]
    smaller = f"{resized.params_before:,} parameters before, {resized.params:,} now"
    warning = "" if resized.measured else " It is no quality: evaluate the adapter."
    lines = [
        f"A and B have {smaller}; every module's scaling is as it was.",
        f"Energy kept: the share of the update's squared Frobenius norm.{warning}",
    ]
    return Sheet(isolated(str(resized.adapter)), headings, rows, lines)


def _measured_sheet(measured: Measured) -> Sheet:
    """A row for each metric, before and after; below, what the limits hold for and what became of the data."""
    accuracies = (measured.accuracy_before, measured.accuracy)
    changes = measured.nll_change, measured.accuracy_change
    rows = [
        ["NLL", nll_text(measured.nll_before), nll_text(measured.nll), *_change(changes[0], 1, 4)],
        ["accuracy", *map(share_text, accuracies), *_change(changes[1], 100, 1)],
    ]
    unit = "example" if measured.accuracy_of == "examples" else "learned token"
    lines = [
        f"NLL in nats per {unit}, less is better; accuracy is a share of {measured.accuracy_of}, its change in points.",
        "95 %: limits of the change over examples like these. Another seed's adapter may lose more or less.",
        *(f"note: {isolated(note)}" for note in measured.notes),
    ]
    headings = [Heading("metric", "left"), *map(Heading, ("before", "now", "change", "95 %"))]
    return Sheet(f"{measured.examples:,} test examples", headings, rows, lines)


def _change(change: Interval, factor: float, digits: int) -> tuple[str, str]:
    def text(value: float) -> str:
        return f"{factor * value:+.{digits}f}".replace("-", "−")

    limits = DASH if change.low is None or change.high is None else f"{text(change.low)} to {text(change.high)}"
    return text(change.mean), limits


def spectrum_table(spectrum: AdapterSpectrum) -> RenderableType:
    """The spectrum, in as many columns as the terminal has room for."""
    return WidestSheet(partial(spectrum_sheet, spectrum), _SPARE)


def resized_table(resized: ResizedAdapter) -> RenderableType:
    return Group(*map(shown, resized_sheets(resized)))


def _resized_row(name: str, modules: Sequence[ResizedModule], energy: float | None = None) -> list[str]:
    whole = sum(module.norm_squared_before for module in modules)
    kept = sum(module.norm_squared_before * module.energy for module in modules)
    return [
        isolated(name),
        f"{len(modules):,}",
        _span_of(module.rank_before for module in modules),
        _span_of(module.rank for module in modules),
        share_text((kept / whole if whole > 0 else 1.0) if energy is None else energy),
    ]


def _span_of(ranks: Iterable[int]) -> str:
    known = list(ranks)
    return _span(min(known), max(known))


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _spectrum_lines(spectrum: AdapterSpectrum, *, with_gaps: bool) -> Iterator[str]:
    rule = "alpha/sqrt(rank)" if spectrum.use_rslora else "alpha/rank"
    alphas = {module.alpha for module in spectrum.modules}
    others = "" if alphas == {spectrum.alpha} else "; some modules have another alpha"
    trained = f"rank {spectrum.rank}, alpha {spectrum.alpha:g}"
    yield f"Trained with {trained}: scaling {rule} = {spectrum.scaling:.3g}{others}."
    if spectrum.default_alpha_trap:
        yield (
            f"Alpha 8 is PEFT's default, and at rank {spectrum.rank} it scales every update by {spectrum.scaling:.3g}: "
            "if nobody chose it, train again with an alpha that grows with the rank before you judge the rank."
        )
    yield "Stable and entropy rank: how many directions the update of a module has in effect, mean over modules."
    yield "r at 95 %: the one rank for all of a row's modules that keeps 95 % of the energy, their squared norm."
    yield "Used: the share of the nominal rank that 99 % of each module's own energy takes."
    if with_gaps:
        yield "Gap after: the rank after which singular values fall to a third or less, where they do anywhere."
    yield "Energy is no quality: evaluate a smaller adapter before you rely on it."
