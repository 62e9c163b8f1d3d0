from __future__ import annotations

import ast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rankwise.tasks.docstrings import load_docstrings
from rankwise.tasks.library import Library, read_library
from rankwise.tasks.task import Split, Task

MAX_LENGTH = 4096  # nothing is cut: a token is a byte


@pytest.fixture(scope="module")
def library() -> Library:
    return read_library()


@pytest.fixture(scope="module")
def task(tokenizer: PreTrainedTokenizerFast) -> Task:
    return load_docstrings(tokenizer, MAX_LENGTH, caps={"train": 200, "validation": 50, "test": 100})


def parts(task: Task) -> list[Split]:
    return [task.train, task.validation, task.test]


def texts(split: Split, tokenizer: PreTrainedTokenizerFast, *, learned: bool) -> list[str]:
    assert split.learned is not None
    return [tokenizer.decode(split.input_ids[row][split.learned[row] == int(learned)]) for row in range(len(split))]


def test_the_completion_is_the_docstring_and_the_prompt_the_function_without_it(
    task: Task, library: Library, tokenizer: PreTrainedTokenizerFast
) -> None:
    for part in parts(task):
        prompts, completions = (texts(part, tokenizer, learned=learned) for learned in (False, True))
        for row, prompt, completion in zip(part.example_ids, prompts, completions, strict=True):
            function = library.functions[row]
            if len(prompt.encode()) < MAX_LENGTH // 2:
                assert prompt == f'{function.body}\n\n{function.signature}\n    """'
            assert completion == f'{function.description}"""'


def test_the_def_line_and_the_docstring_are_python(library: Library) -> None:
    """What a model would write closes the string, and a body after it makes a function."""
    for function in library.functions[::50]:
        source = f'{function.signature}\n    """{function.description}"""\n    pass\n'
        if "\\" in function.description or '"' in function.description:
            continue
        (node,) = ast.parse(source).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(node) == function.description


def test_no_file_is_on_two_sides_and_nothing_retained_comes_from_train_or_test(task: Task, library: Library) -> None:
    files = [set(library.files[part.example_ids].tolist()) for part in parts(task)]
    assert sum(map(len, files)) == len(set.union(*files))
    for part in parts(task):
        np.testing.assert_array_equal(part.groups, library.files[part.example_ids])
    assert task.retained is not None
    assert len(task.retained) > 10


def test_caps_take_the_first_examples(task: Task, tokenizer: PreTrainedTokenizerFast) -> None:
    more = load_docstrings(tokenizer, MAX_LENGTH, caps={"train": 300, "test": 150})
    assert task.train.fingerprint() == more.train.fingerprint(first=200)
    assert task.test.fingerprint() == more.test.fingerprint(first=100)
