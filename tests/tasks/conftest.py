"""A tokenizer made on the spot whose tokens are bytes, so that tokens can be read back as the exact text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rankwise.tasks.task import Split

SPECIAL = ["[PAD]", "[CLS]", "[SEP]"]


def make_tokenizer(*, token_types: bool) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if token_types else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_input_names=names
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(token_types=True)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """One that knows no token types."""
    return make_tokenizer(token_types=False)


@pytest.fixture(scope="session")
def read_back(tokenizer: PreTrainedTokenizerFast) -> Callable[[Split], list[tuple[str, ...]]]:
    """The text, or the pair of texts, that a split's rows were made of."""

    def texts(split: Split) -> list[tuple[str, ...]]:
        rows = []
        for row in range(len(split)):
            ids = split.input_ids[row].tolist()
            assert ids[0] == 1
            assert ids[-1] == 2
            ends = [position for position, token in enumerate(ids) if token == 2]
            rows.append(tuple(tokenizer.decode(ids[a + 1 : b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)))
        return rows

    return texts
