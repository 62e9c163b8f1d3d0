"""The folder of a model repository, and how it is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from markdown_it import MarkdownIt

from rankwise import RunError, UserError, export_recommendation
from tests.export.runs import made_run
from tests.report.samples import COMPARISON, RICH


class FakeApi:
    """What is asked of the hub; nothing else is there to ask."""

    asked: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        FakeApi.asked = []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://example.org/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        options["files"] = sorted(file.name for file in Path(options["folder_path"]).iterdir())
        self.asked.append(("upload_folder", options))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run asks nobody")

    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_dry_run_writes_the_folder_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    exported = export_recommendation(run, "hub:me/thing", dry_run=True)
    assert (exported.path, exported.address) == (run / "export/hub", None)
    files = sorted(file.name for file in (run / "export/hub").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in files[1:]:
        assert (run / "export/hub" / name).read_bytes() == (run / "adapter" / name).read_bytes()
    card = ModelCard.load(run / "export/hub/README.md")
    assert card.data.to_dict() == {
        "base_model": "owner/model",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "peft", "rankwise"],
    }


@pytest.mark.usefixtures("no_network")
def test_the_card_shows_the_comparison(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", comparison=RICH, answer={"status": "unresolved", "rank": 12})
    export_recommendation(run, "hub:me/thing", tmp_path / "out", dry_run=True)
    text = (tmp_path / "out/README.md").read_text()
    for part in (
        "# LoRA adapter of rank 12 for owner/model",
        "UNRESOLVED, until more is known: rank 12",
        "- rank 12, alpha 32, scaling alpha/rank, dropout 0",
        "base model: owner/model at 0a1b2c3d, in bfloat16",
        "200 steps of 8 examples, cut to 512 tokens",
        "| 64 | 128 | 0.0003 | 36,700,930 | 85.3 % (84.1–86.6) |",
        "| full | – | 1e-05 |",
        "r=4 loses at most 0.0034 nats to r=256",
        "200 steps of 8 of the 2,000 training examples",
        'AutoPeftModelForCausalLM.from_pretrained("me/thing")',
        "vLLM serves rank 12 with --max-lora-rank 16;",
    ):
        assert part in text


@pytest.mark.usefixtures("no_network")
def test_text_of_data_and_models_is_text_in_the_card(tmp_path: Path) -> None:
    bad = "a|b <script>x</script> [c](http://d) *e*\n# f"
    run = made_run(tmp_path / "run", causal=False, comparison=COMPARISON, answer={"reason": bad})
    document = json.loads((run / "experiments.json").read_text())
    document["notes"] = [bad]
    (run / "experiments.json").write_text(json.dumps(document))
    described = json.loads((run / "comparison.json").read_text())
    described["data"]["labels"] = ["no", bad]
    (run / "comparison.json").write_text(json.dumps(described))
    export_recommendation(run, "hub:me/thing", dry_run=True)
    body = ModelCard.load(run / "export/hub/README.md").text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inner = [child for token in tokens for child in token.children or []]
    assert {token.type for token in [*tokens, *inner]}.isdisjoint({"html_block", "html_inline", "link_open", "em_open"})
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert len(headings) == 4
    shown = "".join(child.content for child in inner if child.type.startswith("text"))
    assert shown.count("|b <script>x</script> [c](http://d) *e* # f") == 3
    assert "num_labels=2" in body
    assert "vLLM" not in body


@pytest.mark.usefixtures("no_network")
def test_where_this_machine_has_its_files_stays_here(tmp_path: Path) -> None:
    place = tmp_path / "my place" / "llama"
    note = f"3 examples were left out: {tmp_path}/secret/train.jsonl, line 4: of {place}; 1/2 of it"
    run = made_run(tmp_path / "run", base_model=str(place), revision=None)
    document = json.loads((run / "experiments.json").read_text())
    document["notes"] = [note]
    document["over"] = [document | {"model": str(place), "base": "nf4", "run": "bases/nf4"}]
    document["model"] = str(place)
    (run / "experiments.json").write_text(json.dumps(document))
    exported = export_recommendation(run, "hub:me/thing", dry_run=True)
    texts = "".join((run / "export/hub" / name).read_text() for name in ("README.md", "adapter_config.json"))
    assert str(tmp_path) not in texts
    assert "my place" not in texts
    assert texts.count("train.jsonl, line 4: of llama; 1/2 of it") == 2
    assert json.loads((run / "export/hub/adapter_config.json").read_text())["base_model_name_or_path"] == "llama"
    assert "base_model" not in ModelCard.load(run / "export/hub/README.md").data.to_dict()
    assert exported.remarks[-1].startswith("the base model is a directory here: name its hub id in ")


def test_it_is_sent_as_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    exported = export_recommendation(made_run(tmp_path / "run"), "hub:me/thing", tmp_path / "out")
    assert exported.address == "https://example.org/me/thing"
    (made, made_with), (sent, sent_with) = FakeApi.asked
    assert (made, made_with) == ("create_repo", {"repo_id": "me/thing", "private": True, "exist_ok": True})
    assert (sent, sent_with["repo_id"], sent_with["folder_path"]) == ("upload_folder", "me/thing", tmp_path / "out")
    assert sent_with["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_what_the_hub_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalTokenNotFoundError("Token is required.\nPlease log in.")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    with pytest.raises(
        RunError, match=r"^.*out could not be sent to hub:me/thing: LocalTokenNotFoundError: Token is req.*whoami\)$"
    ):
        export_recommendation(made_run(tmp_path / "run"), "hub:me/thing", tmp_path / "out")
    assert (tmp_path / "out/README.md").is_file()


@pytest.mark.parametrize("name", ["", "thing", "me/", "a/b/c", "me/th ing", "me/../x"])
def test_a_name_that_is_no_repository(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^hub:{name} names no repository: "):
        export_recommendation(tmp_path, f"hub:{name}")
