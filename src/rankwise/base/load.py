"""Load a base model, to classify sequences or as a language model, and freeze it.

What is loaded is ready to train beside: every parameter frozen, `train()` mode (in `eval()` mode
transformers skips activation checkpointing without a word) with every dropout probability 0, and a
pad token. Weights come from safetensors alone; a pickle is never opened.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rankwise.base.first_token import compute_first_token_only_if_alike
from rankwise.base.model import DTYPES, BaseModel, describe_base, some_ids, trained_modules
from rankwise.base.quantize import Quantization, compute_in, quantization_config, stored_quantization
from rankwise.base.shapes import require_causal, require_classifier
from rankwise.base.source import explained, load_config, locate
from rankwise.errors import UserError

_ROUNDING = 0.02  # of the norm of logits, in bfloat16

DtypeChoice = Literal["auto", "float32", "bfloat16"]


def pick_device(choice: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and the CPU that this machine has."""
    if choice == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(choice)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {choice!r} is not usable here; try cpu or auto") from error
    return device


def pick_dtype(choice: DtypeChoice, device: torch.device) -> Literal["float32", "bfloat16"]:
    """`auto` is bfloat16 where the hardware multiplies in it, float32 elsewhere."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        native = False
    return "bfloat16" if native else "float32"


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a pad token; without one of its own the end-of-text token pads."""
    located = locate(name)
    with explained(name, located, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(located, trust_remote_code=trust_remote_code)
    # Without any file transformers makes up a tokenizer that knows its special tokens and, for some, a space.
    if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, "▁"}:
        raise UserError(f"model {name} has no tokenizer: tokenizer.json, or the vocabulary it is made of, is missing")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no pad, end-of-text or unknown token to pad batches with")
    return tokenizer


def load_base(
    name: str | Path,
    *,
    num_labels: int | None,
    dtype: DtypeChoice = "auto",
    device: str = "auto",
    quantize: Quantization = "none",
    trust_remote_code: bool = False,
) -> BaseModel:
    """Load, freeze and describe a base model that classifies sequences, or with None labels a causal language model.

    Raises `UserError` where the model cannot be found or read, is not of that kind, or its
    checkpoint belongs to another architecture.
    """
    located = locate(name)
    local = Path(located).is_dir()
    chosen_device = pick_device(device)
    chosen_dtype = pick_dtype(dtype, chosen_device)
    config = load_config(name, trust_remote_code=trust_remote_code)
    causal = num_labels is None
    (require_causal if causal else require_classifier)(config)
    if local:
        _check_weights(Path(located))
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    if num_labels is not None:
        config.num_labels = num_labels
    stored = stored_quantization(name, config)
    if stored != "none" and not causal:
        raise UserError(f"the weights of {name} are in {stored}, a head too: give the model as it was, and --quantize")
    if stored != "none" and quantize not in ("none", stored):
        raise UserError(f"quantize: the weights of {name} are stored in {stored} already; leave it out")
    text_config = config.get_text_config()
    text_config.use_cache = False
    text_config.pad_token_id = tokenizer.pad_token_id

    def loaded(**options: Any) -> tuple[PreTrainedModel, frozenset[str]]:
        """The model, and the modules that its checkpoint lacks."""
        auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        # A head that the checkpoint lacks is drawn at random, and what is found out about the model is to repeat.
        with torch.random.fork_rng(devices=[chosen_device] if chosen_device.type == "cuda" else []):
            torch.manual_seed(0)
            model, loading = auto.from_pretrained(
                located,
                config=copy.deepcopy(config),
                dtype=DTYPES[chosen_dtype],
                # The CPU's flash kernel spends a third of a training step in its backward.
                attn_implementation="eager" if chosen_device.type == "cpu" else None,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                **options,
            )
        missing = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
        return model, frozenset(key.rpartition(".")[0] for key in missing)

    with explained(name, located, "weights"), _quiet(progress=not local):
        if stored != "none":
            quantize = stored
            model, fresh = loaded(device_map={"": chosen_device})
            compute_in(model, DTYPES[chosen_dtype])
        elif quantize == "none":
            model, fresh = loaded()
            model.to(chosen_device)
        else:
            # What is trained in full is not quantised, and a first look tells what that is.
            shapes, fresh = loaded(device_map="meta")
            kept = trained_modules(shapes, fresh)
            how = quantization_config(quantize, shapes, kept, DTYPES[chosen_dtype])
            model, _ = loaded(quantization_config=how, device_map={"": chosen_device})
    # In `eval()` mode bitsandbytes lays its weights out anew, for kernels that cannot be trained through.
    used = _logits(model.eval(), tokenizer) if causal and quantize == "none" else None
    base = describe_base(
        name=str(name),
        revision=_model_hash(Path(located)) if local else model.config._commit_hash,
        model=model,
        tokenizer=tokenizer,
        device=chosen_device,
        dtype=chosen_dtype,
        fresh=fresh,
        causal=causal,
    )
    base = replace(base, quantize=quantize)
    _check_checkpoint(name, model, fresh, base.trained_modules, causal=causal)
    if not causal:
        compute_first_token_only_if_alike(model)
        return base
    if used is not None:
        _check_sameness(base, used)
    _check_causality(base)
    return replace(base, plain_head=_has_plain_head(base))


