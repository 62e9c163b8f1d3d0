"""From trained trials to each rank's learning rate: what validation says, before the test split is touched. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.schedule import best_rate
from rankwise.errors import RunError
from rankwise.records import Trial, TrialResult


@dataclass(frozen=True)
class Choice:
    """Each rank's trials at its best learning rate, one a seed, under one scaling; `config` has that one alone.

    `rank_0_nll` is the loss of rank 0 on validation: a trial that ends no lower has failed.
    """

    config: ComparisonConfig
    results: Mapping[Trial, TrialResult]
    by_rank: Mapping[int, tuple[Trial, ...]]
    rank_0_nll: float

    @property
    def trials(self) -> list[Trial]:
        return [trial for trials in self.by_rank.values() for trial in trials]

    @property
    def following(self) -> list[int]:
        """The ranks that are judged at the largest one's learning rate alone, where there are others."""
        if len(self.config.learning_rates) == 1:
            return []
        return [rank for rank in self.by_rank if len(_tried(self.results, rank)) == 1]

    def trained(self, rank: int) -> list[TrialResult]:
        return [self.results[trial] for trial in self.by_rank[rank]]

    def failed(self, rank: int) -> list[Trial]:
        """Those of a rank's trials that end no lower than rank 0."""
        return [trial for trial in self.by_rank[rank] if self.results[trial].validation_nll >= self.rank_0_nll]

    def best(self, rank: int | None) -> Trial:
        """The trial with the lowest validation loss, of this rank or of all."""
        return min(
            self.trials if rank is None else self.by_rank[rank], key=lambda trial: self.results[trial].validation_nll
        )


def choose(config: ComparisonConfig, results: Mapping[Trial, TrialResult], rank_0_nll: float) -> Choice:
    """Each rank's best learning rate over all seeds, by validation; no entry where all diverged.

    `config` has one scaling; results under another are left out. Raises `RunError` where no rank has a rate.
    """
    rslora = config.scalings[0] == "rslora"
    mine = {trial: result for trial, result in results.items() if trial.use_rslora == rslora}
    chosen = {}
    for rank in config.ranks:
        losses = {
            rate: [mine[config.trial(rank, rate, seed)].validation_nll for seed in config.seed_numbers]
            for rate in _tried(mine, rank)
        }
        best = best_rate(losses, rank_0_nll)
        if best is not None:
            chosen[rank] = tuple(config.trial(rank, best, seed) for seed in config.seed_numbers)
    if not chosen:
        under = f" under {config.scalings[0]}" if len(results) > len(mine) else ""
        raise RunError(
            f"at every learning rate of every rank{under} a seed diverged; "
            "add lower --learning-rates and go on with --resume"
        )
    return Choice(config, mine, chosen, rank_0_nll)


def notes_on_training(choice: Choice) -> list[str]:
    """What a reader must know of the learning rates before believing a row."""
    config, results = choice.config, choice.results
    notes = []
    diverged = [trial.id for trial, result in results.items() if result.status == "diverged"]
    if diverged:
        notes.append(f"{len(diverged)} of {len(results)} trials diverged: {', '.join(diverged)}")
    without = [rank for rank in config.ranks if rank not in choice.by_rank]
    if without:
        notes.append(f"rank {_listed(without)}: at every learning rate a seed diverged; add lower --learning-rates")
    notes += _notes_on_failures(choice)
    if len(config.learning_rates) == 1:
        notes.append("one learning rate was tried: it may be fairer to some ranks than to others")
    else:
        notes += _notes_on_following(choice)
        notes += _notes_on_edges(choice)
    if config.seeds == 1:
        notes.append("one seed says nothing about how much another would differ: no intervals, no verdicts")
    if config.seeds == 2:
        notes.append("two seeds: where most of the chance is theirs, limits are right less often than they say")
    return notes


def _notes_on_failures(choice: Choice) -> Iterator[str]:
    failures = {rank: choice.failed(rank) for rank in choice.by_rank}
    if all(len(failures[rank]) == len(trials) for rank, trials in choice.by_rank.items()):
        return  # Nothing is learnt at any rank, which the answer says.
    for rank, trials in choice.by_rank.items():
        if failed := failures[rank]:
            if 1 < len(failed) == len(trials):
                seeds = "every seed"
            else:
                seeds = f"{'seed' if len(failed) == 1 else 'seeds'} {_listed([trial.seed for trial in failed])}"
            rate = trials[0].learning_rate
            lower = "lower" if rate == _tried(choice.results, rank)[0] else "other"
            yield (
                f"rank {rank}: at its learning rate, {rate:g}, {seeds} ended no better than rank 0, by NLL on "
                f"validation; add {lower} --learning-rates, or more --steps"
            )


def _notes_on_following(choice: Choice) -> Iterator[str]:
    if ranks := choice.following:
        rate, largest = choice.by_rank[ranks[0]][0].learning_rate, max(choice.config.ranks)
        yield (
            f"rank {_listed(ranks)}: judged at rank {largest}'s learning rate alone, {rate:g}; another may do better, "
            "and a new run with --strategy grid tries them"
        )


def _notes_on_edges(choice: Choice) -> Iterator[str]:
    edges: dict[tuple[float, str], list[int]] = {}
    for rank, trials in choice.by_rank.items():
        if rank in choice.following:
            continue
        rate, rates = trials[0].learning_rate, _tried(choice.results, rank)
        for edge, direction in ((rates[0], "lowest"), (rates[-1], "highest")):
            if rate == edge:
                edges.setdefault((edge, direction), []).append(rank)
    for (edge, direction), ranks in edges.items():
        yield (
            f"rank {_listed(ranks)}: the best learning rate, {edge:g}, is the {direction} that was tried; "
            "one beyond it may be better"
        )


def _tried(results: Mapping[Trial, TrialResult], rank: int) -> list[float]:
    return sorted({trial.learning_rate for trial in results if trial.rank == rank})


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
