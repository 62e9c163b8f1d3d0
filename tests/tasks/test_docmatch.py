from __future__ import annotations

import ast
import inspect
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rankwise.errors import UserError
from rankwise.tasks import library
from rankwise.tasks.docmatch import load_docmatch
from rankwise.tasks.library import Function, read_functions
from rankwise.tasks.task import Split, Task

ReadBack = Callable[[Split], list[tuple[str, ...]]]
MAX_LENGTH = 512  # a description of 200 characters takes less than half of it, so it is never cut


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    return list(library.read_functions(Path(sysconfig.get_path("stdlib"))))


@pytest.fixture
def load(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Task]:
    return lambda **caps: load_docmatch(tokenizer, MAX_LENGTH, **caps)


@pytest.fixture(scope="module")
def task(tokenizer: PreTrainedTokenizerFast) -> Task:
    return load_docmatch(tokenizer, MAX_LENGTH)


def parts(task: Task) -> list[Split]:
    return [task.train, task.validation, task.test]


def test_the_library_has_functions_enough(functions: list[Function]) -> None:
    assert 3_000 < len(functions) < 10_000
    assert not {part for function in functions for part in function.file.parts} & {"test", "tests", "site-packages"}


def test_functions_come_in_the_order_of_files_and_none_twice(functions: list[Function]) -> None:
    files = [function.file for function in functions]
    assert files == sorted(files)
    assert max(Counter(function.description for function in functions).values()) == 1
    assert max(Counter(function.body for function in functions).values()) == 1


def test_a_known_function_is_described_and_has_its_own_body(functions: list[Function]) -> None:
    (found,) = (function for function in functions if function.description.startswith("Clean up indentation from doc"))
    docstring = inspect.getdoc(inspect.cleandoc)
    assert docstring is not None
    assert found.description == " ".join(docstring.split("\n\n")[0].split())
    whole = ast.parse(inspect.getsource(inspect.cleandoc)).body[0]
    assert isinstance(whole, ast.FunctionDef)
    assert ast.dump(ast.parse(found.body)) == ast.dump(ast.Module(whole.body[1:], type_ignores=[]))


def test_every_function_gives_one_example_and_no_file_is_on_two_sides(task: Task, functions: list[Function]) -> None:
    assert sorted(np.concatenate([part.example_ids for part in parts(task)])) == list(range(len(functions)))
    groups = [set(part.groups.tolist()) for part in parts(task) if part.groups is not None]
    assert len(groups) == 3
    assert sum(map(len, groups)) == len(set.union(*groups)) == len({function.file for function in functions})
    for part in parts(task):
        assert part.groups is not None
        numbers = {int(group): functions[row].file for row, group in zip(part.example_ids, part.groups, strict=True)}
        assert all(numbers[g] == functions[row].file for row, g in zip(part.example_ids, part.groups, strict=True))


def test_the_shares_hold_within_half_the_largest_file(task: Task, functions: list[Function]) -> None:
    largest = max(Counter(function.file for function in functions).values())
    for part, share in zip(parts(task), (0.55, 0.1, 0.35), strict=True):
        assert abs(len(part) - share * len(functions)) <= largest


def test_a_match_has_its_own_body_and_a_mismatch_another_of_its_side(
    task: Task, functions: list[Function], read_back: ReadBack
) -> None:
    for part in parts(task):
        own = [functions[row].body for row in part.example_ids]
        side = set(own)
        # A byte is a token: a body that was cut is still the start of what it was cut from.
        for (description, body), row, label in zip(read_back(part), part.example_ids, part.labels, strict=True):
            assert description == functions[row].description
            whole = functions[row].body
            if label == 1:
                assert whole.startswith(body)
                assert body == whole or len(body.encode()) > MAX_LENGTH // 2 - 10
            elif len(body.encode()) < MAX_LENGTH // 3:
                assert body != whole
                assert body in side