@torch.no_grad()
def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=some_ids(model, tokenizer, 1, 8)).logits
    return logits


def _check_sameness(base: BaseModel, used: torch.Tensor) -> None:
    """What is trained beside must compute what is used later: some models draw at random while they train."""
    logits = _logits(base.model, base.tokenizer)
    if not (logits - used).norm() <= _ROUNDING * used.norm():
        raise UserError(f"model {base.name} computes something else while it trains, so nothing can be told of it")


@torch.no_grad()
def _check_causality(base: BaseModel) -> None:
    """A token must not be told by those after it."""
    ids = some_ids(base.model, base.tokenizer, 1, 8)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    before, after = (base.model(input_ids=each).logits[:, :-1] for each in (ids, other))
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-3):
        raise UserError(f"model {base.name} lets a token see those after it: it is no causal language model")


@torch.no_grad()
def _has_plain_head(base: BaseModel) -> bool:
    """Some models scale or cap what leaves their output layer."""
    head = base.model.get_output_embeddings()
    if head is None:
        return False
    ids = some_ids(base.model, base.tokenizer, 1, 8)
    last = getattr(base.model.base_model(input_ids=ids), "last_hidden_state", None)
    return last is not None and torch.equal(head(last), base.model(input_ids=ids).logits)


def _check_weights(directory: Path) -> None:
    if not any(directory.glob("*.safetensors")):
        pickled = any(directory.glob("*.bin"))
        what = "only pickled weights, which can run code: convert them to safetensors" if pickled else "no weights"
        raise UserError(f"model directory {directory} has {what} (model.safetensors is needed)")


def _check_checkpoint(
    name: str | Path, model: PreTrainedModel, fresh: frozenset[str], trained: tuple[str, ...], *, causal: bool
) -> None:
    inside = sorted(module for module in fresh if re.search(r"\.\d+\.", module))
    if causal and fresh:
        raise UserError(f"the weights of {name} lack {sorted(fresh)[0]}: they are not those of a language model")
    if inside:
        raise UserError(
            f"the weights of {name} lack {len(inside)} modules of its layers ({inside[0]} …): "
            "the checkpoint belongs to another architecture than its config.json"
        )
    types = {module: type(model.get_submodule(module)) for module in sorted({*fresh, *trained})}
    other = [f"{module} ({kind.__name__})" for module, kind in types.items() if not issubclass(kind, nn.Linear)]
    if other:
        raise UserError(
            f"model {name} would need {', '.join(other)} trained in full beside an adapter, because its weights lack "
            "them or they belong to its head: only linear layers can be"
        )


def _model_hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def _quiet(*, progress: bool) -> Iterator[None]:
    """Keep transformers' report of new heads off the terminal, and without `progress` its bars."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
