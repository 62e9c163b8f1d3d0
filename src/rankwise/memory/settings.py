"""What one training step is, as far as its memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rankwise.base.quantize import Quantization
from rankwise.errors import UserError

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Optimizer: TypeAlias = Literal["adamw", "adamw-foreach", "adamw-8bit", "sgd", "adafactor"]
Attention: TypeAlias = Literal["sdpa", "eager"]
Loss: TypeAlias = Literal["full", "chunked"]
Method: TypeAlias = Literal["simulate", "formula"]
Engine: TypeAlias = Literal["peft", "pack"]

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class StepSettings:
    """A training step of `batch_size` sequences of `seq_len` tokens.

    `dtype` is the base model's, `adapter_dtype` that of what is trained beside it (PEFT's default is float32).
    `optimizer`: `adamw` is torch's fused one, which transformers' Trainer takes by default; `adamw-foreach` is
    what `torch.optim.AdamW(parameters)` takes on CUDA. `attention`: `sdpa` where the model has it. `loss`: `full` has
    the logits of all tokens at once, `chunked` computes output layer and loss in chunks of tokens. `padding`: rows
    of different lengths, so that attention needs a mask; None is yes for two rows or more. `autocast` computes
    in bfloat16 whatever the weights are (a Trainer's `bf16=True`).

    Raises `UserError` for a value that is not one of these.
    """

    batch_size: int = 4
    seq_len: int = 512
    dtype: Dtype = "bfloat16"
    adapter_dtype: Dtype = "float32"
    optimizer: Optimizer = "adamw"
    checkpointing: bool = False
    attention: Attention = "sdpa"
    loss: Loss = "full"
    quantize: Quantization = "none"
    autocast: bool = False
    padding: bool | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "seq_len"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} {getattr(self, name)}: it is at least 1")
        choices = {
            "dtype": Dtype,
            "adapter_dtype": Dtype,
            "optimizer": Optimizer,
            "attention": Attention,
            "loss": Loss,
            "quantize": Quantization,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise UserError(
                    f"{name.replace('_', '-')} {getattr(self, name)!r}: give one of {', '.join(get_args(choice))}"
                )

    @property
    def padded(self) -> bool:
        return self.batch_size > 1 if self.padding is None else self.padding
