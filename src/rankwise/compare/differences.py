"""In what two descriptions of a run (its comparison.json) differ, beyond what a run may be extended by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rankwise.compare.config import ComparisonConfig
from rankwise.records import Trial

if TYPE_CHECKING:
    from rankwise.tasks.task import Split

Description: TypeAlias = dict[str, Any]

_MAY_GROW = ("ranks", "scalings", "learning_rates", "seeds", "max_test_examples")
_MAY_DIFFER = (
    *("train", "validation", "test", "retain"),  # which data they are is told by fingerprints
    *("trust_remote_code", "pack_size", "full_learning_rates", "report_to"),  # these change no trial's numbers
    *("backend", "address", "device"),  # where it is trained does neither; a device of another kind is told below
    *("metric", "keep", "margin", "budget"),  # nor do these; they change the answer, and how far escalate goes
)


def differences(there: Description, here: Description, test: Split, trained: Collection[Trial]) -> list[str]:
    """What forbids that the run that is there, with these trials, goes on as this one, a phrase each."""
    found = []
    may_differ = {*_MAY_DIFFER}
    # The weights of a directory are told by their hash, wherever they lie.
    if here["model"]["revision"].startswith("sha256:") and here["model"]["revision"] == there["model"]["revision"]:
        may_differ.add("model")
    for name, value in here["config"].items():
        # An option that the run was begun without did not exist.
        old = _without_untrained(
            name, there["config"].get(name, ComparisonConfig.default(name)), there["config"], trained
        )
        if name in may_differ or value == old:
            continue
        label = name.replace("_", "-")
        if name in _MAY_GROW:
            if not _grown(old, value):
                found.append(f"{label} is {_shown(old)} there, and {_shown(value)} does not contain that")
        else:
            found.append(f"{label} is {_shown(old)} there and {_shown(value)} here")
    for name, value in here["model"].items():
        if value != there["model"][name]:
            found.append(f"the model's {name} is {_shown(there['model'][name])} there and {_shown(value)} here")
    for split in ("train", "validation"):
        if there["data"][split] != here["data"][split]:
            found.append(f"the {split} data differ")
    seen = there["data"]["test"]["examples"]
    if seen > len(test) or test.fingerprint(first=seen) != there["data"]["test"]["sha256"]:
        found.append("the test data differ")
    return found


def _without_untrained(name: str, value: Any, config: Description, trained: Collection[Trial]) -> Any:
    """An option's value, without what an extension asked for and nothing was trained of: that may be taken back."""
    if name == "seeds":
        return min(value, max((trial.seed + 1 - config["first_seed"] for trial in trained), default=0))
    of_trial = {
        "ranks": lambda trial: trial.rank,
        "learning_rates": lambda trial: trial.learning_rate,
        "scalings": lambda trial: "rslora" if trial.use_rslora else "alpha/rank",
    }.get(name)
    return value if of_trial is None else [each for each in value if each in map(of_trial, trained)]


def _grown(old: Any, new: Any) -> bool:
    if isinstance(old, Sequence):
        return set(old) <= set(new)
    if old is None or new is None:
        return old is new
    return bool(new >= old)


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return ",".join(map(str, value))[:200] if isinstance(value, list) else " ".join(str(value)[:200].split())
