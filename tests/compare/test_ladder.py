"""Which rank a ladder trains next; the cut adapters' losses; and a run from its start to its answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise import ComparisonConfig, RankComparison, plan_rank_comparison, run_rank_comparison
from rankwise.compare.answer import judge
from rankwise.compare.cut import cut, in_order
from rankwise.compare.directory import RunDirectory
from rankwise.compare.evidence import Evidence, Scale, Step, path_text
from rankwise.compare.journal import Event, Journal
from rankwise.compare.ladder import next_step
from rankwise.compare.prepare import prepare
from rankwise.decide.verdict import Decision, Margin
from rankwise.lora.attach import attached
from rankwise.lora.peft_io import read_adapter
from rankwise.records import Baseline, Trial
from rankwise.train.loop import evaluate
from tests.compare.runs import KilledError, given_costs, journal, numbers, tiny_comparison

RANKS = (2, 4, 8, 16, 32)
SCALE = Scale("nll", Margin(0.95, 0.01), Baseline(accuracy=0.5, nll=0.7), chance=0.7)


def of(loss: float, spread: float = 0.0) -> Evidence:
    return Evidence((loss - spread, loss, loss + spread), loss, loss, rising=False)


def step_after(
    cut: Mapping[int, float],
    evidence: Mapping[int, Evidence | None],
    ranks: Sequence[int] = RANKS,
    alone: Collection[int] = (),
    may_follow: bool = False,
    shown_by_test: Callable[[int], bool] | None = None,
) -> Step:
    return next_step(ranks, cut, evidence, SCALE, alone=alone, may_follow=may_follow, shown_by_test=shown_by_test)


def walk(
    cut: Mapping[int, float],
    trained: Mapping[int, Evidence | None],
    ranks: Sequence[int] = RANKS,
    *,
    shown: bool = False,
    followed: Mapping[int, Evidence | None] | None = None,
) -> tuple[list[int], Step, str]:
    """The ranks in the order in which they are trained after the largest, the last step, and the way in words.

    `shown` is what test says, which may be asked once. `followed` are the ranks' losses at the largest one's learning
    rate, where there are more; a rank that is trained at the others too comes twice in the order.
    """
    evidence = {ranks[-1]: trained[ranks[-1]]}
    order: list[int] = []
    alone: set[int] = set()
    steps: list[Step] = []
    while True:
        asked = any(step.looked for step in steps)
        steps.append(
            step_after(cut, evidence, ranks, alone, followed is not None, None if asked else lambda rank: shown)
        )
        rank, follows = steps[-1].rank, steps[-1].follows
        if rank is None:
            return order, steps[-1], path_text(steps)
        assert rank not in evidence or (rank in alone and not follows)
        order.append(rank)
        alone = alone | {rank} if follows else alone - {rank}
        of_rank = followed[rank] if followed is not None and follows else trained[rank]
        evidence = dict(sorted((evidence | {rank: of_rank}).items()))


def losses(*of_ranks: float) -> dict[int, Evidence | None]:
    """One loss a rank, with a little chance at all of them but the largest."""
    return {rank: of(loss, 0.0001 * (32 - rank)) for rank, loss in zip(RANKS, of_ranks, strict=True)}


def test_the_two_ranks_around_the_knee_are_trained_where_the_cut_is_right() -> None:
    order, last, path = walk({2: 0.6, 4: 0.5, 8: 0.405, 16: 0.401}, losses(0.6, 0.5, 0.402, 0.4, 0.4))
    assert (order, last.stopped) == ([4, 8], "plateau")
    assert path == (
        "32 cut to 16 loses 0.001 nats, to 8 0.005, to 4 0.1, to 2 0.2 (margin 0.01) → "
        "4 loses 0.1 nats to 32 (margin 0.01): it underfits → 8 and 32 agree (0.002 nats, margin 0.01) → stop: plateau"
    )


def test_training_does_better_than_cutting_so_it_goes_down_first() -> None:
    order, last, _ = walk({2: 0.6, 4: 0.5, 8: 0.45, 16: 0.401}, losses(0.6, 0.402, 0.402, 0.4, 0.4))
    assert (order, last.stopped) == ([8, 4, 2], "plateau")


def test_it_climbs_where_cutting_did_better_than_training() -> None:
    order, last, _ = walk({2: 0.41, 4: 0.4, 8: 0.4, 16: 0.4}, losses(0.6, 0.6, 0.6, 0.402, 0.4))
    assert (order, last.stopped) == ([2, 4, 8, 16], "plateau")


def test_where_every_rank_loses_there_is_no_plateau() -> None:
    order, last, _ = walk({2: 0.6, 4: 0.6, 8: 0.6, 16: 0.6}, losses(0.6, 0.6, 0.6, 0.6, 0.4))
    assert (order, last.stopped) == ([16], "no plateau")


def test_where_the_smallest_suffices_it_alone_is_trained() -> None:
    order, last, _ = walk({2: 0.4, 4: 0.4, 8: 0.4, 16: 0.4}, losses(0.402, 0.4, 0.4, 0.4, 0.4))
    assert (order, last.stopped) == ([2], "plateau")


def test_a_rank_that_cannot_be_told_apart_is_noise_and_the_next_larger_is_trained() -> None:
    trained = losses(0.6, 0.5, 0.402, 0.4, 0.4) | {4: of(0.41, spread=0.1)}
    order, last, _ = walk({2: 0.6, 4: 0.5, 8: 0.405, 16: 0.401}, trained)
    assert (order, last.stopped) == ([4, 8], "noise")


def test_test_is_asked_where_validation_cannot_tell() -> None:
    trained = losses(0.405, 0.4, 0.4, 0.4, 0.4) | {2: of(0.405, spread=0.1)}
    cut = {2: 0.41, 4: 0.4, 8: 0.4, 16: 0.4}
    order, last, path = walk(cut, trained, shown=True)
    assert (order, last) == ([2], Step(last.found, None, "plateau", looked=True))
    assert path.endswith("but test shows that 2 suffices → stop: plateau")
    order, last, path = walk(cut, trained, shown=False)
    assert (order, last.stopped, last.looked) == ([2, 4], "noise", False)
    assert "nor does test show that 2 suffices → 4 and 32 agree" in path


def test_test_is_asked_once() -> None:
    trained = {rank: of(0.4, spread=0.1) for rank in RANKS}
    order, _, path = walk(dict.fromkeys(RANKS[:-1], 0.4), trained)
    assert order == [2, 4, 8, 16]
    assert path.count("nor does test show") == 1


@pytest.mark.parametrize(("of_the_cut", "of_the_mean"), [(0.4, 0.411), (0.411, 0.4)])
def test_test_is_not_asked_where_a_cut_or_a_mean_loses_more(of_the_cut: float, of_the_mean: float) -> None:
    trained = losses(0.6, 0.6, 0.6, 0.402, 0.4) | {8: of(of_the_mean, spread=0.1)}
    order, last, _ = walk({2: 0.6, 4: 0.6, 8: of_the_cut, 16: 0.4}, trained, shown=True)
    assert (order, last.stopped) == ([8, 16] if of_the_cut > 0.41 else [4, 8, 16], "noise")


FLAT = dict.fromkeys(RANKS[:-1], 0.4)


def test_a_rank_that_suffices_at_the_largest_ones_learning_rate_is_trained_at_no_other() -> None:
    order, last, path = walk(FLAT, losses(0.6, 0.6, 0.6, 0.6, 0.4), followed=losses(0.402, 0.6, 0.6, 0.6, 0.6))
    assert (order, last.stopped) == ([2], "plateau")
    assert path.endswith("at 32's learning rate: 2 and 32 agree (0.002 nats, margin 0.01) → stop: plateau")


@pytest.mark.parametrize("alone", [of(0.6, 0.01), of(0.405, 0.1), None])
def test_a_rank_that_does_not_is_trained_at_its_others_too(alone: Evidence | None) -> None:
    order, last, path = walk(FLAT, losses(0.402, 0.6, 0.6, 0.6, 0.4), followed=losses(0, 0.6, 0.6, 0.6, 0) | {2: alone})
    assert (order, last.stopped) == ([2, 2], "plateau")
    assert " → at 32's learning rate: 2 " in path
    assert path.endswith(
        " → so 2's other learning rates are tried → 2 and 32 agree (0.002 nats, margin 0.01) → stop: plateau"
    )


def test_one_that_test_shows_to_suffice_so_is_not() -> None:
    trained = losses(0.6, 0.6, 0.6, 0.6, 0.4)
    unclear = {rank: of(0.405, spread=0.1) for rank in RANKS}
    order, last, _ = walk(FLAT, trained, followed=unclear, shown=True)
    assert (order, last.stopped, last.looked) == ([2], "plateau", True)
    order, _, path = walk(FLAT, trained, followed=unclear, shown=False)
    assert order == [2, 2, 4, 4, 8, 8, 16, 16]
    assert path.count("nor does test show") == 1
    assert [f"so {rank}'s other" in path for rank in RANKS] == [True, True, True, True, False]


def test_where_a_rank_cannot_be_told_apart_those_after_it_are_trained_at_all_learning_rates() -> None:
    unclear = {rank: of(0.405, spread=0.1) for rank in RANKS}
    order, _, _ = walk(FLAT, unclear, followed=unclear)
    assert order == [2, 2, 4, 8, 16]


def test_a_rank_to_which_the_cut_loses_more_is_trained_at_all_learning_rates() -> None:
    cut = {2: 0.6, 4: 0.5, 8: 0.405, 16: 0.401}
    trained = losses(0.6, 0.5, 0.402, 0.4, 0.4)
    order, last, _ = walk(cut, trained, followed=trained)
    assert (order, last.stopped) == ([4, 8], "plateau")
    steps = [step_after(cut, {32: trained[32]}, may_follow=True)]
    steps.append(step_after(cut, {4: trained[4], 32: trained[32]}, may_follow=True))
    assert [(step.rank, step.follows) for step in steps] == [(4, False), (8, True)]


def test_without_the_largest_rank_there_is_nothing_to_cut() -> None:
    step = step_after({}, {32: None}, may_follow=True)
    assert step == Step(("32 has no learning rate at which every seed trains",), None, "noise")


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1e-4, 0.01, 0.3]), count=st.integers(2, 6))
def test_every_ladder_ends_and_stands_between_two_neighbours(seed: int, spread: float, count: int) -> None:
    drawn = random.Random(seed)
    ranks = [2**number for number in range(count)]
    trained: dict[int, Evidence | None] = {
        rank: Evidence(tuple(drawn.gauss(0.4 + drawn.random() / rank, spread) for _ in range(3)), 0.4, 0.4, False)
        for rank in ranks
    }
    cut = {rank: 0.4 + drawn.random() / rank for rank in ranks[:-1]}
    order, last, path = walk(cut, trained, ranks, followed=drawn.choice([None, trained, dict.fromkeys(ranks)]))
    assert last.stopped in ("plateau", "no plateau", "noise")
    assert path.endswith(f"stop: {last.stopped}")
    # What was trained, with the largest, has no gap but one: above the ranks around the knee.
    positions = sorted({ranks.index(rank) for rank in order})
    assert positions == list(range(positions[0], positions[-1] + 1))


@pytest.fixture(scope="module", autouse=True)
def costs() -> Iterator[None]:
    with given_costs():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    """Its ranks are alike by a margin that nothing exceeds, so the smallest is trained after the largest."""
    return tiny_comparison(
        tmp_path_factory.mktemp("model") / "bert",
        strategy="ladder",
        ranks=(1, 2, 4),
        alpha=8.0,
        steps=8,
        evaluations=2,
        margin=5.0,
    )


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "run")


def test_a_run_trains_the_largest_and_those_around_the_knee(finished: RankComparison) -> None:
    assert [experiment.rank for experiment in finished.experiments] == [1, 4]
    assert finished.recommendation.stopped == "plateau"
    followed, largest = finished.experiments
    assert followed.learning_rate == largest.learning_rate
    trained = sorted(path.name for path in (finished.run / "trials").glob("r1-*"))
    assert trained == [f"r1-a8-lr{followed.learning_rate:g}-s{seed}" for seed in range(followed.seeds)]
    assert (
        f"rank 1: judged at rank 4's learning rate alone, {followed.learning_rate:g}; another may do better, and "
        "a new run with --strategy grid tries them"
    ) in finished.notes
    assert "other learning rates at rank 1" in finished.recommendation.unknown
    (path,) = [note for note in finished.notes if note.startswith("ladder: ")]
    assert path.startswith("ladder: 4 cut to 2 loses ")
    assert [(step["basis"]["ranks"], step["rank"]) for step in journal(finished.run, "ladder")] == [
        ([4], 1),
        ([1, 4], None),
    ]
    assert "scored" not in [event["event"] for event in Journal(finished.run / "journal.jsonl").events][:-3]


def test_a_cut_trial_is_the_nearest_update_of_its_rank(finished: RankComparison, config: ComparisonConfig) -> None:
    """Against a dense SVD of the update, at another scaling, and the journal's losses against the cut one's."""
    prepared = prepare(config, lambda text, share=None: None)
    (event,) = journal(finished.run, "cut")
    nlls = []
    for seed, name in zip(config.seed_numbers, event["trials"], strict=True):
        adapter = read_adapter(finished.run / "trials" / name / "adapter", prepared.base, prepared.targets)
        rate = next(one.learning_rate for one in finished.experiments if one.rank == 4)
        whole, to = (config.trial(rank, rate, seed) for rank in (4, 2))
        smaller = cut(in_order(adapter.state, prepared.targets), prepared.targets, whole, to)
        for target in prepared.targets:
            expected = update(adapter.state, target.name, whole)
            u, values, vt = torch.linalg.svd(expected, full_matrices=False)
            nearest = (u[:, :2] * values[:2]) @ vt[:2]
            torch.testing.assert_close(update(smaller, target.name, to), nearest, rtol=1e-4, atol=1e-6)
        with attached(prepared.base, [to], prepared.targets) as pack:
            pack.load(0, smaller)
            nlls.append(evaluate(prepared.base, 1, prepared.task, 8)[0].nll)
    assert event["nll"][event["ranks"].index(2)] == pytest.approx(sum(nlls) / 2, rel=1e-5)


def update(state: Mapping[str, torch.Tensor], name: str, trial: Trial) -> torch.Tensor:
    return trial.scaling * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]


def test_a_cut_wider_than_a_layer_is_filled_with_zeros(config: ComparisonConfig) -> None:
    prepared = prepare(config, lambda text, share=None: None)
    target = min(prepared.targets, key=lambda target: min(target.d_in, target.d_out))
    width = min(target.d_in, target.d_out)
    whole, to = config.trial(2 * width + 2, 1e-3, 0), config.trial(width + 2, 1e-3, 0)
    state = {
        f"{target.name}.lora_A.weight": torch.randn(whole.rank, target.d_in),
        f"{target.name}.lora_B.weight": torch.randn(target.d_out, whole.rank),
    }
    smaller = cut(in_order(state, [target]), [target], whole, to)
    assert smaller[f"{target.name}.lora_A.weight"].shape == (to.rank, target.d_in)
    torch.testing.assert_close(
        update(smaller, target.name, to), update(state, target.name, whole), rtol=1e-4, atol=1e-4
    )


def test_killed_anywhere_a_run_ends_with_the_same_numbers(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the cut was scored, after a step, and after the last one."""
    run = tmp_path / "run"
    append = Journal.append
    for kind, wanted in (("cut", 1), ("ladder", 1), ("ladder", 2)):

        def kill(self: Journal, event: str, kind: str = kind, wanted: int = wanted, **values: Any) -> Event:
            journaled = append(self, event, **values)
            if event == kind and len(self.of(kind)) == wanted:
                raise KilledError
            return journaled

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", kill)
            with pytest.raises(KilledError):
                run_rank_comparison(config, run=run, resume=run.exists())
    run_rank_comparison(config, run=run, resume=True)
    assert numbers(run) == numbers(finished.run)
    assert len(journal(run, "cut")) == 1


