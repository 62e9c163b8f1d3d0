"""The embedded language model: a small Llama that is made on this machine, because none can be had without a hub.

It learns Python's standard library (source files, and what `pydoc` says of the language) for some minutes, with a
tokenizer of its own, and is kept in the user's cache. Files that the validation and test examples of the embedded
tasks come from have no part in it, so the model is a base as others are: it knows the language, not the answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from rankwise.base.source import EMBEDDED_LM
from rankwise.durable import write_directory
from rankwise.errors import UserError
from rankwise.tasks.library import Library, library_root, read_library, source_files
from rankwise.train.heap import keep_freed_memory

_END = "<|end|>"  # between documents
_TABLES = "encodings"  # a directory of tables of characters, no source that anybody would learn from

Progress = Callable[[str, float], None]  # what happens, and the share that is done


@dataclass(frozen=True)
class Recipe:
    """All that the model depends on beside the library; a change makes another model, beside those that are kept."""

    vocabulary: int = 4096
    hidden: int = 192
    feed_forward: int = 768
    layers: int = 4
    heads: int = 3
    context: int = 256
    batch: int = 2  # in so little time many small steps learn more than few large ones
    steps: int = 2000
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0


RECIPE = Recipe()


def ensure_embedded_lm(tell: Progress, recipe: Recipe = RECIPE) -> Path:
    """The directory of the model, which is made where it is not there; `tell` is told what happens, and the share.

    With the same Python, torch and number of threads a CPU makes the same model, bit for bit. A kill leaves nothing
    behind, and another process waits. Raises `UserError` where the cache cannot be written.
    """
    directory = user_cache_path("rankwise") / f"{EMBEDDED_LM}-{_key(recipe)}"
    if (directory / "config.json").is_file():
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_suffix(".lock")):
            if not (directory / "config.json").is_file():
                write_directory(directory, lambda beside: _make(beside, recipe, tell))
    except OSError as error:
        raise UserError(
            f"the embedded language model cannot be kept in {directory} ({error.strerror}): free some space there, or "
            "set XDG_CACHE_HOME to another directory"
        ) from error
    return directory


def _key(recipe: Recipe) -> str:
    """Tells apart the models of different recipes and libraries."""
    digest = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    for path in source_files(library_root()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _make(directory: Path, recipe: Recipe, tell: Progress) -> None:
    tell("the embedded language model is made once: reading the standard library", 0.0)
    library = read_library()
    documents = list(_documents(library))
    tokenizer = _train_tokenizer(documents, recipe)
    tokens = _tokens(tokenizer, documents)
    model = _train(tokens, recipe, tell)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _documents(library: Library) -> Iterator[str]:
    """The source files that no validation or test example comes from, and the language's documentation."""
    held_out = {library.functions[row].file for split in ("validation", "test") for row in library.rows[split]}
    for path in source_files(library.root):
        relative = path.relative_to(library.root)
        if relative not in held_out and relative.parts[0] != _TABLES:
            yield path.read_text(encoding="utf-8", errors="replace")
    from pydoc_data.topics import topics

    yield from topics.values()


def _train_tokenizer(documents: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END, model_max_length=recipe.context
    )


def _tokens(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> np.ndarray:
    """All documents as one row, each with its end."""
    encoded = tokenizer([f"{document}{_END}" for document in documents], verbose=False)["input_ids"]
    return np.concatenate([np.array(ids, dtype=np.int64) for ids in encoded])


def _train(tokens: np.ndarray, recipe: Recipe, tell: Progress) -> LlamaForCausalLM:
    keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=recipe.vocabulary,
                hidden_size=recipe.hidden,
                intermediate_size=recipe.feed_forward,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                max_position_embeddings=recipe.context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=0,
                attn_implementation="eager",
            )
        )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)
    for step, batch in enumerate(islice(_batches(tokens, recipe), recipe.steps)):
        logits = model(input_ids=batch, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tell(f"making the embedded language model, once: NLL {loss.item():.2f} a token", (step + 1) / recipe.steps)
    return model


def _batches(tokens: np.ndarray, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Pieces of the row in random order, for ever; what is left over at its end is not used."""
    pieces = tokens[: len(tokens) // recipe.context * recipe.context].reshape(-1, recipe.context)
    generator = np.random.default_rng(recipe.seed)
    while True:
        order = generator.permutation(len(pieces))
        for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
            yield torch.from_numpy(pieces[order[start : start + recipe.batch]])
