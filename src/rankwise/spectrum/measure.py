"""Two adapters of one base model on the same examples, loaded by PEFT itself.

PEFT reads every kind of adapter that can be resized, also those that our own packs cannot hold; and what was written
is then judged by the library that its users load it with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from peft import PeftModel
from torch import nn

from rankwise.base.model import BaseModel
from rankwise.decide.interval import over_examples
from rankwise.errors import RunError, UserError, reason_of
from rankwise.records import Measured, Scores
from rankwise.spectrum.subject import Subject
from rankwise.tasks.task import Task
from rankwise.train.loop import score


def measured_change(before: Scores, after: Scores, task: Task) -> Measured:
    """Compare one adapter's scores of the test examples with another's, example by example.

    Raises `RunError` for a loss that is not finite.
    """
    nll, correct = (after.nll - before.nll)[0], (after.correct - before.correct)[0]
    if not np.isfinite(nll).all():
        raise RunError("the loss of some test examples is not finite, before or after the adapter was made smaller")
    return Measured(
        examples=len(task.test),
        accuracy_of=task.accuracy_of,
        nll_before=float(before.nll.mean(dtype=np.float64)),
        nll=float(after.nll.mean(dtype=np.float64)),
        nll_change=over_examples(nll, groups=task.test.groups),
        accuracy_before=float(before.correct.mean(dtype=np.float64)),
        accuracy=float(after.correct.mean(dtype=np.float64)),
        accuracy_change=over_examples(correct, groups=task.test.groups),
        notes=task.notes,
    )


def score_adapter(adapter: Path, subject: Subject, tell: Callable[[str], None]) -> Scores:
    """What an adapter in PEFT's format makes of every test example, of one trial; the base model is then as it was."""
    tell(f"scoring {adapter} on {len(subject.task.test):,} test examples")
    with _loaded(adapter, subject.base):
        return score(subject.base, 1, subject.task, subject.task.test)


@contextmanager
def _loaded(adapter: Path, base: BaseModel) -> Iterator[None]:
    """The base model with an adapter, for the `with` block."""
    modules = dict(base.model.named_modules(remove_duplicate=False))
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 by its old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            # What PEFT does not find stays as it was made up.
            warnings.filterwarnings("error", "Found missing adapter keys")
            try:
                PeftModel.from_pretrained(base.model, str(adapter))
            # PEFT has no error of its own for what does not fit.
            except Exception as error:
                raise UserError(f"adapter {adapter} does not fit {base.name}: {reason_of(error)}") from error
        # Adapters have dropout of their own. In eval() bitsandbytes would lay its weights out anew, for other kernels.
        for module in base.model.train().modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        yield
    finally:
        # PEFT's own unloading leaves heads and embeddings as the adapter has them.
        for name, module in modules.items():
            if name and base.model.get_submodule(name) is not module:
                base.model.set_submodule(name, module)
        vars(base.model).pop("peft_config", None)
        base.model.train()