@pytest.fixture
def unclear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation can tell no rank from the largest."""
    monkeypatch.setattr("rankwise.compare.ladder.weigh", lambda rank, *others: ("unclear", f"{rank} is unclear"))


def test_a_rank_that_test_does_not_show_to_suffice_is_followed_by_larger_ones(
    unclear: None, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_rank_comparison(config, run=tmp_path / "whole")
    assert [experiment.rank for experiment in whole.experiments] == [1, 2, 4]
    steps = journal(whole.run, "ladder")
    assert [(step["rank"], step["follows"], step["looked"]) for step in steps] == [
        (1, True, False),
        (1, False, True),
        (2, False, False),
        (None, False, False),
    ]
    assert any(note.startswith("test was looked at once on the way") for note in whole.notes)
    scored = [trial for event in journal(whole.run, "scored") for trial in event["trials"]]
    assert len(scored) == len(set(scored)) == 6

    append = Journal.append

    def kill(self: Journal, event: str, **values: Any) -> Event:
        journaled = append(self, event, **values)
        if event == "scored":
            raise KilledError
        return journaled

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", kill)
        with pytest.raises(KilledError):
            run_rank_comparison(config, run=tmp_path / "killed")
    run_rank_comparison(config, run=tmp_path / "killed", resume=True)
    assert numbers(tmp_path / "killed") == numbers(whole.run)
    more = run_rank_comparison(replace(config, seeds=config.seeds + 1), run=tmp_path / "killed", resume=True)
    assert any(note.startswith("test was looked at 2 times on the way") for note in more.notes)


def test_a_rank_that_test_shows_to_suffice_is_the_last(
    unclear: None, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sure(*arguments: Any) -> Decision:
        decision = judge(*arguments[:4])
        asked.append(arguments[4])
        return replace(decision, verdicts=tuple(replace(one, verdict="sufficient") for one in decision.verdicts))

    monkeypatch.setattr("rankwise.compare.growth.judge", sure)
    run = run_rank_comparison(config, run=tmp_path / "run")
    assert asked == [0.99]
    assert [experiment.rank for experiment in run.experiments] == [1, 4]
    assert run.recommendation.stopped == "plateau"
    assert not any(note.startswith("test was looked at") for note in run.notes)


def test_more_test_examples_are_looked_at_anew(
    unclear: None, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*arguments: Any) -> Decision:
        asked.append(len(arguments[2].nll[0]))
        return judge(*arguments)

    monkeypatch.setattr("rankwise.compare.growth.judge", counted)
    small, large = (replace(config, max_test_examples=examples) for examples in (40, 60))
    run_rank_comparison(small, run=tmp_path / "run")
    assert asked == [40]
    grown = run_rank_comparison(large, run=tmp_path / "run", resume=True)
    assert asked == [40, 60]
    assert any(note.startswith("test was looked at 2 times on the way") for note in grown.notes)
    run_rank_comparison(large, run=tmp_path / "run", resume=True)
    assert asked == [40, 60]


def test_a_ladder_from_before_test_examples_were_counted_goes_on(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    before = Journal(finished.run / "journal.jsonl")
    shutil.copytree(finished.run, tmp_path / "run")
    (tmp_path / "run/journal.jsonl").unlink()
    old = Journal(tmp_path / "run/journal.jsonl")
    for event in before.events:
        if event["event"] == "ladder":
            del event["basis"]["examples"]
        old.append(**event)
    written = old.path.read_bytes()
    assert run_rank_comparison(config, run=tmp_path / "run", resume=True).experiments == finished.experiments
    assert old.path.read_bytes() == written


def test_more_seeds_and_ranks_extend_it(finished: RankComparison, config: ComparisonConfig, tmp_path: Path) -> None:
    small = replace(config, learning_rates=(1e-3,))
    run_rank_comparison(small, run=tmp_path / "run")
    grown = run_rank_comparison(replace(small, seeds=3, ranks=(1, 2, 4, 8)), run=tmp_path / "run", resume=True)
    # With one learning rate there is none to spare.
    assert not any(step["follows"] for step in journal(grown.run, "ladder"))
    assert [experiment.rank for experiment in grown.experiments] == [1, 8]
    assert {experiment.seeds for experiment in grown.experiments} == {3}


def test_a_plan_is_that_of_the_largest_rank(config: ComparisonConfig) -> None:
    plan = plan_rank_comparison(config)
    assert plan.trials == 4
    assert any("of rank 4 to start with" in note for note in plan.notes)


def test_with_one_seed_nothing_follows(config: ComparisonConfig, tmp_path: Path) -> None:
    run = run_rank_comparison(replace(config, seeds=1), run=tmp_path / "run")
    assert [step["follows"] for step in journal(run.run, "ladder")] != []
    assert not any(step["follows"] for step in journal(run.run, "ladder"))


def test_a_rank_that_followed_ends_with_the_better_of_its_rates(
    unclear: None, config: ComparisonConfig, finished: RankComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where its others come next, and extended by a seed, the run ends where one does that has begun so."""
    append = Journal.append

    def kill(self: Journal, event: str, **values: Any) -> Event:
        journaled = append(self, event, **values)
        if event == "ladder" and values["rank"] == 1 and not values["follows"]:
            raise KilledError
        return journaled

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", kill)
        with pytest.raises(KilledError):
            run_rank_comparison(config, run=tmp_path / "run")
    small = run_rank_comparison(config, run=tmp_path / "run", resume=True)
    (smallest, *_) = small.experiments
    results = RunDirectory(small.run).results(Journal(small.run / "journal.jsonl"))
    means = {
        rate: fmean(
            result.validation_nll
            for result in results.values()
            if (result.trial.rank, result.trial.learning_rate) == (1, rate)
        )
        for rate in {trial.learning_rate for trial in results if trial.rank == 1}
    }
    assert finished.experiments[0].learning_rate in means
    assert len(means) > 1
    assert means[smallest.learning_rate] == min(means.values())
    assert not any("learning rate alone" in note for note in small.notes)
    extended = run_rank_comparison(replace(config, seeds=3), run=tmp_path / "run", resume=True)
    fresh = run_rank_comparison(replace(config, seeds=3), run=tmp_path / "fresh")
    assert [row.learning_rate for row in extended.experiments] == [row.learning_rate for row in fresh.experiments]
    for mine, other in zip(extended.experiments, fresh.experiments, strict=True):
        assert mine.nll == pytest.approx(other.nll, rel=1e-4)