def test_no_body_comes_twice(task: Task, read_back: ReadBack) -> None:
    for part in parts(task):
        short = [body for _, body in read_back(part) if len(body.encode()) < MAX_LENGTH // 3]
        assert len(short) == len(set(short)) > 100


def test_half_of_every_split_matches(task: Task) -> None:
    assert task.labels == ("mismatch", "match")
    for part in parts(task):
        assert abs(int(part.labels.sum()) - len(part) / 2) <= 0.5


def test_the_order_gives_nothing_away(task: Task) -> None:
    """A coin decides which of two neighbours matches, not the parity of the row."""
    labels = task.train.labels
    assert 0.4 < labels[::2].mean() < 0.6


def test_caps_take_the_first_examples(task: Task, load: Callable[..., Task]) -> None:
    capped = load(caps={"train": 60, "validation": 21, "test": 40})
    assert [len(part) for part in parts(capped)] == [60, 21, 40]
    for part, whole in zip(parts(capped), parts(task), strict=True):
        assert part.fingerprint() == whole.fingerprint(first=len(part))
        assert part.example_ids.tolist() == whole.example_ids[: len(part)].tolist()
        assert abs(int(part.labels.sum()) - len(part) / 2) <= 0.5
    assert len(load(caps={"test": 10**9}).test) == len(task.test)


def test_the_seed_decides_everything(load: Callable[..., Task]) -> None:
    caps = {"train": 50, "validation": 50, "test": 50}
    once, again, other = load(caps=caps), load(caps=caps), load(caps=caps, split_seed=1)
    for part, same, different in zip(parts(once), parts(again), parts(other), strict=True):
        assert part.fingerprint() == same.fingerprint() != different.fingerprint()
        assert part.example_ids.tolist() == same.example_ids.tolist()
        assert set(part.example_ids) != set(different.example_ids)


def test_the_user_is_told_what_the_task_depends_on(task: Task) -> None:
    assert any("standard library of Python 3." in note for note in task.notes)
    assert any(f"longer than {MAX_LENGTH} tokens" in note for note in task.notes)


SOURCE = '''
import re

def good(x):
    """Turn a thing
    into   another thing.

    And much more of it.
    """
    return re.sub("\\d", "", x)  # an invalid escape: a warning when parsed

class Thing:
    async def method(self):
        """Wait for the thing, and nothing but the thing."""
        await self.thing

    def undocumented(self):
        return 1

def again(x):
    """Turn a thing into another thing."""
    return None

def same_body(x):
    """Another sentence, twenty characters and more."""
    await_ = 1
    return re.sub("\\d", "", x)

def copy_of_it(x):
    """A third sentence, twenty characters and more."""
    await_ = 1
    return re.sub("\\d", "", x)

def short():
    """Too short."""
    return 2

def empty():
    """Nothing but a docstring of a fair length."""
'''


def test_what_qualifies(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "binary.py").write_bytes(b"\0\xff")
    (tmp_path / "a.py").write_text('def f():\n    """The first file of all comes first."""\n    return "ä"\n')
    (tmp_path / "notes.txt").write_text(SOURCE)
    for skipped in ("test", "site-packages"):
        (tmp_path / "package" / skipped).mkdir(parents=True)
        (tmp_path / "package" / skipped / "c.py").write_text(SOURCE.replace("thing", "test"))
    found = list(read_functions(tmp_path))
    assert [(str(function.file), function.description) for function in found] == [
        ("a.py", "The first file of all comes first."),
        ("b.py", "Turn a thing into another thing."),
        ("b.py", "Another sentence, twenty characters and more."),
        ("b.py", "Wait for the thing, and nothing but the thing."),
    ]
    assert found[0].body == "return 'ä'"
    assert found[3].body == "await self.thing"


@pytest.mark.parametrize(("length", "taken"), [(19, False), (20, True), (200, True), (201, False)])
def test_the_length_of_a_description(length: int, taken: bool, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f'def f():\n    """{"x" * length}"""\n    return 1\n')
    assert bool(list(read_functions(tmp_path))) == taken


def test_a_python_without_sources_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(UserError) as error:
        load_docmatch(tokenizer, MAX_LENGTH)
    assert str(error.value).isprintable()
    assert str(tmp_path / "python311.zip") in str(error.value)
