"""The embedded task as somebody trains it who has transformers and PEFT, and no other tool.

Two habits are told apart. *As is*: run_glue.py, transformers' own example, at its defaults. The model as its
checkpoint is, float32 with dropout, every text padded to the greatest length, rows in random order. *Tuned*: what a
careful reader of the documentation turns on. A base in bfloat16 under autocast (`bf16=True`), dropout off, eager
attention, batches padded to their longest row and made of rows of like length. Both train what this project trains:
LoRA on all linear layers, and the classifier.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import logging

from rankwise.base.source import locate
from rankwise.compare.config import ComparisonConfig
from rankwise.records import Trial
from rankwise.tasks.docmatch import load_docmatch
from rankwise.tasks.source import SplitName
from rankwise.tasks.task import Split, Task

Habit = Literal["as is", "tuned"]


@dataclass(frozen=True)
class User:
    """Somebody with a habit, and a comparison's model, task and sizes before them."""

    config: ComparisonConfig
    habit: Habit
    task: Task = field(init=False)
    tokenizer: Any = field(init=False)
    train: datasets.Dataset = field(init=False)
    validation: datasets.Dataset = field(init=False)
    test: datasets.Dataset = field(init=False)

    def __post_init__(self) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks by the old name
        object.__setattr__(self, "tokenizer", AutoTokenizer.from_pretrained(locate(self.config.model)))
        splits: tuple[SplitName, ...] = ("train", "validation", "test")
        caps = {split: getattr(self.config, f"max_{split}_examples") for split in splits}
        task = load_docmatch(self.tokenizer, self.config.max_length, caps=caps)
        object.__setattr__(self, "task", task)
        for name in splits:
            object.__setattr__(self, name, self._rows(getattr(task, name)))

    @property
    def tuned(self) -> bool:
        return self.habit == "tuned"

    def model(self, trial: Trial) -> Any:
        """A new adapter on a newly loaded base, as the seed has it."""
        set_seed(trial.seed)
        options: dict[str, Any] = {}
        if self.tuned:
            options = {
                "dtype": torch.bfloat16,
                "attn_implementation": "eager",
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        base = AutoModelForSequenceClassification.from_pretrained(
            locate(self.config.model), num_labels=len(self.task.labels), **options
        )
        lora = LoraConfig(r=trial.rank, lora_alpha=trial.alpha, target_modules="all-linear", task_type="SEQ_CLS")
        return get_peft_model(base, lora)

    def _rows(self, split: Split) -> datasets.Dataset:
        """The split, tokenised already; padded where the habit is to pad all rows alike."""
        columns = {"input_ids": split.input_ids, "token_type_ids": split.token_type_ids}
        rows = {name: [of[row].tolist() for row in range(len(split))] for name, of in columns.items() if of is not None}
        encoded = rows | {"attention_mask": [[1] * len(ids) for ids in rows["input_ids"]]}
        if not self.tuned:
            encoded = dict(self.tokenizer.pad(encoded, padding="max_length", max_length=self.config.max_length))
        return datasets.Dataset.from_dict(encoded | {"labels": split.labels.tolist()})

    @property
    def collator(self) -> Any:
        return DataCollatorWithPadding(self.tokenizer) if self.tuned else default_data_collator

    def trainer(
        self,
        model: Any,
        trial: Trial,
        directory: Path,
        steps: int,
        callback: TrainerCallback | None = None,
        **more: Any,
    ) -> Trainer:
        """A Trainer at its defaults, except for what the comparison says, and with nothing to write or show."""
        arguments = TrainingArguments(
            output_dir=str(directory),
            max_steps=steps,
            per_device_train_batch_size=self.config.batch_size,
            learning_rate=trial.learning_rate,
            warmup_steps=self.config.warmup_ratio,
            lr_scheduler_type=self.config.schedule,
            max_grad_norm=self.config.max_grad_norm,
            seed=trial.seed,
            bf16=self.tuned,
            train_sampling_strategy="group_by_length" if self.tuned else "random",
            use_cpu=True,
            dataloader_pin_memory=False,  # it warns where there is no GPU
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **more,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=self.train,
            eval_dataset=self.validation,
            data_collator=self.collator,
            callbacks=[] if callback is None else [callback],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def losses_of(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each example's NLL, and whether its label is the first choice."""
    scores = torch.from_numpy(logits).float()
    nll = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels.astype(np.int64)), reduction="none")
    return nll.numpy(), (logits.argmax(axis=1) == labels).astype(np.float64)
