"""Where to look for a rank: the spectra that were measured, a row each, the rank that is named and what to run next."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import RenderableType

from rankwise.fidelity import PROBE
from rankwise.records import ConfirmedSpectrum, RankPattern, RankProbe
from rankwise.report.sheet import Heading, Sheet
from rankwise.report.terminal import shown
from rankwise.report.text import DASH, bytes_text, isolated, seconds_text, share_text

_HEADS = ("modules", "r at\n90 %", "r at\n95 %", "stable\nrank", "entropy\nrank", "confirmed")


def probe_sheet(probe: RankProbe) -> Sheet:
    """A row for the update of the warm-ups, one for each kind of projection in it, and one for each gradient."""
    update, title = probe.update, f"{isolated(probe.task)} on {isolated(probe.model)}"
    rows = [_row(f"update, {update.step} steps", update.overall, share_text(update.confirmed))]
    rows += [_row(f"  {isolated(kind.name)}", kind) for kind in update.kinds]
    rows += [
        _row(f"gradient, step {point.step}", point.overall, share_text(point.confirmed)) for point in probe.gradients
    ]
    return Sheet(title, [Heading("spectrum", "left"), *map(Heading, _HEADS)], rows, list(_lines(probe)))


def probe_table(probe: RankProbe) -> RenderableType:
    return shown(probe_sheet(probe))


def _row(name: str, spectrum: ConfirmedSpectrum, confirmed: str = DASH) -> list[str]:
    return [
        name,
        f"{spectrum.modules:,}",
        str(spectrum.rank_90),
        str(spectrum.rank_95),
        f"{spectrum.stable_rank:.1f}",
        f"{spectrum.entropy_rank:.1f}",
        confirmed,
    ]


def _lines(probe: RankProbe) -> Iterator[str]:
    yield (
        f"Update: what two warm-ups of rank {probe.warm_up_rank} at learning rate {probe.learning_rate:g}, each on "
        f"half of {probe.examples:,} examples, changed alike. Confirmed: that share of all energy; the rest is noise."
    )
    yield "r at 95 %: the one rank for all of a row's modules that keeps 95 % of the confirmed energy."
    more = ", or more: the warm-up had no larger rank to show" if probe.at_least else ""
    yield f"Look around rank {probe.rank}{more}. Next: rankwise compare … --ranks {','.join(map(str, probe.ranks))}"
    if probe.update.by_chance:
        yield (
            "But the two halves agree no more than by chance, so that this rank says nothing: give more "
            "--examples or another learning rate, or compare."
        )
    yield f"This is a hint and no measurement. {PROBE}"
    yield (
        f"Capacity floor: rank {probe.capacity_floor} could hold the {probe.capacity_bits:,.0f} bits that the training "
        "data may have to tell. Poor alone: this rule has said 15 to 21 where 64 to 256 were needed."
    )
    if probe.pattern is not None:
        yield from _pattern_lines(probe.pattern)
    yield f"Took {seconds_text(probe.seconds)} and {bytes_text(probe.peak_memory_bytes)}, the base model included."
    for note in probe.notes:
        yield f"note: {isolated(note)}"


def _pattern_lines(pattern: RankPattern) -> Iterator[str]:
    yield f"Ranks by module within the budget, {pattern.params:,} parameters, for PEFT's LoraConfig:"
    settings = {
        "r": pattern.r,
        "lora_alpha": pattern.lora_alpha,
        "use_rslora": pattern.use_rslora,
        "rank_pattern": pattern.rank_pattern,
        "alpha_pattern": pattern.alpha_pattern,
    }
    for name, value in settings.items():
        yield f"  {name} = {json.dumps(value)}"
