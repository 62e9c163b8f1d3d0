"""The embedded language model: the same from the same seed, made once, and blind to what it will be tested on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwise import embedded
from rankwise.base.load import load_base
from rankwise.embedded import Recipe, ensure_embedded_lm
from rankwise.errors import UserError
from rankwise.tasks.library import Library, read_library

TINY = Recipe(vocabulary=300, hidden=16, feed_forward=16, layers=1, heads=2, context=32, batch=2, steps=12, warmup=2)


def silent(text: str, share: float) -> None:
    pass


@pytest.fixture(scope="module")
def library() -> Library:
    return read_library()


@pytest.fixture(autouse=True)
def quick(library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, the library read once, and few documents."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "read_library", lambda: library)
    monkeypatch.setattr(embedded, "_documents", lambda library: [f"def f{n}():\n    return {n}\n" for n in range(90)])


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_the_same_seed_makes_the_same_model_and_another_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensure_embedded_lm(silent, TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other cache"))
    torch.manual_seed(7)
    second = ensure_embedded_lm(silent, TINY)
    other = ensure_embedded_lm(silent, Recipe(**(vars(TINY) | {"seed": 1})))
    assert len({first, second, other}) == 3
    assert weights(first) == weights(second) != weights(other)


def test_it_is_made_once_and_progress_is_told(tmp_path: Path) -> None:
    told: list[float] = []
    directory = ensure_embedded_lm(lambda text, share: told.append(share), TINY)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > TINY.steps
    assert ensure_embedded_lm(lambda text, share: pytest.fail("made again"), TINY) == directory
    assert tmp_path in directory.parents


def test_two_processes_make_one_model() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=ensure_embedded_lm, args=(lambda text, share: made.append(text), TINY)) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("reading the standard library" in text for text in made) == 1


def test_a_kill_leaves_nothing_and_the_next_start_makes_it(tmp_path: Path) -> None:
    class KilledError(BaseException):
        pass

    def killed(text: str, share: float) -> None:
        if share > 0.5:
            raise KilledError

    with pytest.raises(KilledError):
        ensure_embedded_lm(killed, TINY)
    assert not list(tmp_path.rglob("model.safetensors"))
    assert weights(ensure_embedded_lm(silent, TINY))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, no directory")
    with pytest.raises(UserError, match=r"cannot be kept in .* \(.*\): free some space there, or set XDG_CACHE_HOME"):
        ensure_embedded_lm(silent, TINY)


def test_it_is_a_language_model_as_others_are_and_has_learned() -> None:
    directory = ensure_embedded_lm(silent, Recipe(**(vars(TINY) | {"steps": 60})))
    base = load_base(directory, num_labels=None, dtype="float32", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer("ä = 'x'")["input_ids"]) == "ä = 'x'"
    ids = torch.tensor([tokenizer("def f1():\n    return 1\n")["input_ids"]])
    untrained = AutoModelForCausalLM.from_config(base.model.config)
    with torch.no_grad():
        assert base.model(input_ids=ids, labels=ids).loss < untrained(input_ids=ids, labels=ids).loss - 0.5


@pytest.mark.usefixtures("quick")
def test_no_document_is_a_file_of_validation_or_test(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    documents = "\n".join(embedded._documents(library))
    for split, count in (("train", 0), ("validation", 1), ("test", 1)):
        files = {library.functions[row].file for row in library.rows[split]}
        whole = [(library.root / file).read_text(encoding="utf-8", errors="replace") for file in sorted(files)]
        found = sum(text in documents for text in whole if text.strip())
        assert (found == 0) == bool(count), split
